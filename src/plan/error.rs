use crate::job::Excerpt;
use crate::tensor::{Shape, ShapeError};
use bytesize::ByteSize;

/// The reason why a job cannot be planned: its data do not fit each other or the machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    #[error("a plan needs at least one rank and one thread, not {ranks} ranks and {threads} threads")]
    EmptyMachine { ranks: u32, threads: u32 },
    /// The caller gave no layout for a dataset that the job reads.
    #[error("{}", at.frame(format_args!("the layout of tensor '{tensor}' is not known")))]
    UnknownLayout { at: Box<Excerpt>, tensor: String },
    /// The notation gives a tensor more or fewer dimensions than it has.
    #[error("{}", at.frame(format_args!("{operand} has {}, but tensor '{tensor}' has {}: {shape}", count(*indices, "index", "indices"), count(shape.rank(), "dimension", "dimensions"))))]
    RankMismatch { at: Box<Excerpt>, operand: String, indices: usize, tensor: String, shape: Shape },
    /// `chunk` of a tensor to create has more or fewer extents than the notation gives dimensions.
    #[error("{}", at.frame(format_args!("{operand} has {}, but 'chunk' of tensor '{tensor}' has {}: {chunk:?}", count(*indices, "index", "indices"), count(chunk.len(), "extent", "extents"))))]
    ChunkRank { at: Box<Excerpt>, operand: String, indices: usize, tensor: String, chunk: Vec<u64> },
    /// An index has two different extents.
    #[error("{}", at.frame(format_args!("index '{index}' is {extent} in {here}, but {other_extent} in {there}")))]
    ExtentMismatch { at: Box<Excerpt>, index: String, extent: u64, here: String, other_extent: u64, there: String },
    /// A halo that reaches around the tensor more than once.
    #[error("{}", at.frame(format_args!("the halo of {halo} in {operand} is wider than dimension {dim}, which is {extent} long")))]
    WideHalo { at: Box<Excerpt>, operand: String, dim: usize, halo: u64, extent: u64 },
    /// The extent of a dimension is not the required multiple of its index.
    #[error("{}", at.frame(format_args!("'{index}' needs a multiple of {scale}, but {here} is {extent} long there")))]
    UnevenExtent { at: Box<Excerpt>, index: String, scale: u64, extent: u64, here: String },
    /// An output index has neither an input nor a size.
    #[error("{}", at.frame(format_args!("nothing gives the extent of index '{index}' of output {operand}")))]
    UnboundIndex { at: Box<Excerpt>, index: String, operand: String },
    /// The extents of an output do not form a valid shape.
    #[error("{}", at.frame(format_args!("output {operand} cannot exist")))]
    OutputShape {
        at: Box<Excerpt>,
        operand: String,
        #[source]
        source: ShapeError,
    },
    /// Tensors that change places between iterations differ in shape or dtype.
    #[error("{}", at.frame(format_args!("[iterate]: {read}, but {written}: they cannot change places")))]
    Exchange { at: Box<Excerpt>, read: String, written: String },
    /// The host and guest memory of one rank exceeds its budget, however the stage is cut.
    #[error("{}", at.frame(format_args!("stage '{stage}' needs {} on every rank, but the budget is {}; most of it is {largest}, {}", iec(*need_bytes), iec(*budget_bytes), iec(*largest_bytes))))]
    OverBudget {
        at: Box<Excerpt>,
        stage: String,
        need_bytes: u64,
        budget_bytes: u64,
        /// The operand that takes most of the memory.
        largest: String,
        largest_bytes: u64,
    },
    /// The linear memory of one kernel instance cannot hold the smallest task.
    #[error("{}", at.frame(format_args!("a kernel of stage '{stage}' needs {} for its tensors, but may have {} of memory; most of it is {largest}, {}", iec(*need_bytes), iec(*limit_bytes), iec(*largest_bytes))))]
    GuestMemory {
        at: Box<Excerpt>,
        stage: String,
        need_bytes: u64,
        limit_bytes: u64,
        largest: String,
        largest_bytes: u64,
    },
}

impl PlanError {
    /// Returns the place in the job file, if there is one: path, line, column, the line itself and the help.
    pub fn excerpt(&self) -> Option<&Excerpt> {
        use PlanError::*;
        match self {
            EmptyMachine { .. } => None,
            UnknownLayout { at, .. }
            | RankMismatch { at, .. }
            | ChunkRank { at, .. }
            | ExtentMismatch { at, .. }
            | WideHalo { at, .. }
            | UnevenExtent { at, .. }
            | UnboundIndex { at, .. }
            | OutputShape { at, .. }
            | Exchange { at, .. }
            | OverBudget { at, .. }
            | GuestMemory { at, .. } => Some(at),
        }
    }
}

/// Formats a number with its noun: `1 index`, `2 indices`.
fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Formats bytes with a binary unit: `1.5 GiB`.
pub(super) fn iec(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}
