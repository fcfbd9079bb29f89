use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use super::{StoreError, raw};
use crate::tensor::{Dtype, Region, Shape, chunks_of, copy_region};

/// A dataset to be written.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub chunk: Option<Vec<u64>>,
    /// Level 1 to 9; needs `chunk`.
    pub deflate: Option<u8>,
}

/// Where a dataset's bytes go: all that a rank needs to write its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLayout {
    /// The file they go to until it is published.
    pub temporary: PathBuf,
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub storage: Storage,
}

impl OutputLayout {
    /// Of all its elements.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }
}

/// How a dataset lies in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    Contiguous {
        offset_bytes: u64,
    },
    Chunked {
        chunk: Vec<u64>,
        /// Place of each chunk, in row-major order of chunks.
        offsets_bytes: Vec<u64>,
    },
    /// Rank 0 writes the chunks that all ranks compress.
    Compressed {
        chunk: Vec<u64>,
        deflate: u8,
    },
}

/// The outputs of one file while they are written: a hidden sibling that takes the file's name when all is done, so that
/// a reader sees all of the new data or none. Lives on rank 0; dropping it removes what was not published.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    temporary: PathBuf,
    /// Open only while compressed chunks are written.
    open: Option<hdf5::File>,
    /// Published, or left for a later run.
    stays: bool,
}

impl Staging {
    /// Begins to write `target`. What an existing file holds beside the new datasets is kept; its folder is created. `run`
    /// is part of the temporary's name: another run of that name begins anew, or goes on with [`Staging::adopt`].
    pub fn begin(target: &Path, run: &str) -> Result<Staging, StoreError> {
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(StoreError::io(folder, "create the folder"))?;
        if target.is_dir() {
            return Err(StoreError::Directory { file: target.to_owned() });
        }
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let temporary = folder.join(format!(".{name}.exuvia-{run}.part"));
        let staging = Staging { target: target.to_owned(), temporary, open: None, stays: false };
        if target.exists() {
            // What is no HDF5 file is somebody's something else.
            super::list(target)?;
            fs::copy(target, &staging.temporary).map_err(StoreError::io(target, "copy"))?;
        } else {
            // HDF5 would say less well why not.
            File::create(&staging.temporary).map_err(StoreError::io(folder, "write to"))?;
            private().create(&staging.temporary).map_err(StoreError::hdf5(target, "create the file"))?;
        }
        Ok(staging)
    }

    /// Goes on with what an earlier run left in `temporary` on its way to `target`.
    pub fn adopt(target: &Path, temporary: &Path) -> Staging {
        Staging { target: target.to_owned(), temporary: temporary.to_owned(), open: None, stays: false }
    }

    /// Leaves the temporary where it is, for a later run.
    pub fn leave(mut self) {
        self.stays = true;
    }

    /// The file that it is going to be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file as it is before it is published.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Creates datasets, replacing those of the same name, and reserves their room on disk.
    pub fn create(&mut self, specs: &[OutputSpec]) -> Result<Vec<OutputLayout>, StoreError> {
        let layouts = self.create_in_file(specs)?;
        // The file is closed now; what is not reserved could turn up missing only after hours of computing.
        let file = OpenOptions::new().write(true).open(&self.temporary);
        let file = file.map_err(StoreError::io(&self.target, "open"))?;
        for layout in &layouts {
            let element_bytes = layout.dtype.size_bytes() as u64;
            match &layout.storage {
                Storage::Contiguous { offset_bytes } => {
                    self.reserve(&file, *offset_bytes, layout.shape.elements() * element_bytes)?;
                }
                Storage::Chunked { chunk, offsets_bytes } => {
                    let bytes = chunk.iter().product::<u64>() * element_bytes;
                    offsets_bytes.iter().try_for_each(|offset| self.reserve(&file, *offset, bytes))?;
                }
                Storage::Compressed { .. } => {}
            }
        }
        Ok(layouts)
    }

