//! HDF5's C API, for what the safe crate lacks: element types found at run time, hyperslabs into plain bytes, virtual datasets
//! as they are, storage allocated early and not filled, chunks written as they are, what kind of link stands where, and
//! attributes of any type.
//!
//! This is the fourth `unsafe` door of the crate. Every call is made under the safe crate's lock, and every handle is
//! closed by its owner.
#![expect(unsafe_code, reason = "HDF5's C API")]

pub(super) mod guard;
pub(super) mod source;

use std::ffi::{CString, c_void};

use hdf5::{Dataset, File, ObjectReference1, h5check, sync::sync};
use hdf5_sys::{h5::HADDR_UNDEF, h5a::*, h5d::*, h5i::hid_t, h5p::*, h5s::*, h5t::*};

use crate::tensor::Dtype;

/// An open HDF5 object and the call that closes it.
struct Handle(hid_t, unsafe extern "C" fn(hid_t) -> i32);

impl Handle {
    fn new(id: hid_t, close: unsafe extern "C" fn(hid_t) -> i32) -> hdf5::Result<Handle> {
        Ok(Handle(h5check(id)?, close))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: this owns the handle.
        sync(|| unsafe { (self.1)(self.0) });
    }
}

/// The type of an element in memory, native byte order.
fn memory_type(dtype: Dtype) -> hdf5::Result<Handle> {
    // SAFETY: copies predefined types, and shapes its own copy.
    unsafe {
        let native = match dtype {
            Dtype::F16 => return small_float(10, 5, 15),
            Dtype::Bf16 => return small_float(7, 8, 127),
            Dtype::F32 => *H5T_NATIVE_FLOAT,
            Dtype::F64 => *H5T_NATIVE_DOUBLE,
            Dtype::I8 => *H5T_NATIVE_INT8,
            Dtype::I16 => *H5T_NATIVE_INT16,
            Dtype::I32 => *H5T_NATIVE_INT32,
            Dtype::I64 => *H5T_NATIVE_INT64,
            Dtype::U8 => *H5T_NATIVE_UINT8,
            Dtype::U16 => *H5T_NATIVE_UINT16,
            Dtype::U32 => *H5T_NATIVE_UINT32,
            Dtype::U64 => *H5T_NATIVE_UINT64,
        };
        Handle::new(H5Tcopy(native), H5Tclose)
    }
}

/// A 16-bit float with the given bits of mantissa and exponent.
///
/// # Safety
/// To be called under HDF5's lock.
unsafe fn small_float(mantissa: usize, exponent: usize, bias: usize) -> hdf5::Result<Handle> {
    // SAFETY: shapes a copy of its own.
    unsafe {
        let order = H5Tget_order(*H5T_NATIVE_FLOAT);
        let ty = Handle::new(H5Tcopy(*H5T_IEEE_F32LE), H5Tclose)?;
        h5check(H5Tset_fields(ty.0, 15, mantissa, exponent, 0, mantissa))?;
        h5check(H5Tset_precision(ty.0, 16))?;
        h5check(H5Tset_size(ty.0, 2))?;
        h5check(H5Tset_ebias(ty.0, bias))?;
        h5check(H5Tset_order(ty.0, order))?;
        Ok(ty)
    }
}

/// Element type of a dataset and whether its file stores it big-endian; what it is in words where no kernel can take it.
pub(super) fn element_type(dataset: &Dataset) -> hdf5::Result<Result<(Dtype, bool), String>> {
    // SAFETY: queries of a type that this call opened.
    sync(|| unsafe {
        let ty = Handle::new(H5Dget_type(dataset.id()), H5Tclose)?;
        let (size, big_endian) = (H5Tget_size(ty.0), H5Tget_order(ty.0) == H5T_order_t::H5T_ORDER_BE);
        let found = match H5Tget_class(ty.0) {
            H5T_class_t::H5T_INTEGER => match (size, H5Tget_sign(ty.0) == H5T_sign_t::H5T_SGN_2) {
                (1, true) => Some(Dtype::I8),
                (2, true) => Some(Dtype::I16),
                (4, true) => Some(Dtype::I32),
                (8, true) => Some(Dtype::I64),
                (1, false) => Some(Dtype::U8),
                (2, false) => Some(Dtype::U16),
                (4, false) => Some(Dtype::U32),
                (8, false) => Some(Dtype::U64),
                _ => None,
            },
            H5T_class_t::H5T_FLOAT => {
                let (mut sign, mut e_at, mut e_bits, mut m_at, mut m_bits) = (0, 0, 0, 0, 0);
                h5check(H5Tget_fields(ty.0, &mut sign, &mut e_at, &mut e_bits, &mut m_at, &mut m_bits))?;
                match (size, e_bits, m_bits) {
                    (2, 5, 10) => Some(Dtype::F16),
                    (2, 8, 7) => Some(Dtype::Bf16),
                    (4, 8, 23) => Some(Dtype::F32),
                    (8, 11, 52) => Some(Dtype::F64),
                    _ => None,
                }
            }
            class => return Ok(Err(format!("{class:?}").trim_start_matches("H5T_").to_lowercase())),
        };
        Ok(found.map(|dtype| (dtype, big_endian)).ok_or_else(|| format!("a {size}-byte number of unusual layout")))
    })
}

