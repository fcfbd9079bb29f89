//! Creation of datasets in a staging file, and the check that their bytes lie where the layout says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::chunks::chunk_offset;
use super::error::StoreError;
use super::existing_object::{ExistingObject, find_existing};
use super::file_layout::{self, AddressFormat, DataLocation, StoredChunk};
use super::output_layout::{ChunkRun, Made, OutputLayout, OutputSpec, Storage, offset_of};
use super::raw::attributes::address;
use super::raw::guard::guard;
use super::raw::output;
use super::raw::types::has_type;
use super::replace::replace;
use super::staging::{Staging, private};
use crate::tensor::chunk_count;

/// A file that HDF5 has open, and access to its bytes.
struct WritableFile<'a> {
    file: &'a hdf5::File,
    bytes: &'a File,
    format: AddressFormat,
}

impl<'a> WritableFile<'a> {
    fn new(file: &'a hdf5::File, bytes: &'a File) -> hdf5::Result<WritableFile<'a>> {
        let creation = file.fcpl()?;
        let sizes = creation.get_sizes()?;
        let (address_bytes, length_bytes) = (sizes.sizeof_addr.into(), sizes.sizeof_size.into());
        Ok(WritableFile {
            file,
            bytes,
            format: AddressFormat { base: creation.get_userblock()?, address_bytes, length_bytes },
        })
    }
}

/// Checks that a dataset can be created in a file under this name. Changes nothing; a missing file is fine.
pub fn may_create(file: &Path, dataset: &str) -> Result<(), StoreError> {
    if file.is_dir() {
        return Err(StoreError::Directory { file: file.to_owned() });
    }
    if !file.is_file() {
        return Ok(());
    }
    let _guard = guard(file);
    match private().open(file).map_err(StoreError::hdf5(file, "open the file")) {
        Ok(opened) => {
            let refused = |message| StoreError::Refused { file: file.to_owned(), dataset: dataset.to_owned(), message };
            find_existing(&opened, dataset).map(|_| ()).map_err(refused)
        }
        Err(error @ StoreError::Divided { .. }) => Err(error),
        // Another program may be writing it right now.
        Err(_) => Ok(()),
    }
}

impl Staging {
    /// Creates datasets and reserves disk space for them. An existing dataset of the same name is reused if it has the
    /// same type, shape and storage, and is otherwise replaced by a new one with its attributes; any other object of
    /// the name is an error.
    pub fn create(&mut self, specs: &[OutputSpec]) -> Result<Vec<OutputLayout>, StoreError> {
        self.settle()?;
        let _guard = guard(&self.target);
        let bytes = self.file.try_clone().map_err(StoreError::io(&self.target, "open"))?;
        let mut options = private();
        // The chunks of a dataset come from one HDF5 block, so they are consecutive. Elements bypass the cache.
        let room = specs.iter().map(|spec| spec.bytes().max(spec.chunk_bytes())).max().unwrap_or(0);
        options.with_fapl(|access| access.small_data_block_size(room).chunk_cache(1, 0, 1.0));
        let file = options.open_rw(self.own_path()).map_err(StoreError::hdf5(&self.target, "open the file"))?;
        let opened = WritableFile::new(&file, &bytes).map_err(StoreError::hdf5(&self.target, "look at the file"))?;
        let mut layouts = Vec::new();
        for spec in specs {
            let is_own = self.made.remove(&spec.dataset).is_some();
            if self.make(&opened, spec)? && !is_own {
                self.replaced.insert(spec.dataset.clone());
            }
            opened.file.flush().map_err(StoreError::hdf5(&self.target, "write"))?;
            let made = self.place(&opened, spec)?.ok_or_else(|| self.unplaced(spec))?;
            let layout = made.layout.clone();
            self.made.insert(spec.dataset.clone(), made);
            self.keep_apart(&opened, spec)?;
            self.prove(&opened, &layout)?;
            layouts.push(layout);
        }
        drop(file);
        // Without a reservation, a full disk could show only after hours of computing.
        for (offset, length) in layouts.iter().flat_map(OutputLayout::parts) {
            self.reserve(&bytes, offset, length)?;
        }
        Ok(layouts)
    }

