use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::grid::Axis;
use super::links::{Found, Opened, Source, check_regular};
use super::parts::Virtual;
use super::raw::guard::Held;
use super::raw::source::{self, Filter, Kind, RawFile, Slab};
use crate::encode;
use crate::store::error::StoreError;
use crate::tensor::{Dtype, Region, Shape, copy_region};

/// Chunks that a reader keeps decompressed: a block of whole chunks is then decompressed once.
const CHUNK_CACHE_BYTES: usize = 64 << 20;
/// So deep may virtual datasets be made of virtual datasets.
const MOST_LEVELS: usize = 16;

/// What a dataset is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetInfo {
    #[serde(with = "encode::path")]
    pub file: PathBuf,
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub chunk: Option<Vec<u64>>,
    pub filters: Vec<String>,
    pub stored_bytes: u64,
    pub big_endian: bool,
    /// Where its elements come from: the places that its links lead to, the parts of a virtual dataset, raw files.
    pub sources: Vec<Source>,
}

/// HDF5 files whose datasets are looked at one after another: a file stays open until one of another file is asked for.
#[derive(Debug, Default)]
pub struct Catalog {
    opened: Option<Arc<Opened>>,
}

impl Catalog {
    /// Describes a dataset without reading its data, but with a look at all that they come from.
    pub fn describe(&mut self, file: &Path, dataset: &str) -> Result<DatasetInfo, StoreError> {
        let opened = match self.opened.take().filter(|opened| opened.path == file) {
            Some(opened) => opened,
            None => Opened::open(file, CHUNK_CACHE_BYTES)?,
        };
        let reader = Reader::open_in(self.opened.insert(opened), dataset.as_bytes(), &Above::default())?;
        let sources = reader.check()?;
        Ok(DatasetInfo { sources, ..reader.info })
    }
}

/// Describes one dataset, as [`Catalog::describe`] does.
pub fn describe(file: &Path, dataset: &str) -> Result<DatasetInfo, StoreError> {
    Catalog::default().describe(file, dataset)
}

/// The virtual datasets that one is a part of, so that none is a part of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Above(Vec<(u64, u64, u64)>, String);

impl Above {
    /// With the dataset of this name at this place.
    fn with(&self, name: &[u8], found: &Found) -> Result<Above, String> {
        let metadata = std::fs::metadata(&found.opened.path).map_err(|error| error.to_string())?;
        let place = (metadata.dev(), metadata.ino(), found.address);
        if self.0.contains(&place) || self.0.len() == MOST_LEVELS {
            return Err("it is a part of itself".to_owned());
        }
        Ok(Above([&self.0[..], &[place]].concat(), String::from_utf8_lossy(name).into_owned()))
    }

    /// The innermost of them.
    pub fn name(&self) -> String {
        self.1.clone()
    }
}

/// Reads regions of one dataset. To be used by one thread: HDF5 has one lock for the whole process.
#[derive(Debug)]
pub struct Reader {
    info: DatasetInfo,
    stored: Stored,
    dataset: Held<hdf5::Dataset>,
    /// The file that it really is in.
    opened: Arc<Opened>,
}

#[derive(Debug)]
enum Stored {
    Plain,
    Virtual(Box<Virtual>),
}

impl Reader {
    /// Opens a dataset and checks that its data can be had: known element type, filters that are there, nothing beyond the
    /// end of its file. Parts of a virtual dataset are looked at when they are read.
    pub fn open(file: &Path, dataset: &str) -> Result<Reader, StoreError> {
        Reader::open_in(&Opened::open(file, CHUNK_CACHE_BYTES)?, dataset.as_bytes(), &Above::default())
    }

