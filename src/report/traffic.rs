//! Tensor traffic: bytes that ranks needed, by reason and distance.

use serde::{Deserialize, Serialize};

/// The reason for a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An input from a file, which one rank reads for several.
    Input,
    /// The halo of a resident tensor.
    Halo,
    /// A resident tensor that every task needs wholly, or wholly along some dimensions.
    Operand,
    /// A resident tensor that consecutive stages divide differently.
    Shuffle,
    /// Partial results.
    Reduce,
    /// Inputs and results of stolen work.
    Steal,
    /// Compressed chunks, which rank 0 writes.
    Output,
}

impl Reason {
    /// The name in reports and traces.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Input => "input",
            Reason::Halo => "halo",
            Reason::Operand => "operand",
            Reason::Shuffle => "shuffle",
            Reason::Reduce => "reduce",
            Reason::Steal => "steal",
            Reason::Output => "output",
        }
    }
}

/// The distance of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// The bytes were in the memory of this rank.
    Rank,
    /// From another rank of the same node, by a message or in shared memory.
    Node,
    /// From another node.
    Network,
}

/// Bytes by distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distances {
    pub rank: u64,
    pub node: u64,
    pub network: u64,
}

impl Distances {
    /// The bytes from other ranks.
    pub fn moved(&self) -> u64 {
        self.node + self.network
    }
}

/// Tensor bytes by reason and distance, without control messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub input: Distances,
    pub halo: Distances,
    pub operand: Distances,
    pub shuffle: Distances,
    pub reduce: Distances,
    pub steal: Distances,
    pub output: Distances,
}

impl Moved {
    /// Counts bytes that this rank received or already had.
    pub fn count(&mut self, reason: Reason, distance: Distance, bytes: u64) {
        let of_reason = match reason {
            Reason::Input => &mut self.input,
            Reason::Halo => &mut self.halo,
            Reason::Operand => &mut self.operand,
            Reason::Shuffle => &mut self.shuffle,
            Reason::Reduce => &mut self.reduce,
            Reason::Steal => &mut self.steal,
            Reason::Output => &mut self.output,
        };
        *match distance {
            Distance::Rank => &mut of_reason.rank,
            Distance::Node => &mut of_reason.node,
            Distance::Network => &mut of_reason.network,
        } += bytes;
    }

    /// Each reason's name with its bytes.
    pub fn by_reason(&self) -> [(&'static str, Distances); 7] {
        [
            (Reason::Input.name(), self.input),
            (Reason::Halo.name(), self.halo),
            (Reason::Operand.name(), self.operand),
            (Reason::Shuffle.name(), self.shuffle),
            (Reason::Reduce.name(), self.reduce),
            (Reason::Steal.name(), self.steal),
            (Reason::Output.name(), self.output),
        ]
    }

    pub(super) fn add(&mut self, other: &Moved) {
        let mine = [
            &mut self.input,
            &mut self.halo,
            &mut self.operand,
            &mut self.shuffle,
            &mut self.reduce,
            &mut self.steal,
            &mut self.output,
        ];
        for (mine, (_, other)) in mine.into_iter().zip(other.by_reason()) {
            mine.rank += other.rank;
            mine.node += other.node;
            mine.network += other.network;
        }
    }

    /// The sum over all reasons.
    pub fn total(&self) -> Distances {
        self.by_reason().iter().fold(Distances::default(), |sum, (_, bytes)| Distances {
            rank: sum.rank + bytes.rank,
            node: sum.node + bytes.node,
            network: sum.network + bytes.network,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_separately() {
        use Reason::*;
        let mut moved = Moved::default();
        for (bytes, reason) in (1..).zip([Input, Halo, Operand, Shuffle, Reduce, Steal, Output]) {
            moved.count(reason, Distance::Node, bytes);
            moved.count(reason, Distance::Network, 10 * bytes);
            moved.count(reason, Distance::Rank, 100 * bytes);
        }
        let total = moved.total();
        assert_eq!((total.rank, total.node, total.network, total.moved()), (2800, 28, 280, 308));
        assert_eq!(moved.steal, Distances { rank: 600, node: 6, network: 60 });
        let mut twice = moved;
        twice.add(&moved);
        assert!(twice.by_reason().iter().zip(moved.by_reason()).all(|((_, a), (_, b))| a.node == 2 * b.node));
    }
}
