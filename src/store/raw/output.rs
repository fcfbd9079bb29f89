//! Datasets that a run creates, and the chunks and elements that it writes through HDF5.

use std::ffi::{CString, c_void};

use hdf5::{Dataset, File, h5check, sync::sync};
use hdf5_sys::{h5::HADDR_UNDEF, h5d::*, h5p::*, h5s::*};

use super::handle::Handle;
use super::types::memory_type;
use crate::tensor::Dtype;

/// How a new dataset is stored.
pub(in crate::store) struct NewStorage<'a> {
    pub dtype: Dtype,
    pub shape: &'a [u64],
    pub chunk: Option<&'a [u64]>,
    pub deflate: Option<u8>,
}

/// Creates a dataset, with the groups above it, whose storage is allocated at once (unless compressed) and not filled.
pub(in crate::store) fn create(file: &File, name: &str, storage: &NewStorage<'_>) -> hdf5::Result<()> {
    let NewStorage { dtype, shape, chunk, deflate } = *storage;
    let name = CString::new(name).map_err(|_| hdf5::Error::from("the dataset's name has a NUL"))?;
    // SAFETY: all pointers are to live slices of the stated rank; handles are closed by their owners.
    sync(|| unsafe {
        let file_type = memory_type(dtype)?;
        let space = match shape.len() {
            0 => Handle::new(H5Screate(H5S_class_t::H5S_SCALAR), H5Sclose)?,
            rank => Handle::new(H5Screate_simple(rank as i32, shape.as_ptr(), std::ptr::null()), H5Sclose)?,
        };
        let creation = Handle::new(H5Pcreate(*H5P_CLS_DATASET_CREATE), H5Pclose)?;
        h5check(H5Pset_fill_time(creation.id, H5D_fill_time_t::H5D_FILL_TIME_NEVER))?;
        if let Some(chunk) = chunk {
            h5check(H5Pset_chunk(creation.id, chunk.len() as i32, chunk.as_ptr()))?;
        }
        match deflate {
            Some(level) => h5check(H5Pset_deflate(creation.id, u32::from(level)))?,
            None => h5check(H5Pset_alloc_time(creation.id, H5D_alloc_time_t::H5D_ALLOC_TIME_EARLY))?,
        };
        let links = Handle::new(H5Pcreate(*H5P_CLS_LINK_CREATE), H5Pclose)?;
        h5check(H5Pset_create_intermediate_group(links.id, 1))?;
        let id = H5Dcreate2(file.id(), name.as_ptr(), file_type.id, space.id, links.id, creation.id, H5P_DEFAULT);
        drop(Handle::new(id, H5Dclose)?);
        Ok(())
    })
}

/// Reads the stored bytes of one chunk; `None` if the chunk is not stored.
pub(in crate::store) fn read_chunk(dataset: &Dataset, offset: &[u64]) -> hdf5::Result<Option<Vec<u8>>> {
    // SAFETY: `offset` has the dataset's rank, which the caller took it from; HDF5 writes as many bytes as it has just
    // said, for which there is room.
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
pub(in crate::store) fn write_chunk(dataset: &Dataset, offset: &[u64], stored: &[u8]) -> hdf5::Result<()> {
    // SAFETY: `offset` has the dataset's rank, which the caller took it from; HDF5 only reads `stored`.
    sync(|| unsafe {
        let buffer = stored.as_ptr().cast();
        h5check(H5Dwrite_chunk(dataset.id(), H5P_DEFAULT, 0, offset.as_ptr(), stored.len(), buffer))?;
        Ok(())
    })
}

/// Writes one element, all bytes of which are `byte`.
pub(in crate::store) fn write_element(dataset: &Dataset, dtype: Dtype, at: &[u64], byte: u8) -> hdf5::Result<()> {
    let element = [byte; 8];
    // SAFETY: `at` has the dataset's rank, which the caller took it from; no element has more than 8 bytes.
    sync(|| unsafe {
        let memory_type = memory_type(dtype)?;
        let file_space = Handle::new(H5Dget_space(dataset.id()), H5Sclose)?;
        let memory_space = Handle::new(H5Screate(H5S_class_t::H5S_SCALAR), H5Sclose)?;
        if !at.is_empty() {
            let (one, set) = (vec![1; at.len()], H5S_seloper_t::H5S_SELECT_SET);
            let (start, none) = (at.as_ptr(), std::ptr::null());
            h5check(H5Sselect_hyperslab(file_space.id, set, start, none, one.as_ptr(), none))?;
        }
        let buffer = element.as_ptr().cast::<c_void>();
        h5check(H5Dwrite(dataset.id(), memory_type.id, memory_space.id, file_space.id, H5P_DEFAULT, buffer))?;
        Ok(())
    })
}
