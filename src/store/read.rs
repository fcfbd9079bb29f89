use std::io::Read;
use std::path::{Path, PathBuf};

use hdf5::dataset::Layout as Storage;
use serde::Serialize;

use super::error::nearest;
use super::{StoreError, raw};
use crate::tensor::{Dtype, Region, Shape};

/// Chunks that a reader keeps decompressed: a block of whole chunks is then decompressed once.
const CHUNK_CACHE_BYTES: usize = 64 << 20;
/// A prime well above the number of chunks that fit.
const CHUNK_CACHE_SLOTS: usize = 10_007;

/// What a dataset is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetInfo {
    pub file: PathBuf,
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub chunk: Option<Vec<u64>>,
    pub filters: Vec<String>,
    pub stored_bytes: u64,
    pub big_endian: bool,
}

/// Describes a dataset without reading its data.
pub fn describe(file: &Path, dataset: &str) -> Result<DatasetInfo, StoreError> {
    Ok(Reader::open(file, dataset)?.info)
}

/// The paths of all datasets in a file.
pub fn list(file: &Path) -> Result<Vec<String>, StoreError> {
    let opened = open_file(file)?;
    let mut names = Vec::new();
    collect(&opened, &mut names).map_err(StoreError::hdf5(file, "list the datasets"))?;
    Ok(names)
}

fn collect(group: &hdf5::Group, names: &mut Vec<String>) -> hdf5::Result<()> {
    names.extend(group.datasets()?.iter().map(|d| d.name().trim_start_matches('/').to_owned()));
    group.groups()?.iter().try_for_each(|inner| collect(inner, names))
}

pub(super) fn open_file(file: &Path) -> Result<hdf5::File, StoreError> {
    let metadata = std::fs::metadata(file).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => StoreError::NoFile { file: file.to_owned(), nearest: nearest_file(file) },
        _ => StoreError::Io { file: file.to_owned(), what: "look at", source },
    })?;
    if metadata.is_dir() {
        return Err(StoreError::Directory { file: file.to_owned() });
    }
    let mut start = [0u8; 8];
    let mut opened = std::fs::File::open(file).map_err(StoreError::io(file, "open"))?;
    let read = opened.read(&mut start).map_err(StoreError::io(file, "read"))?;
    hdf5::File::with_options()
        .with_fapl(|access| access.chunk_cache(CHUNK_CACHE_SLOTS, CHUNK_CACHE_BYTES, 1.0))
        .open(file)
        .map_err(|error| {
            // A user block may stand before the signature, so this is asked only once HDF5 has given up.
            if start[..read] == *b"\x89HDF\r\n\x1a\n" {
                StoreError::hdf5(file, "open the file")(error)
            } else {
                StoreError::NotHdf5 { file: file.to_owned() }
            }
        })
}

fn nearest_file(file: &Path) -> Option<String> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    nearest(&file.file_name()?.to_string_lossy(), &names)
}

/// Reads regions of one dataset. To be used by one thread: HDF5 has one lock for the whole process.
#[derive(Debug)]
pub struct Reader {
    dataset: hdf5::Dataset,
    info: DatasetInfo,
    _file: hdf5::File,
}

