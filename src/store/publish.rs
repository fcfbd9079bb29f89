//! Publishing: an output file gets its name once all data are in it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::error::StoreError;
use super::existing_object::{ExistingObject, find_existing};
use super::file_lock::{ReadLock, RunLock, is_at};
use super::merge;
use super::output_layout::{OutputLayout, OutputSpec};
use super::staging::Staging;

/// How long a finished run waits for programs that have a file open for writing.
const PATIENCE: Duration = Duration::from_secs(60);

impl Staging {
    /// Gives the file its name, once all of it is on disk. If the target has changed since the copy, the datasets are
    /// first copied into a new copy of the target, as if the run had started only now; then `moved` is called, before
    /// the file gets its name. Returns notes for a person. After an error the file can be left for a later run.
    pub fn publish_and(&mut self, moved: &mut dyn FnMut(&Staging)) -> Result<Vec<String>, StoreError> {
        self.publish_within(PATIENCE, moved)
    }

    /// Publishes and drops the notes.
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
        // Without a file to replace no lock is needed.
        if self.base.is_some() || !self.rename_if_new().map_err(&failed)?.unwrap_or(false) {
            let _lock = RunLock::take(&self.target)?;
            let name = target.display();
            loop {
                let held = ReadLock::take(&self.target, patience)?;
                let now = held.as_ref().map(ReadLock::version).transpose().map_err(&failed)?;
                if now != self.base {
                    let before = self.rebase(held.as_ref())?;
                    moved(self);
                    drop(before);
                    notes.append(&mut self.notes);
                    notes.push(format!(
                        "{name} has changed meanwhile: the new datasets were added to its current content"
                    ));
                }
                if let Some(held) = &held {
                    self.copy_permissions(held).map_err(&failed)?;
                    if held.file.metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
                        notes.push(format!("{name} had another name (a hard link), which keeps the old content"));
                    }
                    self.rename().map_err(&failed)?;
                    break;
                }
                match self.rename_if_new().map_err(&failed)? {
                    Some(true) => break,
                    // Another program has just created the file.
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

    /// Copies the datasets into a new copy of the current target and continues with that. Returns the former staging
    /// file.
    fn rebase(&mut self, held: Option<&ReadLock>) -> Result<Staging, StoreError> {
        let now = match held {
            Some(held) => Staging::copy(&self.target, &self.run, held)?,
            None => Some(Staging::anew(&self.target, &self.run)?),
        };
        let mut now = now.ok_or_else(|| StoreError::Changing { file: self.target.clone() })?;
        {
            let file = now.open_file()?;
            let is_foreign = |dataset: &&String| {
                !self.replaced.contains(*dataset)
                    && matches!(find_existing(&file, dataset), Ok(ExistingObject::Dataset { .. }))
            };
            if let Some(dataset) = self.made.keys().find(is_foreign) {
                return Err(StoreError::Conflict { file: self.target.clone(), dataset: dataset.clone() });
            }
        }
        let specs: Vec<OutputSpec> = self.layouts().map(OutputLayout::spec).collect();
        let layouts = now.create(&specs)?;
        for (from, to) in self.layouts().zip(&layouts) {
            merge::copy(self, from, &mut now, to)?;
        }
        now.settle()?;
        now.check(true)?;
        now.file.sync_all().map_err(StoreError::io(&self.target, "write"))?;
        now.replaced.clone_from(&self.replaced);
        Ok(std::mem::replace(self, now))
    }

    /// Copies permissions, owner and access control list of the replaced file, as far as this user may.
    fn copy_permissions(&self, held: &ReadLock) -> std::io::Result<()> {
        let (was, is) = (held.file.metadata()?, self.file.metadata()?);
        let mut mode = was.mode() & 0o777;
        if was.uid() != is.uid() {
            let _ = fchown(&self.file, Some(was.uid()), None);
        }
        let is_of_group = was.gid() == is.gid() || fchown(&self.file, None, Some(was.gid())).is_ok();
        if !is_of_group {
            // Another group gets no more rights than all users.
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

    /// Renames the file unless the target exists, and returns whether it did; `None` where the file system cannot do
    /// that atomically.
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
