//! The errors that end a sweep.

use std::path::PathBuf;

use crate::job::JobError;
use crate::store::StoreError;

/// An error that ends a sweep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    #[error("cannot {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path}:{line} is not a point of a sweep")]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{path} has points of {what}, which are not comparable with new ones")]
    Other { path: PathBuf, what: &'static str },
    #[error("another sweep is writing {path}")]
    Busy { path: PathBuf },
    #[error("{path} is not a job file")]
    Toml { path: PathBuf, source: toml::de::Error },
    #[error("cannot write the modified job file")]
    Written { source: toml::ser::Error },
    #[error(transparent)]
    Job { source: JobError },
    #[error("no stage of the job has an index '{index}'; it has {known}")]
    NoIndex { index: String, known: String },
    #[error("the job cannot grow along '{index}': {why}")]
    Rigid { index: String, why: String },
    #[error(transparent)]
    Store { source: StoreError },
    #[error("cannot start {program}")]
    Start { program: String, source: std::io::Error },
    #[error("`{command}` ended with {status}:\n{said}")]
    Run { command: String, status: String, said: String },
    #[error("a rank failed during the run, so the measurement is invalid")]
    RankFailed,
    #[error("{path} is not the report of a run")]
    Report { path: PathBuf, source: serde_json::Error },
}

impl SweepError {
    /// The next step for the user, if there is one.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            SweepError::Other { .. } => Some("use --fresh to discard them, or --out to write another file"),
            SweepError::Line { .. } => Some("remove the line, or discard all points with --fresh"),
            SweepError::RankFailed => {
                Some("find the cause (out of memory? killed?) and run the same command again to continue")
            }
            SweepError::Rigid { .. } | SweepError::NoIndex { .. } => Some("choose another --index"),
            _ => None,
        }
    }

    pub(super) fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> SweepError {
        move |source| SweepError::Io { what, path: path.to_owned(), source }
    }
}
