//! Staging files: the hidden files that outputs are written to before they are published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, AtFlags, CWD, OFlags};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::file_lock::{FileVersion, ReadLock, is_at};
use super::open_file::OpenFile;
use super::output_layout::{Made, OutputLayout};
use super::path::{real_path, short_name};

/// How long a run waits at its start for programs that have a file open for writing.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a file that changes while it is copied is copied again.
const COPIES: u32 = 20;
/// Two changes within this time may have the same time stamp.
const TICK: Duration = Duration::from_millis(20);
/// Ends the names of unfinished files.
const SUFFIX: &str = ".part";

/// The outputs of one file while they are written: a hidden file in the same folder that takes the file's name at the
/// end, so a reader sees all of the new data or none. It exists on rank 0; dropping it removes an unpublished file.
#[derive(Debug)]
pub struct Staging {
    /// Its real path.
    pub(super) target: PathBuf,
    pub(super) temporary: PathBuf,
    /// The open temporary file: another user could replace the file of its name.
    pub(super) file: File,
    /// Open only while compressed chunks are written.
    pub(super) open: Option<hdf5::File>,
    /// Part of the temporary's name.
    pub(super) run: String,
    /// The version of the target that was copied, if there was one.
    pub(super) base: Option<FileVersion>,
    /// The output datasets, by name.
    pub(super) made: BTreeMap<String, Made>,
    /// The datasets among them that existed before.
    pub(super) replaced: BTreeSet<String>,
    /// For a person.
    pub(super) notes: Vec<String>,
    /// Whether the file outlives this value: published, or left for a later run.
    pub(super) stays: bool,
}

/// A staging file that this run leaves for a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub temporary: PathBuf,
    /// Inode of the temporary file, which publishing does not change.
    pub inode: u64,
    pub(super) base: Option<FileVersion>,
    pub(super) replaced: BTreeSet<String>,
}

impl Unfinished {
    /// Whether the file is at this path: that of the temporary file, or of the target after publishing. A link is not,
    /// even if it has the inode of the removed file, which file systems reuse.
    pub fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.ino() == self.inode)
    }
}

impl Staging {
    /// Begins to write `target`; links are followed and its folder is created. Other content of an existing file is
    /// kept. `run` is part of the temporary file's unpredictable name.
    pub fn begin(target: &Path, run: &str) -> Result<Staging, StoreError> {
        let target = &real_path(target).map_err(StoreError::io(target, "find"))?;
        for _ in 0..COPIES {
            let Some(held) = ReadLock::take(target, PATIENCE)? else { return Staging::anew(target, run) };
            if let Some(staging) = Staging::copy(target, run, &held)? {
                return Ok(staging);
            }
        }
        Err(StoreError::Changing { file: target.to_owned() })
    }

    /// Begins an empty file.
    pub fn anew(target: &Path, run: &str) -> Result<Staging, StoreError> {
        let staging = Staging::prepare(target, run, 0o666)?;
        private().create(staging.own_path()).map_err(StoreError::hdf5(target, "create the file"))?;
        Ok(staging)
    }

