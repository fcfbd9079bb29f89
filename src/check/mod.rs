//! `exuvia check`: tests whether the kernels of a job conform to the kernel interface, on samples of the job's data.
//!
//! Each stage runs on samples of its data, on both tiers, cut in many ways, in tiles that end or begin at inaccessible
//! pages, with outputs that hold different patterns before. A result that depends on any of these is a finding, with
//! its first element. The inputs of a stage that other stages produce are computed by running these on the needed part
//! only.
//!
//! Refuses to do: proving anything. Errors that no sample shows are not found. It uses `engine`, `job`, `plan`, `store`
//! and
//! `tensor`, and of `exec` how partial results are merged. Invariant: time and memory are bounded by its options, but
//! for one call of a kernel, which the limits of its stage bound.

mod call;
mod caller;
mod context;
mod cut;
mod error;
mod finding;
mod locate;
mod report;
mod stage;
mod tensors;
mod watch;

pub use call::{Computed, compute};
pub use context::CheckOptions;
pub use error::CheckError;
pub use finding::value;
pub use report::{CheckReport, Finding, FindingKind, StageCheck};

use crate::check::context::CheckContext;
use crate::check::watch::watched;
use crate::job::Job;

/// Checks the kernels of a job. A kernel that does not return is a finding too, and leaves its thread running.
pub fn check(job: Job, options: CheckOptions) -> Result<CheckReport, CheckError> {
    watched(job.name.clone(), move |watch| {
        let bench = CheckContext::new(job, options, watch.clone())?;
        stage::check_all(&bench);
        Ok(watch.report())
    })?
    .map_or_else(Ok, Ok)
}
