//! Datasets of the files that jobs read: how they are stored, and their elements.

use std::ffi::{c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use hdf5::{Dataset, File, h5check, sync::sync};
use hdf5_sys::h5::hsize_t;
use hdf5_sys::h5d::*;
use hdf5_sys::h5f::{H5F_ACC_RDONLY, H5Fopen};
use hdf5_sys::h5i::hid_t;
use hdf5_sys::h5p::*;
use hdf5_sys::h5s::*;
use hdf5_sys::h5z::{H5Z_FILTER_CONFIG_DECODE_ENABLED, H5Zfilter_avail, H5Zget_filter_info};

use super::guard::{self, Guarded};
use super::handle::Handle;
use super::links::{MOST_NAME_BYTES, c_name, until_nul};
use super::types::{self, memory_type};
use crate::tensor::Dtype;

/// A prime well above the number of chunks that fit into a chunk cache.
const CHUNK_CACHE_SLOTS: usize = 10_007;

/// The dataspace of a dataset.
pub(in crate::store) enum Dataspace {
    Null,
    Extents(Vec<u64>),
}

/// The element type of a guarded dataset.
pub(in crate::store) fn element_type(dataset: &Guarded<Dataset>) -> hdf5::Result<Result<(Dtype, bool), String>> {
    let _guard = dataset.guard();
    types::element_type(dataset)
}

/// The creation properties of a dataset.
pub(in crate::store) struct Creation {
    pub chunk: Option<Vec<u64>>,
    pub filters: Vec<Filter>,
    /// Raw files that hold the elements.
    pub raw_files: Vec<RawFile>,
    /// The mappings of a virtual dataset; later ones hide earlier ones.
    pub mappings: Option<Vec<Mapping>>,
}

pub(in crate::store) struct Filter {
    pub id: i32,
    pub name: String,
    /// Whether chunks may be stored without the filter.
    pub optional: bool,
    /// Whether this HDF5 library can decode it.
    pub available: bool,
}

pub(in crate::store) struct RawFile {
    pub name: Vec<u8>,
    pub offset_bytes: u64,
    /// `None` means up to the end of the raw file.
    pub length_bytes: Option<u64>,
}

/// One mapping of a virtual dataset.
pub(in crate::store) struct Mapping {
    pub file: Vec<u8>,
    pub dataset: Vec<u8>,
    pub target: Selection,
    pub source: Selection,
}

/// A selection of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Selection {
    All,
    None,
    /// A regular hyperslab, by axis; a count or block of `u64::MAX` is unlimited.
    Regular(Vec<Slab>),
    /// The first and the last coordinate of each block.
    Blocks(Vec<(Vec<u64>, Vec<u64>)>),
    Points,
}

/// `count` blocks of `block` elements, `stride` apart, along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Slab {
    pub start: u64,
    pub stride: u64,
    pub count: u64,
    pub block: u64,
}

/// Opens a file for reading. Its name need not be UTF-8.
pub(in crate::store) fn open_file(path: &Path, cache_bytes: usize) -> hdf5::Result<Guarded<File>> {
    let name = c_name(path.as_os_str().as_bytes())?;
    // SAFETY: the name is a C string; the handle of the file gets its one owner.
    let open = || unsafe {
        let access = Handle::new(H5Pcreate(*H5P_CLS_FILE_ACCESS), H5Pclose)?;
        h5check(H5Pset_cache(access.id, 0, CHUNK_CACHE_SLOTS, cache_bytes, 1.0))?;
        hdf5::from_id(h5check(H5Fopen(name.as_ptr(), H5F_ACC_RDONLY, access.id))?)
    };
    Guarded::open(guard::message(path), || sync(open))
}

/// Opens the dataset at a path of hard links.
pub(in crate::store) fn open_dataset(file: &Guarded<File>, path: &[u8]) -> hdf5::Result<Guarded<Dataset>> {
    let name = c_name(path)?;
    // SAFETY: the name is a C string; the handle of the dataset gets its one owner.
    let open = || unsafe { hdf5::from_id(h5check(H5Dopen2(file.id(), name.as_ptr(), H5P_DEFAULT))?) };
    Guarded::open(file.message(), || sync(open))
}

