//! The types of a plan: stages, operands, process grids and costs.

use crate::job::{Combine, Cut, Why};
use crate::tensor::{Boundary, Dtype, Shape};
use serde::Serialize;

/// Data of at least this size are shared by the ranks of a node: the others read the copy of one rank in place. This
/// holds for inputs that all tasks need whole, and for parts of other inputs. Below this size, a copy costs less than a
/// mapping and its messages.
pub const SHARED_BYTES: u64 = 256 << 10;

/// The type, shape and chunks of an existing dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Layout {
    pub dtype: Dtype,
    pub shape: Shape,
    /// The extents of one chunk, one per dimension, if the dataset is chunked.
    pub chunk: Option<Vec<u64>>,
}

/// The machine that the job runs on. `ranks` and `threads` are at least 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub ranks: u32,
    pub ranks_per_node: u32,
    /// The worker threads of one rank.
    pub threads: u32,
    /// The memory that one rank may use.
    pub memory_bytes: u64,
}

/// The work of every rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub job_name: String,
    /// [`Job::hash`](crate::job::Job::hash), in hexadecimal.
    pub job_hash: String,
    pub machine: Machine,
    /// The memory that one rank may use: the machine's, or the job's own budget if that is lower.
    pub budget_bytes: u64,
    /// The stages, in the order in which they run.
    pub stages: Vec<StagePlan>,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StagePlan {
    pub name: String,
    pub kind: StageKind,
    /// The indices, in order of first appearance in the notation.
    pub indices: Vec<IndexPlan>,
    /// The inputs, then the outputs, as in the notation. The kernel's views have the same order.
    pub operands: Vec<OperandPlan>,
    /// The positions in `indices` of the split indices, in the order of the first output. "Axis `a`" is `split[a]`.
    pub split: Vec<usize>,
    /// The elements of one unit, per axis. A unit is never divided between ranks.
    pub unit: Vec<u64>,
    /// The number of units, per axis. Units are numbered in row-major order of this grid.
    pub grid: Vec<u64>,
    /// The division of the grid into one box per rank. With `None`, each rank has consecutive units.
    pub process_grid: Option<ProcessGrid>,
    /// The reduction, if any. Its axes are the last ones.
    pub reduce: Option<Reduce>,
    /// The values beyond the edge of inputs with a halo.
    pub boundary: Option<Boundary>,
    /// The largest number of units in a block. With a process grid, it counts steps.
    pub block_units: u64,
    /// The largest extent of a block in elements, per axis.
    pub block: Vec<u64>,
    /// The number of blocks of all ranks.
    pub block_count: u64,
    /// The bytes read, moved and written by all ranks.
    pub bytes: StageBytes,
    /// The bytes of the broadcast inputs. Every rank has one host copy; of a large input, it has a part of the copy of
    /// its node. Every instance has a guest copy of the small ones.
    pub broadcast_bytes: u64,
    /// The bytes that a rank keeps for the whole stage: its part of resident tensors, and of inputs that several of its
    /// blocks read. Of data that the ranks of a node share, only the rank's part counts.
    pub held_bytes: u64,
    /// The guest memory for the split operands of the largest block. Each operand has its own pages and a guard.
    pub arena_bytes: u64,
    /// The peak memory of a rank: `held + broadcast + threads * (guest broadcast + arena) + (threads + 2) * block`.
    /// Where ranks lend work to each other, the number of blocks doubles. Where a kernel merges, each thread has two
    /// more partial results.
    pub peak_bytes_per_rank: u64,
    /// Whether the stage is iterated and memory suffices to keep kernel instances and unchanging inputs between
    /// iterations.
    pub keeps: bool,
    /// Remarks for the user: idle ranks, clipped chunks, data read more than once.
    pub notes: Vec<String>,
    pub(super) ranks: u32,
    pub(super) ranks_per_node: u32,
}

/// The relation of a stage's tasks to its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StageKind {
    /// Every task reads its part of the split inputs and writes its part of every output. Tasks are independent.
    Map,
    /// A map that also reads its neighbours' part of some inputs.
    Halo,
    /// Tasks compute partial results, which are combined in a fixed order.
    Reduce,
}

