//! The part of the door that is for files that jobs read: links one at a time, and what a dataset is made of.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hdf5::{Dataset, File, h5check, sync::sync};
use hdf5_sys::h5::hsize_t;
use hdf5_sys::h5d::*;
use hdf5_sys::h5f::{H5F_ACC_RDONLY, H5Fopen};
use hdf5_sys::h5g::{H5Gclose, H5Gopen2};
use hdf5_sys::h5i::hid_t;
use hdf5_sys::h5l::*;
use hdf5_sys::h5o::{H5O_INFO_BASIC, H5O_info1_t, H5O_type_t, H5Oget_info_by_name2};
use hdf5_sys::h5p::*;
use hdf5_sys::h5s::*;
use hdf5_sys::h5z::{H5Z_FILTER_CONFIG_DECODE_ENABLED, H5Zfilter_avail, H5Zget_filter_info};

use super::guard::{self, Held};
use super::{Handle, memory_type};
use crate::tensor::Dtype;

/// A prime well above the number of chunks that fit into a chunk cache.
const CHUNK_CACHE_SLOTS: usize = 10_007;
/// A link's value, a name in a virtual dataset's map: longer ones are taken for damage.
const NAME_BYTES: usize = 1 << 20;

/// Where a link of a group leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Link {
    /// To an object of this file, by its address.
    Hard(u64),
    /// To a path in this file.
    Soft(Vec<u8>),
    /// To a path in another file.
    External { file: Vec<u8>, object: Vec<u8> },
    /// To wherever a program that registered it says.
    Other,
}

/// What a path of hard links leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    Group,
    Dataset,
    Other,
}

/// The dataspace of a dataset.
pub(in crate::store) enum Space {
    Null,
    Extents(Vec<u64>),
}

/// Element type of a dataset, as the one of the door says.
pub(in crate::store) fn element_type(dataset: &Held<Dataset>) -> hdf5::Result<Result<(Dtype, bool), String>> {
    let _guard = dataset.guard();
    super::element_type(dataset)
}

/// How a dataset is stored, as its creator wished it.
pub(in crate::store) struct Creation {
    pub chunk: Option<Vec<u64>>,
    pub filters: Vec<Filter>,
    /// Files without any structure that have the elements.
    pub raw_files: Vec<RawFile>,
    /// Of a virtual dataset, in the order in which they are laid over each other.
    pub mappings: Option<Vec<Mapping>>,
}

pub(in crate::store) struct Filter {
    pub id: i32,
    pub name: String,
    /// Whether chunks may be stored without it.
    pub optional: bool,
    /// Whether this HDF5 can undo it.
    pub available: bool,
}

pub(in crate::store) struct RawFile {
    pub name: Vec<u8>,
    pub offset_bytes: u64,
    /// None: as long as it is.
    pub length_bytes: Option<u64>,
}

/// One entry of a virtual dataset's map.
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
    /// By axis; a count or block of `u64::MAX` has no end.
    Regular(Vec<Slab>),
    /// The first and the last place of each block.
    Blocks(Vec<(Vec<u64>, Vec<u64>)>),
    Points,
}

/// Along one axis: `count` blocks of `block` elements, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Slab {
    pub start: u64,
    pub stride: u64,
    pub count: u64,
    pub block: u64,
}

fn c_name(name: &[u8]) -> hdf5::Result<CString> {
    CString::new(name).map_err(|_| hdf5::Error::from("the name has a NUL"))
}

/// Opens a file for reading, whatever bytes its name has.
pub(in crate::store) fn open_file(path: &Path, cache_bytes: usize) -> hdf5::Result<Held<File>> {
    let name = c_name(path.as_os_str().as_bytes())?;
    // SAFETY: the name is a C string; the handle of the file gets its one owner.
    let open = || unsafe {
        let access = Handle::new(H5Pcreate(*H5P_CLS_FILE_ACCESS), H5Pclose)?;
        h5check(H5Pset_cache(access.0, 0, CHUNK_CACHE_SLOTS, cache_bytes, 1.0))?;
        hdf5::from_id(h5check(H5Fopen(name.as_ptr(), H5F_ACC_RDONLY, access.0))?)
    };
    Held::open(guard::message(path), || sync(open))
}

