//! The ranks of a run and their nodes.

use crate::topology::cpu::CpuClass;
use crate::topology::host::Host;

/// An MPI process, counted from 0.
pub type Rank = u32;

/// The hosts of all ranks, in rank order.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    hosts: Vec<Host>,
    /// Node of each rank; nodes are numbered in the order of their lowest rank.
    nodes: Vec<u32>,
    node_count: u32,
}

impl Topology {
    /// `hosts[r]` describes rank `r`.
    pub fn new(hosts: Vec<Host>) -> Topology {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        let nodes = hosts
            .iter()
            .map(|host| {
                let key = (host.hostname.as_str(), host.pid_namespace.as_str());
                let node = seen.iter().position(|&other| other == key);
                node.unwrap_or_else(|| {
                    seen.push(key);
                    seen.len() - 1
                }) as u32
            })
            .collect();
        let node_count = seen.len() as u32;
        Topology { hosts, nodes, node_count }
    }

    /// The hosts of all ranks, in rank order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of one rank.
    pub fn host(&self, rank: Rank) -> &Host {
        &self.hosts[rank as usize]
    }

    /// The number of ranks.
    pub fn size(&self) -> u32 {
        self.hosts.len() as u32
    }

    /// The number of nodes.
    pub fn node_count(&self) -> u32 {
        self.node_count
    }

    /// The rank's node, `0..node_count()`.
    pub fn node_of(&self, rank: Rank) -> u32 {
        self.nodes[rank as usize]
    }

    /// The rank's index among the ranks of its node.
    pub fn local_rank(&self, rank: Rank) -> u32 {
        let node = self.node_of(rank);
        let before = &self.nodes[..rank as usize];
        before.iter().filter(|&&other| other == node).count() as u32
    }

    /// All ranks on the node of `rank`, including itself, in ascending order.
    pub fn ranks_on_node(&self, rank: Rank) -> Vec<Rank> {
        let node = self.node_of(rank);
        (0..self.size()).filter(|&other| self.node_of(other) == node).collect()
    }

    /// The ranks on other nodes that `rank` monitors: some of each of the next few nodes, so that the ranks of a node
    /// share those of another. A loss goes unnoticed only if as many nodes are lost at once.
    pub(crate) fn charges(&self, rank: Rank) -> Vec<Rank> {
        const NODES: u32 = 8;
        let (home, mine) = (self.node_of(rank), self.ranks_on_node(rank).len() as u32);
        let (local, mut seen) = (self.local_rank(rank), vec![0; self.node_count as usize]);
        let is_charge = |other: &Rank| {
            let node = self.node_of(*other);
            let seen = &mut seen[node as usize];
            *seen += 1;
            let ahead = (node + self.node_count - home) % self.node_count;
            (1..=NODES).contains(&ahead) && (*seen - 1) % mine == local
        };
        (0..self.size()).filter(is_charge).collect()
    }

    /// Ranks grouped by equal CPUs, in the order of each class's lowest rank: one compile serves one class.
    pub fn cpu_classes(&self) -> Vec<(CpuClass, Vec<Rank>)> {
        let mut classes: Vec<(CpuClass, Vec<Rank>)> = Vec::new();
        for (rank, host) in (0..).zip(&self.hosts) {
            match classes.iter_mut().find(|(class, _)| *class == host.cpu) {
                Some((_, ranks)) => ranks.push(rank),
                None => classes.push((host.cpu.clone(), vec![rank])),
            }
        }
        classes
    }

