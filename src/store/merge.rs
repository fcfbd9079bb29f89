//! Copies of completed datasets from one staging file to another, for when the target has changed during the run.

use super::chunks::chunk_offset;
use super::error::StoreError;
use super::output_layout::{OutputLayout, Storage};
use super::raw::output;
use super::staging::Staging;
use super::writer::Writer;
use crate::tensor::{Region, chunk_count, chunks_of};

/// Bytes that are read and written at a time.
const PART_BYTES: u64 = 32 << 20;

/// Copies the elements of a dataset of `from` to the same dataset of `to`.
pub(super) fn copy(
    from: &Staging,
    source: &OutputLayout,
    to: &mut Staging,
    target: &OutputLayout,
) -> Result<(), StoreError> {
    let Storage::Compressed { chunk, .. } = &source.storage else {
        let (reader, mut writer) = (Writer::open(source)?, Writer::open(target)?);
        let chunk = match &source.storage {
            Storage::Chunked { chunk, .. } => chunk.clone(),
            _ => vec![1; source.shape.rank()],
        };
        let most = PART_BYTES / source.dtype.size_bytes() as u64;
        return in_parts(Region::whole(&source.shape), &chunk, most, &mut |part| {
            writer.write(part, &reader.read(part)?).map(drop)
        });
    };
    let file = from.open_file()?;
    let failed = || StoreError::hdf5(&source.temporary, format!("read '{}'", source.dataset));
    let dataset = file.dataset(&source.dataset).map_err(failed())?;
    let grid = chunk_count(&source.shape, chunk);
    let mut pending = Vec::new();
    let mut bytes = 0;
    for (linear, _) in chunks_of(&source.shape, chunk, &Region::whole(&source.shape)) {
        let stored = output::read_chunk(&dataset, &chunk_offset(linear, &grid, chunk)).map_err(failed())?;
        let Some(stored) = stored else { continue };
        bytes += stored.len() as u64;
        pending.push((linear, stored));
        if bytes >= PART_BYTES {
            to.write_chunks(target, &std::mem::take(&mut pending))?;
            bytes = 0;
        }
    }
    to.write_chunks(target, &pending).map(drop)
}

/// Cuts a region into parts of whole chunks, each of at most `most` elements or one chunk.
fn in_parts(
    region: Region,
    chunk: &[u64],
    most: u64,
    take: &mut impl FnMut(&Region) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    if region.elements() == 0 {
        return Ok(());
    }
    let axis = (0..region.rank()).find(|axis| region.extent[*axis] > chunk[*axis]);
    let Some(axis) = axis.filter(|_| region.elements() > most) else { return take(&region) };
    let half = region.extent[axis].div_ceil(chunk[axis]) / 2 * chunk[axis];
    let (mut first, mut second) = (region.clone(), region);
    first.extent[axis] = half;
    second.offset[axis] += half;
    second.extent[axis] -= half;
    in_parts(first, chunk, most, take)?;
    in_parts(second, chunk, most, take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn parts_are_whole_chunks_and_all_of_it_once() {
        let shape = Shape::new([17, 10]).unwrap();
        for (chunk, most) in [([1, 1], 1), ([1, 1], 7), ([1, 1], 1000), ([4, 3], 5), ([4, 3], 40), ([20, 20], 1)] {
            let mut seen = vec![0; 170];
            in_parts(Region::whole(&shape), &chunk, most, &mut |part| {
                assert!((0..2).all(|axis| part.offset[axis].is_multiple_of(chunk[axis])), "{part} of {chunk:?}");
                assert!(part.elements() <= most.max(chunk[0] * chunk[1]), "{part}");
                for row in part.offset[0]..part.end(0) {
                    (part.offset[1]..part.end(1)).for_each(|column| seen[(row * 10 + column) as usize] += 1);
                }
                Ok(())
            })
            .unwrap();
            assert!(seen.iter().all(|times| *times == 1), "{chunk:?} {most}");
        }
    }
}
