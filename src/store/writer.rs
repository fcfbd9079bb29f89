//! Writes of uncompressed datasets, which each rank does by itself.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::chunks::{PackedRegion, pad};
use super::error::StoreError;
use super::output_layout::{OutputLayout, Storage, offset_of};
use super::staging::open_own;
use crate::tensor::{Region, chunks_of, copy_region};

/// Adjacent chunks are written at once, up to about this many bytes.
const WRITE_BYTES: usize = 4 << 20;

/// Writes a rank's parts of one uncompressed dataset at their offsets in the file, and reads them back, without HDF5,
/// locks or other ranks.
#[derive(Debug)]
pub struct Writer {
    file: File,
    layout: OutputLayout,
}

impl Writer {
    pub fn open(layout: &OutputLayout) -> Result<Writer, StoreError> {
        let file = open_own(&layout.temporary).map_err(StoreError::io(&layout.temporary, "open"))?;
        Ok(Writer { file, layout: layout.clone() })
    }

    /// Writes the packed row-major bytes of a region, which is whole chunks of a chunked dataset. Returns the bytes
    /// written.
    pub fn write(&mut self, region: &Region, bytes: &[u8]) -> Result<u64, StoreError> {
        let element_bytes = self.layout.dtype.size_bytes();
        assert_eq!(bytes.len() as u64, region.elements() * element_bytes as u64);
        let failed = StoreError::io(&self.layout.temporary, "write to");
        match &self.layout.storage {
            Storage::Contiguous { offset_bytes } => {
                let write = |part: Range<usize>, at| self.file.write_all_at(&bytes[part], offset_bytes + at);
                each_row(&self.layout.shape, region, element_bytes, write).map_err(failed)?;
                Ok(bytes.len() as u64)
            }
            Storage::Chunked { chunk, runs } => {
                let packed = PackedRegion { region, bytes, element_bytes };
                let chunk_bytes = chunk.iter().product::<u64>() as usize * element_bytes;
                let (mut written, mut begin, mut buffer) = (0, 0, Vec::new());
                let mut flush = |buffer: &mut Vec<u8>, begin: u64| {
                    written += buffer.len() as u64;
                    self.file.write_all_at(buffer, begin)?;
                    buffer.clear();
                    Ok(())
                };
                for (number, clipped) in chunks_of(&self.layout.shape, chunk, region) {
                    let offset = offset_of(runs, chunk_bytes as u64, number).ok_or_else(nowhere).map_err(&failed)?;
                    let follows = begin + buffer.len() as u64 == offset && buffer.len() < WRITE_BYTES;
                    if !follows {
                        flush(&mut buffer, begin).map_err(&failed)?;
                        begin = offset;
                    }
                    let at = buffer.len();
                    buffer.resize(at + chunk_bytes, 0);
                    pad(packed, chunk, &clipped, &mut buffer[at..]);
                }
                flush(&mut buffer, begin).map_err(&failed)?;
                Ok(written)
            }
            Storage::Compressed { .. } => unreachable!("compressed datasets are written by rank 0"),
        }
    }

    /// Reads the packed row-major bytes of a region, which need not be whole chunks.
    pub fn read(&self, region: &Region) -> Result<Vec<u8>, StoreError> {
        let element_bytes = self.layout.dtype.size_bytes();
        let mut bytes = vec![0; region.elements() as usize * element_bytes];
        let failed = StoreError::io(&self.layout.temporary, "read");
        match &self.layout.storage {
            Storage::Contiguous { offset_bytes } => {
                let read = |part: Range<usize>, at| self.file.read_exact_at(&mut bytes[part], offset_bytes + at);
                each_row(&self.layout.shape, region, element_bytes, read).map_err(failed)?;
            }
            Storage::Chunked { chunk, runs } => {
                let mut stored = vec![0; chunk.iter().product::<u64>() as usize * element_bytes];
                for (number, clipped) in chunks_of(&self.layout.shape, chunk, region) {
                    let offset = offset_of(runs, stored.len() as u64, number).ok_or_else(nowhere).map_err(&failed)?;
                    self.file.read_exact_at(&mut stored, offset).map_err(&failed)?;
                    let full = Region { offset: clipped.offset.clone(), extent: chunk.clone() };
                    if let Some(common) = clipped.intersect(region) {
                        copy_region(&stored, &full, &mut bytes, region, &common, element_bytes);
                    }
                }
            }
            Storage::Compressed { .. } => unreachable!("compressed datasets are read by HDF5"),
        }
        Ok(bytes)
    }
}

fn nowhere() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, "a chunk has no offset in the file")
}

/// Splits a region of a packed array of `shape` into contiguous runs: calls `row` with the bytes of each in the region
/// and with their offset in the array.
fn each_row(
    shape: &[u64],
    region: &Region,
    element_bytes: usize,
    mut row: impl FnMut(Range<usize>, u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let rank = shape.len();
    let (mut outer, mut run) = (rank, element_bytes as u64);
    while outer > 0 {
        outer -= 1;
        run *= region.extent[outer];
        if region.extent[outer] != shape[outer] {
            break;
        }
    }
    let (run, length) = (run as usize, region.elements() as usize * element_bytes);
    let mut at = region.offset.clone();
    let mut start = 0;
    while start < length {
        let linear = (0..rank).fold(0, |linear, d| linear * shape[d] + at[d]);
        row(start..start + run, linear * element_bytes as u64)?;
        start += run;
        if let Some(d) = (0..outer).rev().find(|d| at[*d] + 1 < region.end(*d)) {
            at[d] += 1;
            at[d + 1..].copy_from_slice(&region.offset[d + 1..]);
        }
    }
    Ok(())
}
