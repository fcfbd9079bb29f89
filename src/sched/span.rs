//! A span: consecutive slices of one block.

/// The target duration of a task: long against the microseconds that starting it costs, short enough that a worker
/// adopts new code and balances without delay.
pub const TARGET_TASK_NS: u64 = 5_000_000;

/// The shortest useful duration of a task: waking another worker for less gains nothing.
pub(super) const LEAST_TASK_NS: u64 = 20_000;

/// Consecutive slices of one block, computed by a task or granted to a thief.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    /// The rank that owns the block.
    pub owner: u32,
    /// The number of the block among the owner's blocks.
    pub block: u64,
    pub start: u64,
    /// The number of slices. In a grant, 0 means all slices of a block that its owner has not fetched.
    pub len: u64,
}