/// The dataspace of a dataset. For a virtual dataset of unlimited extent HDF5 opens its parts.
pub(in crate::store) fn space(dataset: &Guarded<Dataset>) -> hdf5::Result<Dataspace> {
    let _guard = dataset.guard();
    // SAFETY: a query of a space that this call opened.
    sync(|| unsafe {
        let space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        match H5Sget_simple_extent_type(space.id) {
            H5S_class_t::H5S_NULL => Ok(Dataspace::Null),
            _ => extents(space.id).map(Dataspace::Extents),
        }
    })
}

/// # Safety
/// To be called under HDF5's lock.
unsafe fn extents(space: hid_t) -> hdf5::Result<Vec<u64>> {
    // SAFETY: the buffer has room for as many extents as HDF5 says there are.
    unsafe {
        let rank = h5check(H5Sget_simple_extent_ndims(space))?;
        let mut extents = vec![0; rank as usize];
        h5check(H5Sget_simple_extent_dims(space, extents.as_mut_ptr(), std::ptr::null_mut()))?;
        Ok(extents)
    }
}

/// Reads the creation properties of a dataset.
pub(in crate::store) fn creation(dataset: &Guarded<Dataset>) -> hdf5::Result<Creation> {
    let _guard = dataset.guard();
    // SAFETY: queries of a property list that this call opened; buffers are as long as HDF5 is told.
    sync(|| unsafe {
        let list = Handle::new(H5Dget_create_plist(dataset.id()), H5Pclose)?;
        let layout = H5Pget_layout(list.id);
        let mut chunk = None;
        if let H5D_layout_t::H5D_CHUNKED = layout {
            let mut extents = [0; 33];
            let rank = h5check(H5Pget_chunk(list.id, 32, extents.as_mut_ptr()))?;
            chunk = Some(extents[..(rank as usize).min(32)].to_vec());
        }
        let mut mappings = None;
        if let H5D_layout_t::H5D_VIRTUAL = layout {
            let mut count = 0;
            h5check(H5Pget_virtual_count(list.id, &mut count))?;
            mappings = Some((0..count).map(|index| mapping(list.id, index)).collect::<hdf5::Result<_>>()?);
        }
        let filters = h5check(H5Pget_nfilters(list.id))?;
        let raw_files = h5check(H5Pget_external_count(list.id))?;
        Ok(Creation {
            chunk,
            filters: (0..filters as u32).map(|index| filter(list.id, index)).collect::<hdf5::Result<_>>()?,
            raw_files: (0..raw_files as u32).map(|index| raw_file(list.id, index)).collect::<hdf5::Result<_>>()?,
            mappings,
        })
    })
}

/// # Safety
/// To be called under HDF5's lock, with a dataset's creation properties.
unsafe fn filter(list: hid_t, index: u32) -> hdf5::Result<Filter> {
    let mut name = [0u8; 256];
    let (mut flags, mut values, mut config) = (0, 0, 0);
    // SAFETY: no values are asked for, and the name's buffer is as long as HDF5 is told.
    unsafe {
        let into = name.as_mut_ptr().cast();
        let id = h5check(H5Pget_filter2(
            list,
            index,
            &mut flags,
            &mut values,
            std::ptr::null_mut(),
            name.len() - 1,
            into,
            std::ptr::null_mut(),
        ))?;
        // HDF5 looks for a plugin now.
        let there = H5Zfilter_avail(id) > 0 && H5Zget_filter_info(id, &mut config) >= 0;
        Ok(Filter {
            id,
            name: String::from_utf8_lossy(&until_nul(&name)).into_owned(),
            optional: flags & 1 != 0,
            available: there && config & H5Z_FILTER_CONFIG_DECODE_ENABLED != 0,
        })
    }
}

