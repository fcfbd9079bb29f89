//! Opening a job as a run would: its kernels and the layouts of its datasets. All errors are printed here.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::output::fail;
use crate::engine::Kernel;
use crate::exec::{self, ExitCode, RunError};
use crate::job::Job;
use crate::plan::Layout;

/// Opens a job, checks its kernels, and returns it with the layouts of its datasets.
pub(super) fn open(path: &Path) -> Result<(Job, BTreeMap<String, Layout>), ExitCode> {
    let job = Job::load(path).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let layouts = layouts(&job)?;
    kernels(&job)?;
    Ok((job, layouts))
}

/// Loads the kernels of a job's stages.
pub(super) fn kernels(job: &Job) -> Result<Vec<Kernel>, ExitCode> {
    let failed = |error: RunError| fail(&error, error.code(), error.help().as_deref());
    job.stages.iter().map(|stage| exec::load_kernel(stage).map_err(failed)).collect()
}

/// Returns the layouts of the datasets that a job reads, and checks the paths that it writes.
pub(super) fn layouts(job: &Job) -> Result<BTreeMap<String, Layout>, ExitCode> {
    exec::real_outputs(job).map_err(|error| fail(&error, error.code(), None))?;
    exec::layouts(job).map_err(|error| fail(&error, ExitCode::Failed, None))
}