    /// Begins a copy of the target; `None` if the target changes meanwhile.
    pub(super) fn copy(target: &Path, run: &str, held: &ReadLock) -> Result<Option<Staging>, StoreError> {
        let failed = StoreError::io(target, "copy");
        // A file that is not HDF5 is not overwritten.
        OpenFile::open(target, 0).map_err(|error| match error {
            StoreError::Locked { file } => StoreError::OutputLocked { file },
            error => error,
        })?;
        rustix::fs::accessat(CWD, target, Access::WRITE_OK, AtFlags::EACCESS)
            .map_err(|errno| StoreError::io(target, "write to")(errno.into()))?;
        let mut staging = Staging::prepare(target, run, 0o600)?;
        let before = held.version().map_err(&failed)?;
        (&held.file).seek(SeekFrom::Start(0)).map_err(&failed)?;
        std::io::copy(&mut &held.file, &mut &staging.file).map_err(&failed)?;
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or(TICK);
        if held.file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|at| age(at) < TICK) {
            std::thread::sleep(TICK);
        }
        if held.version().map_err(&failed)? != before || !is_at(&held.file, target) {
            return Ok(None);
        }
        staging.base = Some(before);
        Ok(Some(staging))
    }

    /// Creates the temporary file, under a new name.
    fn prepare(target: &Path, run: &str, mode: u32) -> Result<Staging, StoreError> {
        let folder = target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(StoreError::io(folder, "create the folder"))?;
        let prefix = format!(".{}.exuvia-{run}-", short_name(target));
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX).permissions(Permissions::from_mode(mode));
        let made = builder.tempfile_in(folder).and_then(|made| Ok(made.keep()?));
        let (file, temporary) = made.map_err(StoreError::io(folder, "write to"))?;
        Ok(Staging::of(target, run, temporary, file))
    }

    pub(super) fn of(target: &Path, run: &str, temporary: PathBuf, file: File) -> Staging {
        Staging {
            target: target.to_owned(),
            temporary,
            file,
            open: None,
            run: run.to_owned(),
            base: None,
            made: BTreeMap::new(),
            replaced: BTreeSet::new(),
            notes: Vec::new(),
            stays: false,
        }
    }

    /// The record from which a later run continues.
    pub fn unfinished(&self) -> Unfinished {
        Unfinished {
            temporary: self.temporary.clone(),
            inode: self.file.metadata().map_or(0, |metadata| metadata.ino()),
            base: self.base,
            replaced: self.replaced.clone(),
        }
    }

    /// Leaves the temporary file for a later run.
    pub fn leave(mut self) {
        self.stays = true;
    }

    /// The path that the file gets when it is published.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The path of the temporary file.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// The layouts of the output datasets.
    pub fn layouts(&self) -> impl Iterator<Item = &OutputLayout> {
        self.made.values().map(|made| &made.layout)
    }

    /// A path of the open file that no other process can redirect.
    pub(super) fn own_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    pub(super) fn open_file(&self) -> Result<hdf5::File, StoreError> {
        private().open_rw(self.own_path()).map_err(StoreError::hdf5(&self.target, "open the file"))
    }

    /// Closes the HDF5 file, so that other readers see everything written so far.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        match self.open.take() {
            Some(file) => file.flush().map_err(StoreError::hdf5(&self.target, "write")),
            None => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.open = None;
        if !self.stays {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Whether this is the name of an unfinished file of this run, or of a run whose name begins with `run`.
pub fn is_unfinished(name: &str, run: &str) -> bool {
    let run = name.strip_prefix('.').and_then(|rest| rest.split_once(&format!(".exuvia-{run}-")));
    run.is_some_and(|(_, rest)| rest.ends_with(SUFFIX))
}

/// Opens an unfinished file of this user; never through a link, and only a regular file.
pub(super) fn open_own(temporary: &Path) -> std::io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).write(true).custom_flags(flags).open(temporary)?;
    let metadata = file.metadata()?;
    match metadata.is_file() && metadata.nlink() <= 1 {
        true => Ok(file),
        false => Err(std::io::Error::other(StoreError::Exchanged { file: temporary.to_owned() })),
    }
}

/// Options to open a file without HDF5's lock. The file belongs to this run, and the lock could outlive it: a process
/// started meanwhile, such as the compile helper, inherits the descriptor and holds the lock until it ends.
pub(super) fn private() -> hdf5::FileBuilder {
    let mut options = hdf5::File::with_options();
    options.with_fapl(|access| access.file_locking(false));
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_with_the_inode_of_an_unfinished_file_is_not_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let unfinished = |temporary: &Path| Unfinished {
            temporary: temporary.to_owned(),
            inode: fs::symlink_metadata(temporary).unwrap().ino(),
            base: None,
            replaced: BTreeSet::new(),
        };
        assert!(unfinished(&file).is_at(&file));
        assert!(!unfinished(&link).is_at(&link));
    }
}
