//! The life of a file that outputs go to: begun or taken up, left or published.

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

/// How long a run waits for programs that have a file open for writing: before it has computed anything.
const PATIENCE: Duration = Duration::from_secs(2);
/// A file that changes while it is copied is copied again, so often.
const COPIES: u32 = 20;
/// Two changes within this time may look like one.
const TICK: Duration = Duration::from_millis(20);
/// Ends the names of unfinished files.
const SUFFIX: &str = ".part";

/// The outputs of one file while they are written: a hidden sibling that takes the file's name when all is done, so that
/// a reader sees all of the new data or none. Lives on rank 0; dropping it removes what was not published.
#[derive(Debug)]
pub struct Staging {
    /// Its real path.
    pub(super) target: PathBuf,
    pub(super) temporary: PathBuf,
    /// The temporary itself: whoever may write to its folder could give its name to something else.
    pub(super) file: File,
    /// Open only while compressed chunks are written.
    pub(super) open: Option<hdf5::File>,
    /// Part of the temporary's name.
    pub(super) run: String,
    /// The file that it was begun from, if there was one.
    pub(super) base: Option<FileVersion>,
    /// The datasets that it is for, by name.
    pub(super) made: BTreeMap<String, Made>,
    /// Of these, what had been there before.
    pub(super) replaced: BTreeSet<String>,
    /// For a person.
    pub(super) notes: Vec<String>,
    /// Published, or left for a later run.
    pub(super) stays: bool,
}

/// What a later run needs to know of a file that this one leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub temporary: PathBuf,
    /// Of the temporary, which keeps it when it gets its name.
    pub inode: u64,
    pub(super) base: Option<FileVersion>,
    pub(super) replaced: BTreeSet<String>,
}

impl Unfinished {
    /// Whether it is at this path: that of the temporary, or that of its target once it has got its name.
    pub fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }
}

impl Staging {
    /// Begins to write `target`, through links. What an existing file holds beside the new datasets is kept; its folder is created.
    /// `run` is part of the temporary's name, which nobody can foresee.
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

    /// Begins a file that holds nothing but what is going to be made in it.
    pub fn anew(target: &Path, run: &str) -> Result<Staging, StoreError> {
        let staging = Staging::prepare(target, run, 0o666)?;
        private().create(staging.own_path()).map_err(StoreError::hdf5(target, "create the file"))?;
        Ok(staging)
    }

    /// `None` if it changes meanwhile.
    pub(super) fn copy(target: &Path, run: &str, held: &ReadLock) -> Result<Option<Staging>, StoreError> {
        let failed = StoreError::io(target, "copy");
        // What is no HDF5 file is somebody's something else.
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

    /// The temporary: a new file, whatever stands in its folder.
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

    /// What a later run goes on with.
    pub fn unfinished(&self) -> Unfinished {
        Unfinished {
            temporary: self.temporary.clone(),
            inode: self.file.metadata().map_or(0, |metadata| metadata.ino()),
            base: self.base,
            replaced: self.replaced.clone(),
        }
    }

    /// Leaves the temporary where it is, for a later run.
    pub fn leave(mut self) {
        self.stays = true;
    }

    /// The file that it is going to be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file as it is before it is published.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// What was made in it.
    pub fn layouts(&self) -> impl Iterator<Item = &OutputLayout> {
        self.made.values().map(|made| &made.layout)
    }

    /// A name of the open file that nobody can give to another one.
    pub(super) fn own_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    pub(super) fn open_file(&self) -> Result<hdf5::File, StoreError> {
        private().open_rw(self.own_path()).map_err(StoreError::hdf5(&self.target, "open the file"))
    }

    /// Closes the file, so that others can read what is in it so far.
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

/// Whether a file of this name is an unfinished one of this run, or of runs whose names begin so.
pub fn is_unfinished(name: &str, run: &str) -> bool {
    let run = name.strip_prefix('.').and_then(|rest| rest.split_once(&format!(".exuvia-{run}-")));
    run.is_some_and(|(_, rest)| rest.ends_with(SUFFIX))
}

/// Opens an unfinished file of this user: never through a link, and nothing but a file.
pub(super) fn open_own(temporary: &Path) -> std::io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).write(true).custom_flags(flags).open(temporary)?;
    let metadata = file.metadata()?;
    match metadata.is_file() && metadata.nlink() <= 1 {
        true => Ok(file),
        false => Err(std::io::Error::other(StoreError::Exchanged { file: temporary.to_owned() })),
    }
}

/// Opens without a lock. The file is this run's alone, and HDF5's lock would outlive its closing: a process started
/// meanwhile, such as the compile helper, inherits the descriptor and holds the lock until it ends.
pub(super) fn private() -> hdf5::FileBuilder {
    let mut options = hdf5::File::with_options();
    options.with_fapl(|access| access.file_locking(false));
    options
}
