//! Immutable memory that the ranks of a node share.
//!
//! Mapping files is a part of the guest-memory door of the crate's `unsafe`.
#![expect(unsafe_code, reason = "guest memory")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};

use memmap2::{Mmap, MmapMut};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use serde::{Deserialize, Serialize};

/// Seals against changes of contents and size.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Anonymous memory of fixed size and contents, to be mapped into the memories of kernels or read in place, by this
/// process and by those that know its [`SharedName`]. It is freed when the last of them drops it and its mappings.
#[derive(Debug)]
pub struct SharedBytes {
    file: File,
    bytes: u64,
}

/// The name by which another process of the node opens [`SharedBytes`], while their maker keeps them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SharedName {
    process: u32,
    descriptor: i32,
    bytes: u64,
}

impl SharedBytes {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> io::Result<SharedBytes> {
        SharedBytes::make(bytes.len(), |target| target.copy_from_slice(bytes))
    }

    /// Makes memory of this size, zeroed, and fills it with `fill`.
    pub fn make(bytes: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<SharedBytes> {
        let memory = memfd_create("exuvia", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(memory);
        file.set_len(bytes as u64)?;
        // SAFETY: nobody else knows of the file yet, so nothing shrinks or changes it below the mapping.
        let mut mapped = unsafe { MmapMut::map_mut(&file) }?;
        fill(&mut mapped);
        drop(mapped);
        fcntl_add_seals(&file, SEALS)?;
        Ok(SharedBytes { file, bytes: bytes as u64 })
    }

    /// Maps the bytes for this process to read.
    pub fn map(&self) -> io::Result<Mapped> {
        // SAFETY: the file is sealed: it neither shrinks nor changes below the mapping.
        unsafe { Mmap::map(&self.file) }.map(Mapped)
    }

    pub fn name(&self) -> SharedName {
        SharedName { process: std::process::id(), descriptor: self.file.as_raw_fd(), bytes: self.bytes }
    }

    /// Opens the bytes of another process. Fails without permission, or if they are not sealed or not of that size.
    pub fn open(name: SharedName) -> io::Result<SharedBytes> {
        let path = format!("/proc/{}/fd/{}", name.process, name.descriptor);
        let file = File::open(path)?;
        if !fcntl_get_seals(&file)?.contains(SEALS) || file.metadata()?.len() != name.bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(SharedBytes { file, bytes: name.bytes })
    }

    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn descriptor(&self) -> impl AsFd + '_ {
        self.file.as_fd()
    }
}

/// A mapping of [`SharedBytes`] in this process.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Opens and maps the bytes of another process: see [`SharedBytes::open`].
    pub fn open(name: SharedName) -> io::Result<Mapped> {
        SharedBytes::open(name)?.map()
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn others_find_it_and_nobody_changes_it() {
        let shared = SharedBytes::new(&[1, 2, 3]).unwrap();
        let found = SharedBytes::open(shared.name()).unwrap();
        let mapped = found.map().unwrap();
        assert_eq!((&*mapped, found.len()), (&[1, 2, 3][..], 3));
        assert!((&shared.file).write_all(&[9]).is_err() && shared.file.set_len(1).is_err());
        let wrong = SharedName { bytes: 4, ..shared.name() };
        assert!(SharedBytes::open(wrong).is_err());
        assert!(SharedBytes::open(SharedName { descriptor: 0, ..shared.name() }).is_err());
        drop((shared, found));
        assert_eq!(*mapped, [1, 2, 3], "who maps them keeps them");
        assert!(SharedBytes::new(&[]).unwrap().is_empty());
    }
}
