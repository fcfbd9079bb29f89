//! The bandwidth of a plain sequential stream, as a baseline for the reads and writes of a run.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

use crate::sweep::error::SweepError;

const BLOCK_BYTES: u64 = 4 << 20;

/// The times of reading and writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskTimes {
    /// The time of the slowest rank of the run.
    pub read_ns: u64,
    /// Includes the time until the data is on disk.
    pub write_ns: u64,
    /// The time of one process that streams the same number of bytes.
    pub plain_read_ns: u64,
    pub plain_write_ns: u64,
}

impl DiskTimes {
    /// Writes as many bytes to a file as the run did, reads as many bytes as the run did, and removes the file.
    pub fn measure(
        file: &Path,
        (read_ns, write_ns): (u64, u64),
        read: u64,
        written: u64,
    ) -> Result<DiskTimes, SweepError> {
        let measured = || -> std::io::Result<(u64, u64)> {
            let plain_write_ns = write(file, written)?;
            // The file must be as long as the read.
            if read > written {
                write(file, read)?;
            }
            evict(file)?;
            Ok((self::read(file, read)?, plain_write_ns))
        };
        let times = measured().map_err(SweepError::io("measure writing and reading", file));
        let _ = std::fs::remove_file(file);
        let (plain_read_ns, plain_write_ns) = times?;
        Ok(DiskTimes { read_ns, write_ns, plain_read_ns, plain_write_ns })
    }
}

/// Evicts a file from the page cache of this node.
pub fn evict(file: &Path) -> std::io::Result<()> {
    let file = File::open(file)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

fn write(path: &Path, bytes: u64) -> std::io::Result<u64> {
    // Random bytes, which file systems cannot compress.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let block: Vec<u8> = std::iter::repeat_with(random).take(BLOCK_BYTES as usize / 8).flatten().collect();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(BLOCK_BYTES);
        file.write_all(&block[..part as usize])?;
        left -= part;
    }
    file.sync_all()?;
    Ok(started.elapsed().as_nanos() as u64)
}

fn read(path: &Path, bytes: u64) -> std::io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut file = File::open(path)?;
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(BLOCK_BYTES);
        file.read_exact(&mut block[..part as usize])?;
        left -= part;
    }
    Ok(started.elapsed().as_nanos() as u64)
}
