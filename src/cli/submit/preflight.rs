//! The check of a job before its submission: that it can run, and how long it takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::open_job::{kernels, layouts};
use crate::cli::output::fail;
use crate::cli::run::arguments::RunArguments;
use crate::cli::submit::arguments::{SubmitArguments, absolute};
use crate::cli::submit::estimate;
use crate::exec::ExitCode;
use crate::job::{Job, Source};
use crate::plan::{Machine, plan as make_plan};
use crate::{slurm, topology};

/// The result of the check of a job that can run, as far as known.
pub(in crate::cli) struct Preflight {
    pub name: String,
    /// The files that the job creates, as canonical paths where their folders exist.
    pub outputs: BTreeSet<PathBuf>,
    /// The predicted run time, or the reason why there is none.
    pub estimate: Result<Duration, String>,
    /// Whether a condition may end the job earlier.
    pub is_upper_bound: bool,
}

impl Preflight {
    /// Combines the results of many jobs: all outputs, and the longest time, if that of all jobs is known.
    pub fn combine(jobs: Vec<Preflight>) -> Option<Preflight> {
        jobs.into_iter().reduce(|mut longest, job| {
            longest.outputs.extend(job.outputs);
            longest.is_upper_bound |= job.is_upper_bound;
            longest.estimate = longest.estimate.and_then(|time| Ok(time.max(job.estimate?)));
            longest
        })
    }

    fn new(job: &Job, estimate: Result<Duration, String>) -> Preflight {
        let is_upper_bound = job.iterate.as_ref().is_some_and(|iterate| iterate.until.is_some());
        Preflight { name: job.name.clone(), outputs: outputs(job), estimate, is_upper_bound }
    }
}

/// Reads and plans the job and loads its kernels, as rank 0 will. Prints what is wrong.
pub(in crate::cli) fn check(
    path: &Path,
    arguments: &SubmitArguments,
    run: &RunArguments,
) -> Result<Preflight, ExitCode> {
    let job = Job::load(path).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let kernels = kernels(&job)?;
    let missing = job.tensors.values().find_map(|decl| match &decl.source {
        Source::File { file, .. } if arguments.dependency.is_some() && !file.exists() => Some(file),
        _ => None,
    });
    if let Some(file) = missing {
        tracing::warn!(
            "{} does not exist yet: the job is not planned, and the jobs before it must create the file",
            file.display()
        );
        return Ok(Preflight::new(&job, Err("no estimate: its input does not exist yet".to_owned())));
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
    let estimate =
        estimate.map_err(|kernel| format!("no estimate: {kernel} has not run on this machine with tiles of this size"));
    Ok(Preflight::new(&job, estimate))
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
