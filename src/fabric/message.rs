//! Messages between ranks, and their limits.

use super::error::FabricError;
use super::limits::{COLLECTIVE_TAGS, MESSAGE_LIMIT_BYTES, TAG_LIMIT};
use crate::topology::Rank;

/// A message that has arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub source: Rank,
    pub tag: u32,
    pub bytes: Vec<u8>,
}

/// Checks the limits of a message, on every fabric alike, so that tests between threads find violations.
pub(super) fn check_send(size: u32, to: Rank, tag: u32, bytes: usize) -> Result<(), FabricError> {
    assert!(to < size, "send to rank {to} of {size}");
    assert!(tag < TAG_LIMIT + COLLECTIVE_TAGS, "tag {tag} out of range");
    if bytes > MESSAGE_LIMIT_BYTES {
        return Err(FabricError::TooLarge { to, bytes });
    }
    Ok(())
}
