//! The ways in which starting ranks can fail.

use std::path::PathBuf;
use std::time::Duration;

use crate::exec::ExitCode;
use crate::fabric;
use crate::job::JobError;
use crate::text::Limit;

/// The number of files that a launcher opens for each 32 ranks, roughly.
const LAUNCHER_FILES: u64 = 256;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("cannot find {names} in PATH; {library} starts ranks with one of them")]
    NoLauncher { names: String, library: String },
    #[error("cannot start ranks with {program}")]
    Start { program: String, source: std::io::Error },
    #[error("cannot read the hostfile {}", file.display())]
    Hostfile { file: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Job(#[from] JobError),
    #[error("cannot create the folder for the outputs")]
    OutputFolder { source: std::io::Error },
    #[error("cannot create the status files of the run")]
    StatusFiles { source: std::io::Error },
    #[error("the run was interrupted before its ranks could report their progress")]
    Interrupted,
    #[error(
        "the ranks did not connect to each other within {} (--start-limit) and were stopped",
        humantime::format_duration(*limit)
    )]
    StartLimit { limit: Duration, ranks: u32 },
    #[error("no host responds: {hosts}")]
    NoHostResponds { hosts: String },
    #[error("the run ended {starts} times because ranks failed")]
    RanksFailed { starts: u32 },
}

impl LaunchError {
    /// The exit status of the program.
    pub fn code(&self) -> ExitCode {
        match self {
            LaunchError::Hostfile { .. } | LaunchError::Job(_) => ExitCode::Usage,
            LaunchError::OutputFolder { .. } | LaunchError::NoHostResponds { .. } | LaunchError::RanksFailed { .. } => {
                ExitCode::Failed
            }
            LaunchError::Interrupted => ExitCode::Resumable,
            LaunchError::NoLauncher { .. }
            | LaunchError::Start { .. }
            | LaunchError::StatusFiles { .. }
            | LaunchError::StartLimit { .. } => ExitCode::Environment,
        }
    }

    /// The next step for the user, if there is one.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            LaunchError::NoLauncher { .. } | LaunchError::Start { .. } => {
                "run `exuvia doctor` to check the MPI installation".to_owned()
            }
            LaunchError::Hostfile { .. } => {
                format!("write one host per line, in the format of the mpirun of {}", fabric::library())
            }
            LaunchError::StatusFiles { .. } => "check that TMPDIR is writable".to_owned(),
            LaunchError::Interrupted => "run the same command again: completed work is kept".to_owned(),
            LaunchError::StartLimit { ranks, .. } => start_limit_help(*ranks),
            LaunchError::NoHostResponds { .. } => {
                "run the same command again when the hosts are up: completed work is kept".to_owned()
            }
            LaunchError::RanksFailed { .. } => {
                "find the cause (out of memory? killed?) and run the same command again: completed work is kept"
                    .to_owned()
            }
            LaunchError::Job(_) | LaunchError::OutputFolder { .. } => return None,
        };
        Some(help)
    }
}

fn start_limit_help(ranks: u32) -> String {
    let files = Limit::open_files();
    match files.now.is_some_and(|now| now < LAUNCHER_FILES * u64::from(ranks).div_ceil(32)) {
        true => format!("{} is too low for a launcher: raise it", files.format()),
        false => {
            "start a small program with the launcher alone to see its messages, and run `exuvia doctor`".to_owned()
        }
    }
}
