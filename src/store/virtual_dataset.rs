//! Virtual datasets: their parts are found, checked and read one by one. HDF5 itself would return fill values where a
//! part cannot be read.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::dataset_info::DatasetInfo;
use super::error::{StoreError, with_causes};
use super::grid::{Axis, grid};
use super::links::{DataSource, FoundObject, leads};
use super::open_file::OpenFile;
use super::raw::dataset::{self, Dataspace, Mapping, Selection};
use super::raw::guard::Guarded;
use crate::tensor::{Dtype, Region};

/// Most parts that are open at a time.
const OPEN_PARTS: usize = 8;
/// Bytes of decompressed chunks that each part keeps.
const CACHE_BYTES: usize = 8 << 20;
/// The deepest nesting of virtual datasets.
const MOST_LEVELS: usize = 16;

/// The virtual datasets that contain a dataset, so that none contains itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Ancestors {
    /// Device, inode and address in the file of each.
    places: Vec<(u64, u64, u64)>,
    innermost: String,
}

impl Ancestors {
    /// Adds the dataset of this name.
    pub fn with(&self, name: &[u8], found: &FoundObject) -> Result<Ancestors, String> {
        let metadata = std::fs::metadata(&found.opened.path).map_err(|error| error.to_string())?;
        let place = (metadata.dev(), metadata.ino(), found.address);
        if self.places.contains(&place) || self.places.len() == MOST_LEVELS {
            return Err("it is a part of itself".to_owned());
        }
        let places = [&self.places[..], &[place]].concat();
        Ok(Ancestors { places, innermost: String::from_utf8_lossy(name).into_owned() })
    }

    /// The name of the innermost one.
    pub fn name(&self) -> String {
        self.innermost.clone()
    }
}

/// A dataset that is a part of a virtual one, and may itself be virtual.
pub(super) trait PartReader: Sized {
    /// Opens the dataset of this name; `ancestors` are the virtual datasets that it is a part of.
    fn open_in(file: &Arc<OpenFile>, name: &[u8], ancestors: &Ancestors) -> Result<Self, StoreError>;

    fn info(&self) -> &DatasetInfo;

    /// Checks that all parts can be read. Returns where the elements come from, each place once.
    fn sources(&self) -> Result<Vec<DataSource>, StoreError>;

    /// Reads the elements at the places of `axes` whose numbers lie in `wanted`, packed.
    fn read_grid(&self, dtype: Dtype, axes: &[Axis], wanted: &[(u64, u64)]) -> Result<Vec<u8>, StoreError>;
}

/// A virtual dataset.
#[derive(Debug)]
pub(super) struct VirtualDataset<R> {
    opened: Arc<OpenFile>,
    dtype: Dtype,
    extents: Vec<u64>,
    /// Later parts hide earlier ones.
    parts: Vec<VirtualPart>,
    /// The element outside all parts.
    fill: Vec<u8>,
    ancestors: Ancestors,
    open: Mutex<VecDeque<(usize, Arc<OpenPart<R>>)>>,
}

#[derive(Debug)]
struct VirtualPart {
    file: Vec<u8>,
    dataset: Vec<u8>,
    target: Vec<Axis>,
    source: Selection,
}

#[derive(Debug)]
struct OpenPart<R> {
    reader: R,
    source: Vec<Axis>,
    target: Vec<Axis>,
}

impl<R: PartReader> VirtualDataset<R> {
    /// Reads the mappings of a dataset and its extents. The extents of an unlimited mapping depend on its parts.
    pub fn open(
        opened: &Arc<OpenFile>,
        handle: &Guarded<hdf5::Dataset>,
        mappings: Vec<Mapping>,
        dtype: Dtype,
        ancestors: &Ancestors,
    ) -> Result<VirtualDataset<R>, String> {
        let mut series = Vec::new();
        for mapping in mappings.iter().filter(|mapping| !has_end(mapping)) {
            // This comes before HDF5 opens the parts: HDF5 takes an unreadable part for the end.
            series.push(PartSeries::probe::<R>(opened, mapping, dtype, ancestors)?);
        }
        let in_short = |what: &str| format!("HDF5 cannot read its {what}");
        let space = dataset::space(handle).map_err(|error| format!("{}: {error}", in_short("extents")))?;
        let Dataspace::Extents(extents) = space else { return Err("it has no extents".to_owned()) };
        let fill =
            dataset::fill_value(handle, dtype).map_err(|error| format!("{}: {error}", in_short("fill value")))?;
        let (mut parts, mut series) = (Vec::new(), series.into_iter());
        for mapping in mappings {
            let named = |message| format!("its part {}: {message}", part_name(&mapping.file, &mapping.dataset));
            let target = grid(&mapping.target, &extents).map_err(named)?;
            let series = if !has_end(&mapping) { series.next() } else { None };
            match (target.iter().position(|axis| !axis.has_end()), series) {
                (Some(axis), Some(series)) if series.is_numbered => {
                    parts.extend(series.parts(&mapping, &target, axis, extents[axis])?);
                }
                _ => {
                    let file = numbered(&mapping.file, 0);
                    let dataset = numbered(&mapping.dataset, 0);
                    parts.push(VirtualPart { file, dataset, target, source: mapping.source });
                }
            }
        }
        let (opened, ancestors) = (opened.clone(), ancestors.clone());
        Ok(VirtualDataset { opened, dtype, extents, parts, fill, ancestors, open: Mutex::default() })
    }

