//! The figures of a simulated machine.

use serde::{Deserialize, Serialize};

/// A machine file: every key is optional. The defaults are of no machine in particular: a cluster with cores that
/// process 20 MB/s, as kernels with some arithmetic do, a 100 Gbit/s network and a parallel file system.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Time of a worker for each byte of split operands.
    pub compute_ns_per_byte: f64,
    /// Time of a worker for each task, whatever its size.
    pub task_ns: u64,
    /// From the memory of a rank, for inputs that are there.
    pub memory_ns_per_byte: f64,
    /// To the file system and back; the bytes of a node's ranks pass one after the other.
    pub file_latency_ns: u64,
    pub read_ns_per_byte: f64,
    pub write_ns_per_byte: f64,
    /// Between ranks of a node.
    pub node_latency_ns: u64,
    pub node_ns_per_byte: f64,
    /// Between nodes; bytes queue where they leave a node and where they enter one.
    pub network_latency_ns: u64,
    pub network_ns_per_byte: f64,
    /// Spreads are standard deviations of the logarithm of a lognormal distribution with mean 1: of the ranks' speeds,
    /// ...
    pub rank_spread: f64,
    /// ... of the cost of a byte between ranks' shards, ...
    pub shard_spread: f64,
    /// ... and between blocks.
    pub block_spread: f64,
    /// The cost of a slice is off by up to this part, either way; below 1.
    pub slice_spread: f64,
    /// Memory that one rank may plan with.
    pub memory_bytes: u64,
    /// Cores that the ranks of a node share; 0: every thread has one of its own.
    pub cores_per_node: u32,
    /// From the start of the program to the first stage.
    pub start_ns: u64,
    /// Of a rank's main thread, to begin and end each run of a stage, ...
    pub stage_ns: u64,
    /// ... and for each message that carries tensors, at either end.
    pub message_ns: u64,
    /// How long a rank may take to look at a message while its workers are busy; half of it in the mean.
    pub answer_ns: u64,
    /// What a rank that waits for others takes from cores that it shares, before it goes to sleep.
    pub poll_ns: u64,
    /// How many times as long tasks take on baseline code.
    pub baseline_factor: f64,
    /// Time of a core until optimized code is there, from the first stage on; 0: it was there before.
    pub optimize_ns: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            compute_ns_per_byte: 50.0,
            task_ns: 5_000,
            memory_ns_per_byte: 0.1,
            file_latency_ns: 500_000,
            read_ns_per_byte: 0.2,
            write_ns_per_byte: 0.2,
            node_latency_ns: 1_000,
            node_ns_per_byte: 0.1,
            network_latency_ns: 3_000,
            network_ns_per_byte: 0.08,
            rank_spread: 0.03,
            shard_spread: 0.0,
            block_spread: 0.1,
            slice_spread: 0.2,
            memory_bytes: 2 << 30,
            cores_per_node: 0,
            start_ns: 300_000_000,
            stage_ns: 20_000,
            message_ns: 1_000,
            answer_ns: 0,
            poll_ns: 300_000,
            baseline_factor: 8.0,
            optimize_ns: 0,
        }
    }
}

/// Why a machine cannot be.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    #[error("'{key}' is {value}, but must be from {least} to {most}")]
    Range { key: &'static str, value: f64, least: f64, most: f64 },
}

impl Machine {
    /// Whether all figures are such that time goes on and comes to an end.
    pub fn check(&self) -> Result<(), MachineError> {
        let ranges = [
            ("compute_ns_per_byte", self.compute_ns_per_byte, 1e-6, 1e9),
            ("memory_ns_per_byte", self.memory_ns_per_byte, 0.0, 1e6),
            ("read_ns_per_byte", self.read_ns_per_byte, 0.0, 1e6),
            ("write_ns_per_byte", self.write_ns_per_byte, 0.0, 1e6),
            ("node_ns_per_byte", self.node_ns_per_byte, 0.0, 1e6),
            ("network_ns_per_byte", self.network_ns_per_byte, 0.0, 1e6),
            ("task_ns", self.task_ns as f64, 0.0, 1e12),
            ("file_latency_ns", self.file_latency_ns as f64, 0.0, 1e12),
            ("node_latency_ns", self.node_latency_ns as f64, 1.0, 1e12),
            ("network_latency_ns", self.network_latency_ns as f64, 1.0, 1e12),
            ("rank_spread", self.rank_spread, 0.0, 2.0),
            ("shard_spread", self.shard_spread, 0.0, 2.0),
            ("block_spread", self.block_spread, 0.0, 2.0),
            ("slice_spread", self.slice_spread, 0.0, 0.99),
            ("start_ns", self.start_ns as f64, 0.0, 1e12),
            ("stage_ns", self.stage_ns as f64, 0.0, 1e12),
            ("message_ns", self.message_ns as f64, 0.0, 1e12),
            ("answer_ns", self.answer_ns as f64, 0.0, 1e12),
            ("poll_ns", self.poll_ns as f64, 0.0, 1e12),
            ("baseline_factor", self.baseline_factor, 1.0, 1e6),
            ("optimize_ns", self.optimize_ns as f64, 0.0, 1e15),
        ];
        let out = ranges.into_iter().find(|(_, value, least, most)| !(*least..=*most).contains(value));
        match out {
            Some((key, value, least, most)) => Err(MachineError::Range { key, value, least, most }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_optional_known_and_in_range() {
        let machine: Machine = toml::from_str("network_latency_ns = 9000\nslice_spread = 0.5").unwrap();
        assert_eq!((machine.network_latency_ns, machine.slice_spread, machine.task_ns), (9000, 0.5, 5000));
        assert_eq!(machine.check(), Ok(()));
        assert!(toml::from_str::<Machine>("network_latency = 9000").is_err());
        let wrong = Machine { slice_spread: 1.0, ..Machine::default() };
        assert_eq!(wrong.check().unwrap_err().to_string(), "'slice_spread' is 1, but must be from 0 to 0.99");
        assert!(Machine { block_spread: f64::NAN, ..Machine::default() }.check().is_err());
    }
}
