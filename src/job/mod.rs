//! Job files: TOML text to a checked [`Job`]. The format is described in `docs/job-file.md`.
//!
//! Refuses to look at anything but the job file: no dataset, no kernel is opened, so shapes, extents and
//! dtypes of existing data are not known here (`plan` gets them from its caller).
//! Invariant: in a [`Job`] every tensor a stage names is declared, every tensor is used, whatever the job creates
//! is written by exactly one stage before any other reads it, and every output index has an input or a size.
//! Every error shows the line of the job file, marks what is wrong and names the nearest right thing.

mod check;
mod constant;
mod cuts;
mod definition;
mod error;
mod iterate;
mod iteration;
#[cfg(test)]
mod kind_tests;
mod notation;
mod read;
mod snippet;
mod table;
#[cfg(test)]
mod tests;

pub use cuts::{Cut, Why};
pub use error::JobError;
pub use iteration::{Condition, Exchange, Iterate, Relation};
pub use notation::{Index, Notation, Operand};
pub use snippet::Excerpt;

use crate::regular_file;
pub use definition::{Combine, Job, Limits, Source, Stage, TensorDecl};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// The longest job file that is read.
const FILE_BYTES: u64 = 64 << 20;

impl Job {
    /// Reads and checks the job file at `path`.
    pub fn load(path: &Path) -> Result<Job, JobError> {
        // Paths of the job begin with the file's folder, and are told to other ranks and kept as text.
        if std::path::absolute(path).is_ok_and(|path| path.to_str().is_none()) {
            return Err(JobError::Path { path: path.to_owned() });
        }
        let failed = |source| JobError::Read { path: path.to_owned(), source };
        let bytes = regular_file::read(path, FILE_BYTES).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            failed(Error::new(ErrorKind::InvalidData, format!("it is no UTF-8 text, at byte {at}")))
        })?;
        Job::parse(&text, path)
    }

    /// Checks `text` as the job file at `path`, which need not exist: it gives the default name, the directory
    /// that relative paths start from, and the name in messages.
    ///
    /// ```
    /// use exuvia::job::Job;
    ///
    /// let text = r#"
    ///     [tensors.x]
    ///     file = "in.h5"
    ///     dataset = "x"
    ///     [tensors.total]
    ///     create = "out.h5"
    ///     dataset = "total"
    ///     dtype = "f64"
    ///     [[stages]]
    ///     kernel = "sum.wasm"
    ///     compute = "x[n] -> total[]"
    ///     combine = "sum"
    /// "#;
    /// let job = Job::parse(text, "sums/job.toml".as_ref())?;
    /// assert_eq!((job.name.as_str(), job.stages.len()), ("job", 1));
    ///
    /// let error = Job::parse(&text.replace("combine", "combined"), "job.toml".as_ref()).unwrap_err();
    /// assert!(error.to_string().contains("combined"));
    /// # Ok::<(), exuvia::job::JobError>(())
    /// ```
    pub fn parse(text: &str, path: &Path) -> Result<Job, JobError> {
        let job = read::job(text, path)?;
        check::check(&job)?;
        Ok(job)
    }

    /// Checks that no two tensors are one dataset where some files have several names: `files` has one name for each,
    /// by tensor.
    pub fn check_files(&self, files: &BTreeMap<String, PathBuf>) -> Result<(), JobError> {
        check::apart(self, &files.iter().map(|(tensor, file)| (tensor.as_str(), file.as_path())).collect())
    }
}