    pub fn extents(&self) -> &[u64] {
        &self.extents
    }

    /// Checks that all parts can be read; adds their locations.
    pub fn add_sources(&self, sources: &mut Vec<DataSource>) -> Result<(), StoreError> {
        for part in 0..self.parts.len() {
            sources.extend(self.part(part)?.reader.sources()?);
        }
        Ok(())
    }

    fn part(&self, number: usize) -> Result<Arc<OpenPart<R>>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(other, _)| *other == number) {
            let found = open.remove(at);
            open.extend(found);
        } else {
            let part = &self.parts[number];
            let opened = part.open(&self.opened, self.dtype, &self.extents, &self.ancestors).map_err(|message| {
                let message = format!("its part {}: {message}", part_name(&part.file, &part.dataset));
                let (file, dataset) = (self.opened.path.clone(), self.ancestors.name());
                StoreError::Unusable { file, dataset, message }
            })?;
            if open.len() == OPEN_PARTS {
                open.pop_front();
            }
            open.push_back((number, Arc::new(opened)));
        }
        Ok(open[open.len() - 1].1.clone())
    }

    /// Reads a region as packed row-major elements of `dtype`, with `fill` outside all parts.
    pub fn read(&self, dtype: Dtype, region: &Region, fill: &[u8], out: &mut [u8]) -> Result<(), StoreError> {
        out.chunks_exact_mut(fill.len()).for_each(|element| element.copy_from_slice(fill));
        for (number, part) in self.parts.iter().enumerate() {
            let is_in = |axes: &[Axis]| axes.iter().enumerate().all(|(d, axis)| within(axis, region, d).is_some());
            if part.target.iter().all(Axis::has_end) && !is_in(&part.target) {
                continue;
            }
            let part = self.part(number)?;
            if is_in(&part.target) {
                part.read(dtype, region, out)?;
            }
        }
        Ok(())
    }

    pub fn fill(&self) -> &[u8] {
        &self.fill
    }
}

/// The range of an axis's places, by number, that lie in a region; `None` if it is empty.
fn within(axis: &Axis, region: &Region, d: usize) -> Option<(u64, u64)> {
    let (from, to) = (axis.below(region.offset[d]), axis.below(region.end(d)));
    (from < to).then_some((from, to))
}

impl VirtualPart {
    fn open<R: PartReader>(
        &self,
        opened: &Arc<OpenFile>,
        dtype: Dtype,
        extents: &[u64],
        ancestors: &Ancestors,
    ) -> Result<OpenPart<R>, String> {
        let reader: R = reader_of(opened, &self.file, &self.dataset, dtype, ancestors)?;
        let shape = reader.info().shape.to_vec();
        let mut source = grid(&self.source, &shape)?;
        let mut target = self.target.clone();
        let endless = |axes: &[Axis]| axes.iter().position(|axis| !axis.has_end());
        if let (Some(to), Some(from)) = (endless(&target), endless(&source)) {
            // The part ends where either side ends.
            let ended = [target[to].clone().ended(extents[to]), source[from].clone().ended(shape[from])];
            let [target_length, source_length] = [ended[0].below(extents[to]), ended[1].below(shape[from])];
            let length = target_length.min(source_length);
            let [a, b] = ended.map(|axis| axis.first(length));
            (target[to], source[from]) = (a, b);
        }
        if endless(&target).is_some() || endless(&source).is_some() {
            return Err("its mapping is unlimited on one side only".to_owned());
        }
        for (axis, extent) in source.iter().zip(&shape) {
            if axis.below(*extent) < axis.len() {
                return Err(format!("more of it is mapped than it has: its shape is {}", reader.info().shape));
            }
        }
        let count = |axes: &[Axis]| axes.iter().map(|axis| u128::from(axis.len())).product::<u128>();
        if count(&source) != count(&target) {
            return Err(format!("{} elements of it are mapped onto {}", count(&source), count(&target)));
        }
        Ok(OpenPart { reader, source, target })
    }
}

