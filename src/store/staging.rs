//! The life of a file that outputs go to: begun or taken up, left or published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, AtFlags, CWD, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::create::{Made, OutputLayout};
use super::merge;
use super::path::{real_path, short_name};
use super::standing::{Standing, look};
use super::turn::{Held, Seen, Turn, is_at};
use crate::store::create::OutputSpec;
use crate::store::error::StoreError;

/// How long a run waits for programs that have a file open for writing: before it has computed anything, and after that.
const PATIENCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];
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
    run: String,
    /// The file that it was begun from, if there was one.
    base: Option<Seen>,
    /// The datasets that it is for, by name.
    pub(super) made: BTreeMap<String, Made>,
    /// Of these, what had been there before.
    pub(super) replaced: BTreeSet<String>,
    /// For a person.
    pub(super) notes: Vec<String>,
    /// Published, or left for a later run.
    stays: bool,
}

/// What a later run needs to know of a file that this one leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub temporary: PathBuf,
    /// Of the temporary, which keeps it when it gets its name.
    pub inode: u64,
    base: Option<Seen>,
    replaced: BTreeSet<String>,
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
            let Some(held) = Held::take(target, PATIENCE[0])? else { return Staging::anew(target, run) };
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
    fn copy(target: &Path, run: &str, held: &Held) -> Result<Option<Staging>, StoreError> {
        let failed = StoreError::io(target, "copy");
        // What is no HDF5 file is somebody's something else.
        super::links::Opened::open(target, 0).map_err(|error| match error {
            StoreError::Locked { file } => StoreError::OutputLocked { file },
            error => error,
        })?;
        rustix::fs::accessat(CWD, target, Access::WRITE_OK, AtFlags::EACCESS)
            .map_err(|errno| StoreError::io(target, "write to")(errno.into()))?;
        let mut staging = Staging::prepare(target, run, 0o600)?;
        let before = held.seen().map_err(&failed)?;
        (&held.file).seek(SeekFrom::Start(0)).map_err(&failed)?;
        std::io::copy(&mut &held.file, &mut &staging.file).map_err(&failed)?;
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or(TICK);
        if held.file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|at| age(at) < TICK) {
            std::thread::sleep(TICK);
        }
        if held.seen().map_err(&failed)? != before || !is_at(&held.file, target) {
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

    fn of(target: &Path, run: &str, temporary: PathBuf, file: File) -> Staging {
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

    /// Goes on with what an earlier run left on its way to `target`: these datasets, if they are still as they were. Otherwise it is
    /// left as it is.
    pub fn adopt(
        target: &Path,
        run: &str,
        unfinished: &Unfinished,
        layouts: &[&OutputLayout],
    ) -> Result<Staging, StoreError> {
        let failed = StoreError::io(&unfinished.temporary, "open");
        let file = open_own(&unfinished.temporary).map_err(&failed)?;
        if file.metadata().map_err(&failed)?.ino() != unfinished.inode {
            return Err(StoreError::Exchanged { file: unfinished.temporary.clone() });
        }
        let Unfinished { temporary, base, replaced, .. } = unfinished.clone();
        let mut staging = Staging::of(target, run, temporary, file);
        (staging.base, staging.replaced, staging.stays) = (base, replaced, true);
        staging.take_up(layouts)?;
        staging.stays = false;
        Ok(staging)
    }

    /// Goes on with a file that an earlier run has published, with these datasets in it, which are in another temporary now.
    pub fn begin_again(target: &Path, run: &str, layouts: &mut [OutputLayout]) -> Result<Staging, StoreError> {
        let mut staging = Staging::begin(target, run)?;
        layouts.iter_mut().for_each(|layout| layout.temporary.clone_from(&staging.temporary));
        staging.replaced.extend(layouts.iter().map(|layout| layout.dataset.clone()));
        staging.take_up(&layouts.iter().collect::<Vec<_>>())?;
        Ok(staging)
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

    /// Gives the file its name, once everything in it is on disk. If somebody has changed the file that it replaces, its datasets are
    /// first brought into a copy of what is there now: the outcome is that of a run which began only then. Calls `moved` when
    /// they are, before the file gets its name. Returns what a person should know. After an error it can be left.
    pub fn publish_and(&mut self, moved: &mut dyn FnMut(&Staging)) -> Result<Vec<String>, StoreError> {
        self.publish_within(PATIENCE[1], moved)
    }

    /// The same, where nobody needs to know.
    pub fn publish(&mut self) -> Result<(), StoreError> {
        self.publish_and(&mut |_| ()).map(drop)
    }

    pub(super) fn publish_within(
        &mut self,
        patience: Duration,
        moved: &mut dyn FnMut(&Staging),
    ) -> Result<Vec<String>, StoreError> {
        let target = self.target.clone();
        let failed = StoreError::io(&target, "write");
        self.settle()?;
        self.check(true)?;
        self.file.sync_all().map_err(&failed)?;
        let mut notes = Vec::new();
        // Nobody needs to be waited for where there is nothing to replace.
        if self.base.is_some() || !self.rename_if_new().map_err(&failed)?.unwrap_or(false) {
            let _turn = Turn::take(&self.target)?;
            let name = target.display();
            loop {
                let held = Held::take(&self.target, patience)?;
                let now = held.as_ref().map(Held::seen).transpose().map_err(&failed)?;
                if now != self.base {
                    let before = self.rebase(held.as_ref())?;
                    moved(self);
                    drop(before);
                    notes.append(&mut self.notes);
                    notes.push(format!(
                        "{name} has changed meanwhile: the new datasets were added to what is there now"
                    ));
                }
                if let Some(held) = &held {
                    self.dress(held).map_err(&failed)?;
                    if held.file.metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
                        notes.push(format!("{name} had another name (a hard link), which keeps the old content"));
                    }
                    self.rename().map_err(&failed)?;
                    break;
                }
                match self.rename_if_new().map_err(&failed)? {
                    Some(true) => break,
                    // Somebody has made one just now.
                    Some(false) => {}
                    None => {
                        self.rename().map_err(&failed)?;
                        break;
                    }
                }
            }
        }
        self.stays = true;
        if let Some(folder) = self.target.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(&failed)?;
        }
        notes.dedup();
        Ok(notes)
    }

    /// Brings the datasets into a copy of the target as it is now, which this is from now on. Returns what it was.
    fn rebase(&mut self, held: Option<&Held>) -> Result<Staging, StoreError> {
        let now = match held {
            Some(held) => Staging::copy(&self.target, &self.run, held)?,
            None => Some(Staging::anew(&self.target, &self.run)?),
        };
        let mut now = now.ok_or_else(|| StoreError::Changing { file: self.target.clone() })?;
        {
            let file = now.open_file()?;
            let is_foreign = |dataset: &&String| {
                !self.replaced.contains(*dataset) && matches!(look(&file, dataset), Ok(Standing::Dataset { .. }))
            };
            if let Some(dataset) = self.made.keys().find(is_foreign) {
                return Err(StoreError::Conflict { file: self.target.clone(), dataset: dataset.clone() });
            }
        }
        let specs: Vec<OutputSpec> = self.layouts().map(OutputLayout::spec).collect();
        let layouts = now.create(&specs)?;
        for (from, to) in self.layouts().zip(&layouts) {
            merge::copy((self, from), (&mut now, to))?;
        }
        now.settle()?;
        now.check(true)?;
        now.file.sync_all().map_err(StoreError::io(&self.target, "write"))?;
        now.replaced.clone_from(&self.replaced);
        Ok(std::mem::replace(self, now))
    }

    /// Gives it the permissions, the owner and the access list of the file that it replaces, as far as this user may.
    fn dress(&self, held: &Held) -> std::io::Result<()> {
        let (was, is) = (held.file.metadata()?, self.file.metadata()?);
        let mut mode = was.mode() & 0o777;
        if was.uid() != is.uid() {
            let _ = fchown(&self.file, Some(was.uid()), None);
        }
        let is_of_group = was.gid() == is.gid() || fchown(&self.file, None, Some(was.gid())).is_ok();
        if !is_of_group {
            // Another group gets no more than everybody.
            mode = (mode & !0o070) | ((mode & 0o007) << 3);
        }
        self.file.set_permissions(Permissions::from_mode(mode))?;
        const ACCESS: &str = "system.posix_acl_access";
        let mut list = Vec::with_capacity(4096);
        if is_of_group && rustix::fs::fgetxattr(&held.file, ACCESS, rustix::buffer::spare_capacity(&mut list)).is_ok() {
            let _ = rustix::fs::fsetxattr(&self.file, ACCESS, &list, XattrFlags::empty());
        }
        Ok(())
    }

    fn rename(&self) -> std::io::Result<()> {
        self.check_name()?;
        fs::rename(&self.temporary, &self.target)
    }

    /// Whether it has the name now: not if there is such a file; `None` where the file system cannot tell in one step.
    fn rename_if_new(&self) -> std::io::Result<Option<bool>> {
        self.check_name()?;
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(true)),
            Err(Errno::EXIST) => Ok(Some(false)),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn check_name(&self) -> std::io::Result<()> {
        if is_at(&self.file, &self.temporary) {
            return Ok(());
        }
        let file = self.temporary.clone();
        Err(std::io::Error::other(StoreError::Exchanged { file }))
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
