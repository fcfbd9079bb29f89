//! The links that the ranks of a node share: to the file system, and to the network in each direction. A link carries
//! one transfer after the other, in the order in which they were sent.

use crate::simulate::machine::MachineModel;

/// When each link of a node is free again.
#[derive(Clone, Copy, Debug, Default)]
struct NodeLinks {
    file_ns: u64,
    out_ns: u64,
    in_ns: u64,
}

#[derive(Debug)]
pub(super) struct Network {
    nodes: Vec<NodeLinks>,
    ranks_per_node: u32,
}

impl Network {
    pub fn new(ranks: u32, ranks_per_node: u32) -> Network {
        let nodes = vec![NodeLinks::default(); ranks.div_ceil(ranks_per_node) as usize];
        Network { nodes, ranks_per_node }
    }

    pub fn node(&self, rank: u32) -> usize {
        (rank / self.ranks_per_node) as usize
    }

    /// When a message that is sent now arrives. A message without bytes overtakes those in the queue.
    pub fn send(&mut self, now_ns: u64, machine: &MachineModel, from: u32, to: u32, bytes: u64) -> u64 {
        let (from, to) = (self.node(from), self.node(to));
        if from == to {
            return now_ns + machine.node_latency_ns + time(bytes, machine.node_ns_per_byte);
        }
        if bytes == 0 {
            return now_ns + machine.network_latency_ns;
        }
        let busy_ns = time(bytes, machine.network_ns_per_byte);
        let leaves_ns = now_ns.max(self.nodes[from].out_ns);
        self.nodes[from].out_ns = leaves_ns + busy_ns;
        let enters_ns = (leaves_ns + machine.network_latency_ns).max(self.nodes[to].in_ns);
        self.nodes[to].in_ns = enters_ns + busy_ns;
        self.nodes[to].in_ns
    }

    /// When a transfer of `bytes` from or to files ends.
    pub fn file(&mut self, now_ns: u64, machine: &MachineModel, rank: u32, bytes: u64, ns_per_byte: f64) -> u64 {
        if bytes == 0 {
            return now_ns;
        }
        let node = self.node(rank);
        let link = &mut self.nodes[node].file_ns;
        *link = now_ns.max(*link) + time(bytes, ns_per_byte);
        *link + machine.file_latency_ns
    }
}

/// How long a transfer of `bytes` takes.
pub(super) fn time(bytes: u64, ns_per_byte: f64) -> u64 {
    (bytes as f64 * ns_per_byte) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_queue_at_both_ends_and_small_messages_do_not() {
        let machine = MachineModel {
            network_latency_ns: 10,
            network_ns_per_byte: 1.0,
            node_latency_ns: 1,
            ..MachineModel::default()
        };
        let mut network = Network::new(6, 2);
        assert_eq!(network.send(0, &machine, 0, 2, 100), 110);
        // It queues behind the first where it leaves ...
        assert_eq!(network.send(0, &machine, 1, 4, 100), 210);
        // ... and where it enters.
        assert_eq!(network.send(150, &machine, 2, 5, 100), 310);
        assert_eq!(network.send(0, &machine, 0, 4, 0), 10);
        assert_eq!(network.send(0, &machine, 0, 1, 1000), 101);
    }
}
