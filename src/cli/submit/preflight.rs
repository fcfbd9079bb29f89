//! Whether a job can run as it is going to be submitted, and how long it takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::fail;
use crate::cli::plan::{kernels, layouts};
use crate::cli::run::RunArguments;
use crate::cli::submit::estimate;
use crate::cli::submit::{SubmitArguments, absolute};
use crate::exec::ExitCode;
use crate::job::{Job, Source};
use crate::plan::{Machine, plan as make_plan};
use crate::{slurm, topology};

/// A job that can run, as far as can be said.
pub(in crate::cli) struct Checked {
    pub name: String,
    /// The files that it makes, without `..` where their folders are there.
    pub outputs: BTreeSet<PathBuf>,
    /// How long it takes; or why that is not known.
    pub estimate: Result<Duration, String>,
    /// Whether a condition may end it earlier.
    pub is_bound: bool,
}

impl Checked {
    /// Of many jobs what all make, and the longest time, if that is known of all.
    pub fn longest(jobs: Vec<Checked>) -> Option<Checked> {
        jobs.into_iter().reduce(|mut longest, job| {
            longest.outputs.extend(job.outputs);
            longest.is_bound |= job.is_bound;
            longest.estimate = longest.estimate.and_then(|time| Ok(time.max(job.estimate?)));
            longest
        })
    }

    fn new(job: &Job, estimate: Result<Duration, String>) -> Checked {
        let is_bound = job.iterate.as_ref().is_some_and(|iterate| iterate.until.is_some());
        Checked { name: job.name.clone(), outputs: outputs(job), estimate, is_bound }
    }
}

/// Reads and plans the job and loads its kernels, as rank 0 will; what is wrong has been said.
pub(in crate::cli) fn check(path: &Path, arguments: &SubmitArguments, run: &RunArguments) -> Result<Checked, ExitCode> {
    let job = Job::load(path).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let kernels = kernels(&job)?;
    let awaited = job.tensors.values().find_map(|decl| match &decl.source {
        Source::File { file, .. } if arguments.dependency.is_some() && !file.exists() => Some(file),
        _ => None,
    });
    if let Some(file) = awaited {
        tracing::warn!("not planned: {} is not there yet; the jobs before this one must make it", file.display());
        return Ok(Checked::new(&job, Err("no estimate: its input is not there yet".to_owned())));
    }
    let layouts = layouts(&job)?;
    let ranks_per_node = arguments.ranks_per_node();
    let share = || {
        let asked = arguments.mem.as_deref().and_then(slurm::memory_bytes);
        let node = asked.or_else(|| slurm::node_memory_bytes(arguments.partition.as_deref()));
        node.unwrap_or_else(|| topology::host().memory_bytes) / 5 * 4 / u64::from(ranks_per_node)
    };
    let machine = Machine {
        ranks: arguments.nodes() * ranks_per_node,
        ranks_per_node,
        threads: run.threads.or(arguments.cpus_per_task).unwrap_or(1),
        memory_bytes: run.memory.or(job.memory_bytes).unwrap_or_else(share),
    };
    let plan = make_plan(&job, &layouts, &machine).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let estimate = estimate::estimate(&job, &plan, &kernels, run.cache_dir.as_deref());
    let estimate = estimate
        .map_err(|kernel| format!("no estimate yet: {kernel} has not run on this machine with tiles like these"));
    Ok(Checked::new(&job, estimate))
}

fn outputs(job: &Job) -> BTreeSet<PathBuf> {
    let clean = |file: &PathBuf| {
        let folder = file.parent()?.canonicalize().ok()?;
        Some(folder.join(file.file_name()?))
    };
    let created = job.tensors.values().filter_map(|decl| match &decl.source {
        Source::Create { file, .. } => Some(clean(file).unwrap_or_else(|| absolute(file))),
        _ => None,
    });
    created.collect()
}
