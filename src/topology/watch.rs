use std::time::{Duration, Instant};

use super::process::same_process_alive;
use super::{Rank, Topology};

const INTERVAL: Duration = Duration::from_millis(20);
/// Keeps one look under 0.1 ms however many ranks a node has.
const PROBES_PER_LOOK: usize = 8;

/// Notices the death of other ranks on this node, whatever the launcher does about it.
///
/// A rank that has finished looks just like one that died: stop asking once the last barrier is passed.
#[derive(Debug)]
pub struct Watch {
    peers: Vec<Peer>,
    next_peer: usize,
    next_look: Instant,
}

#[derive(Debug)]
struct Peer {
    rank: Rank,
    pid: u32,
    start_ticks: u64,
}

impl Watch {
    /// Watches every other rank on the node of `rank`.
    pub fn new(topology: &Topology, rank: Rank) -> Watch {
        let others = topology.ranks_on_node(rank).into_iter().filter(|&other| other != rank);
        let peer = |rank| {
            let host = topology.host(rank);
            Peer { rank, pid: host.pid, start_ticks: host.start_ticks }
        };
        Watch { peers: others.map(peer).collect(), next_peer: 0, next_look: Instant::now() }
    }

    /// A rank of this node that has died, if one was found; each is told once. Cheap enough for every turn of a wait loop: it looks at
    /// most every 20 ms, at 8 peers a time.
    pub fn dead(&mut self) -> Option<Rank> {
        if self.peers.is_empty() {
            return None;
        }
        let now = Instant::now();
        if now < self.next_look {
            return None;
        }
        self.next_look = now + INTERVAL;
        for _ in 0..self.peers.len().min(PROBES_PER_LOOK) {
            self.next_peer = (self.next_peer + 1) % self.peers.len();
            let peer = &self.peers[self.next_peer];
            if !same_process_alive(peer.pid, peer.start_ticks) {
                return Some(self.peers.swap_remove(self.next_peer).rank);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::process::start_ticks;
    use super::super::{Host, host};
    use super::*;

    #[test]
    fn names_the_dead_rank_and_not_those_on_other_nodes() {
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
        let mut watch = Watch::new(&Topology::new(hosts), 0);
        assert_eq!(watch.dead(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        let killed = Instant::now();
        let dead = loop {
            if let Some(rank) = watch.dead() {
                break rank;
            }
            assert!(killed.elapsed() < Duration::from_secs(1), "not noticed");
        };
        assert_eq!(dead, 2);
        std::thread::sleep(2 * INTERVAL);
        assert_eq!(watch.dead(), None, "it is told once");
    }
}
