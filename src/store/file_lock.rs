//! Who else is at a file that is going to be replaced: programs that have it open for writing, and other runs.
//!
//! Programs that use HDF5 lock a file that they have open (`flock`), shared for reading, exclusively for writing. A run takes the
//! shared lock while it copies or replaces a file, so readers do not hinder it, and nobody begins to write meanwhile. Runs take
//! turns by the lock of a hidden file, since the file itself changes hands when it is replaced.

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

const GLANCE: Duration = Duration::from_millis(20);
/// Who waits longer is told.
const SILENCE: Duration = Duration::from_secs(2);

/// What tells whether a file is the one that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVersion {
    pub inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// A file, open, with the lock of a reader.
#[derive(Debug)]
pub(super) struct ReadLock {
    pub file: File,
}

impl ReadLock {
    /// Waits as long as `patience` for programs that write to the file; `None` if there is none.
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

/// The right to replace a file, which one run has at a time.
#[derive(Debug)]
pub(super) struct RunLock {
    path: PathBuf,
    _lock: File,
}

impl RunLock {
    /// Waits for other runs, however long they take: a lock ends with its process.
    pub fn take(target: &Path) -> Result<RunLock, StoreError> {
        let folder = target.parent().unwrap_or(Path::new("/"));
        let path = folder.join(format!(".{}.exuvia-lock", short_name(target)));
        let mut waiting = LockWait::begin(target, "another run that is replacing it");
        loop {
            let lock = match open_lock(&path) {
                // It has just come, or gone.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => continue,
                opened => opened.map_err(StoreError::io(&path, "lock"))?,
            };
            // Whoever had it before has removed it.
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

/// The lock file, made if there is none. Never through a link, and one of another user is as good.
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

/// Whether the lock is had; also where the file system knows no locks, since then nobody has any.
fn lock(file: &File, operation: FlockOperation) -> bool {
    match rustix::fs::flock(file, operation) {
        Err(Errno::WOULDBLOCK | Errno::INTR) => false,
        Err(errno) => {
            tracing::debug!("no lock can be had: {errno}");
            true
        }
        Ok(()) => true,
    }
}

/// Whether the open file is the one of this name.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id =
        |metadata: std::io::Result<std::fs::Metadata>| metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let here = id(file.metadata());
    here.is_some() && here == id(std::fs::symlink_metadata(path))
}

/// A wait that is told when it gets long.
struct LockWait<'a> {
    target: &'a Path,
    what: &'static str,
    begun: Instant,
    told: bool,
}

impl LockWait<'_> {
    fn begin<'a>(target: &'a Path, what: &'static str) -> LockWait<'a> {
        LockWait { target, what, begun: Instant::now(), told: false }
    }

    fn since(&self) -> Duration {
        self.begun.elapsed()
    }

    fn wait(&mut self) {
        if !self.told && self.since() >= SILENCE {
            self.told = true;
            tracing::warn!("{}: waiting for {}", self.target.display(), self.what);
        }
        std::thread::sleep(GLANCE);
    }
}
