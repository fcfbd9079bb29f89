//! The snapshot of a run, as its file contains it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::topology::Process;

/// The state of a run. `docs/top.md` describes every field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub schema: u32,
    pub job: String,
    /// The job file.
    pub file: PathBuf,
    /// Its id in Slurm, if any; for an array, with the number of the task.
    pub slurm_job: Option<String>,
    /// The process of rank 0.
    pub rank_0: Process,
    /// The time since the start.
    pub elapsed_ns: u64,
    pub nodes: u32,
    pub threads_per_rank: u32,
    /// The number of failed ranks.
    pub deaths: u32,
    pub iteration: Option<Iteration>,
    /// Under way.
    pub stages: Vec<StageSnapshot>,
    pub ranks: Vec<RankSnapshot>,
    /// The time of the last write, in milliseconds since 1970.
    pub written_ms: u64,
}

/// The number of completed iterations, and the maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iteration {
    pub done: u64,
    pub most: u64,
}

/// A running stage, summed over all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSnapshot {
    pub stage: String,
    pub blocks: u64,
    /// The bytes of split operands, and how many of them kernels have processed.
    pub bytes: u64,
    pub processed_bytes: u64,
}

/// The latest report of a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankSnapshot {
    pub rank: u32,
    pub hostname: String,
    /// The recent throughput of kernels.
    pub bytes_per_s: f64,
    #[serde(flatten)]
    pub share: Share,
}

/// The report of a rank to rank 0, with counters since the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The time of the report, since the start of the process.
    pub at_ns: u64,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    pub processed_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub moved_bytes: u64,
    pub stolen_slices: u64,
    /// The resident memory of the process.
    pub memory_bytes: u64,
    /// Under way.
    pub stages: Vec<StageShare>,
}

/// A rank's part of a running stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageShare {
    /// Its number in the plan.
    pub index: usize,
    pub blocks_done: u64,
    pub blocks: u64,
    pub blocks_in_memory: u64,
    /// The bytes of split operands of its blocks, including stolen ones.
    pub bytes: u64,
    /// Whether its workers have optimized code.
    pub optimized: bool,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    pub processed_bytes: u64,
}

impl Snapshot {
    /// The schema version that this build writes.
    pub const SCHEMA: u32 = 1;
}