/// # Safety
/// To be called under HDF5's lock, with a dataset's creation properties.
unsafe fn raw_file(list: hid_t, index: u32) -> hdf5::Result<RawFile> {
    let mut name = vec![0u8; 4097];
    let (mut offset, mut length) = (0, 0);
    // SAFETY: the name's buffer is as long as HDF5 is told.
    unsafe {
        h5check(H5Pget_external(list, index, 4096, name.as_mut_ptr().cast(), &mut offset, &mut length))?;
    }
    Ok(RawFile {
        name: until_nul(&name),
        offset_bytes: u64::try_from(offset).map_err(|_| hdf5::Error::from("a raw file has a negative offset"))?,
        length_bytes: (length != u64::MAX).then_some(length),
    })
}

/// # Safety
/// To be called under HDF5's lock, with a virtual dataset's creation properties.
unsafe fn mapping(list: hid_t, index: usize) -> hdf5::Result<Mapping> {
    // SAFETY: spaces are closed by their owners; names are asked for with buffers that are long enough.
    unsafe {
        let target = Handle::new(H5Pget_virtual_vspace(list, index), H5Sclose)?;
        let source = Handle::new(H5Pget_virtual_srcspace(list, index), H5Sclose)?;
        let name = |get: unsafe extern "C" fn(hid_t, usize, *mut c_char, usize) -> isize| {
            let length = h5check(get(list, index, std::ptr::null_mut(), 0))? as usize;
            if length > MOST_NAME_BYTES {
                return Err(hdf5::Error::from("the name of a part is damaged"));
            }
            let mut name = vec![0u8; length + 1];
            h5check(get(list, index, name.as_mut_ptr().cast(), length + 1))?;
            Ok(until_nul(&name))
        };
        Ok(Mapping {
            file: name(H5Pget_virtual_filename)?,
            dataset: name(H5Pget_virtual_dsetname)?,
            target: selection(target.id)?,
            source: selection(source.id)?,
        })
    }
}

/// # Safety
/// To be called under HDF5's lock, with a dataspace.
unsafe fn selection(space: hid_t) -> hdf5::Result<Selection> {
    // SAFETY: buffers have room for as many axes and blocks as HDF5 says there are.
    unsafe {
        match H5Sget_select_type(space) {
            H5S_sel_type::H5S_SEL_ALL => return Ok(Selection::All),
            H5S_sel_type::H5S_SEL_NONE => return Ok(Selection::None),
            H5S_sel_type::H5S_SEL_HYPERSLABS => {}
            _ => return Ok(Selection::Points),
        }
        let rank = h5check(H5Sget_simple_extent_ndims(space))? as usize;
        if h5check(H5Sis_regular_hyperslab(space))? > 0 {
            let mut numbers: [Vec<hsize_t>; 4] = std::array::from_fn(|_| vec![0; rank]);
            let [start, stride, count, block] = numbers.each_mut().map(Vec::as_mut_ptr);
            h5check(H5Sget_regular_hyperslab(space, start, stride, count, block))?;
            let [start, stride, count, block] = numbers;
            let slab = |d: usize| Slab { start: start[d], stride: stride[d].max(1), count: count[d], block: block[d] };
            return Ok(Selection::Regular((0..rank).map(slab).collect()));
        }
        let count = h5check(H5Sget_select_hyper_nblocks(space))? as usize;
        let mut corners = vec![0; count * 2 * rank];
        h5check(H5Sget_select_hyper_blocklist(space, 0, count as u64, corners.as_mut_ptr()))?;
        let block = |corners: &[u64]| (corners[..rank].to_vec(), corners[rank..].to_vec());
        Ok(Selection::Blocks(corners.chunks_exact((2 * rank).max(1)).map(block).collect()))
    }
}

