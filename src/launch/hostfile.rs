//! The hosts that ranks are started on: the MPI library's own hostfile, without the hosts that no longer respond.

use std::io::Write;
use std::path::Path;
use std::thread;

use crate::fabric;

/// The lines of a hostfile, without comments.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq)]
struct Line {
    text: String,
    host: String,
    slots: u64,
}

impl Hosts {
    pub fn read(file: &Path) -> std::io::Result<Hosts> {
        let hosts = Hosts::parse(&std::fs::read_to_string(file)?, fabric::is_open_mpi());
        let empty = || std::io::Error::other("the file contains no host");
        (!hosts.lines.is_empty()).then_some(hosts).ok_or_else(empty)
    }

    /// Open MPI's format is `HOST slots=2`, that of MPICH `HOST:2`; without a number, a host has one slot.
    fn parse(text: &str, open_mpi: bool) -> Hosts {
        let line = |text: &str| {
            let text = text.split('#').next().unwrap_or_default().trim();
            let mut words = text.split_whitespace();
            let first = words.next()?;
            let (host, slots) = match open_mpi {
                true => (first, words.find_map(|word| word.strip_prefix("slots="))),
                false => first.split_once(':').map_or((first, None), |(host, slots)| (host, Some(slots))),
            };
            let slots = slots.and_then(|slots| slots.parse().ok()).unwrap_or(1);
            Some(Line { text: text.to_owned(), host: host.to_owned(), slots })
        };
        Hosts { lines: text.lines().filter_map(line).collect() }
    }

    /// The distinct hosts.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for line in &self.lines {
            if !names.contains(&line.host.as_str()) {
                names.push(&line.host);
            }
        }
        names
    }

    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        let mut out = std::fs::File::create(file)?;
        self.lines.iter().try_for_each(|line| writeln!(out, "{}", line.text))
    }

    /// Probes all hosts at the same time, removes those that do not respond, and returns their names.
    pub fn remove_unresponsive(&mut self, responds: impl Fn(&Hosts) -> bool + Sync) -> Vec<String> {
        let names: Vec<String> = self.names().into_iter().map(str::to_owned).collect();
        let alone = |name: &String| Hosts { lines: self.lines.iter().filter(|l| l.host == *name).cloned().collect() };
        let lost: Vec<String> = thread::scope(|scope| {
            let responds = &responds;
            let probe = |name: &String| {
                let host = alone(name);
                scope.spawn(move || responds(&host))
            };
            let probes: Vec<_> = names.iter().map(|name| (name.clone(), probe(name))).collect();
            probes.into_iter().filter_map(|(name, probe)| (!probe.join().unwrap_or(false)).then_some(name)).collect()
        });
        self.lines.retain(|line| !lost.contains(&line.host));
        lost
    }

    /// The number of ranks for these hosts, if `ranks` was the number for `all` hosts: each host keeps its number.
    pub fn scale_ranks(&self, ranks: u32, all: &Hosts) -> u32 {
        let slots = |hosts: &Hosts| hosts.lines.iter().map(|line| line.slots).sum::<u64>().max(1);
        (u64::from(ranks) * slots(self)).div_ceil(slots(all)).max(1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unresponsive_hosts_are_removed_with_their_ranks() {
        let text = "# my nodes\nn1 slots=4\n\nn2 slots=2 max_slots=2 # old\nn3\nn1 slots=1\n";
        let all = Hosts::parse(text, true);
        assert_eq!(all.names(), ["n1", "n2", "n3"]);
        let mut left = all.clone();
        let responds = |host: &Hosts| !["n1"].contains(&host.names()[0]);
        assert_eq!(left.remove_unresponsive(responds), ["n1"]);
        assert_eq!(left.names(), ["n2", "n3"]);
        assert_eq!((left.scale_ranks(8, &all), left.scale_ranks(7, &all), left.scale_ranks(1, &all)), (3, 3, 1));
        assert_eq!(left.remove_unresponsive(|_| false), ["n2", "n3"]);
        assert_eq!(left.scale_ranks(8, &all), 1);
    }

    #[test]
    fn mpich_has_its_own_hostfile_format() {
        let all = Hosts::parse("n1:4\nn2:2 binding=user:1\nn3\n", false);
        assert_eq!(all.names(), ["n1", "n2", "n3"]);
        let slots: Vec<u64> = all.lines.iter().map(|line| line.slots).collect();
        assert_eq!(slots, [4, 2, 1]);
        let file = tempfile::NamedTempFile::new().unwrap();
        all.write(file.path()).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "n1:4\nn2:2 binding=user:1\nn3\n");
    }
}
