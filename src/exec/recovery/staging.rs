//! Files that a run writes and has not published yet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::exec::recovery::manifest::Manifest;
use crate::store::{Staging, StoreError};

/// Files under way, and the record of what in them is finished.
#[derive(Default)]
pub(in crate::exec) struct Stagings {
    /// By final name; rank 0's.
    pub files: BTreeMap<PathBuf, Staging>,
    pub manifest: Manifest,
    /// What became of datasets that stood in the way of outputs, for a person.
    pub notes: Vec<String>,
}

impl Stagings {
    /// After a failure: leaves what a later run can go on with, and says whether there is anything.
    pub fn abandon(&mut self) -> bool {
        let stays = self.manifest.abandon();
        if stays {
            self.leave();
        }
        stays
    }

    /// Leaves everything for the run to go on with, when it begins again on fewer ranks.
    pub fn suspend(mut self) {
        if self.manifest.lasts() {
            self.leave();
        }
        self.manifest.suspend();
    }

    /// Leaves the files where they are.
    pub fn leave(&mut self) {
        std::mem::take(&mut self.files).into_values().for_each(Staging::leave);
    }

    /// Closes all files, so that others can read what is in them so far.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        self.files.values_mut().try_for_each(Staging::settle)
    }
}
