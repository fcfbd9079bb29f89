//! Limits of tags and messages.

/// The tags of callers are below this; MPI guarantees no more than 2^15 tags.
pub const TAG_LIMIT: u32 = 1 << 15;
/// Most bytes in one message, since MPI counts in `int`. Callers split longer messages; broadcasts do so by themselves.
pub const MESSAGE_LIMIT_BYTES: usize = i32::MAX as usize;
/// Tags from [`TAG_LIMIT`] on that collectives keep for themselves.
pub(super) const COLLECTIVE_TAGS: u32 = 4;
