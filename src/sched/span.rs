//! A span: consecutive slices of one block.

/// What a task should take. Long enough that handing it out costs nothing (microseconds), short enough that a
/// worker adopts new code, answers and balances without delay.
pub const TARGET_TASK_NS: u64 = 5_000_000;

/// What a task should take at least, where there is so much to do: waking another worker for less gains nothing.
pub(super) const LEAST_TASK_NS: u64 = 20_000;

/// A run of slices of one block: what one task computes, or what a thief gets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    /// The rank whose block it is.
    pub owner: u32,
    /// Among the owner's.
    pub block: u64,
    pub start: u64,
    /// 0, in what a thief gets, for all slices of a block that its owner has not fetched and so does not know.
    pub len: u64,
}
