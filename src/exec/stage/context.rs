//! What all stages of a run share.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::Kernel;
use crate::exec::options::Options;
use crate::job::Job;
use crate::plan::Plan;
use crate::topology::Topology;

/// What stays the same over all stages of a run.
pub(in crate::exec) struct Context<'a> {
    pub job: &'a Job,
    pub plan: Arc<Plan>,
    pub topology: &'a Topology,
    pub options: &'a Options,
    /// Has [`Context::threads`] for each stage of the widest wave.
    pub pool: &'a rayon::ThreadPool,
    /// Workers of a stage.
    pub threads: usize,
    pub process_start: Instant,
    /// Kernel of each stage, as [`TierUp`] numbers them.
    pub kernels: Vec<usize>,
    /// What merges the partial results of each stage, where that is a kernel.
    pub merges: Vec<Option<Kernel>>,
}
