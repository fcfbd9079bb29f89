use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::output_layout::OutputLayout;
use super::staging::open_own;

/// Larger files would take too long whenever a dataset is created.
const MOST_BYTES: u64 = 256 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// A checksum of all bytes of a file except those of these datasets, which ranks write: HDF5's metadata and everything
/// that the file held before. `None` if that is too much, or cannot be read.
pub fn metadata_checksum(file: &Path, layouts: &[&OutputLayout]) -> Option<u32> {
    checksum(file, layouts.iter().flat_map(|layout| layout.parts()).collect()).ok().flatten()
}

fn checksum(file: &Path, mut parts: Vec<(u64, u64)>) -> Result<Option<u32>> {
    let file = open_own(file)?;
    let end = file.metadata()?.len();
    parts.sort_unstable();
    let (mut sum, mut at, mut left) = (crc32fast::Hasher::new(), 0, MOST_BYTES);
    let mut buffer = vec![0; BUFFER_BYTES.min(end as usize)];
    for (start, length) in parts.into_iter().chain([(end, 0)]) {
        while at < start.min(end) {
            let bytes = (start.min(end) - at).min(buffer.len() as u64);
            let Some(rest) = left.checked_sub(bytes) else { return Ok(None) };
            left = rest;
            let part = &mut buffer[..bytes as usize];
            file.read_exact_at(part, at)?;
            sum.update(part);
            at += bytes;
        }
        at = at.max(start.saturating_add(length));
    }
    Ok(Some(sum.finalize()))
}
