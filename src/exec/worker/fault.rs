//! Errors of a worker's kernel calls.

use crate::engine::{EngineError, KernelFault, Tier};

/// Why a worker could not complete a task or a merge.
#[derive(Debug)]
pub(in crate::exec) enum TaskError {
    /// A kernel trapped, reported an error or broke the rules.
    Fault {
        task: String,
        tier: Tier,
        /// Whether it was the kernel that merges partial results.
        merges: bool,
        fault: Box<KernelFault>,
    },
    /// A kernel instance could not be made, or could not adopt new code.
    Engine(Box<EngineError>),
}

impl From<EngineError> for TaskError {
    fn from(error: EngineError) -> TaskError {
        TaskError::Engine(Box::new(error))
    }
}
