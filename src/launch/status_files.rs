//! What ranks and the supervisor that started them tell one another: by files in a folder, since launchers lose exit codes.
//! Open MPI's is 0 whenever deaths are survivable.
//!
//! On a file system that hosts share, perhaps NFS, a host sees at once what another has written into a file that is there, but
//! for a while not that there is a new one. So the supervisor makes the files, and nobody replaces them. Each has a number or
//! nothing.

use std::fs::File;
use std::io::{Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exec::ExitCode;

/// Names the folder to the ranks.
pub(crate) const FOLDER: &str = "EXUVIA_LAUNCH";
/// Some rank notices deaths from now on.
const WATCHED: &str = "watched";
/// The run has ended, with this exit status.
const ENDED: &str = "ended";
/// The signal that asked the run to end.
const ASKED: &str = "asked";

/// Whether a supervisor has started this rank.
pub(crate) fn is_supervised() -> bool {
    folder().is_some()
}

/// This rank notices when others die.
pub(crate) fn watched() {
    tell(WATCHED, 1);
}

/// The run has ended with this code, as seen by the rank that speaks for all.
pub(crate) fn ended(code: ExitCode) {
    tell(ENDED, code as i32);
}

/// The file that [`ended`] writes to, for who can do no more than write.
pub(crate) fn ending() -> Option<File> {
    File::options().write(true).open(folder()?.join(ENDED)).ok()
}

/// The signal that the supervisor got, if there is one.
pub(crate) fn asked() -> Option<i32> {
    read(&folder()?, ASKED)
}

/// A bug is no death: it would only happen again.
pub(crate) fn tell_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        ended(ExitCode::Bug);
        report(info);
    }));
}

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

fn tell(name: &str, number: i32) {
    let Some(folder) = folder() else { return };
    if let Err(error) = write(&folder, name, number) {
        tracing::warn!("the supervisor of this run cannot be told: {}: {error}", folder.display());
    }
}

/// All numbers have one length, so that the last one that is written is there whole. Where others may write beside the folder, a
/// link could be planted in its place, which is not followed.
fn write(folder: &Path, name: &str, number: i32) -> Result<()> {
    let unlinked = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    File::options()
        .write(true)
        .custom_flags(unlinked)
        .open(folder.join(name))?
        .write_all(format!("{number:4}\n").as_bytes())
}

fn read(folder: &Path, name: &str) -> Option<i32> {
    std::fs::read_to_string(folder.join(name)).ok()?.strip_suffix('\n')?.trim().parse().ok()
}

/// The supervisor's side.
#[derive(Debug)]
pub(crate) struct StatusFiles {
    folder: tempfile::TempDir,
}

impl StatusFiles {
    /// In a hidden folder of its own in this one.
    pub fn beside(parent: &Path) -> Result<StatusFiles> {
        let folder = tempfile::Builder::new().prefix(".exuvia-run-").tempdir_in(parent)?;
        for name in [WATCHED, ENDED, ASKED] {
            File::create(folder.path().join(name))?;
        }
        Ok(StatusFiles { folder })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn tell_where(&self, command: &mut Command) {
        command.env(FOLDER, self.folder());
    }

    /// Other ranks begin.
    pub fn begin(&self) -> Result<()> {
        File::create(self.folder().join(WATCHED)).map(drop)
    }

    pub fn is_watched(&self) -> bool {
        read(self.folder(), WATCHED).is_some()
    }

    pub fn ended(&self) -> Option<ExitCode> {
        read(self.folder(), ENDED).map(ExitCode::from_i32)
    }

    pub fn ask(&self, signal: i32) {
        if let Err(error) = write(self.folder(), ASKED, signal) {
            tracing::debug!("{}: {error}", self.folder().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_the_ones_that_the_supervisor_made() {
        use std::os::unix::fs::MetadataExt;
        let lab = tempfile::tempdir().unwrap();
        let told = StatusFiles::beside(lab.path()).unwrap();
        let inode = |name: &str| std::fs::metadata(told.folder().join(name)).unwrap().ino();
        let before = [inode(WATCHED), inode(ENDED)];
        assert!(!told.is_watched() && told.ended().is_none());
        // The last one counts, however long the one before it was.
        for code in [ExitCode::Bug, ExitCode::Failed] {
            write(told.folder(), ENDED, code as i32).unwrap();
        }
        write(told.folder(), WATCHED, 1).unwrap();
        assert!(told.is_watched() && told.ended() == Some(ExitCode::Failed));
        told.begin().unwrap();
        assert!(!told.is_watched());
        assert_eq!(before, [inode(WATCHED), inode(ENDED)]);
    }
}
