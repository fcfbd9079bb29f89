//! Regions of one dataset, read from its file.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::dataset_info::DatasetInfo;
use super::error::StoreError;
use super::filters::{check_filters, filter_name};
use super::grid::Axis;
use super::links::{DataSource, FoundObject, text};
use super::lookup::find;
use super::open_file::{OpenFile, check_regular};
use super::raw::dataset::{self, Creation, Dataspace, RawFile, Slab};
use super::raw::guard::Guarded;
use super::raw::links::ObjectKind;
use super::virtual_dataset::{Ancestors, PartReader, VirtualDataset};
use crate::tensor::{Dtype, Region, Shape, copy_region};

/// Bytes of decompressed chunks that a reader keeps, so that a block of whole chunks is decompressed once.
pub(super) const CHUNK_CACHE_BYTES: usize = 64 << 20;

/// Reads regions of one dataset. One thread suffices: HDF5 has one lock for the whole process.
///
/// ```
/// use exuvia::store::{OutputSpec, Reader, Staging, Writer};
/// use exuvia::tensor::{Dtype, Region, Shape};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("out.h5");
/// let shape = Shape::new([2, 3])?;
/// let spec =
///     OutputSpec { dataset: "x".into(), dtype: Dtype::U8, shape: shape.clone(), chunk: None, deflate: None };
///
/// // The file has its name when it is complete.
/// let mut staging = Staging::begin(&file, "example")?;
/// let layout = staging.create(&[spec])?.remove(0);
/// Writer::open(&layout)?.write(&Region::whole(&shape), &[0, 1, 2, 3, 4, 5])?;
/// staging.publish()?;
///
/// let mut bytes = Vec::new();
/// let last_column = Region { offset: vec![0, 2], extent: vec![2, 1] };
/// Reader::open(&file, "x")?.read(&last_column, &mut bytes)?;
/// assert_eq!(bytes, [2, 5]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    info: DatasetInfo,
    stored: Stored,
    dataset: Guarded<hdf5::Dataset>,
    /// The file that holds the dataset, after links.
    opened: Arc<OpenFile>,
}

#[derive(Debug)]
enum Stored {
    Plain,
    Virtual(Box<VirtualDataset<Reader>>),
}

impl Reader {
    /// Opens a dataset and checks that its data can be read: a supported element type, available filters, no bytes
    /// beyond the end of the file. Parts of a virtual dataset are checked when they are read.
    pub fn open(file: &Path, dataset: &str) -> Result<Reader, StoreError> {
        Reader::open_in(&OpenFile::open(file, CHUNK_CACHE_BYTES)?, dataset.as_bytes(), &Ancestors::default())
    }

    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// Reads a region into `out` as packed row-major bytes in native byte order.
    pub fn read(&self, region: &Region, out: &mut Vec<u8>) -> Result<(), StoreError> {
        self.read_in_parts(region, out, u64::MAX, || Ok(()))
    }

    /// Reads a region in parts of about `part_bytes`, and calls `go_on` before each. Parts are whole chunks and whole
    /// rows.
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
        // Parts along this axis are consecutive in `out`.
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
            self.read_box(dtype, &part, bytes)?;
            at = end;
        }
        Ok(())
    }

    /// Reads a region as elements of `dtype`.
    fn read_box(&self, dtype: Dtype, region: &Region, out: &mut [u8]) -> Result<(), StoreError> {
        match &self.stored {
            Stored::Plain => {
                let box_of =
                    |(start, extent): (&u64, &u64)| Slab { start: *start, stride: *extent, count: 1, block: *extent };
                let slabs: Vec<Slab> = region.offset.iter().zip(&region.extent).map(box_of).collect();
                self.read_slabs(dtype, &slabs, region, out)
            }
            Stored::Virtual(parts) => {
                let fill = if dtype == self.info.dtype {
                    parts.fill().to_vec()
                } else {
                    let what = format!("read the fill value of '{}'", self.info.dataset);
                    dataset::fill_value(&self.dataset, dtype).map_err(StoreError::hdf5(&self.opened.path, what))?
                };
                parts.read(dtype, region, &fill, out)
            }
        }
    }

    fn read_slabs(&self, dtype: Dtype, slabs: &[Slab], region: &Region, out: &mut [u8]) -> Result<(), StoreError> {
        dataset::read_slabs(&self.dataset, dtype, slabs, out).map_err(|error| {
            let what = format!("read {region} of '{}'", self.info.dataset);
            StoreError::hdf5(&self.opened.path, what)(error)
        })
    }
}

