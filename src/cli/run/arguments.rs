//! The arguments of `exuvia run`, which other commands accept behind `--`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};

use crate::cli::output::Output;
use crate::engine::CompileLimits;
use crate::exec::{ExitCode, TierPolicy};

/// Arguments of `exuvia run`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RunArguments {
    /// Job file
    pub job: PathBuf,
    /// Number of ranks to start, on this machine or on the hosts of --hostfile (not under mpirun or srun)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: Option<u32>,
    /// Hosts to start the ranks on, in the format of the MPI library
    #[arg(long, requires = "ranks", value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// Time limit for the ranks of --ranks to connect to each other, such as 10min
    #[arg(long, default_value = "3min", value_parser = humantime::parse_duration)]
    pub start_limit: Duration,
    /// Worker threads per rank [default: the node's CPUs, divided among its ranks]
    #[arg(long)]
    pub threads: Option<u32>,
    /// Compiler tier of the kernels
    #[arg(long, value_enum, default_value_t)]
    pub tier: TierArgument,
    /// Memory limit of one rank, such as 2GiB [default: the job's limit, or a part of the node's memory]
    #[arg(long, value_parser = size)]
    pub memory: Option<u64>,
    /// Disable work stealing: each rank computes exactly the work that the plan assigns to it
    #[arg(long)]
    pub no_steal: bool,
    /// Discard the completed work of earlier runs of this job
    #[arg(long)]
    pub fresh: bool,
    /// Do not record completed work for later runs
    #[arg(long, hide = true, conflicts_with = "fresh")]
    pub forgetful: bool,
    /// Interval between checkpoints of iterated stages, such as 5min [default: chosen from the cost of a checkpoint and
    /// the end of the allocation]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub checkpoint_every: Option<Duration>,
    /// Number of slices per task [default: chosen by the scheduler]
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub task_slices: Option<u64>,
    /// Cache of optimized code [default: $EXUVIA_CACHE_DIR, or exuvia in the user's cache]
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
    /// Write a report of the run to this file
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Write a trace of all threads of all ranks to this file, for ui.perfetto.dev
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(in crate::cli) enum TierArgument {
    /// Start on baseline code and switch to optimized code when it is compiled
    #[default]
    Auto,
    /// Baseline code only
    Baseline,
    /// Optimized code only: wait until it is compiled
    Optimized,
}

impl TierArgument {
    pub fn policy(self) -> TierPolicy {
        match self {
            TierArgument::Auto => TierPolicy::Auto,
            TierArgument::Baseline => TierPolicy::Baseline,
            TierArgument::Optimized => TierPolicy::Optimized,
        }
    }
}

/// A parser for the arguments that other commands pass to `exuvia run`.
#[derive(Debug, Parser)]
struct RunCommand {
    #[command(flatten)]
    arguments: RunArguments,
}

/// Parses the options behind the `--` of `verb`, which sets the options `set` itself. Prints what is wrong with them.
pub(in crate::cli) fn parse_passed(verb: &str, options: &[String], set: &[&str]) -> Result<RunArguments, ExitCode> {
    let name = format!("exuvia {verb} ... --");
    let options = options.iter().map(String::as_str);
    let all = [name.as_str()].into_iter().chain(options).chain(set.iter().copied()).chain(["JOB"]);
    RunCommand::try_parse_from(all).map(|run| run.arguments).map_err(|error| {
        let _ = error.print();
        ExitCode::Usage
    })
}

/// Parses a size in bytes with its unit.
pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
    bytesize::ByteSize::from_str(text).map(|size| size.as_u64()).map_err(|_| "expected a size such as 64MiB".to_owned())
}

/// Returns the limits of a compilation: `EXUVIA_COMPILE_TIME` and `EXUVIA_COMPILE_MEMORY`, or the defaults.
pub(in crate::cli) fn compile_limits() -> Result<CompileLimits, String> {
    let default = CompileLimits::default();
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let time = variable("EXUVIA_COMPILE_TIME").map(|value| {
        humantime::parse_duration(&value).map_err(|error| format!("EXUVIA_COMPILE_TIME is '{value}': {error}"))
    });
    let memory = variable("EXUVIA_COMPILE_MEMORY")
        .map(|value| size(&value).map_err(|error| format!("EXUVIA_COMPILE_MEMORY is '{value}': {error}")));
    Ok(CompileLimits {
        time: time.transpose()?.unwrap_or(default.time),
        memory_bytes: memory.transpose()?.unwrap_or(default.memory_bytes),
    })
}
