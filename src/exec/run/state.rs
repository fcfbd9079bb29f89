//! The state of a run that outlives failed ranks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::exec::comm::shrink::FailedRank;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::progress::ProgressReporter;
use crate::exec::run::startup::JobSetup;
use crate::exec::trace::recorder::Incarnation;
use crate::fabric::Payload;
use crate::report::{Death, RankReport};

/// Completed work of an earlier run of the job that this run took up.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResumedWork {
    pub bytes: u64,
    pub tasks: u64,
}

/// The state that a rank keeps when the run continues without failed ranks.
pub(super) struct RunState {
    pub process_start: Instant,
    /// The job as it was first read, whatever has become of its file.
    pub setup: Option<JobSetup>,
    /// The kernel modules as they were first read, by stage.
    pub modules: Vec<Payload>,
    pub tiers: Option<TierUp>,
    pub progress: ProgressReporter,
    /// The name under which the run is published; that of its first rank 0.
    pub name: Option<String>,
    /// None before the manifest of an earlier run is taken up or cleared.
    pub resumed: Option<ResumedWork>,
    /// The trace so far.
    pub incarnations: Vec<Incarnation>,
    pub report: RankReport,
}

impl RunState {
    pub fn new() -> RunState {
        RunState {
            process_start: process_start(),
            setup: None,
            modules: Vec::new(),
            tiers: None,
            progress: ProgressReporter::default(),
            name: None,
            resumed: None,
            incarnations: Vec::new(),
            report: RankReport::default(),
        }
    }

    /// Adds failed ranks to the report.
    pub fn record_failed(&mut self, failed: &[FailedRank]) {
        let at_ns = self.process_start.elapsed().as_nanos() as u64;
        let death = |failed: &FailedRank| Death {
            rank: failed.rank,
            hostname: failed.hostname.clone(),
            at_ns,
            first_task_ns: None,
        };
        self.report.deaths.extend(failed.iter().map(death));
    }
}

/// A note about failed ranks: consecutive ranks of a node are a range. `left` ranks continue, on the nodes `hostnames`.
pub(super) fn format_failed_ranks(failed: &[FailedRank], left: u32, hostnames: &BTreeSet<String>) -> String {
    let one_node = hostnames.len() <= 1 && failed.iter().all(|rank| hostnames.iter().all(|one| *one == rank.hostname));
    let on_nodes = if one_node { String::new() } else { format!(" on {}", counted(hostnames.len(), "node")) };
    let of_nodes: Vec<String> = failed.chunk_by(|a, b| a.hostname == b.hostname).map(format_ranks_of_node).collect();
    format!("{} failed; continuing with {}{on_nodes}", of_nodes.join(" and "), counted(left as usize, "rank"))
}

fn format_ranks_of_node(failed: &[FailedRank]) -> String {
    let range = |ranks: &[FailedRank]| match ranks {
        [first, .., last] => format!("{}-{}", first.rank, last.rank),
        _ => ranks.iter().map(|rank| rank.rank.to_string()).collect(),
    };
    let ranges: Vec<String> = failed.chunk_by(|a, b| a.rank + 1 == b.rank).map(range).collect();
    let noun = if failed.len() == 1 { "rank" } else { "ranks" };
    let hostname = failed.first().map(|rank| rank.hostname.as_str()).filter(|hostname| !hostname.is_empty());
    let on_node = hostname.map(|hostname| format!(" ({hostname})")).unwrap_or_default();
    format!("{noun} {}{on_node}", ranges.join(", "))
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// When this process started, to the kernel's clock tick; now, where that cannot be known.
fn process_start() -> Instant {
    let now = Instant::now();
    let age = || -> Option<Duration> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let started_ticks: f64 = stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
        let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
        let age = uptime - started_ticks / rustix::param::clock_ticks_per_second() as f64;
        Duration::try_from_secs_f64(age).ok()
    };
    age().and_then(|age| now.checked_sub(age)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_ranks_are_ranges_by_node() {
        let failed = |ranks: &[(u32, &str)]| -> Vec<FailedRank> {
            ranks.iter().map(|(rank, hostname)| FailedRank { rank: *rank, hostname: (*hostname).to_owned() }).collect()
        };
        let nodes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let note =
            |ranks: &[(u32, &str)], left, names: &[&str]| format_failed_ranks(&failed(ranks), left, &nodes(names));
        assert_eq!(note(&[(2, "n1")], 1, &["n1"]), "rank 2 (n1) failed; continuing with 1 rank");
        assert_eq!(
            note(&[(4, "n2"), (5, "n2"), (6, "n2"), (7, "n2")], 8, &["n1", "n3"]),
            "ranks 4-7 (n2) failed; continuing with 8 ranks on 2 nodes"
        );
        assert_eq!(
            note(&[(0, "n1"), (2, "n1"), (3, "n1"), (4, "n2")], 2, &["n1"]),
            "ranks 0, 2-3 (n1) and rank 4 (n2) failed; continuing with 2 ranks on 1 node"
        );
        assert_eq!(note(&[(1, "")], 3, &[]), "rank 1 failed; continuing with 3 ranks");
    }
}