    /// The number of kernel threads of this rank that fills its node: every CPU that the rank may run on, divided by
    /// the ranks of the node that may run there too; at most the number requested from Slurm, and at least 1.
    pub fn default_threads(&self, rank: Rank) -> u32 {
        let host = self.host(rank);
        let neighbours = self.ranks_on_node(rank);
        let sharers = |cpu: &u32| {
            let masks = neighbours.iter().map(|&r| &self.host(r).cpus_allowed);
            masks.filter(|mask| mask.contains(cpu)).count().max(1)
        };
        let share: f64 = host.cpus_allowed.iter().map(|cpu| 1.0 / sharers(cpu) as f64).sum();
        // A cgroup quota or Slurm may limit `cores` below the mask for all ranks of the node together: divide it
        // equally.
        let quota = f64::from(host.cores) / host.cpus_allowed.len().max(1) as f64;
        // Sums of fractions such as 1/3 may be slightly less than an integer.
        let threads = (share * quota.min(1.0) + 1e-6) as u32;
        threads.min(host.cpus_per_task.unwrap_or(u32::MAX)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::host::host;

    fn on(hostname: &str, namespace: &str, cpus: std::ops::Range<u32>) -> Host {
        Host {
            hostname: hostname.to_owned(),
            pid_namespace: namespace.to_owned(),
            cores: cpus.len() as u32,
            cpus_allowed: cpus.collect(),
            ..host()
        }
    }

    #[test]
    fn nodes_are_hostname_and_pid_namespace() {
        let topology =
            Topology::new(vec![on("a", "1", 0..4), on("b", "1", 0..4), on("a", "2", 0..4), on("a", "1", 0..4)]);
        assert_eq!(topology.node_count(), 3);
        assert_eq!(topology.node_of(3), 0);
        assert_eq!(topology.local_rank(3), 1);
        assert_eq!(topology.local_rank(2), 0);
        assert_eq!(topology.ranks_on_node(0), [0, 3]);
    }

    #[test]
    fn every_rank_is_watched_from_each_of_the_nodes_before_its_own() {
        // Nodes of 1, 2, 3, 1, ... ranks.
        let nodes = |count: usize| (0..count).flat_map(|node| vec![on(&format!("n{node}"), "1", 0..4); 1 + node % 3]);
        for count in [1, 2, 5, 9, 12] {
            let topology = Topology::new(nodes(count).collect());
            for rank in 0..topology.size() {
                let watchers: Vec<Rank> =
                    (0..topology.size()).filter(|other| topology.charges(*other).contains(&rank)).collect();
                let mut from: Vec<u32> = watchers.iter().map(|watcher| topology.node_of(*watcher)).collect();
                from.sort_unstable();
                from.dedup();
                // One rank of each node monitors it.
                assert_eq!((from.len(), watchers.len()), (8.min(count - 1), 8.min(count - 1)), "{rank} on {count}");
                assert!(!from.contains(&topology.node_of(rank)));
            }
        }
    }

    #[test]
    fn threads_divide_shared_cpus_and_leave_private_ones() {
        let shared = Topology::new((0..3).map(|_| on("a", "1", 0..12)).collect());
        assert_eq!(shared.default_threads(1), 4);
        let bound = Topology::new(vec![on("a", "1", 0..6), on("a", "1", 6..12)]);
        assert_eq!(bound.default_threads(1), 6);
        let crowded = Topology::new((0..5).map(|_| on("a", "1", 0..2)).collect());
        assert_eq!(crowded.default_threads(4), 1);
        let apart = Topology::new(vec![on("a", "1", 0..8), on("b", "1", 0..8)]);
        assert_eq!(apart.default_threads(0), 8);
        let mut limited = on("a", "1", 0..8);
        limited.cores = 4;
        let shared = Topology::new(vec![limited.clone(), limited.clone()]);
        assert_eq!(shared.default_threads(0), 2);
        limited.cpus_per_task = Some(3);
        assert_eq!(Topology::new(vec![limited]).default_threads(0), 3);
    }

    #[test]
    fn classes_group_equal_cpus() {
        let mut old = on("b", "1", 0..4);
        old.cpu.features.retain(|feature| feature != "avx2");
        old.cpu.name = "older".to_owned();
        let topology = Topology::new(vec![on("a", "1", 0..4), old, on("c", "1", 0..4)]);
        let ranks: Vec<_> = topology.cpu_classes().into_iter().map(|(_, ranks)| ranks).collect();
        assert_eq!(ranks, [vec![0, 2], vec![1]]);
    }
}