    fn reserve(&self, file: &File, offset: u64, bytes: u64) -> Result<(), StoreError> {
        if bytes == 0 {
            return Ok(());
        }
        let reserved = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, bytes);
        match reserved {
            // Not every file system can reserve; then the writes will tell.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(errno) => Err(StoreError::io(&self.target, "reserve room for")(errno.into())),
        }
    }

    fn create_in_file(&mut self, specs: &[OutputSpec]) -> Result<Vec<OutputLayout>, StoreError> {
        let file = private().open_rw(&self.temporary).map_err(StoreError::hdf5(&self.target, "open the file"))?;
        for spec in specs {
            if file.link_exists(&spec.dataset) {
                let what = format!("replace '{}'", spec.dataset);
                file.unlink(&spec.dataset).map_err(StoreError::hdf5(&self.target, what))?;
            }
            let chunk = spec.chunk.as_deref();
            raw::create(&file, &spec.dataset, spec.dtype, &spec.shape, chunk, spec.deflate)
                .map_err(StoreError::hdf5(&self.target, format!("create dataset '{}'", spec.dataset)))?;
        }
        file.flush().map_err(StoreError::hdf5(&self.target, "write"))?;
        specs.iter().map(|spec| self.layout(&file, spec)).collect()
    }

    fn layout(&self, file: &hdf5::File, spec: &OutputSpec) -> Result<OutputLayout, StoreError> {
        let what = || format!("place dataset '{}'", spec.dataset);
        let dataset = file.dataset(&spec.dataset).map_err(StoreError::hdf5(&self.target, what()))?;
        let unplaced = || StoreError::Unusable {
            file: self.target.clone(),
            dataset: spec.dataset.clone(),
            message: "HDF5 did not say where its data lie".to_owned(),
        };
        let storage = match (&spec.chunk, spec.deflate) {
            (Some(chunk), Some(deflate)) => Storage::Compressed { chunk: chunk.clone(), deflate },
            (Some(chunk), None) => {
                let chunks = chunks_of(&spec.shape, chunk, &Region::whole(&spec.shape));
                let mut offsets_bytes = vec![u64::MAX; chunks.len()];
                for index in 0..chunks.len() {
                    let info = dataset.chunk_info(index).ok_or_else(unplaced)?;
                    let grid = crate::tensor::chunk_count(&spec.shape, chunk);
                    let at = info.offset.iter().zip(chunk).map(|(offset, extent)| *offset / extent);
                    let linear = at.zip(&grid).fold(0, |linear, (at, count)| linear * count + at);
                    *offsets_bytes.get_mut(linear as usize).ok_or_else(unplaced)? = info.addr;
                }
                if offsets_bytes.contains(&u64::MAX) {
                    return Err(unplaced());
                }
                Storage::Chunked { chunk: chunk.clone(), offsets_bytes }
            }
            (None, _) if spec.shape.elements() == 0 => Storage::Contiguous { offset_bytes: 0 },
            (None, _) => Storage::Contiguous { offset_bytes: dataset.offset().ok_or_else(unplaced)? },
        };
        Ok(OutputLayout {
            temporary: self.temporary.clone(),
            dataset: spec.dataset.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
            storage,
        })
    }

    /// Writes chunks that [`compress_chunks`] made, on any rank. Returns their bytes.
    pub fn write_chunks(&mut self, layout: &OutputLayout, chunks: &[(u64, Vec<u8>)]) -> Result<u64, StoreError> {
        let Storage::Compressed { chunk, .. } = &layout.storage else { return Ok(0) };
        let target = self.target.clone();
        let file = match self.open.take() {
            Some(file) => file,
            None => private().open_rw(&self.temporary).map_err(StoreError::hdf5(&target, "open the file"))?,
        };
        let what = || format!("write to '{}'", layout.dataset);
        let dataset = file.dataset(&layout.dataset).map_err(StoreError::hdf5(&target, what()))?;
        let grid = crate::tensor::chunk_count(&layout.shape, chunk);
        for (linear, stored) in chunks {
            let offset = chunk_offset(*linear, &grid, chunk);
            raw::write_chunk(&dataset, &offset, stored).map_err(StoreError::hdf5(&target, what()))?;
        }
        self.open = Some(file);
        Ok(chunks.iter().map(|(_, stored)| stored.len() as u64).sum())
    }

    /// Closes the file, so that others can read what is in it so far.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        match self.open.take() {
            Some(file) => file.flush().map_err(StoreError::hdf5(&self.target, "write")),
            None => Ok(()),
        }
    }

    /// Gives the file its name, once everything in it is on disk.
    pub fn publish(mut self) -> Result<(), StoreError> {
        self.settle()?;
        let failed = StoreError::io(&self.target, "write");
        File::open(&self.temporary).and_then(|file| file.sync_all()).map_err(&failed)?;
        fs::rename(&self.temporary, &self.target).map_err(&failed)?;
        self.stays = true;
        if let Some(folder) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(&failed)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.open = None;
        if !self.stays {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Opens without a lock. The file is this run's alone, and HDF5's lock would outlive its closing: a process started
/// meanwhile, such as the compile helper, inherits the descriptor and holds the lock until it ends.
fn private() -> hdf5::FileBuilder {
    let mut options = hdf5::File::with_options();
    options.with_fapl(|access| access.file_locking(false));
    options
}

/// Writes a rank's parts of one uncompressed dataset at their places in the file, and reads them back: no HDF5, no lock, no
/// other rank.
#[derive(Debug)]
pub struct Writer {
    file: File,
    layout: OutputLayout,
}

impl Writer {
    pub fn open(layout: &OutputLayout) -> Result<Writer, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(&layout.temporary);
        let file = file.map_err(StoreError::io(&layout.temporary, "open"))?;
        Ok(Writer { file, layout: layout.clone() })
    }

    /// Writes the packed row-major bytes of a region; of a chunked dataset, whole chunks. Returns how many were written.
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
            Storage::Chunked { chunk, offsets_bytes } => {
                let mut written = 0;
                for (linear, stored) in padded_chunks(&self.layout, chunk, region, bytes) {
                    self.file.write_all_at(&stored, offsets_bytes[linear as usize]).map_err(&failed)?;
                    written += stored.len() as u64;
                }
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
            Storage::Chunked { chunk, offsets_bytes } => {
                let mut stored = vec![0; chunk.iter().product::<u64>() as usize * element_bytes];
                for (linear, clipped) in chunks_of(&self.layout.shape, chunk, region) {
                    self.file.read_exact_at(&mut stored, offsets_bytes[linear as usize]).map_err(&failed)?;
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

/// A box of a packed array of `shape` as runs of the innermost dimensions that it spans wholly: calls `row` with the bytes of
/// each in the box, and with where they begin in the array.
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

/// The chunks of a region at their full extent, zeros beyond the dataset's edge, with their numbers.
fn padded_chunks<'a>(
    layout: &'a OutputLayout,
    chunk: &'a [u64],
    region: &'a Region,
    bytes: &'a [u8],
) -> impl Iterator<Item = (u64, Vec<u8>)> + 'a {
    let element_bytes = layout.dtype.size_bytes();
    let chunk_bytes = chunk.iter().product::<u64>() as usize * element_bytes;
    chunks_of(&layout.shape, chunk, region).into_iter().map(move |(linear, clipped)| {
        assert!(region.contains(&clipped), "{region} must be whole chunks of {chunk:?}");
        let mut stored = vec![0; chunk_bytes];
        let full = Region { offset: clipped.offset.clone(), extent: chunk.to_vec() };
        copy_region(bytes, region, &mut stored, &full, &clipped, element_bytes);
        (linear, stored)
    })
}

/// Compresses the chunks of a region of a compressed dataset, for [`Staging::write_chunks`].
pub fn compress_chunks(
    layout: &OutputLayout,
    region: &Region,
    bytes: &[u8],
) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let Storage::Compressed { chunk, deflate } = &layout.storage else { return Ok(Vec::new()) };
    let compress = |(linear, full): (u64, Vec<u8>)| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(u32::from(*deflate)));
        encoder.write_all(&full)?;
        Ok((linear, encoder.finish()?))
    };
    let failed = StoreError::io(&layout.temporary, "compress for");
    padded_chunks(layout, chunk, region, bytes).map(compress).collect::<std::io::Result<_>>().map_err(failed)
}

