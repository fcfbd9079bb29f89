//! Attributes of any type, and references to objects.

use std::ffi::{CString, c_void};

use hdf5::{Dataset, File, ObjectReference1, h5check, sync::sync};
use hdf5_sys::{h5a::*, h5d::*, h5i::hid_t, h5p::*, h5s::*, h5t::*};

use super::handle::Handle;

/// The axis that a dimension scale is attached to, as the scale records it.
#[derive(Clone, Copy, Debug, hdf5::H5Type)]
#[repr(C)]
pub(in crate::store) struct Attached {
    pub dataset: ObjectReference1,
    pub dimension: i32,
}

/// The address of an object's header in its file.
pub(in crate::store) fn address(reference: ObjectReference1) -> u64 {
    // SAFETY: the type is a transparent wrapper of HDF5's `hobj_ref_t`, which is this number.
    unsafe { std::mem::transmute::<ObjectReference1, u64>(reference) }
}

/// Makes an anonymous dataset that holds attributes and vanishes with its handle.
pub(in crate::store) fn shelf(file: &File) -> hdf5::Result<Shelf> {
    // SAFETY: handles are closed by their owners.
    sync(|| unsafe {
        let space = Handle::new(H5Screate(H5S_class_t::H5S_NULL), H5Sclose)?;
        let id = H5Dcreate_anon(file.id(), *H5T_NATIVE_INT8, space.id, H5P_DEFAULT, H5P_DEFAULT);
        Ok(Shelf(Handle::new(id, H5Dclose)?))
    })
}

/// An anonymous dataset that holds attributes.
pub(in crate::store) struct Shelf(Handle);

impl Shelf {
    /// Copies an attribute of a dataset here.
    pub(in crate::store) fn take(&self, dataset: &Dataset, name: &str) -> hdf5::Result<()> {
        copy_attribute(dataset.id(), self.0.id, name)
    }

    /// Copies an attribute from here to a dataset.
    pub(in crate::store) fn give(&self, dataset: &Dataset, name: &str) -> hdf5::Result<()> {
        copy_attribute(self.0.id, dataset.id(), name)
    }
}

fn copy_attribute(from: hid_t, to: hid_t, name: &str) -> hdf5::Result<()> {
    let name = CString::new(name).map_err(|_| hdf5::Error::from("the attribute's name has a NUL"))?;
    // SAFETY: the buffer has room for all elements, as HDF5 says; what these own is given back before it goes.
    sync(|| unsafe {
        let source = Handle::new(H5Aopen(from, name.as_ptr(), H5P_DEFAULT), H5Aclose)?;
        let ty = Handle::new(H5Aget_type(source.id), H5Tclose)?;
        let space = Handle::new(H5Aget_space(source.id), H5Sclose)?;
        let creation = Handle::new(H5Aget_create_plist(source.id), H5Pclose)?;
        let target = H5Acreate2(to, name.as_ptr(), ty.id, space.id, creation.id, H5P_DEFAULT);
        let target = Handle::new(target, H5Aclose)?;
        let elements = h5check(H5Sget_simple_extent_npoints(space.id))? as usize;
        if elements == 0 {
            return Ok(());
        }
        // Aligned for any type.
        let mut buffer = vec![0u128; (elements * H5Tget_size(ty.id)).div_ceil(size_of::<u128>())];
        let bytes = buffer.as_mut_ptr().cast::<c_void>();
        h5check(H5Aread(source.id, ty.id, bytes))?;
        let written = h5check(H5Awrite(target.id, ty.id, bytes));
        h5check(H5Dvlen_reclaim(ty.id, space.id, H5P_DEFAULT, bytes))?;
        written.map(|_| ())
    })
}
