//! Links of groups, one at a time, and the objects that they lead to.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use hdf5::{File, h5check, sync::sync};
use hdf5_sys::h5g::{H5Gclose, H5Gopen2};
use hdf5_sys::h5i::hid_t;
use hdf5_sys::h5l::*;
use hdf5_sys::h5o::{H5O_INFO_BASIC, H5O_info1_t, H5O_type_t, H5Oget_info_by_name2};
use hdf5_sys::h5p::*;

use super::guard::Guarded;
use super::handle::Handle;

/// Longer names and link values are taken for damage.
pub(super) const MOST_NAME_BYTES: usize = 1 << 20;

/// The target of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Link {
    /// An object of this file, by its address.
    Hard(u64),
    /// A path in this file.
    Soft(Vec<u8>),
    /// A path in another file.
    External { file: Vec<u8>, object: Vec<u8> },
    /// A link class that a program registered.
    Other,
}

/// The kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum ObjectKind {
    Group,
    Dataset,
    Other,
}

pub(super) fn c_name(name: &[u8]) -> hdf5::Result<CString> {
    CString::new(name).map_err(|_| hdf5::Error::from("the name has a NUL"))
}

/// The target of the last link of a path whose other links are hard links to groups; `None` if there is no such link.
pub(in crate::store) fn link(file: &Guarded<File>, path: &[u8]) -> hdf5::Result<Option<Link>> {
    let _guard = file.guard();
    link_in(file, path)
}

/// The same without a guard, for this run's own files.
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

/// The class of a link as a number, because classes that programs define are none of the enum's values, and its address
/// or the length of its value.
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
    if length > MOST_NAME_BYTES {
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

pub(super) fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// All links of the group at a path of hard links, in time linear in their number.
pub(in crate::store) fn links(file: &Guarded<File>, group: &[u8]) -> hdf5::Result<Vec<(Vec<u8>, Link)>> {
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
        h5check(H5Literate1(group.id, index, order, std::ptr::null_mut(), Some(take), into))?;
        let link = |(name, (class, value)): (CString, (i32, u64))| {
            let value = value_of(group.id, &name, class, value)?;
            Ok((name.into_bytes(), value))
        };
        found.drain(..).map(link).collect()
    })
}

/// The kind and the address of the object at a path of hard links.
pub(in crate::store) fn kind(file: &Guarded<File>, path: &[u8]) -> hdf5::Result<(ObjectKind, u64)> {
    let _guard = file.guard();
    let name = c_name(path)?;
    // SAFETY: the name is a C string, and the result goes into a local.
    sync(|| unsafe {
        let mut info = H5O_info1_t::default();
        h5check(H5Oget_info_by_name2(file.id(), name.as_ptr(), &mut info, H5O_INFO_BASIC, H5P_DEFAULT))?;
        let kind = match info.type_ {
            H5O_type_t::H5O_TYPE_GROUP => ObjectKind::Group,
            H5O_type_t::H5O_TYPE_DATASET => ObjectKind::Dataset,
            _ => ObjectKind::Other,
        };
        Ok((kind, info.addr))
    })
}

/// A name in an HDF5 file as a path.
pub(in crate::store) fn path_of(name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name))
}
