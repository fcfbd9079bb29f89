//! A plan: its stages, operands and process grids, and what it costs.

use crate::job::{Combine, Cut, Why};
use crate::tensor::{Boundary, Dtype, Shape};
use serde::Serialize;

/// From this size on ranks of a node read what one of them has where it is: inputs that all tasks need whole, and parts of others.
/// Below, a copy costs less than a mapping and the words about it.
pub const SHARED_BYTES: u64 = 256 << 10;

/// Type, shape and chunks of an existing dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Layout {
    pub dtype: Dtype,
    pub shape: Shape,
    /// Extents of one chunk, one per dimension, if the dataset is chunked.
    pub chunk: Option<Vec<u64>>,
}

/// What the job runs on. `ranks` and `threads` are at least 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub ranks: u32,
    pub ranks_per_node: u32,
    /// Worker threads of one rank.
    pub threads: u32,
    /// Memory one rank may use.
    pub memory_bytes: u64,
}

/// What every rank is going to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub job_name: String,
    /// [`Job::hash`], in hexadecimal.
    pub job_hash: String,
    pub machine: Machine,
    /// Memory one rank may use: the machine's, or the job's own budget if that is lower.
    pub budget_bytes: u64,
    /// In the order they run.
    pub stages: Vec<StagePlan>,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StagePlan {
    pub name: String,
    pub kind: StageKind,
    /// In order of first appearance in the notation.
    pub indices: Vec<IndexPlan>,
    /// Inputs, then outputs, as in the notation; the order of the kernel's views.
    pub operands: Vec<OperandPlan>,
    /// Positions in `indices` of the split indices, in the order of the first output. "Axis `a`" is `split[a]`.
    pub split: Vec<usize>,
    /// Elements of one unit per axis: what is never divided between ranks.
    pub unit: Vec<u64>,
    /// Units per axis. Units are numbered in row-major order of this grid.
    pub grid: Vec<u64>,
    /// How ranks divide the grid into boxes; none: ranks have consecutive units.
    pub process_grid: Option<ProcessGrid>,
    /// The last axes are reduced.
    pub reduce: Option<Reduce>,
    /// What lies beyond the edge of inputs with a halo.
    pub boundary: Option<Boundary>,
    /// Most units in a block; with a process grid, most steps.
    pub block_units: u64,
    /// Elements per axis that no block exceeds.
    pub block: Vec<u64>,
    /// Blocks of all ranks.
    pub block_count: u64,
    /// Over all ranks.
    pub bytes: StageBytes,
    /// Broadcast inputs: one host copy on every rank (of large ones a rank's part of that of its node), and of small ones a guest
    /// copy in every instance.
    pub broadcast_bytes: u64,
    /// What a rank keeps for the whole stage: its part of resident tensors, and of inputs that several of its blocks read; of what
    /// ranks of a node have together, its part.
    pub held_bytes: u64,
    /// Guest memory for the split operands of the largest block, each in pages of its own with a guard.
    pub arena_bytes: u64,
    /// `held + broadcast + threads * (guest broadcast + arena) + (threads + 2) * block`, and as many blocks again where ranks
    /// lend work to each other; where a kernel merges, each thread has two partial results more.
    pub peak_bytes_per_rank: u64,
    /// Iterated, with memory enough to keep kernel instances and inputs that never change from one iteration to the next.
    pub keeps: bool,
    /// What a person should know: idle ranks, clipped chunks, data read more than once.
    pub notes: Vec<String>,
    pub(super) ranks: u32,
    pub(super) ranks_per_node: u32,
}

/// How a stage's tasks relate to its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StageKind {
    /// Every task reads its part of the split inputs and writes its part of every output; tasks never meet.
    Map,
    /// A map that also reads its neighbours' part of some inputs.
    Halo,
    /// Tasks compute partial results, which are combined in a fixed order.
    Reduce,
}

/// Boxes of units. Each axis is cut into *steps*, step `i` beginning at unit `i * units / steps`, and neither ranks nor blocks
/// cut a step. Proportions make the cuts of one stage those of another: half of 12 steps is half of 2, whatever the extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessGrid {
    /// Ranks along each axis. Part `i` begins at step `i * steps / parts`.
    pub parts: Vec<u64>,
    /// The axes in the order in which ranks are numbered, outermost first.
    pub order: Vec<usize>,
    /// Steps along each axis, at least as many as parts, at most as many as units.
    pub steps: Vec<u64>,
    /// Steps along each axis that a rank cuts off its box where it borders on another rank's, to compute them last: they need
    /// what is on its way from there. Zeros where nothing is.
    pub rim: Vec<u64>,
    /// Bytes that come to a rank from others, in the mean, by the estimate that chose the grid.
    pub bytes: u64,
    /// The parts that would have cost least after these, and their bytes.
    pub next: Option<(Vec<u64>, u64)>,
}

