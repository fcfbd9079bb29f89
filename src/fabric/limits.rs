//! Limits of tags and messages.

/// Callers' tags lie below this; MPI promises no more than 2^15 of them.
pub const TAG_LIMIT: u32 = 1 << 15;
/// Most bytes in one message: MPI counts in `int`. Callers with more to send cut it; broadcasts cut by themselves.
pub const MESSAGE_LIMIT_BYTES: usize = i32::MAX as usize;
/// Tags from [`TAG_LIMIT`] on that collectives keep for themselves.
pub(super) const COLLECTIVE_TAGS: u32 = 4;
