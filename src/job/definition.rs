//! A job: its tensors, stages, limits and iterations, as its file declares them.

use crate::job::iteration::Iterate;
use crate::job::notation::Notation;
use crate::job::snippet::Excerpt;
use crate::tensor::{Boundary, Dtype, Shape};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to compute: tensors and the stages that turn some into others, in order. Paths are resolved against the
/// directory of the job file.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    /// The job file.
    pub path: PathBuf,
    /// Memory budget of one rank, if the job sets one.
    pub memory_bytes: Option<u64>,
    pub tensors: BTreeMap<String, TensorDecl>,
    pub stages: Vec<Stage>,
    pub iterate: Option<Iterate>,
    pub(super) text: String,
}

/// A tensor of the job and where its elements come from.
#[derive(Clone, Debug)]
pub struct TensorDecl {
    pub name: String,
    pub source: Source,
    /// 1-based line of its declaration.
    pub line: usize,
    pub(crate) span: Range<usize>,
}

/// Where the elements of a tensor come from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Source {
    /// An existing dataset.
    File { file: PathBuf, dataset: String },
    /// A dataset that a stage of the job fills. `chunk` has one extent (at least 1) per dimension; `deflate` is 1 to 9.
    Create { file: PathBuf, dataset: String, dtype: Dtype, chunk: Option<Vec<u64>>, deflate: Option<u8> },
    /// A constant in the job file, packed, in native byte order.
    Inline { dtype: Dtype, shape: Shape, bytes: Vec<u8> },
    /// Written by one stage, read by later ones, gone after the run.
    Scratch { dtype: Dtype },
}

/// One kernel over its tensors.
#[derive(Clone, Debug)]
pub struct Stage {
    pub name: String,
    /// The wasm module.
    pub kernel: PathBuf,
    /// The exported function; without it, the module's only export that is a kernel.
    pub export: Option<String>,
    pub compute: Notation,
    /// Extents of indices, above all of those that no input has.
    pub sizes: BTreeMap<String, u64>,
    pub limits: Limits,
    /// How partial results over indices that no output has become one; without it those indices are whole.
    pub combine: Option<Combine>,
    /// The indices that a reduction may cut, if the job names them; see [`Stage::cut`].
    pub reduce: Option<Vec<String>>,
    /// Indices that are never cut.
    pub whole: Vec<String>,
    /// With [`Combine::Kernel`], the exported function that merges.
    pub merge: Option<String>,
    /// What lies beyond the edge of inputs with a halo.
    pub boundary: Option<Boundary>,
    /// 1-based line of its `compute`.
    pub line: usize,
}

/// How two partial results become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// Element by element, like the three that follow.
    Sum,
    Prod,
    Min,
    Max,
    /// Of two outputs, a value and where it is: the pair with the least value, of equal ones that with the least place.
    ArgMin,
    /// The same with the greatest value.
    ArgMax,
    /// All outputs at once, by another export of the stage's module: [`Stage::merge`].
    Kernel,
}

impl Combine {
    /// Every kind that a job file names in one word.
    pub const NAMES: [(&'static str, Combine); 6] = [
        ("sum", Combine::Sum),
        ("prod", Combine::Prod),
        ("min", Combine::Min),
        ("max", Combine::Max),
        ("argmin", Combine::ArgMin),
        ("argmax", Combine::ArgMax),
    ];

    /// Whether it compares pairs.
    pub fn is_of_pairs(self) -> bool {
        matches!(self, Combine::ArgMin | Combine::ArgMax)
    }
}

/// What one kernel instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance; at most [`Limits::MEMORY_MAX_BYTES`].
    pub memory_bytes: u64,
    /// Wall time of one task.
    pub task_time: Duration,
}

impl Limits {
    /// A 32-bit linear memory ends here.
    pub const MEMORY_MAX_BYTES: u64 = 4 << 30;
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory_bytes: 1 << 30, task_time: Duration::from_secs(60) }
    }
}

impl Job {
    /// The job file's text: with its path, all that another rank needs to see the same job.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Identity of the job: its name and its text. The same file elsewhere is the same job.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("exuvia job 1");
        hasher.update(&(self.name.len() as u64).to_le_bytes());
        hasher.update(self.name.as_bytes());
        hasher.update(self.text.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// From now on these outputs, by tensor, go to these files.
    pub fn move_outputs<'a>(&mut self, files: impl IntoIterator<Item = (&'a str, &'a Path)>) {
        for (tensor, file) in files {
            if let Some(Source::Create { file: place, .. }) = self.tensors.get_mut(tensor).map(|decl| &mut decl.source)
            {
                *place = file.to_owned();
            }
        }
    }

    /// The line of the job file around `span`, for an error of this or a later check.
    pub(crate) fn excerpt(&self, span: Range<usize>, help: Option<String>) -> Box<Excerpt> {
        Box::new(Excerpt::new(&self.path, &self.text, span, help))
    }
}

impl Source {
    /// The file that it is in.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Source::File { file, .. } | Source::Create { file, .. } => Some(file),
            Source::Inline { .. } | Source::Scratch { .. } => None,
        }
    }

    /// How messages call this kind of tensor.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Source::File { .. } => "an existing dataset",
            Source::Create { .. } => "a dataset to create",
            Source::Inline { .. } => "a constant",
            Source::Scratch { .. } => "scratch",
        }
    }
}