impl PartReader for Reader {
    fn open_in(named: &Arc<OpenFile>, name: &[u8], ancestors: &Ancestors) -> Result<Reader, StoreError> {
        let found = find(named, name)?;
        match found.kind {
            ObjectKind::Dataset => {}
            ObjectKind::Group => return Err(named.unusable(name, "it is a group".to_owned())),
            ObjectKind::Other => return Err(named.unusable(name, "it is not a dataset".to_owned())),
        }
        let opened = &found.opened;
        let failed = |what: &str| StoreError::hdf5(&opened.path, format!("{what} of '{}'", text(name)));
        let dataset = dataset::open_dataset(&opened.file, &found.path).map_err(failed("read the description"))?;
        let element = dataset::element_type(&dataset).map_err(failed("read the type"))?;
        let (dtype, big_endian) = element.map_err(|what| StoreError::ElementType {
            file: named.path.clone(),
            dataset: text(name),
            what,
            supported: Dtype::ALL.map(Dtype::name).join(", "),
        })?;
        let Creation { chunk, filters, raw_files, mappings } =
            dataset::creation(&dataset).map_err(failed("read the properties"))?;
        let unusable = |message: String| named.unusable(name, message);
        let (stored, extents) = match mappings {
            Some(mappings) => {
                let ancestors = ancestors.with(name, &found).map_err(unusable)?;
                let parts = VirtualDataset::open(opened, &dataset, mappings, dtype, &ancestors).map_err(unusable)?;
                let extents = parts.extents().to_vec();
                (Stored::Virtual(Box::new(parts)), extents)
            }
            None => match dataset::space(&dataset).map_err(failed("read the shape"))? {
                Dataspace::Extents(extents) => (Stored::Plain, extents),
                Dataspace::Null => {
                    let message = "it has no shape and no elements, only a type (a null dataspace)";
                    return Err(unusable(message.to_owned()));
                }
            },
        };
        let (offset, stored_bytes) = dataset::location(&dataset);
        let mut info = DatasetInfo {
            file: named.path.clone(),
            dataset: text(name),
            dtype,
            shape: Shape::new(extents).map_err(|e| unusable(e.to_string()))?,
            chunk,
            filters: filters.iter().map(filter_name).collect(),
            stored_bytes,
            big_endian,
            sources: found.sources.clone(),
        };
        check_filters(&filters, &dataset, &info)?;
        check_raw_files(&raw_files, &mut info, opened)?;
        check_length(&info, offset, &found)?;
        Ok(Reader { info, stored, dataset, opened: found.opened })
    }

    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// Checks the parts of a virtual dataset. Says where its elements come from, each place once.
    fn sources(&self) -> Result<Vec<DataSource>, StoreError> {
        let mut sources = self.info.sources.clone();
        if let Stored::Virtual(parts) = &self.stored {
            parts.add_sources(&mut sources)?;
        }
        let mut seen = BTreeSet::new();
        sources.retain(|source| seen.insert(source.clone()));
        Ok(sources)
    }

    /// The elements at the places of these axes whose numbers lie in `wanted`, packed.
    fn read_grid(&self, dtype: Dtype, axes: &[Axis], wanted: &[(u64, u64)]) -> Result<Vec<u8>, StoreError> {
        let extent: Vec<u64> = wanted.iter().map(|(from, to)| to - from).collect();
        let whole = Region { offset: vec![0; extent.len()], extent };
        let mut out = vec![0; whole.elements() as usize * dtype.size_bytes()];
        let slabs: Vec<Option<Slab>> =
            axes.iter().zip(wanted).map(|(axis, (from, to))| axis.slab(*from, *to)).collect();
        let places = |d: usize| (axes[d].place(wanted[d].0), axes[d].place(wanted[d].1 - 1) + 1);
        let bounds = |d: usize| places(d).1 - places(d).0;
        let around = Region {
            offset: (0..axes.len()).map(|d| places(d).0).collect(),
            extent: (0..axes.len()).map(bounds).collect(),
        };
        if around.extent == whole.extent {
            self.read_box(dtype, &around, &mut out)?;
            return Ok(out);
        }
        if let (Stored::Plain, Some(slabs)) = (&self.stored, slabs.iter().copied().collect::<Option<Vec<Slab>>>()) {
            self.read_slabs(dtype, &slabs, &around, &mut out)?;
            return Ok(out);
        }
        // Reads run by run along the first irregular axis.
        let uneven = |d: &usize| {
            if let Stored::Plain = self.stored { slabs[*d].is_none() } else { bounds(*d) != whole.extent[*d] }
        };
        let Some(d) = (0..axes.len()).find(uneven) else { return Ok(out) };
        let mut from = wanted[d].0;
        while from < wanted[d].1 {
            let run = axes[d].run(from).min(wanted[d].1 - from);
            let mut inner = wanted.to_vec();
            inner[d] = (from, from + run);
            let bytes = self.read_grid(dtype, axes, &inner)?;
            let mut part = whole.clone();
            (part.offset[d], part.extent[d]) = (from - wanted[d].0, run);
            copy_region(&bytes, &part, &mut out, &whole, &part, dtype.size_bytes());
            from += run;
        }
        Ok(out)
    }
}

/// Checks that the bytes of a contiguous dataset end within its file.
fn check_length(info: &DatasetInfo, offset: Option<u64>, found: &FoundObject) -> Result<(), StoreError> {
    let length = check_regular(&found.opened.path)?;
    let end = offset.map_or(0, |offset| offset.saturating_add(info.stored_bytes));
    if end <= length {
        return Ok(());
    }
    let message = format!("'{}' ends at byte {end}, the file at {length}", info.dataset);
    Err(StoreError::Truncated { file: found.opened.path.clone(), message })
}

/// Checks that raw files are long enough: HDF5 would read zeros beyond their end.
fn check_raw_files(raw_files: &[RawFile], info: &mut DatasetInfo, opened: &OpenFile) -> Result<(), StoreError> {
    let mut left = info.shape.elements() * info.dtype.size_bytes() as u64;
    for raw_file in raw_files {
        let path = opened.raw_file(&raw_file.name);
        let shown = path.display();
        let unusable = |message| {
            let (file, dataset) = (info.file.clone(), info.dataset.clone());
            StoreError::Unusable { file, dataset, message }
        };
        let length = check_regular(&path).map_err(|error| {
            let advice = "HDF5 looks for raw files in the working directory or in the folder of HDF5_EXTFILE_PREFIX";
            unusable(format!("its elements are in {shown}: {error}; {advice}"))
        })?;
        let needed = raw_file.length_bytes.map_or(left, |length| length.min(left));
        let end = raw_file.offset_bytes.saturating_add(needed);
        if end > length {
            return Err(unusable(format!("its elements end at byte {end} of {shown}, which ends at {length}")));
        }
        left -= needed;
        info.sources.push(DataSource { file: path, object: String::new() });
    }
    Ok(())
}