/// Opens a part by the names in a mapping, to be read as elements of `dtype`.
fn reader_of<R: PartReader>(
    opened: &Arc<OpenFile>,
    file: &[u8],
    dataset: &[u8],
    dtype: Dtype,
    ancestors: &Ancestors,
) -> Result<R, String> {
    let in_short = |error: StoreError| with_causes(&error);
    let file = if file == b"." {
        opened.clone()
    } else {
        let path = opened.beside(file, &["HDF5_VDS_PREFIX"]).map_err(in_short)?;
        OpenFile::open(&path, CACHE_BYTES).map_err(in_short)?
    };
    let reader = R::open_in(&file, dataset, ancestors).map_err(in_short)?;
    let found = reader.info().dtype;
    if !dtype.holds(found) {
        return Err(format!("its elements are {found}, not all of which are {dtype} as well"));
    }
    Ok(reader)
}

fn part_name(file: &[u8], dataset: &[u8]) -> String {
    format!("'{}' in {}", String::from_utf8_lossy(dataset), String::from_utf8_lossy(file))
}

/// The elements of a source dataset that are read for a region of a virtual one.
struct SourceSelection {
    /// A range of numbers for each axis of the source.
    wanted: Vec<(u64, u64)>,
    /// For each axis of the target, the distance between neighbours among the elements that are read.
    weights: Vec<u64>,
    /// The number of the first element that is read.
    first: u64,
}

impl<R: PartReader> OpenPart<R> {
    /// Copies the elements that lie in `region` to `out`.
    fn read(&self, dtype: Dtype, region: &Region, out: &mut [u8]) -> Result<(), StoreError> {
        let ranges: Vec<(u64, u64)> =
            self.target.iter().enumerate().filter_map(|(d, a)| within(a, region, d)).collect();
        let SourceSelection { wanted, weights, first } = self.source_selection(&ranges);
        let read = self.reader.read_grid(dtype, &self.source, &wanted)?;
        let size = dtype.size_bytes();
        let rank = region.rank();
        let mut strides = vec![1u64; rank];
        for d in (1..rank).rev() {
            strides[d - 1] = strides[d] * region.extent[d];
        }
        let mut numbers: Vec<u64> = ranges.iter().map(|(from, _)| *from).collect();
        loop {
            let from = numbers.iter().zip(&weights).map(|(number, weight)| number * weight).sum::<u64>() - first;
            let place = |d: usize| (self.target[d].place(numbers[d]) - region.offset[d]) * strides[d];
            let to = (0..rank).map(place).sum::<u64>();
            // Elements along the last axis are contiguous on both sides.
            let last = rank.checked_sub(1);
            let run = last.map_or(1, |d| {
                let run = self.target[d].run(numbers[d]).min(ranges[d].1 - numbers[d]);
                if weights[d] == 1 { run } else { 1 }
            });
            let (from, to, length) = (from as usize * size, to as usize * size, run as usize * size);
            out[to..to + length].copy_from_slice(&read[from..from + length]);
            let Some(last) = last else { return Ok(()) };
            numbers[last] += run;
            let mut d = last;
            while numbers[d] >= ranges[d].1 {
                numbers[d] = ranges[d].0;
                let Some(outer) = d.checked_sub(1) else { return Ok(()) };
                d = outer;
                numbers[d] += 1;
            }
        }
    }

    /// The elements of the source that stand for `ranges` of the target.
    fn source_selection(&self, ranges: &[(u64, u64)]) -> SourceSelection {
        let lengths = |axes: &[Axis]| axes.iter().map(Axis::len).collect::<Vec<u64>>();
        let (target, source) = (lengths(&self.target), lengths(&self.source));
        let long = |lengths: &[u64]| (0..lengths.len()).filter(|d| lengths[*d] > 1).collect::<Vec<usize>>();
        let (target_long, source_long) = (long(&target), long(&source));
        let same = target_long.len() == source_long.len()
            && target_long.iter().zip(&source_long).all(|(t, s)| target[*t] == source[*s]);
        let mut wanted = vec![(0, 1); source.len()];
        let (mut weights, mut first) = (vec![0; target.len()], 0);
        if same {
            let mut weight = 1;
            for (t, s) in target_long.iter().zip(&source_long).rev() {
                wanted[*s] = ranges[*t];
                weights[*t] = weight;
                first += ranges[*t].0 * weight;
                weight *= ranges[*t].1 - ranges[*t].0;
            }
        } else {
            // The shapes differ, so elements correspond by their row-major number: whole rows of the outermost axis are
            // read.
            let mut weight = 1;
            for t in (0..target.len()).rev() {
                weights[t] = weight;
                weight *= target[t];
            }
            let least: u64 = ranges.iter().zip(&weights).map(|((from, _), weight)| from * weight).sum();
            let most: u64 = ranges.iter().zip(&weights).map(|((_, to), weight)| (to - 1) * weight).sum();
            wanted.iter_mut().zip(&source).for_each(|(wanted, length)| *wanted = (0, *length));
            if let Some(outer) = source_long.first() {
                let slice: u64 = source[outer + 1..].iter().product();
                wanted[*outer] = (least / slice, most / slice + 1);
                first = least / slice * slice;
            }
        }
        SourceSelection { wanted, weights, first }
    }
}

