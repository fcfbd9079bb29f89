//! `exuvia plan`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::open_job::open;
use crate::cli::output::{Output, fail, print_json};
use crate::cli::run::arguments::size;
use crate::exec;
use crate::exec::ExitCode;
use crate::plan::{Machine, explain, plan as make_plan, render};
use crate::{text, topology};

/// Arguments of `exuvia plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArguments {
    /// Job file
    job: PathBuf,
    /// Number of ranks
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
    /// Ranks per node [default: all on one node]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ranks_per_node: Option<u32>,
    /// Worker threads per rank
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Memory limit of one rank, such as 2GiB [default: the job's limit, or a part of this machine's memory]
    #[arg(long, value_parser = size)]
    memory: Option<u64>,
    /// Explain the choice of each grid, and compare the data that moves with the minimum
    #[arg(long)]
    explain: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
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
