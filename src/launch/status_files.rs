//! The communication between ranks and their supervisor: files in a folder, since launchers lose exit codes. Open MPI's
//! exit code is 0 whenever failures are survivable.
//!
//! On a shared file system such as NFS, a host sees data that another host writes into an existing file at once, but a
//! new file only after a while. Therefore the supervisor creates the files, and nobody replaces them. Each file is
//! empty or holds a number.

use std::fs::File;
use std::io::{Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exec::ExitCode;

/// The environment variable that names the folder to the ranks.
pub(crate) const FOLDER: &str = "EXUVIA_LAUNCH";
/// Ranks detect failures from now on.
const DETECTING: &str = "watched";
/// The run has ended, with this exit status.
const EXITED: &str = "ended";
/// The signal that asks the run to end.
const SIGNAL: &str = "asked";

/// Returns whether a supervisor started this rank.
pub(crate) fn is_supervised() -> bool {
    folder().is_some()
}

/// Tells the supervisor that this rank detects the failure of others.
pub(crate) fn report_detecting() {
    report(DETECTING, 1);
}

/// Tells the supervisor the exit status of the whole run.
pub(crate) fn report_exit(code: ExitCode) {
    report(EXITED, code as i32);
}

/// Opens the file that [`report_exit`] writes to, for signal handlers, which can do no more than write.
pub(crate) fn exit_file() -> Option<File> {
    File::options().write(true).open(folder()?.join(EXITED)).ok()
}

/// Returns the signal that the supervisor received, if any.
pub(crate) fn requested_signal() -> Option<i32> {
    read(&folder()?, SIGNAL)
}

/// Reports a panic as the exit status of the run: restarting would only repeat it.
pub(crate) fn report_panics() {
    let print_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report_exit(ExitCode::Bug);
        print_panic(info);
    }));
}

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

fn report(name: &str, number: i32) {
    let Some(folder) = folder() else { return };
    if let Err(error) = write(&folder, name, number) {
        tracing::warn!("cannot report to the supervisor of this run: {}: {error}", folder.display());
    }
}

/// Writes numbers of equal length, so that a later one replaces an earlier one wholly. Links are not followed: other
/// users who may write to the parent folder could replace the folder.
fn write(folder: &Path, name: &str, number: i32) -> Result<()> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    File::options()
        .write(true)
        .custom_flags(no_follow)
        .open(folder.join(name))?
        .write_all(format!("{number:4}\n").as_bytes())
}

fn read(folder: &Path, name: &str) -> Option<i32> {
    std::fs::read_to_string(folder.join(name)).ok()?.strip_suffix('\n')?.trim().parse().ok()
}

/// The supervisor's side of the status files.
#[derive(Debug)]
pub(crate) struct StatusFiles {
    folder: tempfile::TempDir,
}

impl StatusFiles {
    /// Creates the files in a new hidden folder inside `parent`.
    pub fn create_in(parent: &Path) -> Result<StatusFiles> {
        let folder = tempfile::Builder::new().prefix(".exuvia-run-").tempdir_in(parent)?;
        for name in [DETECTING, EXITED, SIGNAL] {
            File::create(folder.path().join(name))?;
        }
        Ok(StatusFiles { folder })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn set_environment(&self, command: &mut Command) {
        command.env(FOLDER, self.folder());
    }

    /// Prepares the files for a restart of the ranks.
    pub fn reset(&self) -> Result<()> {
        File::create(self.folder().join(DETECTING)).map(drop)
    }

    pub fn detects_failures(&self) -> bool {
        read(self.folder(), DETECTING).is_some()
    }

    pub fn exit_code(&self) -> Option<ExitCode> {
        read(self.folder(), EXITED).map(ExitCode::from_i32)
    }

    pub fn request_end(&self, signal: i32) {
        if let Err(error) = write(self.folder(), SIGNAL, signal) {
            tracing::debug!("{}: {error}", self.folder().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_never_replaced() {
        use std::os::unix::fs::MetadataExt;
        let parent = tempfile::tempdir().unwrap();
        let files = StatusFiles::create_in(parent.path()).unwrap();
        let inode = |name: &str| std::fs::metadata(files.folder().join(name)).unwrap().ino();
        let before = [inode(DETECTING), inode(EXITED)];
        assert!(!files.detects_failures() && files.exit_code().is_none());
        // The last number counts, even if an earlier one was longer.
        for code in [ExitCode::Bug, ExitCode::Failed] {
            write(files.folder(), EXITED, code as i32).unwrap();
        }
        write(files.folder(), DETECTING, 1).unwrap();
        assert!(files.detects_failures() && files.exit_code() == Some(ExitCode::Failed));
        files.reset().unwrap();
        assert!(!files.detects_failures());
        assert_eq!(before, [inode(DETECTING), inode(EXITED)]);
    }
}
