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
    /// After a failure: leaves the files if a later run can use them, and returns whether it can. Otherwise removes them
    /// at once: the launcher may kill this rank as soon as another one ends.
    pub fn abandon(&mut self) -> bool {
        let stays = self.manifest.abandon();
        if stays {
            self.leave();
        }
        self.files.clear();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_of_a_failed_run_are_removed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.h5");
        let staging = Staging::anew(&target, "run").unwrap();
        let temporary = staging.temporary().to_owned();
        let mut stagings = Stagings { files: BTreeMap::from([(target, staging)]), ..Stagings::default() };
        assert!(temporary.exists());
        assert!(!stagings.abandon());
        assert!(!temporary.exists());
    }
}
