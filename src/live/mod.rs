//! Runs that are under way, as they say of themselves: a small file each, in a folder of the user's, which whoever wants to
//! see how a run is getting on may read.
//!
//! Refuses to do: MPI, and holding a run up: a thread of its own writes the file, and what is said while it is busy is not
//! written. Invariant: a file is there no longer than its run: it goes with it, and whoever looks removes those of dead
//! processes.

mod folder;
mod publisher;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use folder::{folder, list};
pub use publisher::Publisher;

use crate::topology::Process;

/// How a run is getting on. `docs/top.md` describes every field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub schema: u32,
    pub job: String,
    /// The job file.
    pub file: PathBuf,
    /// Its id, if Slurm runs it; of an array with the number of the task.
    pub slurm_job: Option<String>,
    /// The one that speaks for all.
    pub rank_0: Process,
    /// Since it started.
    pub elapsed_ns: u64,
    pub nodes: u32,
    pub threads_per_rank: u32,
    /// Ranks that died, and the others went on.
    pub deaths: u32,
    pub iteration: Option<Iteration>,
    /// Under way.
    pub stages: Vec<StageSnapshot>,
    pub ranks: Vec<RankSnapshot>,
    /// When the file was last written, in milliseconds since 1970.
    pub written_ms: u64,
}

/// How often the iterated stages have run, and how often they will at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iteration {
    pub done: u64,
    pub most: u64,
}

/// A stage under way, all ranks together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSnapshot {
    pub stage: String,
    pub blocks: u64,
    /// Of split operands, and how many of them went through kernels.
    pub bytes: u64,
    pub processed_bytes: u64,
}

/// What a rank last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankSnapshot {
    pub rank: u32,
    pub hostname: String,
    /// Through kernels, lately.
    pub bytes_per_s: f64,
    #[serde(flatten)]
    pub share: Share,
}

/// What a rank tells rank 0. Numbers are those of the run so far, unless they are a stage's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// When it said so, since its process started.
    pub at_ns: u64,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    pub processed_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub moved_bytes: u64,
    pub stolen_slices: u64,
    /// Of its process, resident.
    pub memory_bytes: u64,
    /// Under way.
    pub stages: Vec<StageShare>,
}

/// A rank's part of a stage under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageShare {
    /// Its number in the plan.
    pub index: usize,
    pub blocks_done: u64,
    pub blocks: u64,
    pub blocks_in_memory: u64,
    /// Of split operands of its blocks, whoever computes them.
    pub bytes: u64,
    /// Whether its workers were given optimized code.
    pub optimized: bool,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    pub processed_bytes: u64,
}

impl Snapshot {
    /// Layout version that this build writes.
    pub const SCHEMA: u32 = 1;
}
