//! Messages of workers to the main thread.

use std::time::Instant;

use crate::exec::reduce::chain::MergeRequest;
use crate::exec::worker::fault::TaskError;
use crate::exec::worker::instances::Instances;
use crate::report::{Counts, Swap};
use crate::sched::Action;

/// A worker's message to the main thread.
#[derive(Debug)]
pub(in crate::exec) enum FromWorker {
    /// An action of the scheduler that the main thread has to carry out.
    Do(Action),
    Failed(TaskError),
    /// Partial results that the main thread handed out, now merged.
    Merged(Box<MergeRequest>),
    Panicked(String),
    Ended(Box<WorkerReport>),
}

/// A worker's message, with the number of the run of its stage.
pub(in crate::exec) type FromRun = (u64, FromWorker);

/// A worker's report of one run of a stage.
#[derive(Debug, Default)]
pub(in crate::exec) struct WorkerReport {
    pub counts: Counts,
    pub swaps: Vec<Swap>,
    /// End of its first task.
    pub first_task: Option<Instant>,
    /// Kernel instances that the next run of the stage can use.
    pub instances: Option<Instances>,
}