/// A division of the units into boxes. Each axis is cut into *steps*: step `i` begins at unit `i * units / steps`.
/// Neither ranks nor blocks cut a step. Since steps are proportions, the cuts of one stage match those of another: half
/// of 12 steps is half of 2, whatever the extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessGrid {
    /// The number of ranks along each axis. Part `i` begins at step `i * steps / parts`.
    pub parts: Vec<u64>,
    /// The axes in the order in which ranks are numbered, outermost first.
    pub order: Vec<usize>,
    /// The number of steps along each axis: at least the number of parts, at most the number of units.
    pub steps: Vec<u64>,
    /// The number of steps along each axis that a rank cuts off its box at a border with another rank's box. The rank
    /// computes them last, because they need data that are still on their way from that rank. The number is 0 where
    /// nothing is on its way.
    pub rim: Vec<u64>,
    /// The mean number of bytes that a rank receives from others, by the estimate that chose the grid.
    pub bytes: u64,
    /// The second-best parts by that estimate, and their bytes.
    pub next: Option<(Vec<u64>, u64)>,
}

/// The cut of a reduction. A step of its axes is a *group*. Along the last axis a group is cut into *leaves*, and each
/// leaf is one kernel call. Partial results are combined in order: leaves within a group, then groups along the last
/// axis, then those sums along the axis before it. Groups and leaves depend on the job and its data alone, so the
/// result has the same bits on any number of ranks. Reductions that give the same bits in any order (integers, minima,
/// maxima) are the exception: their groups are cut where ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reduce {
    pub combine: Combine,
    /// The number of reduced axes, which are the last ones.
    pub axes: usize,
    /// The number of leaves in a group.
    pub leaves: u64,
}

/// An index of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndexPlan {
    pub name: String,
    pub extent: u64,
    /// The part of the index that a task gets.
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
    /// The position in [`StagePlan::indices`] of the index of each dimension.
    pub dims: Vec<usize>,
    /// The number of consecutive elements of each dimension per value of its index, at least 1.
    pub scale: Vec<u64>,
    pub distribution: Distribution,
    /// The number of neighbours needed on each side, per dimension.
    pub halo: Vec<u64>,
    /// Whether the tensor stays in the memory of the ranks between stages. A resident input comes from there. A
    /// resident output stays there, and is also written to its dataset if it has one.
    pub resident: bool,
    /// The chunks of the existing dataset, or of the dataset to be created.
    pub chunk: Option<Vec<u64>>,
    pub deflate: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Input,
    Output,
}

/// The place of a tensor's elements, which `job` calls its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    File,
    Created,
    Scratch,
    /// The elements are in the job file. Every rank has them from the start, and they are never read or moved.
    Inline,
}

/// The distribution of a tensor over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Every rank has the whole tensor. Rank 0 reads it once and sends it to the others.
    Broadcast,
    /// Each block reads or writes the region that belongs to it. In a stage without split indices every operand has
    /// this distribution: its one block, on rank 0, is everything.
    Split,
}

/// The bytes of one stage, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageBytes {
    /// The bytes read from datasets. Data that several blocks need count once for each block.
    pub read: u64,
    /// The bytes moved between ranks.
    pub moved: u64,
    /// The bytes written to datasets.
    pub written: u64,
}

/// Sums over the stages of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub bytes: StageBytes,
    pub units: u64,
    pub blocks: u64,
    /// The largest peak of any stage.
    pub peak_bytes_per_rank: u64,
}

impl Plan {
    /// Returns a hash of everything in the plan, including the job's hash and the machine.
    pub fn hash(&self) -> [u8; 32] {
        // The plan is encoded as integers, strings and sequences in declaration order, so one plan has one encoding.
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
    /// Returns the bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }

    /// Returns the bytes of the whole tensor with its halo.
    pub fn padded_bytes(&self) -> u64 {
        let widths = self.shape.iter().zip(&self.halo).map(|(extent, halo)| extent.saturating_add(2 * halo));
        widths.fold(self.dtype.size_bytes() as u64, u64::saturating_mul)
    }

    /// Returns whether the ranks of a node share one copy; see [`StagePlan::is_on_node`].
    pub(super) fn is_on_node(&self) -> bool {
        let whole = self.distribution == Distribution::Broadcast && self.role == Role::Input && self.is_stored();
        whole && self.padded_bytes() >= SHARED_BYTES
    }

    /// Returns whether the elements are in a dataset, and not in the job file.
    pub fn is_stored(&self) -> bool {
        self.origin != Origin::Inline
    }
}
