//! What lets a rank trust bytes from another one: behind every transfer stands a stamp that says what the bytes are, and a
//! checksum over them and it. A transfer that is damaged, or is not the one that was due, ends the run by name.

use crate::exec::error::RunError;
use crate::fabric::Rank;

/// Behind the bytes: the stamp, then the CRC-32 of bytes and stamp.
pub(in crate::exec) const STAMP_BYTES: usize = 12;

/// Which transfer it is: the same number on both sides, made of what both know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec) struct Trailer(u64);

impl Trailer {
    /// Of an operand of a stage.
    pub const fn operand(stage: usize, operand: usize) -> Trailer {
        Trailer((stage as u64) << 32 | operand as u64)
    }

    /// Of whatever else moves in a run of a stage; tags tell its kinds apart.
    pub fn run(run: u64) -> Trailer {
        Trailer(run)
    }

    /// Puts the stamp behind `bytes`.
    pub fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.to_le_bytes());
        let checksum = crc32fast::hash(bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
    }

    /// Takes the stamp off `bytes` of rank `from`. `what` is for the error if it is not this one.
    pub fn check(self, bytes: &mut Vec<u8>, from: Rank, what: &'static str) -> Result<(), RunError> {
        let damaged = RunError::Damaged { rank: from, what };
        let Some((stamped, checksum)) = bytes.split_last_chunk::<4>() else { return Err(damaged) };
        let Some((_, trailer)) = stamped.split_last_chunk::<8>() else { return Err(damaged) };
        if *trailer != self.0.to_le_bytes() || u32::from_le_bytes(*checksum) != crc32fast::hash(stamped) {
            return Err(damaged);
        }
        bytes.truncate(bytes.len() - STAMP_BYTES);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_other_transfer_is_noticed() {
        let mut sent = vec![7, 0, 255];
        Trailer::operand(2, 1).put(&mut sent);
        assert_eq!(sent.len(), 3 + STAMP_BYTES);
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
