//! The speed of a simulated machine.

use serde::{Deserialize, Serialize};

/// A machine file: every key is optional. The defaults describe no particular machine, but a typical cluster: cores
/// that process 20 MB/s, as kernels with some arithmetic do, a 100 Gbit/s network and a parallel file system.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineModel {
    /// Time of a worker for each byte of split operands.
    pub compute_ns_per_byte: f64,
    /// Time of a worker for each task, whatever its size.
    pub task_ns: u64,
    /// Inputs that are read from the memory of a rank.
    pub memory_ns_per_byte: f64,
    /// Reads and writes of files. The transfers of a node's ranks pass one after the other.
    pub file_latency_ns: u64,
    pub read_ns_per_byte: f64,
    pub write_ns_per_byte: f64,
    /// Messages between ranks of a node.
    pub node_latency_ns: u64,
    pub node_ns_per_byte: f64,
    /// Messages between nodes; they queue where they leave a node and where they enter one.
    pub network_latency_ns: u64,
    pub network_ns_per_byte: f64,
    /// Spread of the ranks' speeds. A spread is the standard deviation of the logarithm of a lognormal distribution
    /// with mean 1.
    pub rank_spread: f64,
    /// Spread of the cost of a byte between the ranks' shares.
    pub shard_spread: f64,
    /// Spread of the cost of a byte between blocks.
    pub block_spread: f64,
    /// The cost of a slice differs from the mean by up to this fraction in either direction; below 1.
    pub slice_spread: f64,
    /// Memory that one rank may plan with.
    pub memory_bytes: u64,
    /// Cores that the ranks of a node share; 0 if every thread has a core of its own.
    pub cores_per_node: u32,
    /// Time from the start of the program to the first stage.
    pub start_ns: u64,
    /// Time of a rank's main thread to begin and end each run of a stage.
    pub stage_ns: u64,
    /// Time of a rank's main thread for each message that carries tensors, at either end.
    pub message_ns: u64,
    /// The longest time until a rank answers a message while its workers are busy; the mean is half of it.
    pub answer_ns: u64,
    /// Time for which a rank that waits for others keeps a shared core busy before it goes to sleep.
    pub poll_ns: u64,
    /// How many times as long tasks take on baseline code.
    pub baseline_factor: f64,
    /// Time of a core to compile optimized code, from the first stage on; 0 if it is there from the start.
    pub optimize_ns: u64,
}

impl Default for MachineModel {
    fn default() -> Self {
        MachineModel {
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

impl MachineModel {
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
        let machine: MachineModel = toml::from_str("network_latency_ns = 9000\nslice_spread = 0.5").unwrap();
        assert_eq!((machine.network_latency_ns, machine.slice_spread, machine.task_ns), (9000, 0.5, 5000));
        assert_eq!(machine.check(), Ok(()));
        assert!(toml::from_str::<MachineModel>("network_latency = 9000").is_err());
        let wrong = MachineModel { slice_spread: 1.0, ..MachineModel::default() };
        assert_eq!(wrong.check().unwrap_err().to_string(), "'slice_spread' is 1, but must be from 0 to 0.99");
        assert!(MachineModel { block_spread: f64::NAN, ..MachineModel::default() }.check().is_err());
    }
}
