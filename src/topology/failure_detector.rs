//! The detection of failed ranks.

use std::time::{Duration, Instant};

use crate::topology::keepalive::Lifeline;
use crate::topology::process::same_process_alive;
use crate::topology::ranks::{Rank, Topology};

const INTERVAL: Duration = Duration::from_millis(20);
/// The number of processes per check, which takes less than 0.1 ms.
const PROBES_PER_CHECK: usize = 8;

/// Detects the failure of other ranks, independently of the launcher: of all ranks on this node, and of some on other
/// nodes that have a [`LivenessListener`](super::LivenessListener).
///
/// A rank that has finished looks like a failed one: do not check after the last barrier.
#[derive(Debug)]
pub struct FailureDetector {
    peers: Vec<Peer>,
    lifelines: Vec<(Rank, Lifeline)>,
    next_peer: usize,
    next_check: Instant,
}

#[derive(Debug)]
struct Peer {
    rank: Rank,
    pid: u32,
    start_ticks: u64,
}

impl FailureDetector {
    /// Monitors all other ranks on the node of `rank`, and its charges on other nodes. `before` is the detector from
    /// before a renumbering of the ranks.
    pub fn new(topology: &Topology, rank: Rank, before: Option<FailureDetector>) -> FailureDetector {
        let others = topology.ranks_on_node(rank).into_iter().filter(|&other| other != rank);
        let peer = |rank| {
            let host = topology.host(rank);
            Peer { rank, pid: host.pid, start_ticks: host.start_ticks }
        };
        let mut known = before.map(|before| before.lifelines).unwrap_or_default();
        let lifeline = |charge: Rank| {
            let host = topology.host(charge);
            let is_its = |(_, lifeline): &(Rank, Lifeline)| lifeline.addresses == host.door;
            let found = match known.iter().position(is_its) {
                _ if host.door.is_empty() => return None,
                Some(index) => Ok(known.swap_remove(index).1),
                None => Lifeline::to(&host.door),
            };
            let hostname = &host.hostname;
            let warn = |error: &std::io::Error| {
                tracing::warn!("a failure of rank {charge} on {hostname} cannot be detected from this node: {error}")
            };
            found.inspect_err(warn).ok().map(|lifeline| (charge, lifeline))
        };
        let lifelines = topology.charges(rank).into_iter().filter_map(lifeline).collect();
        FailureDetector { peers: others.map(peer).collect(), lifelines, next_peer: 0, next_check: Instant::now() }
    }

    /// Returns a failed rank, each once. Cheap enough for every iteration of a wait loop: it checks 8 peers every 20
    /// ms.
    pub fn failed_rank(&mut self) -> Option<Rank> {
        let now = Instant::now();
        if now < self.next_check {
            return None;
        }
        self.next_check = now + INTERVAL;
        for _ in 0..self.peers.len().min(PROBES_PER_CHECK) {
            self.next_peer = (self.next_peer + 1) % self.peers.len();
            let peer = &self.peers[self.next_peer];
            if !same_process_alive(peer.pid, peer.start_ticks) {
                return Some(self.peers.swap_remove(self.next_peer).rank);
            }
        }
        let cut = self.lifelines.iter().position(|(_, lifeline)| lifeline.is_cut())?;
        Some(self.lifelines.swap_remove(cut).0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::topology::host::{Host, host};
    use crate::topology::keepalive::LivenessListener;
    use crate::topology::process::start_ticks;

    #[test]
    fn a_closed_listener_is_a_failure_even_after_renumbering() {
        let doors = [(); 3].map(|()| LivenessListener::open(vec![[127, 0, 0, 1].into()]).unwrap());
        let places = doors.each_ref().map(LivenessListener::addresses);
        let on = |name: &str, door: &[_]| Host { hostname: name.to_owned(), door: door.to_vec(), ..host() };
        let hosts = vec![on("a", &[]), on("b", &places[0]), on("c", &places[1]), on("d", &places[2]), on("e", &[])];
        let mut watch = FailureDetector::new(&Topology::new(hosts.clone()), 0, None);
        let dead = |watch: &mut FailureDetector| {
            std::thread::sleep(2 * INTERVAL);
            watch.failed_rank()
        };
        assert_eq!(dead(&mut watch), None);
        let [first, second, third] = doors;
        drop(first);
        assert_eq!((dead(&mut watch), dead(&mut watch)), (Some(1), None));
        // The listener closes before the new detector starts.
        drop(third);
        let mut watch = FailureDetector::new(&Topology::new([&hosts[..1], &hosts[2..]].concat()), 0, Some(watch));
        assert_eq!((dead(&mut watch), dead(&mut watch)), (Some(2), None));
        drop(second);
        assert_eq!(dead(&mut watch), Some(1));
    }

    #[test]
    fn a_failed_rank_is_found_and_not_confused_with_other_nodes() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let peer =
            |hostname: &str, pid, ticks| Host { hostname: hostname.to_owned(), pid, start_ticks: ticks, ..host() };
        let me = std::process::id();
        let mine = start_ticks(me).unwrap();
        let hosts = vec![
            peer("a", me, mine),
            peer("b", pid, 1),
            peer("a", pid, start_ticks(pid).unwrap()),
            peer("a", me, mine),
        ];
        let mut watch = FailureDetector::new(&Topology::new(hosts), 0, None);
        assert_eq!(watch.failed_rank(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        let killed = Instant::now();
        let dead = loop {
            if let Some(rank) = watch.failed_rank() {
                break rank;
            }
            assert!(killed.elapsed() < Duration::from_secs(60), "not detected");
        };
        assert_eq!(dead, 2);
        std::thread::sleep(2 * INTERVAL);
        assert_eq!(watch.failed_rank(), None, "each failure is returned once");
    }
}
