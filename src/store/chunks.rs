//! Compressed chunks: compressed and expanded on any rank, written by rank 0.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use super::error::StoreError;
use super::output_layout::{OutputLayout, Storage};
use super::raw::guard::guard;
use super::raw::output;
use super::staging::Staging;
use crate::tensor::{Region, chunk_count, chunks_of, copy_region};

impl Staging {
    /// Writes chunks that [`compress_chunks`] made on any rank. Returns the number of bytes.
    pub fn write_chunks(&mut self, layout: &OutputLayout, chunks: &[(u64, Vec<u8>)]) -> Result<u64, StoreError> {
        let Storage::Compressed { chunk, .. } = &layout.storage else { return Ok(0) };
        let target = self.target.clone();
        let _guard = guard(&target);
        let file = match self.open.take() {
            Some(file) => file,
            None => self.open_file()?,
        };
        let what = || format!("write to '{}'", layout.dataset);
        let dataset = file.dataset(&layout.dataset).map_err(StoreError::hdf5(&target, what()))?;
        let grid = chunk_count(&layout.shape, chunk);
        for (linear, stored) in chunks {
            let offset = chunk_offset(*linear, &grid, chunk);
            output::write_chunk(&dataset, &offset, stored).map_err(StoreError::hdf5(&target, what()))?;
        }
        self.open = Some(file);
        Ok(chunks.iter().map(|(_, stored)| stored.len() as u64).sum())
    }
}

/// A region and its elements in row-major order.
#[derive(Clone, Copy)]
pub(super) struct PackedRegion<'a> {
    pub region: &'a Region,
    pub bytes: &'a [u8],
    pub element_bytes: usize,
}

/// Copies a chunk of a region, `clipped` to the dataset, into a zeroed buffer of its full extent.
pub(super) fn pad(packed: PackedRegion<'_>, chunk: &[u64], clipped: &Region, stored: &mut [u8]) {
    let PackedRegion { region, bytes, element_bytes } = packed;
    assert!(region.contains(clipped), "{region} must be whole chunks of {chunk:?}");
    let full = Region { offset: clipped.offset.clone(), extent: chunk.to_vec() };
    copy_region(bytes, region, stored, &full, clipped, element_bytes);
}

/// Compresses the chunks of a region of a compressed dataset, for [`Staging::write_chunks`].
pub fn compress_chunks(
    layout: &OutputLayout,
    region: &Region,
    bytes: &[u8],
) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let Storage::Compressed { chunk, deflate } = &layout.storage else { return Ok(Vec::new()) };
    let element_bytes = layout.dtype.size_bytes();
    let packed = PackedRegion { region, bytes, element_bytes };
    let mut full = vec![0; chunk.iter().product::<u64>() as usize * element_bytes];
    let compress = |(linear, clipped): (u64, Region)| {
        full.fill(0);
        pad(packed, chunk, &clipped, &mut full);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(u32::from(*deflate)));
        encoder.write_all(&full)?;
        Ok((linear, encoder.finish()?))
    };
    let failed = StoreError::io(&layout.temporary, "compress for");
    chunks_of(&layout.shape, chunk, region).into_iter().map(compress).collect::<std::io::Result<_>>().map_err(failed)
}

/// Reverses [`compress_chunks`]: returns the elements of each chunk that lie in the dataset, or an error for damaged
/// chunks.
pub fn expand_chunks(layout: &OutputLayout, chunks: &[(u64, Vec<u8>)]) -> Result<Vec<(Region, Vec<u8>)>, StoreError> {
    let Storage::Compressed { chunk, .. } = &layout.storage else { return Ok(Vec::new()) };
    let element_bytes = layout.dtype.size_bytes();
    let grid = chunk_count(&layout.shape, chunk);
    let expand = |(linear, stored): &(u64, Vec<u8>)| {
        let mut bytes = vec![0; chunk.iter().product::<u64>() as usize * element_bytes];
        ZlibDecoder::new(&stored[..]).read_exact(&mut bytes)?;
        let full = Region { offset: chunk_offset(*linear, &grid, chunk), extent: chunk.clone() };
        let beyond = || std::io::Error::new(std::io::ErrorKind::InvalidData, "no such chunk exists");
        let clipped = full.intersect(&Region::whole(&layout.shape)).ok_or_else(beyond)?;
        let mut packed = vec![0; clipped.elements() as usize * element_bytes];
        copy_region(&bytes, &full, &mut packed, &clipped, &clipped, element_bytes);
        Ok((clipped, packed))
    };
    let failed = StoreError::io(&layout.temporary, "expand chunks of");
    chunks.iter().map(expand).collect::<std::io::Result<_>>().map_err(failed)
}

/// First element of a chunk, by its number in the row-major `grid` of chunks.
pub(super) fn chunk_offset(linear: u64, grid: &[u64], chunk: &[u64]) -> Vec<u64> {
    let (mut offset, mut rest) = (vec![0; grid.len()], linear);
    for d in (0..grid.len()).rev() {
        offset[d] = rest % grid[d] * chunk[d];
        rest /= grid[d];
    }
    offset
}