/// Creates a dataset, with the groups above it, whose storage is allocated at once (unless compressed) and not filled.
pub(super) fn create(
    file: &File,
    name: &str,
    dtype: Dtype,
    shape: &[u64],
    chunk: Option<&[u64]>,
    deflate: Option<u8>,
) -> hdf5::Result<()> {
    let name = CString::new(name).map_err(|_| hdf5::Error::from("the dataset's name has a NUL"))?;
    // SAFETY: all pointers are to live slices of the stated rank; handles are closed by their owners.
    sync(|| unsafe {
        let file_type = memory_type(dtype)?;
        let space = match shape.len() {
            0 => Handle::new(H5Screate(H5S_class_t::H5S_SCALAR), H5Sclose)?,
            rank => Handle::new(H5Screate_simple(rank as i32, shape.as_ptr(), std::ptr::null()), H5Sclose)?,
        };
        let creation = Handle::new(H5Pcreate(*H5P_CLS_DATASET_CREATE), H5Pclose)?;
        h5check(H5Pset_fill_time(creation.0, H5D_fill_time_t::H5D_FILL_TIME_NEVER))?;
        if let Some(chunk) = chunk {
            h5check(H5Pset_chunk(creation.0, chunk.len() as i32, chunk.as_ptr()))?;
        }
        match deflate {
            Some(level) => h5check(H5Pset_deflate(creation.0, u32::from(level)))?,
            None => h5check(H5Pset_alloc_time(creation.0, H5D_alloc_time_t::H5D_ALLOC_TIME_EARLY))?,
        };
        let links = Handle::new(H5Pcreate(*H5P_CLS_LINK_CREATE), H5Pclose)?;
        h5check(H5Pset_create_intermediate_group(links.0, 1))?;
        let id = H5Dcreate2(file.id(), name.as_ptr(), file_type.0, space.0, links.0, creation.0, H5P_DEFAULT);
        drop(Handle::new(id, H5Dclose)?);
        Ok(())
    })
}

/// The stored bytes of one chunk; `None` if there are none.
pub(super) fn read_chunk(dataset: &Dataset, offset: &[u64]) -> hdf5::Result<Option<Vec<u8>>> {
    // SAFETY: `offset` has the dataset's rank, which the caller took it from; HDF5 writes as many bytes as it has just said, for
    // which there is room.
    sync(|| unsafe {
        let (mut bytes, mut filters, mut address) = (0, 0, HADDR_UNDEF);
        h5check(H5Dget_chunk_info_by_coord(dataset.id(), offset.as_ptr(), &mut filters, &mut address, &mut bytes))?;
        if address == HADDR_UNDEF || bytes == 0 {
            return Ok(None);
        }
        let mut stored = vec![0u8; bytes as usize];
        let buffer = stored.as_mut_ptr().cast::<c_void>();
        h5check(H5Dread_chunk1(dataset.id(), H5P_DEFAULT, offset.as_ptr(), &mut filters, buffer))?;
        Ok(Some(stored))
    })
}

/// Writes the stored bytes of one chunk; `offset` is its first element.
pub(super) fn write_chunk(dataset: &Dataset, offset: &[u64], stored: &[u8]) -> hdf5::Result<()> {
    // SAFETY: `offset` has the dataset's rank, which the caller took it from; HDF5 only reads `stored`.
    sync(|| unsafe {
        let buffer = stored.as_ptr().cast();
        h5check(H5Dwrite_chunk(dataset.id(), H5P_DEFAULT, 0, offset.as_ptr(), stored.len(), buffer))?;
        Ok(())
    })
}

