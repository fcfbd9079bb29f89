//! The life of a file that outputs go to: begun or taken up, left or published.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::create::{Made, OutputLayout};

/// The outputs of one file while they are written: a hidden sibling that takes the file's name when all is done, so that
/// a reader sees all of the new data or none. Lives on rank 0; dropping it removes what was not published.
#[derive(Debug)]
pub struct Staging {
    pub(super) target: PathBuf,
    pub(super) temporary: PathBuf,
    /// Open only while compressed chunks are written.
    pub(super) open: Option<hdf5::File>,
    /// The datasets that it is for, by name.
    pub(super) made: BTreeMap<String, Made>,
    /// For a person.
    pub(super) notes: Vec<String>,
    /// Published, or left for a later run.
    stays: bool,
}

impl Staging {
    /// Begins to write `target`. What an existing file holds beside the new datasets is kept; its folder is created. `run`
    /// is part of the temporary's name: another run of that name begins anew, or goes on with [`Staging::adopt`].
    pub fn begin(target: &Path, run: &str) -> Result<Staging, StoreError> {
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(StoreError::io(folder, "create the folder"))?;
        if target.is_dir() {
            return Err(StoreError::Directory { file: target.to_owned() });
        }
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let temporary = folder.join(format!(".{name}.exuvia-{run}.part"));
        let staging = Staging::of(target, &temporary);
        if target.exists() {
            // What is no HDF5 file is somebody's something else.
            super::links::Opened::open(target, 0)?;
            fs::copy(target, &staging.temporary).map_err(StoreError::io(target, "copy"))?;
        } else {
            // HDF5 would say less well why not.
            File::create(&staging.temporary).map_err(StoreError::io(folder, "write to"))?;
            private().create(&staging.temporary).map_err(StoreError::hdf5(target, "create the file"))?;
        }
        Ok(staging)
    }

    fn of(target: &Path, temporary: &Path) -> Staging {
        Staging {
            target: target.to_owned(),
            temporary: temporary.to_owned(),
            open: None,
            made: BTreeMap::new(),
            notes: Vec::new(),
            stays: false,
        }
    }

    /// Goes on with what an earlier run left in `temporary` on its way to `target`: these datasets, if they are still as they
    /// were. Otherwise it is left as it is.
    pub fn adopt(target: &Path, temporary: &Path, layouts: &[&OutputLayout]) -> Result<Staging, StoreError> {
        let mut staging = Staging::of(target, temporary);
        staging.stays = true;
        staging.take_up(layouts)?;
        staging.stays = false;
        Ok(staging)
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

    /// Closes the file, so that others can read what is in it so far.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        match self.open.take() {
            Some(file) => file.flush().map_err(StoreError::hdf5(&self.target, "write")),
            None => Ok(()),
        }
    }

    /// Gives the file its name, once everything in it is on disk.
    pub fn publish(mut self) -> Result<(), StoreError> {
        self.settle()?;
        self.check(true)?;
        let failed = StoreError::io(&self.target, "write");
        File::open(&self.temporary).and_then(|file| file.sync_all()).map_err(&failed)?;
        fs::rename(&self.temporary, &self.target).map_err(&failed)?;
        self.stays = true;
        if let Some(folder) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(&failed)?;
        }
        Ok(())
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

/// Opens without a lock. The file is this run's alone, and HDF5's lock would outlive its closing: a process started
/// meanwhile, such as the compile helper, inherits the descriptor and holds the lock until it ends.
pub(super) fn private() -> hdf5::FileBuilder {
    let mut options = hdf5::File::with_options();
    options.with_fapl(|access| access.file_locking(false));
    options
}
