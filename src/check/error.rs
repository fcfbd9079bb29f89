//! The errors that prevent a check.

use crate::engine::EngineError;
use crate::plan::PlanError;
use crate::store::StoreError;

/// An error that prevents a check.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("kernel '{kernel}' of stage '{stage}'")]
    Engine { kernel: String, stage: String, source: Box<EngineError> },
    #[error("{task} failed: {message}")]
    Task { task: String, message: String },
    #[error("cannot compute '{tensor}': {reason}")]
    Missing { tensor: String, reason: String },
    #[error("the thread that calls the kernels ended unexpectedly")]
    Panicked,
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
