//! What a file system gives to one plain stream, beside what a run made of it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

use super::SweepError;

const BLOCK_BYTES: u64 = 4 << 20;

/// How long reading and writing took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// In the run, of the rank that took longest.
    pub read_ns: u64,
    /// With the time until it was on disk.
    pub write_ns: u64,
    /// As many bytes by one process, one block after another.
    pub plain_read_ns: u64,
    pub plain_write_ns: u64,
}

impl Disk {
    /// Writes as many bytes as the run did to a file of this name, until they are on disk, reads back as many as it read, and
    /// removes the file.
    pub fn measure(file: &Path, (read_ns, write_ns): (u64, u64), read: u64, written: u64) -> Result<Disk, SweepError> {
        let measured = || -> std::io::Result<(u64, u64)> {
            let plain_write_ns = write(file, written)?;
            // What is to be read has to be there.
            if read > written {
                write(file, read)?;
            }
            forget(file)?;
            Ok((self::read(file, read)?, plain_write_ns))
        };
        let times = measured().map_err(SweepError::io("measure writing and reading", file));
        let _ = std::fs::remove_file(file);
        let (plain_read_ns, plain_write_ns) = times?;
        Ok(Disk { read_ns, write_ns, plain_read_ns, plain_write_ns })
    }
}

/// Asks the system to take a file out of the memory of this node, so that it is read from where it is.
pub fn forget(file: &Path) -> std::io::Result<()> {
    let file = File::open(file)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

fn write(path: &Path, bytes: u64) -> std::io::Result<u64> {
    // Nothing that could be compressed on its way.
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