/// The opposite of [`compress_chunks`]: the elements of each chunk that are in the dataset. An error if they are damaged.
pub fn expand_chunks(layout: &OutputLayout, chunks: &[(u64, Vec<u8>)]) -> Result<Vec<(Region, Vec<u8>)>, StoreError> {
    let Storage::Compressed { chunk, .. } = &layout.storage else { return Ok(Vec::new()) };
    let element_bytes = layout.dtype.size_bytes();
    let grid = crate::tensor::chunk_count(&layout.shape, chunk);
    let expand = |(linear, stored): &(u64, Vec<u8>)| {
        let mut bytes = vec![0; chunk.iter().product::<u64>() as usize * element_bytes];
        ZlibDecoder::new(&stored[..]).read_exact(&mut bytes)?;
        let full = Region { offset: chunk_offset(*linear, &grid, chunk), extent: chunk.clone() };
        let beyond = || std::io::Error::new(std::io::ErrorKind::InvalidData, "there is no such chunk");
        let clipped = full.intersect(&Region::whole(&layout.shape)).ok_or_else(beyond)?;
        let mut packed = vec![0; clipped.elements() as usize * element_bytes];
        copy_region(&bytes, &full, &mut packed, &clipped, &clipped, element_bytes);
        Ok((clipped, packed))
    };
    let failed = StoreError::io(&layout.temporary, "expand chunks of");
    chunks.iter().map(expand).collect::<std::io::Result<_>>().map_err(failed)
}

/// First element of a chunk, by its number in the row-major `grid` of chunks.
fn chunk_offset(linear: u64, grid: &[u64], chunk: &[u64]) -> Vec<u64> {
    let (mut offset, mut rest) = (vec![0; grid.len()], linear);
    for d in (0..grid.len()).rev() {
        offset[d] = rest % grid[d] * chunk[d];
        rest /= grid[d];
    }
    offset
}
