//! Owned HDF5 identifiers.

use hdf5::{h5check, sync::sync};
use hdf5_sys::h5i::hid_t;

/// An open HDF5 object and the call that closes it.
pub(super) struct Handle {
    pub id: hid_t,
    close: unsafe extern "C" fn(hid_t) -> i32,
}

impl Handle {
    pub fn new(id: hid_t, close: unsafe extern "C" fn(hid_t) -> i32) -> hdf5::Result<Handle> {
        Ok(Handle { id: h5check(id)?, close })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: this owns the handle.
        sync(|| unsafe { (self.close)(self.id) });
    }
}