    fn reserve(&self, file: &File, offset: u64, bytes: u64) -> Result<(), StoreError> {
        if bytes == 0 {
            return Ok(());
        }
        let reserved = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, bytes);
        match reserved {
            // Not every file system can reserve space; then the writes report a full disk.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(errno) => Err(StoreError::io(&self.target, "reserve room for")(errno.into())),
        }
    }

    /// Creates a dataset or reuses an existing one. Returns whether one existed.
    fn make(&mut self, opened: &WritableFile<'_>, spec: &OutputSpec) -> Result<bool, StoreError> {
        let refused =
            |message| StoreError::Refused { file: self.target.clone(), dataset: spec.dataset.clone(), message };
        let failed = |what: &str| StoreError::hdf5(&self.target, format!("{what} dataset '{}'", spec.dataset));
        match find_existing(opened.file, &spec.dataset).map_err(refused)? {
            ExistingObject::Nothing { path } => {
                spec.create_in(opened.file, &path).map_err(failed("create"))?;
                Ok(false)
            }
            ExistingObject::Dataset { path } => {
                let header = header(opened.file, &path).map_err(failed("find"))?;
                if let Some((other, _)) = self.made.iter().find(|(_, made)| made.header == header) {
                    return Err(refused(format!("it is '{other}' by another name, which this job also creates")));
                }
                let fits = fits(opened.file, &path, spec).map_err(failed("look at"))?;
                if fits && self.place(opened, spec)?.is_some() {
                    return Ok(true);
                }
                let note = replace(opened.file, &path, spec).map_err(failed("replace"))?;
                self.notes.push(format!("'{}' in {} {note}", spec.dataset, self.target.display()));
                Ok(true)
            }
        }
    }

    fn unplaced(&self, spec: &OutputSpec) -> StoreError {
        StoreError::Unusable {
            file: self.target.clone(),
            dataset: spec.dataset.clone(),
            message: "the location of its data in the file cannot be determined".to_owned(),
        }
    }

    /// Locates a dataset; `None` if ranks cannot write to all of it.
    fn place(&self, opened: &WritableFile<'_>, spec: &OutputSpec) -> Result<Option<Made>, StoreError> {
        let what = || format!("find dataset '{}'", spec.dataset);
        let header = header(opened.file, &spec.dataset).map_err(StoreError::hdf5(&self.target, what()))?;
        let storage = storage(opened, header, spec).map_err(StoreError::io(&self.target, "read"))?;
        Ok(storage.map(|storage| {
            let (dataset, shape) = (spec.dataset.clone(), spec.shape.clone());
            let temporary = self.temporary.clone();
            Made { layout: OutputLayout { temporary, dataset, dtype: spec.dtype, shape, storage }, header }
        }))
    }

    /// Checks that the byte ranges that ranks write do not overlap and lie within the file: in a damaged file HDF5 may
    /// allocate a range twice, or far beyond the end.
    fn keep_apart(&self, opened: &WritableFile<'_>, spec: &OutputSpec) -> Result<(), StoreError> {
        let mut parts: Vec<(u64, u64)> = self.made.values().flat_map(|made| made.layout.parts()).collect();
        parts.retain(|(_, length)| *length > 0);
        parts.sort_unstable();
        let end = |(start, length): &(u64, u64)| start.saturating_add(*length);
        let file_end = opened.file.size().saturating_add(opened.format.base);
        if parts.windows(2).all(|pair| end(&pair[0]) <= pair[1].0) && parts.iter().all(|part| end(part) <= file_end) {
            return Ok(());
        }
        let message =
            "the file is damaged: HDF5 allocates space for it that holds other data; write to a new file".to_owned();
        Err(StoreError::Refused { file: self.target.clone(), dataset: spec.dataset.clone(), message })
    }

    /// Writes some elements through HDF5 and checks that they appear where the layout says: no weaker check holds for
    /// all versions of HDF5 and all files.
    fn prove(&self, opened: &WritableFile<'_>, layout: &OutputLayout) -> Result<(), StoreError> {
        let samples = samples(layout);
        if samples.is_empty() {
            return Ok(());
        }
        let what = || format!("write to '{}'", layout.dataset);
        let dataset = opened.file.dataset(&layout.dataset).map_err(StoreError::hdf5(&self.target, what()))?;
        // Only the right offset changes with both bytes. The zeros stay.
        for byte in [0xff, 0] {
            for (at, _) in &samples {
                let written = output::write_element(&dataset, layout.dtype, at, byte);
                written.map_err(StoreError::hdf5(&self.target, what()))?;
            }
            opened.file.flush().map_err(StoreError::hdf5(&self.target, "write"))?;
            for (_, offset) in &samples {
                let mut there = vec![!byte; layout.dtype.size_bytes()];
                let read = opened.bytes.read_exact_at(&mut there, *offset);
                if read.is_err() || there.iter().any(|there| *there != byte) {
                    return Err(self.unplaced(&layout.spec()));
                }
            }
        }
        Ok(())
    }

    /// Checks that all datasets are still in the file as they were created; with `whole`, that all chunks exist.
    pub(super) fn check(&self, whole: bool) -> Result<(), StoreError> {
        let _guard = guard(&self.temporary);
        let bytes = self.file.try_clone().map_err(StoreError::io(&self.temporary, "open"))?;
        let file = private().open(self.own_path()).map_err(StoreError::hdf5(&self.temporary, "open the file"))?;
        let opened = WritableFile::new(&file, &bytes).map_err(StoreError::hdf5(&self.temporary, "look at the file"))?;
        for made in self.made.values() {
            let layout = &made.layout;
            let damaged = |message: String| StoreError::Damaged {
                file: self.temporary.clone(),
                dataset: layout.dataset.clone(),
                message,
            };
            let spec = layout.spec();
            if !fits(&file, &layout.dataset, &spec).map_err(|e| damaged(e.to_string()))? {
                return Err(damaged("it is not what was created".to_owned()));
            }
            if self.place(&opened, &spec)?.is_none_or(|found| found.layout.storage != layout.storage) {
                return Err(damaged("its data do not lie where they were written".to_owned()));
            }
            if let (true, Storage::Compressed { chunk, .. }) = (whole, &layout.storage) {
                let dataset = file.dataset(&layout.dataset).map_err(|e| damaged(e.to_string()))?;
                let wanted: u64 = chunk_count(&layout.shape, chunk).iter().product();
                if layout.bytes() > 0 && dataset.num_chunks().unwrap_or(0) as u64 != wanted {
                    return Err(damaged("chunks are missing".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Adopts datasets that an earlier run created, if they are unchanged.
    pub(super) fn take_up(&mut self, layouts: &[&OutputLayout]) -> Result<(), StoreError> {
        let _guard = guard(&self.temporary);
        let file = private().open(self.own_path()).map_err(StoreError::hdf5(&self.temporary, "open the file"))?;
        for layout in layouts {
            let what = format!("find dataset '{}'", layout.dataset);
            let header = header(&file, &layout.dataset).map_err(StoreError::hdf5(&self.temporary, what))?;
            self.made.insert(layout.dataset.clone(), Made { layout: (*layout).clone(), header });
        }
        drop(file);
        self.check(false)
    }

    /// Notes on datasets that were replaced, for a person.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

fn header(file: &hdf5::File, path: &str) -> hdf5::Result<u64> {
    Ok(address(file.reference(path)?))
}

/// Whether a dataset is what would be created, so that writing to it changes only its data.
fn fits(file: &hdf5::File, path: &str, spec: &OutputSpec) -> hdf5::Result<bool> {
    use hdf5::dataset::Layout;
    use hdf5::filters::Filter;
    let dataset = file.dataset(path)?;
    let creation = dataset.dcpl()?;
    let same_shape = has_type(&dataset, spec.dtype)?
        && dataset.shape().iter().map(|extent| *extent as u64).eq(spec.shape.iter().copied());
    let chunk = dataset.chunk().map(|chunk| chunk.into_iter().map(|extent| extent as u64).collect::<Vec<_>>());
    let layout = if spec.chunk.is_some() { Layout::Chunked } else { Layout::Contiguous };
    let same_storage = dataset.layout() == layout && chunk == spec.chunk && creation.external().is_empty();
    let filters = dataset.filters();
    let same_filters = filters == spec.deflate.map(Filter::Deflate).into_iter().collect::<Vec<_>>();
    Ok(same_shape && same_storage && same_filters)
}

fn storage(opened: &WritableFile<'_>, header: u64, spec: &OutputSpec) -> std::io::Result<Option<Storage>> {
    let chunk = match (&spec.chunk, spec.deflate) {
        (Some(chunk), Some(deflate)) => return Ok(Some(Storage::Compressed { chunk: chunk.clone(), deflate })),
        (Some(chunk), None) => chunk.clone(),
        (None, _) if spec.bytes() == 0 => return Ok(Some(Storage::Contiguous { offset_bytes: 0 })),
        (None, _) => Vec::new(),
    };
    let count = if spec.chunk.is_some() { chunk_count(&spec.shape, &chunk).iter().product() } else { 0 };
    let runs = match file_layout::locate(opened.bytes, opened.format, header, count)? {
        DataLocation::Contiguous { offset, bytes } if spec.chunk.is_none() && bytes == spec.bytes() => {
            return Ok(Some(Storage::Contiguous { offset_bytes: offset }));
        }
        DataLocation::Consecutive { chunk: found, offset } if found == chunk => {
            vec![ChunkRun { first: 0, offset_bytes: offset }]
        }
        DataLocation::Chunks { chunk: extents, found } if extents == chunk => {
            match in_order(spec, &chunk, count, &found) {
                Some(runs) => runs,
                None => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(Storage::Chunked { chunk, runs }))
}

/// The runs of chunks that were found in any order; `None` unless each chunk is there exactly once.
fn in_order(spec: &OutputSpec, chunk: &[u64], count: u64, found: &[StoredChunk]) -> Option<Vec<ChunkRun>> {
    let grid = chunk_count(&spec.shape, chunk);
    let mut offsets: Vec<Option<u64>> = vec![None; usize::try_from(count).ok()?];
    for StoredChunk { first, offset, bytes } in found {
        let mut number = 0;
        for ((first, extent), count) in first.iter().zip(chunk).zip(&grid) {
            if first % extent != 0 || first / extent >= *count {
                return None;
            }
            number = number * count + first / extent;
        }
        let place = offsets.get_mut(number as usize)?;
        if *bytes != spec.chunk_bytes() || place.replace(*offset).is_some() {
            return None;
        }
    }
    let (mut runs, mut next) = (Vec::new(), None);
    for (first, offset) in (0..).zip(offsets) {
        let offset_bytes = offset?;
        if next != Some(offset_bytes) {
            runs.push(ChunkRun { first, offset_bytes });
        }
        next = Some(offset_bytes.checked_add(spec.chunk_bytes())?);
    }
    Some(runs)
}

/// Some elements, the first and the last among them, and their offsets in the file.
fn samples(layout: &OutputLayout) -> Vec<(Vec<u64>, u64)> {
    if layout.bytes() == 0 {
        return Vec::new();
    }
    match &layout.storage {
        Storage::Contiguous { offset_bytes } => {
            let last = layout.shape.iter().map(|extent| extent - 1).collect();
            let bytes = layout.dtype.size_bytes() as u64;
            vec![(vec![0; layout.shape.rank()], *offset_bytes), (last, offset_bytes + layout.bytes() - bytes)]
        }
        Storage::Chunked { chunk, runs } => {
            let grid = chunk_count(&layout.shape, chunk);
            let count: u64 = grid.iter().product();
            let sample = |number: u64| {
                let offset = offset_of(runs, layout.spec().chunk_bytes(), number)?;
                Some((chunk_offset(number, &grid, chunk), offset))
            };
            [0, count / 2, count - 1].into_iter().filter_map(sample).collect()
        }
        Storage::Compressed { .. } => Vec::new(),
    }
}
