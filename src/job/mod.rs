//! Job files: TOML in, a checked [`Job`] out.
//!
//! Refuses to do: looking at the files that a job names; what can be known without them is checked here, so that a typo
//! costs no allocation. Invariant: in a [`Job`], every tensor that a stage names is declared, is written by at most one
//! stage, and is read only after it was written.

mod check;
mod error;
mod file;
mod notation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::JobError;
pub use notation::{Index, Notation, NotationError, Operand};

use crate::tensor::{Dtype, Shape};

/// A checked job.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    pub path: PathBuf,
    /// Budget per rank, if the job sets one.
    pub memory_bytes: Option<u64>,
    pub tensors: BTreeMap<String, TensorDecl>,
    pub stages: Vec<Stage>,
    text: String,
}

/// A tensor of the job.
#[derive(Clone, Debug)]
pub struct TensorDecl {
    pub name: String,
    pub source: Source,
    /// Line in the job file, from 1.
    pub line: usize,
}

/// Where a tensor comes from or goes to.
#[derive(Clone, Debug)]
pub enum Source {
    /// An existing dataset.
    File { file: PathBuf, dataset: String },
    /// A dataset that the job writes.
    Create { file: PathBuf, dataset: String, dtype: Dtype, chunk: Option<Vec<u64>>, deflate: Option<u8> },
    /// A constant in the job file; packed row-major bytes.
    Inline { dtype: Dtype, shape: Shape, bytes: Vec<u8> },
    /// Exists between stages only.
    Scratch { dtype: Dtype },
}

/// One kernel over its tensors.
#[derive(Clone, Debug)]
pub struct Stage {
    pub name: String,
    pub kernel: PathBuf,
    pub export: Option<String>,
    pub compute: Notation,
    /// Extents of indices that no input binds.
    pub sizes: BTreeMap<String, u64>,
    pub limits: Limits,
    pub line: usize,
}

/// What a kernel may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// Wall time of one task.
    pub task_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory_bytes: 1 << 30, task_time: Duration::from_secs(60) }
    }
}

impl Job {
    /// Reads and checks a job file.
    pub fn load(path: &Path) -> Result<Job, JobError> {
        let text = std::fs::read_to_string(path).map_err(|source| JobError::Read {
            path: path.to_owned(),
            nearest: error::nearest_file(path),
            source,
        })?;
        Job::parse(&text, path)
    }

    /// Checks the text of a job file that lies at `path`: paths in it are relative to that.
    pub fn parse(text: &str, path: &Path) -> Result<Job, JobError> {
        let job = file::read(text, path)?;
        check::check(&job)?;
        Ok(job)
    }

    /// The job file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Identity of the job: its text.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(self.text.as_bytes()).as_bytes()
    }

    /// The dtype that the job gives a tensor; `None` for existing datasets, whose file says.
    pub fn declared_dtype(&self, tensor: &str) -> Option<Dtype> {
        match &self.tensors.get(tensor)?.source {
            Source::File { .. } => None,
            Source::Create { dtype, .. } | Source::Inline { dtype, .. } | Source::Scratch { dtype } => Some(*dtype),
        }
    }
}

#[cfg(test)]
mod tests;
