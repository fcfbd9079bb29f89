//! Output files of an earlier run, continued by this one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::StoreError;
use super::output_layout::OutputLayout;
use super::staging::{Staging, Unfinished, open_own};

impl Staging {
    /// Continues with the staging file that an earlier run left for `target`, if these datasets are unchanged. On an
    /// error the file stays as it is.
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

    /// Continues with a file that an earlier run published: copies it to a new staging file, to which `layouts` then
    /// refer.
    pub fn begin_again(target: &Path, run: &str, layouts: &mut [OutputLayout]) -> Result<Staging, StoreError> {
        let mut staging = Staging::begin(target, run)?;
        layouts.iter_mut().for_each(|layout| layout.temporary.clone_from(&staging.temporary));
        staging.replaced.extend(layouts.iter().map(|layout| layout.dataset.clone()));
        staging.take_up(&layouts.iter().collect::<Vec<_>>())?;
        Ok(staging)
    }
}