    pub(super) fn open_in(named: &Arc<Opened>, name: &[u8], above: &Above) -> Result<Reader, StoreError> {
        let found = named.find(name)?;
        match found.kind {
            Kind::Dataset => {}
            Kind::Group => return Err(named.unusable(name, "it is a group".to_owned())),
            Kind::Other => return Err(named.unusable(name, "it is no dataset".to_owned())),
        }
        let opened = &found.opened;
        let failed = |what: &str| StoreError::hdf5(&opened.path, format!("{what} of '{}'", text(name)));
        let unusable = |message: String| named.unusable(name, message);
        let dataset = source::open_dataset(&opened.file, &found.path).map_err(failed("read the description"))?;
        let element = source::element_type(&dataset).map_err(failed("read the type"))?;
        let (dtype, big_endian) = element.map_err(|what| StoreError::ElementType {
            file: named.path.clone(),
            dataset: text(name),
            what,
            supported: Dtype::ALL.map(Dtype::name).join(", "),
        })?;
        let creation = source::creation(&dataset).map_err(failed("read the properties"))?;
        let (stored, extents) = match creation.mappings {
            Some(mappings) => {
                let above = above.with(name, &found).map_err(unusable)?;
                let parts = Virtual::open(opened, &dataset, mappings, dtype, &above).map_err(unusable)?;
                let extents = parts.extents().to_vec();
                (Stored::Virtual(Box::new(parts)), extents)
            }
            None => match source::space(&dataset).map_err(failed("read the shape"))? {
                source::Space::Extents(extents) => (Stored::Plain, extents),
                source::Space::Null => {
                    let message = "it has no shape and no elements, only a type (a null dataspace)";
                    return Err(unusable(message.to_owned()));
                }
            },
        };
        let (offset, stored_bytes) = source::place(&dataset);
        let mut info = DatasetInfo {
            file: named.path.clone(),
            dataset: text(name),
            dtype,
            shape: Shape::new(extents).map_err(|e| unusable(e.to_string()))?,
            chunk: creation.chunk,
            filters: creation.filters.iter().map(filter_name).collect(),
            stored_bytes,
            big_endian,
            sources: found.sources,
        };
        check_filters(&creation.filters, &dataset, &info)?;
        check_raw_files(&creation.raw_files, &mut info, opened)?;
        let length = check_regular(&opened.path)?;
        if let Some(offset) = offset
            && offset.saturating_add(stored_bytes) > length
        {
            let end = offset.saturating_add(stored_bytes);
            let message = format!("'{}' ends at byte {end}, the file at {length}", info.dataset);
            return Err(StoreError::Truncated { file: opened.path.clone(), message });
        }
        Ok(Reader { info, stored, dataset, opened: found.opened })
    }

    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// Checks the parts of a virtual dataset. Says where its elements come from, each place once.
    pub(super) fn check(&self) -> Result<Vec<Source>, StoreError> {
        let mut sources = self.info.sources.clone();
        if let Stored::Virtual(parts) = &self.stored {
            parts.check(&mut sources)?;
        }
        let mut seen = BTreeSet::new();
        sources.retain(|source| seen.insert(source.clone()));
        Ok(sources)
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
                    source::fill_value(&self.dataset, dtype).map_err(StoreError::hdf5(&self.opened.path, what))?
                };
                parts.read(dtype, region, &fill, out)
            }
        }
    }

    fn read_slabs(&self, dtype: Dtype, slabs: &[Slab], region: &Region, out: &mut [u8]) -> Result<(), StoreError> {
        source::read_slabs(&self.dataset, dtype, slabs, out).map_err(|error| {
            let what = format!("read {region} of '{}'", self.info.dataset);
            StoreError::hdf5(&self.opened.path, what)(error)
        })
    }

    /// The elements at the places of these axes whose numbers lie in `wanted`, packed.
    pub(super) fn read_grid(&self, dtype: Dtype, axes: &[Axis], wanted: &[(u64, u64)]) -> Result<Vec<u8>, StoreError> {
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
        // Run by run along the first axis that is no box.
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

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Filters that are registered with the HDF Group, or come with HDF5, by number.
const FILTERS: [(i32, &str); 22] = [
    (1, "deflate"),
    (2, "shuffle"),
    (3, "fletcher32"),
    (4, "szip"),
    (5, "nbit"),
    (6, "scaleoffset"),
    (305, "lzo"),
    (307, "bzip2"),
    (32000, "lzf"),
    (32001, "blosc"),
    (32002, "mafisc"),
    (32003, "snappy"),
    (32004, "lz4"),
    (32008, "bitshuffle"),
    (32013, "zfp"),
    (32015, "zstd"),
    (32017, "sz"),
    (32018, "fcidecomp"),
    (32022, "bitgroom"),
    (32023, "granular bitround"),
    (32024, "sz3"),
    (32026, "blosc2"),
];

fn filter_name(filter: &Filter) -> String {
    match FILTERS.iter().find(|(id, _)| *id == filter.id) {
        Some((_, name)) => (*name).to_owned(),
        None if filter.name.is_empty() => format!("filter {}", filter.id),
        None => filter.name.clone(),
    }
}

/// What has been stored through a filter cannot be read without it.
fn check_filters(filters: &[Filter], dataset: &Held<hdf5::Dataset>, info: &DatasetInfo) -> Result<(), StoreError> {
    let Some((at, missing)) = filters.iter().enumerate().find(|(_, filter)| !filter.available) else { return Ok(()) };
    // Programs that lack an optional filter store chunks without it, and what is not stored needs none.
    let mask = source::first_filter_mask(dataset, info.shape.len());
    match mask.map_err(StoreError::hdf5(&info.file, format!("look at the chunks of '{}'", info.dataset)))? {
        None => Ok(()),
        Some(mask) if missing.optional && mask >> at & 1 == 1 => Ok(()),
        Some(_) => Err(StoreError::NoFilter {
            file: info.file.clone(),
            dataset: info.dataset.clone(),
            id: missing.id,
            name: filter_name(missing),
        }),
    }
}

/// HDF5 would read zeros where a raw file is too short.
fn check_raw_files(raw_files: &[RawFile], info: &mut DatasetInfo, opened: &Opened) -> Result<(), StoreError> {
    let mut left = info.shape.elements() * info.dtype.size_bytes() as u64;
    for raw_file in raw_files {
        let path = opened.raw_file(&raw_file.name);
        let shown = path.display();
        let unusable = |message| {
            let (file, dataset) = (info.file.clone(), info.dataset.clone());
            StoreError::Unusable { file, dataset, message }
        };
        let length = check_regular(&path).map_err(|error| {
            let advice = "HDF5 looks for raw files in the working directory, or where HDF5_EXTFILE_PREFIX says";
            unusable(format!("its elements are in {shown}: {error}; {advice}"))
        })?;
        let needed = raw_file.length_bytes.map_or(left, |length| length.min(left));
        let end = raw_file.offset_bytes.saturating_add(needed);
        if end > length {
            return Err(unusable(format!("its elements end at byte {end} of {shown}, which ends at {length}")));
        }
        left -= needed;
        info.sources.push(Source { file: path, object: String::new() });
    }
    Ok(())
}