/// Where the last link of a path leads, all before which are hard links to groups; `None` if there is no such link.
pub(in crate::store) fn link(file: &Held<File>, path: &[u8]) -> hdf5::Result<Option<Link>> {
    let _guard = file.guard();
    link_in(file, path)
}

/// The same in a file that is our own, which HDF5 does not crash on.
pub(in crate::store) fn link_in(file: &File, path: &[u8]) -> hdf5::Result<Option<Link>> {
    let name = c_name(path)?;
    // SAFETY: the name is a C string, and results go into locals.
    sync(|| unsafe {
        if h5check(H5Lexists(file.id(), name.as_ptr(), H5P_DEFAULT))? == 0 {
            return Ok(None);
        }
        let mut info = MaybeUninit::<H5L_info1_t>::zeroed();
        #[allow(deprecated, reason = "the newer call is not in HDF5 1.10")]
        h5check(H5Lget_info1(file.id(), name.as_ptr(), info.as_mut_ptr(), H5P_DEFAULT))?;
        let (class, value) = class_and_value(info.as_ptr());
        value_of(file.id(), &name, class, value).map(Some)
    })
}

/// The class of a link as a number, because classes that programs define are none of the enum's values, and its address or
/// the length of its value.
///
/// # Safety
/// The pointer is to the information of a link, as HDF5 fills it in.
unsafe fn class_and_value(info: *const H5L_info1_t) -> (i32, u64) {
    // SAFETY: both are plain numbers, read without a reference to the enum.
    unsafe { ((&raw const (*info).type_).cast::<i32>().read(), (&raw const (*info).u).cast::<u64>().read()) }
}

