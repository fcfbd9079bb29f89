//! Bytes that the ranks of a node have once, in memory that nobody can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use serde::{Deserialize, Serialize};

/// Neither contents nor size change.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Anonymous memory of fixed size and contents, to be mapped into kernels' memories: by this process and by those it tells the
/// [`SharedName`]. Gone when the last of them drops it.
#[derive(Debug)]
pub struct SharedBytes {
    file: File,
    bytes: u64,
}

/// Where another process of the node finds [`SharedBytes`], for as long as their maker keeps them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SharedName {
    process: u32,
    descriptor: i32,
    bytes: u64,
}

impl SharedBytes {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> io::Result<SharedBytes> {
        let memory = memfd_create("exuvia", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(memory);
        file.write_all(bytes)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(SharedBytes { file, bytes: bytes.len() as u64 })
    }

    pub fn name(&self) -> SharedName {
        SharedName { process: std::process::id(), descriptor: self.file.as_raw_fd(), bytes: self.bytes }
    }

    /// What another process made. Fails where it may not be looked into, or if it is not sealed or not of that size.
    pub fn open(name: SharedName) -> io::Result<SharedBytes> {
        let path = format!("/proc/{}/fd/{}", name.process, name.descriptor);
        let file = File::open(path)?;
        if !fcntl_get_seals(&file)?.contains(SEALS) || file.metadata()?.len() != name.bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(SharedBytes { file, bytes: name.bytes })
    }

    /// How many there are.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn others_find_it_and_nobody_changes_it() {
        let shared = SharedBytes::new(&[1, 2, 3]).unwrap();
        let found = SharedBytes::open(shared.name()).unwrap();
        let mut bytes = Vec::new();
        (&found.file).read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes, found.len()), (vec![1, 2, 3], 3));
        assert!((&shared.file).write_all(&[9]).is_err() && shared.file.set_len(1).is_err());
        let wrong = SharedName { bytes: 4, ..shared.name() };
        assert!(SharedBytes::open(wrong).is_err());
        assert!(SharedBytes::open(SharedName { descriptor: 0, ..shared.name() }).is_err());
    }
}
