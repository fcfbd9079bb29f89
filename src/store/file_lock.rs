//! Locks on a file that is going to be replaced, against programs that write to it and against other runs.
//!
//! Programs that use HDF5 lock their open files (`flock`): shared for reading, exclusively for writing. A run takes the
//! shared lock while it copies or replaces a file: readers do not block it, and no program can start to write
//! meanwhile. Runs exclude one another by the lock of a hidden file, since the lock of the file itself is lost when the
//! file is replaced.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::path::short_name;
use crate::store::error::StoreError;

/// Time between two attempts to lock a file.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// A longer wait is reported.
const QUIET_WAIT: Duration = Duration::from_secs(2);

/// Identifies a version of a file: it changes when the file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVersion {
    pub inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// An open file with a reader's lock.
#[derive(Debug)]
pub(super) struct ReadLock {
    pub file: File,
}

impl ReadLock {
    /// Waits up to `patience` for programs that write to the file; `None` if there is no such file.
    pub fn take(target: &Path, patience: Duration) -> Result<Option<ReadLock>, StoreError> {
        let failed = StoreError::io(target, "open");
        let mut waiting = LockWait::begin(target, "the program that has it open for writing");
        loop {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
            let file = match File::options().read(true).custom_flags(flags).open(target) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(&failed)?,
            };
            let metadata = file.metadata().map_err(&failed)?;
            if metadata.is_dir() {
                return Err(StoreError::Directory { file: target.to_owned() });
            }
            if !metadata.is_file() {
                return Err(StoreError::NotRegular { file: target.to_owned() });
            }
            let is_locked = !lock(&file, FlockOperation::NonBlockingLockShared);
            if is_locked && waiting.since() >= patience {
                return Err(StoreError::OutputLocked { file: target.to_owned() });
            }
            if !is_locked && is_at(&file, target) {
                return Ok(Some(ReadLock { file }));
            }
            waiting.wait();
        }
    }

    pub fn version(&self) -> std::io::Result<FileVersion> {
        let metadata = self.file.metadata()?;
        Ok(FileVersion {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }
}

/// The right to replace a file, which one run holds at a time.
#[derive(Debug)]
pub(super) struct RunLock {
    path: PathBuf,
    _lock: File,
}

impl RunLock {
    /// Waits for other runs without a limit: a lock ends with its process.
    pub fn take(target: &Path) -> Result<RunLock, StoreError> {
        let folder = target.parent().unwrap_or(Path::new("/"));
        let path = folder.join(format!(".{}.exuvia-lock", short_name(target)));
        let mut waiting = LockWait::begin(target, "another run that is replacing it");
        loop {
            let lock = match open_lock(&path) {
                // Another run has just created or removed it.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => continue,
                opened => opened.map_err(StoreError::io(&path, "lock"))?,
            };
            // The previous holder may have removed the file.
            if self::lock(&lock, FlockOperation::NonBlockingLockExclusive) && is_at(&lock, &path) {
                return Ok(RunLock { path, _lock: lock });
            }
            waiting.wait();
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the lock file, or creates it. It is never opened through a link; the file of another user will do.
fn open_lock(path: &Path) -> std::io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
        options
    };
    match options().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => options().write(true).create_new(true).open(path),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => options().read(true).open(path),
        opened => opened,
    }
}

/// Tries to take a lock. Succeeds where the file system has no locks, since no other run can hold one there.
fn lock(file: &File, operation: FlockOperation) -> bool {
    match rustix::fs::flock(file, operation) {
        Err(Errno::WOULDBLOCK | Errno::INTR) => false,
        Err(errno) => {
            tracing::debug!("no lock is available: {errno}");
            true
        }
        Ok(()) => true,
    }
}

/// Whether the open file is the one at this path.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id =
        |metadata: std::io::Result<std::fs::Metadata>| metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let here = id(file.metadata());
    here.is_some() && here == id(std::fs::symlink_metadata(path))
}

/// A wait that is reported once it gets long.
struct LockWait<'a> {
    target: &'a Path,
    what: &'static str,
    started: Instant,
    reported: bool,
}

impl LockWait<'_> {
    fn begin<'a>(target: &'a Path, what: &'static str) -> LockWait<'a> {
        LockWait { target, what, started: Instant::now(), reported: false }
    }

    fn since(&self) -> Duration {
        self.started.elapsed()
    }

    fn wait(&mut self) {
        if !self.reported && self.since() >= QUIET_WAIT {
            self.reported = true;
            tracing::warn!("{}: waiting for {}", self.target.display(), self.what);
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}