impl Reader {
    /// Opens a dataset and checks that its data can be had: known element type, nothing beyond the end of the file, no
    /// virtual dataset with missing parts.
    pub fn open(file: &Path, dataset: &str) -> Result<Reader, StoreError> {
        let opened = open_file(file)?;
        let unusable =
            |message: String| StoreError::Unusable { file: file.to_owned(), dataset: dataset.to_owned(), message };
        let found = match opened.dataset(dataset) {
            Ok(found) => found,
            Err(_) if opened.group(dataset).is_ok() => return Err(unusable("it is a group".to_owned())),
            Err(_) => {
                let names = list(file)?;
                let found = match nearest(dataset, &names) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None if names.is_empty() => "the file has no datasets".to_owned(),
                    None => format!("it has: {}", names.join(", ")),
                };
                return Err(StoreError::NoDataset { file: file.to_owned(), dataset: dataset.to_owned(), found });
            }
        };
        let element = raw::element_type(&found).map_err(StoreError::hdf5(file, "read the type"))?;
        let (dtype, big_endian) = element.map_err(|what| StoreError::ElementType {
            file: file.to_owned(),
            dataset: dataset.to_owned(),
            what,
            supported: Dtype::ALL.map(Dtype::name).join(", "),
        })?;
        let shape = found.shape().into_iter().map(|extent| extent as u64).collect::<Vec<_>>();
        let info = DatasetInfo {
            file: file.to_owned(),
            dataset: dataset.to_owned(),
            dtype,
            shape: Shape::new(shape).map_err(|e| unusable(e.to_string()))?,
            chunk: found.chunk().map(|chunk| chunk.into_iter().map(|extent| extent as u64).collect()),
            filters: found.filters().iter().map(|filter| format!("{filter:?}")).collect(),
            stored_bytes: found.storage_size(),
            big_endian,
        };
        let reader = Reader { dataset: found, info, _file: opened };
        reader.check_storage(file).map_err(|message| match message {
            Ok(message) => StoreError::Truncated { file: file.to_owned(), message },
            Err(message) => unusable(message),
        })?;
        Ok(reader)
    }

    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// Fails with `Ok` for data that lie beyond the file's end, with `Err` for data that are elsewhere and missing.
    fn check_storage(&self, file: &Path) -> Result<(), Result<String, String>> {
        let length = std::fs::metadata(file).map_err(|e| Err(e.to_string()))?.len();
        if let Some(offset) = self.dataset.offset()
            && offset + self.info.stored_bytes > length
        {
            let end = offset + self.info.stored_bytes;
            return Err(Ok(format!("'{}' ends at byte {end}, the file at {length}", self.info.dataset)));
        }
        let creation = self.dataset.dcpl().map_err(|e| Err(e.to_string()))?;
        if let Storage::Virtual = self.dataset.layout() {
            for part in creation.get_virtual_map().map_err(|e| Err(e.to_string()))? {
                let source = file.parent().unwrap_or(Path::new("")).join(&part.src_filename);
                if part.src_filename != "." && !source.exists() {
                    return Err(Err(format!("its part {} is missing", source.display())));
                }
            }
        }
        Ok(())
    }

    /// Reads a region into `out`, which becomes its packed row-major bytes in native byte order.
    pub fn read(&self, region: &Region, out: &mut Vec<u8>) -> Result<(), StoreError> {
        self.read_in_parts(region, out, u64::MAX, || Ok(()))
    }

    /// The same, but asks before each part of about `part_bytes` whether to go on. Parts are whole chunks and whole rows.
    pub fn read_in_parts<E: From<StoreError>>(
        &self,
        region: &Region,
        out: &mut Vec<u8>,
        part_bytes: u64,
        mut go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let whole = Region::whole(&self.info.shape);
        assert!(whole.contains(region), "{region} of {}", self.info.shape);
        let dtype = self.info.dtype;
        out.resize(region.elements() as usize * dtype.size_bytes(), 0);
        if out.is_empty() {
            return Ok(());
        }
        // Along this axis parts follow one another in `out`.
        let axis = region.extent.iter().position(|extent| *extent > 1).unwrap_or(0);
        let extent = region.extent.get(axis).copied().unwrap_or(1);
        let row_bytes = out.len() as u64 / extent;
        let chunk = self.info.chunk.as_ref().map_or(1, |chunk| chunk[axis]);
        let rows = (part_bytes / row_bytes).max(1).saturating_add(chunk - 1) / chunk * chunk;
        let (mut part, mut at) = (region.clone(), 0);
        while at < extent {
            go_on()?;
            let mut end = extent;
            if let (Some(offset), Some(length)) = (part.offset.get_mut(axis), part.extent.get_mut(axis)) {
                *offset = region.offset[axis] + at;
                end = extent.min((*offset / chunk * chunk).saturating_add(rows) - region.offset[axis]);
                *length = end - at;
            }
            let bytes = &mut out[(at * row_bytes) as usize..(end * row_bytes) as usize];
            let what = format!("read {part} of '{}'", self.info.dataset);
            raw::read(&self.dataset, dtype, &part, bytes).map_err(StoreError::hdf5(&self.info.file, what))?;
            at = end;
        }
        Ok(())
    }
}
