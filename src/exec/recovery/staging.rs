//! Files that a run writes and has not published yet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::exec::recovery::manifest::Manifest;
use crate::store::{Staging, StoreError};

/// The unpublished files of a run, and the manifest of the completed work in them.
#[derive(Default)]
pub(in crate::exec) struct Stagings {
    /// By final name; on rank 0.
    pub files: BTreeMap<PathBuf, Staging>,
    pub manifest: Manifest,
    /// Notes for a person about datasets that outputs replace.
    pub notes: Vec<String>,
}

impl Stagings {
    /// After a failure: leaves the files if a later run can use them, and returns whether it can.
    pub fn abandon(&mut self) -> bool {
        let stays = self.manifest.abandon();
        if stays {
            self.leave();
        }
        stays
    }

    /// Leaves the files for the run itself, which restarts on fewer ranks.
    pub fn suspend(mut self) {
        if self.manifest.lasts() {
            self.leave();
        }
        self.manifest.suspend();
    }

    /// Leaves the files in place instead of removing them.
    pub fn leave(&mut self) {
        std::mem::take(&mut self.files).into_values().for_each(Staging::leave);
    }

    /// Closes all files, so that other ranks can read what they hold so far.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        self.files.values_mut().try_for_each(Staging::settle)
    }
}
