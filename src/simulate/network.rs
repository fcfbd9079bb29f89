//! What ranks of a node share: its way to the file system, and its network interface, each way by itself. Bytes pass
//! one transfer after the other, in the order in which they were sent.

use crate::simulate::machine::Machine;

/// When each link of a node is free again.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    file_ns: u64,
    out_ns: u64,
    in_ns: u64,
}

#[derive(Debug)]
pub(super) struct Links {
    nodes: Vec<Node>,
    ranks_per_node: u32,
}

impl Links {
    pub fn new(ranks: u32, ranks_per_node: u32) -> Links {
        let nodes = vec![Node::default(); ranks.div_ceil(ranks_per_node) as usize];
        Links { nodes, ranks_per_node }
    }

    pub fn node(&self, rank: u32) -> usize {
        (rank / self.ranks_per_node) as usize
    }

    /// When a message sent now is there. One without bytes overtakes those that queue.
    pub fn send(&mut self, now_ns: u64, machine: &Machine, from: u32, to: u32, bytes: u64) -> u64 {
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

    /// When so many bytes are read from files, or written to them.
    pub fn file(&mut self, now_ns: u64, machine: &Machine, rank: u32, bytes: u64, ns_per_byte: f64) -> u64 {
        if bytes == 0 {
            return now_ns;
        }
        let node = self.node(rank);
        let link = &mut self.nodes[node].file_ns;
        *link = now_ns.max(*link) + time(bytes, ns_per_byte);
        *link + machine.file_latency_ns
    }
}

/// How long `bytes` take.
pub(super) fn time(bytes: u64, ns_per_byte: f64) -> u64 {
    (bytes as f64 * ns_per_byte) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_queue_at_both_ends_and_small_messages_do_not() {
        let machine =
            Machine { network_latency_ns: 10, network_ns_per_byte: 1.0, node_latency_ns: 1, ..Machine::default() };
        let mut links = Links::new(6, 2);
        assert_eq!(links.send(0, &machine, 0, 2, 100), 110);
        // Behind the first where it leaves, ...
        assert_eq!(links.send(0, &machine, 1, 4, 100), 210);
        // ... and where it enters.
        assert_eq!(links.send(150, &machine, 2, 5, 100), 310);
        assert_eq!(links.send(0, &machine, 0, 4, 0), 10);
        assert_eq!(links.send(0, &machine, 0, 1, 1000), 101);
    }
}
