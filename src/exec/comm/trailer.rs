//! The trailer of a transfer: an identity that says what the bytes are, and a checksum of both. A transfer that is
//! damaged, or is not the expected one, ends the run with an error that names its source.

use crate::exec::error::RunError;
use crate::fabric::Rank;

/// The length of a trailer: the identity, then the CRC-32 of bytes and identity.
pub(in crate::exec) const TRAILER_BYTES: usize = 12;

/// The identity of a transfer. Both sides derive the same number from what they know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec) struct Trailer(u64);

impl Trailer {
    /// The trailer of an operand of a stage.
    pub const fn operand(stage: usize, operand: usize) -> Trailer {
        Trailer((stage as u64) << 32 | operand as u64)
    }

    /// The trailer of all other transfers in a run of a stage, whose kinds differ by tag.
    pub fn run(run: u64) -> Trailer {
        Trailer(run)
    }

    /// Appends the trailer to `bytes`.
    pub fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.to_le_bytes());
        let checksum = crc32fast::hash(bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
    }

    /// Removes the trailer from `bytes`, which rank `from` sent. Fails if it is another one; the error names `what`.
    pub fn check(self, bytes: &mut Vec<u8>, from: Rank, what: &'static str) -> Result<(), RunError> {
        let damaged = RunError::Damaged { rank: from, what };
        let Some((stamped, checksum)) = bytes.split_last_chunk::<4>() else { return Err(damaged) };
        let Some((_, trailer)) = stamped.split_last_chunk::<8>() else { return Err(damaged) };
        if *trailer != self.0.to_le_bytes() || u32::from_le_bytes(*checksum) != crc32fast::hash(stamped) {
            return Err(damaged);
        }
        bytes.truncate(bytes.len() - TRAILER_BYTES);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flipped_bits_and_other_transfers_are_detected() {
        let mut sent = vec![7, 0, 255];
        Trailer::operand(2, 1).put(&mut sent);
        assert_eq!(sent.len(), 3 + TRAILER_BYTES);
        let check = |trailer: Trailer, mut bytes: Vec<u8>| trailer.check(&mut bytes, 3, "a part").map(|()| bytes);
        assert_eq!(check(Trailer::operand(2, 1), sent.clone()).unwrap(), [7, 0, 255]);
        assert!(check(Trailer::operand(2, 0), sent.clone()).is_err());
        assert!(check(Trailer::run(1), sent.clone()).is_err());
        for bit in 0..8 * sent.len() {
            let mut flipped = sent.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(Trailer::operand(2, 1), flipped).is_err(), "bit {bit}");
        }
        for length in 0..sent.len() {
            assert!(check(Trailer::operand(2, 1), sent[..length].to_vec()).is_err(), "{length} bytes");
        }
    }
}