/// The bytes of the fill value.
pub(in crate::store) fn fill_value(dataset: &Guarded<Dataset>, dtype: Dtype) -> hdf5::Result<Vec<u8>> {
    let _guard = dataset.guard();
    let mut element = vec![0u8; dtype.size_bytes()];
    // SAFETY: the element has room for one of the type in memory.
    sync(|| unsafe {
        let list = Handle::new(H5Dget_create_plist(dataset.id()), H5Pclose)?;
        let mut defined = H5D_fill_value_t::H5D_FILL_VALUE_UNDEFINED;
        h5check(H5Pfill_value_defined(list.id, &mut defined))?;
        if !matches!(defined, H5D_fill_value_t::H5D_FILL_VALUE_UNDEFINED) {
            h5check(H5Pget_fill_value(list.id, memory_type(dtype)?.id, element.as_mut_ptr().cast()))?;
        }
        Ok(element)
    })
}

/// The filters that the first stored chunk skips, as a bit mask; `None` if no chunk is stored.
pub(in crate::store) fn first_filter_mask(dataset: &Guarded<Dataset>, rank: usize) -> hdf5::Result<Option<u32>> {
    let _guard = dataset.guard();
    // SAFETY: results go into locals; the offset has room for the dataset's rank.
    sync(|| unsafe {
        let mut chunks = 0;
        let space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        h5check(H5Dget_num_chunks(dataset.id(), space.id, &mut chunks))?;
        if chunks == 0 {
            return Ok(None);
        }
        let (mut offset, mut mask, mut address, mut size) = (vec![0; rank], 0, 0, 0);
        let into = offset.as_mut_ptr();
        h5check(H5Dget_chunk_info(dataset.id(), space.id, 0, into, &mut mask, &mut address, &mut size))?;
        Ok(Some(mask))
    })
}

/// The offset of a contiguous dataset in its file, and the number of stored bytes.
pub(in crate::store) fn location(dataset: &Guarded<Dataset>) -> (Option<u64>, u64) {
    let _guard = dataset.guard();
    // SAFETY: queries of an open dataset.
    sync(|| unsafe {
        let offset = H5Dget_offset(dataset.id());
        ((offset != u64::MAX).then_some(offset), H5Dget_storage_size(dataset.id()))
    })
}

/// Reads the elements of `slabs`, by axis, into their packed row-major bytes of native byte order.
pub(in crate::store) fn read_slabs(
    dataset: &Guarded<Dataset>,
    dtype: Dtype,
    slabs: &[Slab],
    out: &mut [u8],
) -> hdf5::Result<()> {
    let _guard = dataset.reading();
    let numbers = |number: fn(&Slab) -> u64| slabs.iter().map(number).collect::<Vec<hsize_t>>();
    let (start, stride) = (numbers(|slab| slab.start), numbers(|slab| slab.stride));
    let (count, block) = (numbers(|slab| slab.count), numbers(|slab| slab.block));
    let extents = numbers(|slab| slab.count * slab.block);
    assert_eq!(out.len() as u64, extents.iter().product::<u64>() * dtype.size_bytes() as u64);
    if out.is_empty() {
        return Ok(());
    }
    // SAFETY: HDF5 checks that the selection lies in the dataset; it writes as many elements as are selected, for which
    // `out` has room, as just checked; the numbers are of the dataset's rank, as the check of the spaces says.
    sync(|| unsafe {
        let memory_type = memory_type(dtype)?;
        let file_space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        if h5check(H5Sget_simple_extent_ndims(file_space.id))? as usize != slabs.len() {
            return Err(hdf5::Error::from("a dataset has another rank than it had"));
        }
        let memory_space = if slabs.is_empty() {
            Handle::new(H5Screate(H5S_class_t::H5S_SCALAR), H5Sclose)?
        } else {
            let set = H5S_seloper_t::H5S_SELECT_SET;
            let (start, stride, count, block) = (start.as_ptr(), stride.as_ptr(), count.as_ptr(), block.as_ptr());
            h5check(H5Sselect_hyperslab(file_space.id, set, start, stride, count, block))?;
            Handle::new(H5Screate_simple(slabs.len() as i32, extents.as_ptr(), std::ptr::null()), H5Sclose)?
        };
        let buffer = out.as_mut_ptr().cast::<c_void>();
        h5check(H5Dread(dataset.id(), memory_type.id, memory_space.id, file_space.id, H5P_DEFAULT, buffer))?;
        Ok(())
    })
}