/// How a reduction is cut. A step of its axes is a *group*. Along the last axis a group is cut into *leaves*, one kernel call
/// each. Partial results are combined in order: leaves within a group, then groups along the last axis, then those sums along
/// the axis before it. Groups and leaves depend on the job and its data alone, so the result has the same bits on any number
/// of ranks; but where any order gives the same bits (integers, minima, maxima) groups are cut where ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reduce {
    pub combine: Combine,
    /// How many of the last axes are reduced.
    pub axes: usize,
    /// Leaves of a group.
    pub leaves: u64,
}

/// An index of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndexPlan {
    pub name: String,
    pub extent: u64,
    /// What tasks get of it.
    pub cut: Cut,
    pub why: Why,
}

/// A tensor of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperandPlan {
    pub tensor: String,
    pub role: Role,
    pub origin: Origin,
    pub dtype: Dtype,
    pub shape: Shape,
    /// Position in [`StagePlan::indices`] of the index of each dimension.
    pub dims: Vec<usize>,
    /// Consecutive elements of each dimension for each value of its index, at least 1.
    pub scale: Vec<u64>,
    pub distribution: Distribution,
    /// Neighbours needed on each side, per dimension.
    pub halo: Vec<u64>,
    /// Whether the tensor is in the memory of the ranks between stages: an input gets what it needs from there, an output
    /// is left there (and written to its dataset too, if it has one).
    pub resident: bool,
    /// Of the dataset as it is, or is to be created.
    pub chunk: Option<Vec<u64>>,
    pub deflate: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Input,
    Output,
}

/// Where a tensor's elements live; what `job` calls its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    File,
    Created,
    Scratch,
    /// In the job file: on every rank from the start, never read or moved.
    Inline,
}

/// Who gets which part of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// All of it on every rank: read once, by rank 0, and sent to the others.
    Broadcast,
    /// Each block reads or writes the region that belongs to it. In a stage without split indices this holds for
    /// every operand: its one block, on rank 0, is everything.
    Split,
}

/// Bytes of one stage, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageBytes {
    /// From datasets; what several blocks need counts once for each.
    pub read: u64,
    /// Between ranks.
    pub moved: u64,
    /// To datasets.
    pub written: u64,
}

/// Sums over the stages of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub bytes: StageBytes,
    pub units: u64,
    pub blocks: u64,
    /// Of the stage that needs most.
    pub peak_bytes_per_rank: u64,
}

impl Plan {
    /// Identity of everything in the plan, the job's hash and the machine included.
    pub fn hash(&self) -> [u8; 32] {
        // Integers, strings and sequences in declaration order: one plan has one encoding.
        let canonical = serde_json::to_vec(self).expect("a plan holds only integers, strings and sequences");
        blake3::derive_key("exuvia plan 1", &canonical)
    }

    pub fn totals(&self) -> Totals {
        self.stages.iter().fold(Totals::default(), |sum, stage| Totals {
            bytes: StageBytes {
                read: sum.bytes.read.saturating_add(stage.bytes.read),
                moved: sum.bytes.moved.saturating_add(stage.bytes.moved),
                written: sum.bytes.written.saturating_add(stage.bytes.written),
            },
            units: sum.units.saturating_add(stage.units()),
            blocks: sum.blocks.saturating_add(stage.block_count),
            peak_bytes_per_rank: sum.peak_bytes_per_rank.max(stage.peak_bytes_per_rank),
        })
    }
}

impl OperandPlan {
    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }

    /// Bytes of the whole tensor with its halo.
    pub fn padded_bytes(&self) -> u64 {
        let widths = self.shape.iter().zip(&self.halo).map(|(extent, halo)| extent.saturating_add(2 * halo));
        widths.fold(self.dtype.size_bytes() as u64, u64::saturating_mul)
    }

    /// See [`StagePlan::is_on_node`].
    pub(super) fn is_on_node(&self) -> bool {
        let whole = self.distribution == Distribution::Broadcast && self.role == Role::Input && self.is_stored();
        whole && self.padded_bytes() >= SHARED_BYTES
    }

    /// Whether its elements come from (or go to) a dataset, and not from the job file.
    pub fn is_stored(&self) -> bool {
        self.origin != Origin::Inline
    }
}