/// Writes one element, all bytes of which are `byte`.
pub(super) fn write_element(dataset: &Dataset, dtype: Dtype, at: &[u64], byte: u8) -> hdf5::Result<()> {
    let element = [byte; 8];
    // SAFETY: `at` has the dataset's rank, which the caller took it from; no element has more than 8 bytes.
    sync(|| unsafe {
        let memory_type = memory_type(dtype)?;
        let file_space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        let memory_space = Handle::new(H5Screate(H5S_class_t::H5S_SCALAR), H5Sclose)?;
        if !at.is_empty() {
            let (one, set) = (vec![1; at.len()], H5S_seloper_t::H5S_SELECT_SET);
            let (start, none) = (at.as_ptr(), std::ptr::null());
            h5check(H5Sselect_hyperslab(file_space.0, set, start, none, one.as_ptr(), none))?;
        }
        let buffer = element.as_ptr().cast::<c_void>();
        h5check(H5Dwrite(dataset.id(), memory_type.0, memory_space.0, file_space.0, H5P_DEFAULT, buffer))?;
        Ok(())
    })
}

/// Whether a dataset has exactly this type of elements, and a shape at all.
pub(super) fn is_of(dataset: &Dataset, dtype: Dtype) -> hdf5::Result<bool> {
    // SAFETY: queries of what this call opened.
    sync(|| unsafe {
        let ty = Handle::new(H5Dget_type(dataset.id()), H5Tclose)?;
        let space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        let has_shape = H5Sget_simple_extent_type(space.0) != H5S_class_t::H5S_NULL;
        Ok(has_shape && h5check(H5Tequal(ty.0, memory_type(dtype)?.0))? > 0)
    })
}

/// To whose axis a dimension scale is attached, as scales note it.
#[derive(Clone, Copy, Debug, hdf5::H5Type)]
#[repr(C)]
pub(super) struct Attached {
    pub dataset: ObjectReference1,
    pub dimension: i32,
}

/// Where in the file the header of an object is.
pub(super) fn address(reference: ObjectReference1) -> u64 {
    // SAFETY: the type is a transparent wrapper of HDF5's `hobj_ref_t`, which is this number.
    unsafe { std::mem::transmute::<ObjectReference1, u64>(reference) }
}

/// A nameless dataset that vanishes with its handle: it holds attributes.
pub(super) fn shelf(file: &File) -> hdf5::Result<Shelf> {
    // SAFETY: handles are closed by their owners.
    sync(|| unsafe {
        let space = Handle::new(H5Screate(H5S_class_t::H5S_NULL), H5Sclose)?;
        let id = H5Dcreate_anon(file.id(), *H5T_NATIVE_INT8, space.0, H5P_DEFAULT, H5P_DEFAULT);
        Ok(Shelf(Handle::new(id, H5Dclose)?))
    })
}

/// What [`shelf`] makes.
pub(super) struct Shelf(Handle);

impl Shelf {
    /// Takes up an attribute of a dataset.
    pub(super) fn take(&self, dataset: &Dataset, name: &str) -> hdf5::Result<()> {
        copy_attribute(dataset.id(), self.0.0, name)
    }

    /// Gives it to a dataset.
    pub(super) fn give(&self, dataset: &Dataset, name: &str) -> hdf5::Result<()> {
        copy_attribute(self.0.0, dataset.id(), name)
    }
}

fn copy_attribute(from: hid_t, to: hid_t, name: &str) -> hdf5::Result<()> {
    let name = CString::new(name).map_err(|_| hdf5::Error::from("the attribute's name has a NUL"))?;
    // SAFETY: the buffer has room for all elements, as HDF5 says; what these own is given back before it goes.
    sync(|| unsafe {
        let source = Handle::new(H5Aopen(from, name.as_ptr(), H5P_DEFAULT), H5Aclose)?;
        let ty = Handle::new(H5Aget_type(source.0), H5Tclose)?;
        let space = Handle::new(H5Aget_space(source.0), H5Sclose)?;
        let creation = Handle::new(H5Aget_create_plist(source.0), H5Pclose)?;
        let target = H5Acreate2(to, name.as_ptr(), ty.0, space.0, creation.0, H5P_DEFAULT);
        let target = Handle::new(target, H5Aclose)?;
        let elements = h5check(H5Sget_simple_extent_npoints(space.0))? as usize;
        if elements == 0 {
            return Ok(());
        }
        // Aligned for whatever it may be.
        let mut buffer = vec![0u128; (elements * H5Tget_size(ty.0)).div_ceil(size_of::<u128>())];
        let bytes = buffer.as_mut_ptr().cast::<c_void>();
        h5check(H5Aread(source.0, ty.0, bytes))?;
        let written = h5check(H5Awrite(target.0, ty.0, bytes));
        h5check(H5Dvlen_reclaim(ty.0, space.0, H5P_DEFAULT, bytes))?;
        written.map(|_| ())
    })
}
