use crate::job::snippet::Excerpt;
use crate::tensor::Dtype;
use std::path::PathBuf;

/// Why a job file is not a job. All but [`JobError::Read`] and [`JobError::Path`] show the line and mark what is wrong
/// in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The file cannot be read as UTF-8 text.
    #[error("cannot read job file '{}'", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Its folder or name is not text.
    #[error("the path of job file '{}' has bytes that are not UTF-8: rename its folder, or the file", path.display())]
    Path { path: PathBuf },
    /// Not TOML.
    #[error("{}", at.frame(message))]
    Syntax { at: Box<Excerpt>, message: String },
    /// A key that means nothing here.
    #[error("{}", at.frame(format_args!("unknown key '{key}' in {table}")))]
    UnknownKey { at: Box<Excerpt>, key: String, table: String },
    /// A key that must be there is not.
    #[error("{}", at.frame(format_args!("{table} has no '{key}'")))]
    MissingKey { at: Box<Excerpt>, key: String, table: String },
    /// Two keys that exclude each other, or one that needs another.
    #[error("{}", at.frame(format_args!("{table}: {conflict}")))]
    Conflict { at: Box<Excerpt>, table: String, conflict: String },
    /// A value of another TOML type than the key takes.
    #[error("{}", at.frame(format_args!("'{key}' takes {expected}, but this is {found}")))]
    WrongType { at: Box<Excerpt>, key: String, expected: &'static str, found: &'static str },
    /// A value of the right type that the key cannot take.
    #[error("{}", at.frame(format_args!("'{key}': {reason}")))]
    BadValue { at: Box<Excerpt>, key: String, reason: String },
    /// Text that is not index notation.
    #[error("{}", at.frame(format_args!("index notation: {reason}")))]
    Notation { at: Box<Excerpt>, reason: String },
    /// `argmin` or `argmax` without a value and its place.
    #[error("{}", at.frame(format_args!("stage '{stage}' combines pairs: {reason}")))]
    BadPair { at: Box<Excerpt>, stage: String, reason: String },
    /// A combined or compared tensor of a type that is only for storage.
    #[error("{}", at.frame(format_args!("tensor '{tensor}' is {dtype}, which nothing can be added to or compared with")))]
    StorageType { at: Box<Excerpt>, tensor: String, dtype: Dtype },
    /// `[iterate]` and the stages do not fit each other.
    #[error("{}", at.frame(format_args!("[iterate]: {reason}")))]
    BadIteration { at: Box<Excerpt>, reason: String },
    /// A stage uses a tensor that is not declared.
    #[error("{}", at.frame(format_args!("stage '{stage}' uses tensor '{tensor}', which is not declared")))]
    UnknownTensor { at: Box<Excerpt>, stage: String, tensor: String },
    /// A declared tensor that no stage uses.
    #[error("{}", at.frame(format_args!("tensor '{tensor}' is declared, but no stage uses it")))]
    UnusedTensor { at: Box<Excerpt>, tensor: String },
    /// A stage writes what is given (a dataset or a constant).
    #[error("{}", at.frame(format_args!("stage '{stage}' writes tensor '{tensor}', but that is {what}")))]
    NotWritable { at: Box<Excerpt>, stage: String, tensor: String, what: &'static str },
    /// A stage both reads and writes a tensor.
    #[error("{}", at.frame(format_args!("stage '{stage}' both reads and writes tensor '{tensor}'")))]
    InPlace { at: Box<Excerpt>, stage: String, tensor: String },
    /// Two writers of one tensor.
    #[error("{}", at.frame(format_args!("tensor '{tensor}' is already written by stage '{first}'")))]
    WrittenTwice { at: Box<Excerpt>, tensor: String, first: String },
    /// A read before any write.
    #[error("{}", at.frame(format_args!("stage '{stage}' reads tensor '{tensor}' before any stage has written it")))]
    NotYetWritten { at: Box<Excerpt>, stage: String, tensor: String },
    /// Two tensors stand for one dataset that the job creates.
    #[error("{}", at.frame(format_args!("tensors '{first}' and '{second}' are both dataset '{dataset}' of {}", file.display())))]
    SameDataset { at: Box<Excerpt>, first: String, second: String, dataset: String, file: PathBuf },
    /// A dataset that the job creates would hold another one.
    #[error("{}", at.frame(format_args!("tensor {inner} would lie inside tensor {outer}, which is a dataset of {}", file.display())))]
    InsideDataset { at: Box<Excerpt>, inner: String, outer: String, file: PathBuf },
    /// Two names of one file, of which the run would replace one.
    #[error("{}", at.frame(format_args!("{} and {} are two names (hard links) of one file", first.display(), second.display())))]
    TwoNames { at: Box<Excerpt>, first: PathBuf, second: PathBuf },
    /// An output index has no extent.
    #[error("{}", at.frame(format_args!("no input of stage '{stage}' has index '{index}' of output {operand}")))]
    UnboundIndex { at: Box<Excerpt>, stage: String, index: String, operand: String },
    /// `sizes` gives an extent to an index that the stage does not have.
    #[error("{}", at.frame(format_args!("stage '{stage}' has no index '{index}'")))]
    UnknownIndex { at: Box<Excerpt>, stage: String, index: String },
}

impl JobError {
    /// The place in the job file, where there is one: path, line, column, the line itself and the help.
    pub fn excerpt(&self) -> Option<&Excerpt> {
        use JobError::*;
        match self {
            Read { .. } | Path { .. } => None,
            Syntax { at, .. }
            | UnknownKey { at, .. }
            | MissingKey { at, .. }
            | Conflict { at, .. }
            | WrongType { at, .. }
            | BadValue { at, .. }
            | Notation { at, .. }
            | BadPair { at, .. }
            | StorageType { at, .. }
            | BadIteration { at, .. }
            | UnknownTensor { at, .. }
            | UnusedTensor { at, .. }
            | NotWritable { at, .. }
            | InPlace { at, .. }
            | WrittenTwice { at, .. }
            | NotYetWritten { at, .. }
            | SameDataset { at, .. }
            | InsideDataset { at, .. }
            | TwoNames { at, .. }
            | UnboundIndex { at, .. }
            | UnknownIndex { at, .. } => Some(at),
        }
    }
}
