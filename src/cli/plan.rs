use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Output, fail, print_json};
use crate::engine::Kernel;
use crate::exec;
use crate::exec::{ExitCode, RunError};
use crate::job::Job;
use crate::plan::{Layout, Machine, explain, plan as make_plan, render};
use crate::{text, topology};

/// Arguments of `exuvia plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArguments {
    /// The job file
    job: PathBuf,
    /// How many ranks the run would have
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
    /// How many of them on each node [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ranks_per_node: Option<u32>,
    /// Worker threads per rank
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Memory that one rank may use, such as 2GiB [default: a share of this machine's]
    #[arg(long, value_parser = super::run::size)]
    memory: Option<u64>,
    /// Say in sentences why each stage is cut as it is, and how far what moves is from the least
    #[arg(long)]
    explain: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The job and the layouts of its datasets, whose kernels are there; what is wrong with them has been said.
pub(super) fn open(path: &Path) -> Result<(Job, BTreeMap<String, Layout>), ExitCode> {
    let job = Job::load(path).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let layouts = layouts(&job)?;
    kernels(&job)?;
    Ok((job, layouts))
}

/// The kernels of a job's stages, as a run would load them; what is wrong with them has been said.
pub(super) fn kernels(job: &Job) -> Result<Vec<Kernel>, ExitCode> {
    let failed = |error: RunError| fail(&error, error.code(), error.help().as_deref());
    job.stages.iter().map(|stage| exec::load_kernel(stage).map_err(failed)).collect()
}

/// The layouts of the datasets that a job reads; what is wrong with them, or with where it writes, has been said.
pub(super) fn layouts(job: &Job) -> Result<BTreeMap<String, Layout>, ExitCode> {
    exec::real_outputs(job).map_err(|error| fail(&error, error.code(), None))?;
    exec::layouts(job).map_err(|error| fail(&error, ExitCode::Failed, None))
}

pub(super) fn plan(arguments: &PlanArguments) -> ExitCode {
    let (job, layouts) = match open(&arguments.job) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    if let Err(error) = exec::check_outputs(&job) {
        return fail(&error, ExitCode::Failed, None);
    }
    let ranks_per_node = arguments.ranks_per_node.unwrap_or(arguments.ranks);
    let share = topology::host().memory_bytes / 5 * 4 / u64::from(ranks_per_node);
    let memory_bytes = arguments.memory.or(job.memory_bytes).unwrap_or(share);
    let machine = Machine { ranks: arguments.ranks, ranks_per_node, threads: arguments.threads, memory_bytes };
    match make_plan(&job, &layouts, &machine) {
        Ok(plan) => {
            match arguments.output {
                Output::Human if arguments.explain => print!("{}", text::lines(&explain(&plan))),
                Output::Human => print!("{}", text::lines(&render(&plan))),
                Output::Json => print_json(&serde_json::json!({ "schema": 1, "plan": plan })),
            }
            ExitCode::Done
        }
        Err(error) => fail(&error, ExitCode::Usage, None),
    }
}
