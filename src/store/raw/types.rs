//! Element types in memory and in files.

use hdf5::{Dataset, h5check, sync::sync};
use hdf5_sys::{h5d::*, h5s::*, h5t::*};

use super::handle::Handle;
use crate::tensor::Dtype;

/// The type of an element in memory, native byte order.
pub(super) fn memory_type(dtype: Dtype) -> hdf5::Result<Handle> {
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
        h5check(H5Tset_fields(ty.id, 15, mantissa, exponent, 0, mantissa))?;
        h5check(H5Tset_precision(ty.id, 16))?;
        h5check(H5Tset_size(ty.id, 2))?;
        h5check(H5Tset_ebias(ty.id, bias))?;
        h5check(H5Tset_order(ty.id, order))?;
        Ok(ty)
    }
}

/// The element type of a dataset and whether its file stores it big-endian; `Err` describes a type that no kernel
/// supports.
pub(super) fn element_type(dataset: &Dataset) -> hdf5::Result<Result<(Dtype, bool), String>> {
    // SAFETY: queries of a type that this call opened.
    sync(|| unsafe {
        let ty = Handle::new(H5Dget_type(dataset.id()), H5Tclose)?;
        let (size, big_endian) = (H5Tget_size(ty.id), H5Tget_order(ty.id) == H5T_order_t::H5T_ORDER_BE);
        let found = match H5Tget_class(ty.id) {
            H5T_class_t::H5T_INTEGER => match (size, H5Tget_sign(ty.id) == H5T_sign_t::H5T_SGN_2) {
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
                h5check(H5Tget_fields(ty.id, &mut sign, &mut e_at, &mut e_bits, &mut m_at, &mut m_bits))?;
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

/// Whether a dataset has exactly this element type and is not a null dataspace.
pub(in crate::store) fn has_type(dataset: &Dataset, dtype: Dtype) -> hdf5::Result<bool> {
    // SAFETY: queries of what this call opened.
    sync(|| unsafe {
        let ty = Handle::new(H5Dget_type(dataset.id()), H5Tclose)?;
        let space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        let has_shape = H5Sget_simple_extent_type(space.id) != H5S_class_t::H5S_NULL;
        Ok(has_shape && h5check(H5Tequal(ty.id, memory_type(dtype)?.id))? > 0)
    })
}