fn has_end(mapping: &Mapping) -> bool {
    let Selection::Regular(slabs) = &mapping.target else { return true };
    slabs.iter().all(|slab| slab.count != u64::MAX && slab.block != u64::MAX)
}

/// The parts of an unlimited mapping that exist.
struct PartSeries {
    /// Whether the parts have numbers in their names.
    is_numbered: bool,
    found: u64,
}

impl PartSeries {
    fn probe<R: PartReader>(
        opened: &Arc<OpenFile>,
        mapping: &Mapping,
        dtype: Dtype,
        ancestors: &Ancestors,
    ) -> Result<PartSeries, String> {
        let is_numbered = has_number(&mapping.file) || has_number(&mapping.dataset);
        let mut found = 0;
        loop {
            let (file, dataset) = (numbered(&mapping.file, found), numbered(&mapping.dataset, found));
            let named = |message: String| format!("its part {}: {message}", part_name(&file, &dataset));
            if is_numbered && file != b"." {
                match opened.beside(&file, &["HDF5_VDS_PREFIX"]) {
                    Err(StoreError::NoFile { .. }) => break,
                    Err(error) => return Err(named(with_causes(&error))),
                    // A series of datasets in one file may end here.
                    Ok(path) if !has_number(&mapping.file) => {
                        let file = OpenFile::open(&path, 0).map_err(|error| named(with_causes(&error)))?;
                        if leads(&file, &dataset) == Some(false) {
                            break;
                        }
                    }
                    Ok(_) => {}
                }
            } else if is_numbered && leads(opened, &dataset) == Some(false) {
                break;
            }
            reader_of::<R>(opened, &file, &dataset, dtype, ancestors).map_err(named)?;
            found += 1;
            if !is_numbered {
                return Ok(PartSeries { is_numbered, found });
            }
        }
        if let Some(later) = later_file(opened, &mapping.file, found) {
            let file = numbered(&mapping.file, found);
            let missing = String::from_utf8_lossy(&file);
            return Err(format!("its part {missing} is missing, though {later} is there"));
        }
        Ok(PartSeries { is_numbered, found })
    }

    /// The parts that make up the extent that HDF5 reports.
    fn parts(&self, mapping: &Mapping, target: &[Axis], axis: usize, extent: u64) -> Result<Vec<VirtualPart>, String> {
        let Axis::Even(slab) = &target[axis] else { return Err("its map has no numbered parts".to_owned()) };
        let blocks = extent.saturating_sub(slab.start).div_ceil(slab.stride);
        if blocks < self.found {
            let name = part_name(&numbered(&mapping.file, blocks), &numbered(&mapping.dataset, blocks));
            return Err(format!("HDF5 does not count its part {name}, which is there; are too many files open?"));
        }
        let part = |block: u64| {
            let mut target = target.to_vec();
            target[axis] = Axis::box_of(slab.start + block * slab.stride, slab.block);
            let (file, dataset) = (numbered(&mapping.file, block), numbered(&mapping.dataset, block));
            VirtualPart { file, dataset, target, source: mapping.source.clone() }
        };
        Ok((0..blocks).map(part).collect())
    }
}

fn has_number(name: &[u8]) -> bool {
    numbered(name, 0) != numbered(name, 1)
}

/// A name of a mapping with `%b` replaced by the number of a block and `%%` by a percent sign.
fn numbered(name: &[u8], block: u64) -> Vec<u8> {
    let mut result = Vec::new();
    let mut bytes = name.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'%', Some(b'b')) => result.extend_from_slice(block.to_string().as_bytes()),
            (b'%', Some(b'%')) => result.push(b'%'),
            _ => {
                result.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    result
}

/// A file of a series after a missing one.
fn later_file(opened: &OpenFile, pattern: &[u8], missing: u64) -> Option<String> {
    let first = numbered(pattern, 0);
    let path = opened.beside(&first, &["HDF5_VDS_PREFIX"]).ok()?;
    let name = pattern.rsplit(|byte| *byte == b'/').next()?;
    let at = name.windows(2).position(|pair| pair == b"%b")?;
    let (before, after) = (numbered(&name[..at], 0), numbered(&name[at + 2..], 0));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let number = name.strip_prefix(&before[..]).and_then(|rest| rest.strip_suffix(&after[..]));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
        if number.is_some_and(|number| number > missing) {
            return Some(String::from_utf8_lossy(name).into_owned());
        }
    }
    None
}