/// # Safety
/// To be called under HDF5's lock, with the information of the link of this name.
unsafe fn value_of(place: hid_t, name: &CStr, class: i32, value: u64) -> hdf5::Result<Link> {
    if class == H5L_type_t::H5L_TYPE_HARD as i32 {
        return Ok(Link::Hard(value));
    }
    if class != H5L_type_t::H5L_TYPE_SOFT as i32 && class != H5L_type_t::H5L_TYPE_EXTERNAL as i32 {
        return Ok(Link::Other);
    }
    let length = value as usize;
    if length > NAME_BYTES {
        return Err(hdf5::Error::from("a link's value is damaged"));
    }
    // SAFETY: the buffer is as long as HDF5 is told.
    unsafe {
        let mut value = vec![0u8; length + 1];
        h5check(H5Lget_val(place, name.as_ptr(), value.as_mut_ptr().cast(), length, H5P_DEFAULT))?;
        if class == H5L_type_t::H5L_TYPE_SOFT as i32 {
            return Ok(Link::Soft(until_nul(&value)));
        }
        // A byte of flags, the file and the object, each with a NUL.
        let mut parts = value.get(1..).unwrap_or(&[]).split(|byte| *byte == 0);
        match (parts.next(), parts.next()) {
            (Some(file), Some(object)) if !file.is_empty() => {
                Ok(Link::External { file: file.to_vec(), object: object.to_vec() })
            }
            _ => Err(hdf5::Error::from("an external link is damaged")),
        }
    }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// All links of the group at a path of hard links. Its time is linear in their number.
pub(in crate::store) fn links(file: &Held<File>, group: &[u8]) -> hdf5::Result<Vec<(Vec<u8>, Link)>> {
    let _guard = file.guard();
    extern "C" fn take(_: hid_t, name: *const c_char, info: *const H5L_info1_t, found: *mut c_void) -> i32 {
        // SAFETY: HDF5 hands on the vector that it was given below, a C string and the link's information.
        unsafe {
            let found = &mut *found.cast::<Vec<(CString, (i32, u64))>>();
            found.push((CStr::from_ptr(name).to_owned(), class_and_value(info)));
        }
        0
    }
    let name = c_name(group)?;
    let mut found: Vec<(CString, (i32, u64))> = Vec::new();
    // SAFETY: the vector outlives the call, and nobody else uses it meanwhile.
    sync(|| unsafe {
        let group = Handle::new(H5Gopen2(file.id(), name.as_ptr(), H5P_DEFAULT), H5Gclose)?;
        let into = (&raw mut found).cast();
        let (index, order) = (hdf5_sys::h5::H5_index_t::H5_INDEX_NAME, hdf5_sys::h5::H5_iter_order_t::H5_ITER_NATIVE);
        #[allow(deprecated, reason = "the newer call is not in HDF5 1.10")]
        h5check(H5Literate1(group.0, index, order, std::ptr::null_mut(), Some(take), into))?;
        let link = |(name, (class, value)): (CString, (i32, u64))| {
            let value = value_of(group.0, &name, class, value)?;
            Ok((name.into_bytes(), value))
        };
        found.drain(..).map(link).collect()
    })
}

/// What a path of hard links leads to, and its address.
pub(in crate::store) fn kind(file: &Held<File>, path: &[u8]) -> hdf5::Result<(Kind, u64)> {
    let _guard = file.guard();
    let name = c_name(path)?;
    // SAFETY: the name is a C string, and the result goes into a local.
    sync(|| unsafe {
        let mut info = H5O_info1_t::default();
        h5check(H5Oget_info_by_name2(file.id(), name.as_ptr(), &mut info, H5O_INFO_BASIC, H5P_DEFAULT))?;
        let kind = match info.type_ {
            H5O_type_t::H5O_TYPE_GROUP => Kind::Group,
            H5O_type_t::H5O_TYPE_DATASET => Kind::Dataset,
            _ => Kind::Other,
        };
        Ok((kind, info.addr))
    })
}

/// Opens the dataset at a path of hard links.
pub(in crate::store) fn open_dataset(file: &Held<File>, path: &[u8]) -> hdf5::Result<Held<Dataset>> {
    let name = c_name(path)?;
    // SAFETY: the name is a C string; the handle of the dataset gets its one owner.
    let open = || unsafe { hdf5::from_id(h5check(H5Dopen2(file.id(), name.as_ptr(), H5P_DEFAULT))?) };
    Held::open(file.message(), || sync(open))
}

/// The dataspace of a dataset. HDF5 looks at the parts of a virtual dataset that has no fixed extent.
pub(in crate::store) fn space(dataset: &Held<Dataset>) -> hdf5::Result<Space> {
    let _guard = dataset.guard();
    // SAFETY: a query of a space that this call opened.
    sync(|| unsafe {
        let space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        match H5Sget_simple_extent_type(space.0) {
            H5S_class_t::H5S_NULL => Ok(Space::Null),
            _ => extents(space.0).map(Space::Extents),
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

/// How a dataset is stored.
pub(in crate::store) fn creation(dataset: &Held<Dataset>) -> hdf5::Result<Creation> {
    let _guard = dataset.guard();
    // SAFETY: queries of a property list that this call opened; buffers are as long as HDF5 is told.
    sync(|| unsafe {
        let list = Handle::new(H5Dget_create_plist(dataset.id()), H5Pclose)?;
        let layout = H5Pget_layout(list.0);
        let mut chunk = None;
        if let H5D_layout_t::H5D_CHUNKED = layout {
            let mut extents = [0; 33];
            let rank = h5check(H5Pget_chunk(list.0, 32, extents.as_mut_ptr()))?;
            chunk = Some(extents[..(rank as usize).min(32)].to_vec());
        }
        let mut mappings = None;
        if let H5D_layout_t::H5D_VIRTUAL = layout {
            let mut count = 0;
            h5check(H5Pget_virtual_count(list.0, &mut count))?;
            mappings = Some((0..count).map(|index| mapping(list.0, index)).collect::<hdf5::Result<_>>()?);
        }
        let filters = h5check(H5Pget_nfilters(list.0))?;
        let raw_files = h5check(H5Pget_external_count(list.0))?;
        Ok(Creation {
            chunk,
            filters: (0..filters as u32).map(|index| filter(list.0, index)).collect::<hdf5::Result<_>>()?,
            raw_files: (0..raw_files as u32).map(|index| raw_file(list.0, index)).collect::<hdf5::Result<_>>()?,
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
        offset_bytes: u64::try_from(offset).map_err(|_| hdf5::Error::from("a raw file begins before its beginning"))?,
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
            if length > NAME_BYTES {
                return Err(hdf5::Error::from("the name of a part is damaged"));
            }
            let mut name = vec![0u8; length + 1];
            h5check(get(list, index, name.as_mut_ptr().cast(), length + 1))?;
            Ok(until_nul(&name))
        };
        Ok(Mapping {
            file: name(H5Pget_virtual_filename)?,
            dataset: name(H5Pget_virtual_dsetname)?,
            target: selection(target.0)?,
            source: selection(source.0)?,
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

/// The bytes of the element that stands where nothing is stored.
pub(in crate::store) fn fill_value(dataset: &Held<Dataset>, dtype: Dtype) -> hdf5::Result<Vec<u8>> {
    let _guard = dataset.guard();
    let mut element = vec![0u8; dtype.size_bytes()];
    // SAFETY: the element has room for one of the type in memory.
    sync(|| unsafe {
        let list = Handle::new(H5Dget_create_plist(dataset.id()), H5Pclose)?;
        let mut defined = H5D_fill_value_t::H5D_FILL_VALUE_UNDEFINED;
        h5check(H5Pfill_value_defined(list.0, &mut defined))?;
        if !matches!(defined, H5D_fill_value_t::H5D_FILL_VALUE_UNDEFINED) {
            h5check(H5Pget_fill_value(list.0, memory_type(dtype)?.0, element.as_mut_ptr().cast()))?;
        }
        Ok(element)
    })
}

/// Which filters the first stored chunk does without, by a bit for each; `None` if there is no chunk.
pub(in crate::store) fn first_filter_mask(dataset: &Held<Dataset>, rank: usize) -> hdf5::Result<Option<u32>> {
    let _guard = dataset.guard();
    // SAFETY: results go into locals; the offset has room for the dataset's rank.
    sync(|| unsafe {
        let mut chunks = 0;
        let space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        h5check(H5Dget_num_chunks(dataset.id(), space.0, &mut chunks))?;
        if chunks == 0 {
            return Ok(None);
        }
        let (mut offset, mut mask, mut address, mut size) = (vec![0; rank], 0, 0, 0);
        let into = offset.as_mut_ptr();
        h5check(H5Dget_chunk_info(dataset.id(), space.0, 0, into, &mut mask, &mut address, &mut size))?;
        Ok(Some(mask))
    })
}

/// Where the bytes of a contiguous dataset begin in its file, and how many are stored.
pub(in crate::store) fn place(dataset: &Held<Dataset>) -> (Option<u64>, u64) {
    let _guard = dataset.guard();
    // SAFETY: queries of an open dataset.
    sync(|| unsafe {
        let offset = H5Dget_offset(dataset.id());
        ((offset != u64::MAX).then_some(offset), H5Dget_storage_size(dataset.id()))
    })
}

/// Reads the elements of `slabs`, by axis, into their packed row-major bytes of native byte order.
pub(in crate::store) fn read_slabs(
    dataset: &Held<Dataset>,
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
        if h5check(H5Sget_simple_extent_ndims(file_space.0))? as usize != slabs.len() {
            return Err(hdf5::Error::from("a dataset has another rank than it had"));
        }
        let memory_space = if slabs.is_empty() {
            Handle::new(H5Screate(H5S_class_t::H5S_SCALAR), H5Sclose)?
        } else {
            let set = H5S_seloper_t::H5S_SELECT_SET;
            let (start, stride, count, block) = (start.as_ptr(), stride.as_ptr(), count.as_ptr(), block.as_ptr());
            h5check(H5Sselect_hyperslab(file_space.0, set, start, stride, count, block))?;
            Handle::new(H5Screate_simple(slabs.len() as i32, extents.as_ptr(), std::ptr::null()), H5Sclose)?
        };
        let buffer = out.as_mut_ptr().cast::<c_void>();
        h5check(H5Dread(dataset.id(), memory_type.0, memory_space.0, file_space.0, H5P_DEFAULT, buffer))?;
        Ok(())
    })
}

/// A name in an HDF5 file as a path.
pub(in crate::store) fn path_of(name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name))
}
