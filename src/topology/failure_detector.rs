use std::time::{Duration, Instant};

use super::process::same_process_alive;
use super::{Rank, Topology};
use crate::topology::keepalive::Lifeline;

const INTERVAL: Duration = Duration::from_millis(20);
/// Keeps one look under 0.1 ms however many ranks a node has.
const PROBES_PER_LOOK: usize = 8;

/// Notices the death of other ranks, whatever the launcher does about it: of those on this node, and of some on others that have a
/// [`LivenessListener`](super::Door).
///
/// A rank that has finished looks just like one that died: stop asking once the last barrier is passed.
#[derive(Debug)]
pub struct Watch {
    peers: Vec<Peer>,
    lifelines: Vec<(Rank, Lifeline)>,
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
    /// Watches every other rank on the node of `rank`, and its charges on others. `before`: what it watched when the ranks had other
    /// numbers.
    pub fn new(topology: &Topology, rank: Rank, before: Option<Watch>) -> Watch {
        let others = topology.ranks_on_node(rank).into_iter().filter(|&other| other != rank);
        let peer = |rank| {
            let host = topology.host(rank);
            Peer { rank, pid: host.pid, start_ticks: host.start_ticks }
        };
        let mut known = before.map(|before| before.lifelines).unwrap_or_default();
        let lifeline = |charge: Rank| {
            let host = topology.host(charge);
            let is_its = |(_, lifeline): &(Rank, Lifeline)| lifeline.places == host.door;
            let found = match known.iter().position(is_its) {
                _ if host.door.is_empty() => return None,
                Some(index) => Ok(known.swap_remove(index).1),
                None => Lifeline::to(&host.door),
            };
            let hostname = &host.hostname;
            let warn = |error: &std::io::Error| {
                tracing::warn!("should rank {charge} on {hostname} die, nobody here will notice: {error}")
            };
            found.inspect_err(warn).ok().map(|lifeline| (charge, lifeline))
        };
        let lifelines = topology.charges(rank).into_iter().filter_map(lifeline).collect();
        Watch { peers: others.map(peer).collect(), lifelines, next_peer: 0, next_look: Instant::now() }
    }

    /// A rank that has died, if one was found; each is told once. Cheap enough for every turn of a wait loop: it looks at
    /// most every 20 ms, at 8 peers a time.
    pub fn dead(&mut self) -> Option<Rank> {
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
        let cut = self.lifelines.iter().position(|(_, lifeline)| lifeline.is_cut())?;
        Some(self.lifelines.swap_remove(cut).0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::process::start_ticks;
    use super::*;
    use crate::topology::host::{Host, host};
    use crate::topology::keepalive::LivenessListener;

    #[test]
    fn a_closed_door_is_a_death_also_after_ranks_were_numbered_anew() {
        let doors = [(); 3].map(|()| LivenessListener::open(vec![[127, 0, 0, 1].into()]).unwrap());
        let places = doors.each_ref().map(LivenessListener::places);
        let on = |name: &str, door: &[_]| Host { hostname: name.to_owned(), door: door.to_vec(), ..host() };
        let hosts = vec![on("a", &[]), on("b", &places[0]), on("c", &places[1]), on("d", &places[2]), on("e", &[])];
        let mut watch = Watch::new(&Topology::new(hosts.clone()), 0, None);
        let dead = |watch: &mut Watch| {
            std::thread::sleep(2 * INTERVAL);
            watch.dead()
        };
        assert_eq!(dead(&mut watch), None);
        let [first, second, third] = doors;
        drop(first);
        assert_eq!((dead(&mut watch), dead(&mut watch)), (Some(1), None));
        // It closes before the new watch begins.
        drop(third);
        let mut watch = Watch::new(&Topology::new([&hosts[..1], &hosts[2..]].concat()), 0, Some(watch));
        assert_eq!((dead(&mut watch), dead(&mut watch)), (Some(2), None));
        drop(second);
        assert_eq!(dead(&mut watch), Some(1));
    }

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
        let mut watch = Watch::new(&Topology::new(hosts), 0, None);
        assert_eq!(watch.dead(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        let killed = Instant::now();
        let dead = loop {
            if let Some(rank) = watch.dead() {
                break rank;
            }
            assert!(killed.elapsed() < Duration::from_secs(60), "not noticed");
        };
        assert_eq!(dead, 2);
        std::thread::sleep(2 * INTERVAL);
        assert_eq!(watch.dead(), None, "it is told once");
    }
}
