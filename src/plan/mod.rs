//! From a job and the layouts of its inputs to a [`Plan`]: what each rank reads, computes and writes.
//!
//! Refuses to do: I/O, clocks, the environment, anything that could differ between ranks. Invariant: equal inputs give
//! equal plans on every rank; [`Plan::hash`] is what the ranks compare.
//!
//! An index that every output has may be split, others are given whole; which are split is chosen so that every input is
//! read once. The space of the split indices is cut into
//! *units*, boxes aligned to the chunks of the operands; a rank's shard is a contiguous range of units in row-major
//! order; what it reads, computes and writes at a time is a *block*, a box of whole units.

mod blocks;
mod error;
mod render;
mod stage;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use blocks::{Blocks, Tile};
pub use error::PlanError;
pub use render::render;

use crate::job::Job;
use crate::tensor::{Dtype, Shape};

/// What is known of an existing dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    pub dtype: Dtype,
    pub shape: Shape,
    pub chunk: Option<Vec<u64>>,
}

/// What the job runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub ranks: u32,
    pub ranks_per_node: u32,
    /// Worker threads per rank.
    pub threads: u32,
    /// Budget of one rank in bytes.
    pub memory_bytes: u64,
}

/// What every rank does, stage by stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Plan {
    pub job_name: String,
    pub job_hash: String,
    pub machine: Machine,
    pub stages: Vec<StagePlan>,
}

/// How a stage's tasks relate to its tensors. More kinds are to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub enum StageKind {
    /// Every task computes its own part of every output.
    Map,
}

/// One stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct StagePlan {
    pub name: String,
    pub kind: StageKind,
    pub indices: Vec<IndexPlan>,
    /// Inputs, then outputs, as in the notation.
    pub operands: Vec<OperandPlan>,
    /// The split indices as positions in `indices`, in the order of the first output.
    pub split: Vec<usize>,
    /// Extent of a unit along each split index.
    pub unit: Vec<u64>,
    /// Number of units along each split index.
    pub grid: Vec<u64>,
    /// Most units in one block.
    pub block_units: u64,
    /// Whole stage, all ranks.
    pub bytes: StageBytes,
    pub peak_bytes_per_rank: u64,
    /// Guest memory for the operands of one task.
    pub arena_bytes: u64,
    /// What the user may want to know: idle ranks, coarse chunks.
    pub notes: Vec<String>,
}

/// An index of a stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct IndexPlan {
    pub name: String,
    pub extent: u64,
    pub split: bool,
}

/// Whether an operand is read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Role {
    Input,
    Output,
}

/// How an operand is spread over ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Distribution {
    /// Whole on every rank.
    Broadcast,
    /// Each rank has the part of its shard.
    Split,
}

/// An operand of a stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OperandPlan {
    pub tensor: String,
    pub role: Role,
    pub dtype: Dtype,
    pub shape: Shape,
    /// Position in `indices` of each dimension.
    pub dims: Vec<usize>,
    pub distribution: Distribution,
    pub chunk: Option<Vec<u64>>,
    pub deflate: Option<u8>,
}

impl OperandPlan {
    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }
}

/// Bytes that a stage reads from files, moves between ranks and writes to files, all ranks together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StageBytes {
    pub read: u64,
    pub moved: u64,
    pub written: u64,
}

/// Plans a job. `layouts` has an entry for every existing dataset that the job names, by tensor name.
pub fn plan(job: &Job, layouts: &BTreeMap<String, Layout>, machine: &Machine) -> Result<Plan, PlanError> {
    let mut known = layouts.clone();
    let mut stages = Vec::new();
    for stage in &job.stages {
        let planned = stage::plan_stage(job, stage, &known, machine)?;
        for operand in planned.operands.iter().filter(|operand| operand.role == Role::Output) {
            let layout = Layout { dtype: operand.dtype, shape: operand.shape.clone(), chunk: operand.chunk.clone() };
            known.insert(operand.tensor.clone(), layout);
        }
        stages.push(planned);
    }
    let job_hash = blake3::Hash::from_bytes(job.hash()).to_hex().to_string();
    Ok(Plan { job_name: job.name.clone(), job_hash, machine: *machine, stages })
}

impl Plan {
    /// Identity of the plan; equal on all ranks or the run is refused.
    pub fn hash(&self) -> [u8; 32] {
        // JSON of plain structs with ordered fields is canonical, and cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        *blake3::hash(&text).as_bytes()
    }
}

#[cfg(test)]
mod tests;
