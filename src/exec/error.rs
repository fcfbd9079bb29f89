//! Errors of a run, and the exit statuses of the program.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use crate::encode::EncodeError;
use crate::engine::{EngineError, KernelFault, StartFunction, Tier};
use crate::fabric::{FabricError, Rank};
use crate::job::JobError;
use crate::manifest::ManifestError;
use crate::plan::PlanError;
use crate::store::StoreError;
use crate::text;

/// Why a run ended without its outputs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error(transparent)]
    Job(#[from] Box<JobError>),
    #[error(transparent)]
    Plan(#[from] Box<PlanError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Completed work of an earlier run that this run has taken up.
    #[error("completed parts of '{tensor}' disappeared during the run")]
    Lost { tensor: String },
    #[error("kernel '{kernel}' of stage '{stage}'")]
    Engine { kernel: String, stage: String, source: Box<EngineError> },
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("input {} was changed or replaced while the run read it: its results would mix both versions", file.display())]
    InputChanged { file: PathBuf },
    /// A kernel trapped, reported an error or broke the rules in a task.
    #[error("task {task} on rank {rank} ({hostname}) failed in kernel '{kernel}' ({code})")]
    Task { task: String, rank: Rank, hostname: String, kernel: String, code: &'static str, source: Box<KernelFault> },
    /// A kernel took longer than the job allows for one task.
    #[error(
        "task {task} on rank {rank} ({hostname}) ran for more than {limit:?} in kernel '{kernel}' ({code}) and was \
         stopped"
    )]
    TimeLimit { task: String, rank: Rank, hostname: String, kernel: String, code: &'static str, limit: Duration },
    /// A module ran too long before its first task.
    #[error(
        "the {function} of kernel '{kernel}' ({code}) of stage '{stage}' ran for more than {limit:?} on rank {rank} \
         ({hostname}) and was stopped"
    )]
    StartTimeLimit {
        function: StartFunction,
        stage: String,
        rank: Rank,
        hostname: String,
        kernel: String,
        code: &'static str,
        limit: Duration,
    },
    #[error("rank {rank} (process {pid} on {hostname}) died")]
    RankDied { rank: Rank, pid: u32, hostname: String },
    /// The run failed on another rank, whose error rank 0 prints.
    #[error("the run failed on another rank")]
    Elsewhere { code: i32 },
    #[error("interrupted by {signal}")]
    Interrupted { signal: &'static str },
    #[error(
        "ranks {ranks:?} have another plan than rank 0: they run another version of exuvia or read another job file"
    )]
    PlanDisagreement { ranks: Vec<Rank> },
    #[error("a worker thread ended unexpectedly: {message}")]
    Worker { message: String },
    #[error("--tier optimized needs optimized code, but the optimizing compiler failed")]
    NoOptimizedCode { source: Box<EngineError> },
    #[error("rank {rank} sent {what}, which this rank cannot decode: all ranks must run the same version of exuvia")]
    Protocol { rank: Rank, what: &'static str },
    /// A transfer whose checksum is wrong, or that is not the expected one.
    #[error("{what} from rank {rank} is damaged, or is not the expected transfer")]
    Damaged { rank: Rank, what: &'static str },
}

impl RunError {
    /// The exit status that tells a script what kind of failure this is.
    pub fn code(&self) -> ExitCode {
        match self {
            RunError::Job(_) | RunError::Plan(_) => ExitCode::Usage,
            RunError::Fabric(FabricError::LauncherMismatch { .. } | FabricError::Threads { .. }) => {
                ExitCode::Environment
            }
            RunError::Interrupted { .. } => ExitCode::Resumable,
            RunError::Elsewhere { code } => ExitCode::from_i32(*code),
            _ => ExitCode::Failed,
        }
    }

    /// Returns the text that a user reads: the error, its causes and advice.
    pub fn render(&self) -> String {
        render(self, self.help().as_deref())
    }

    /// Returns advice for the user, if there is any.
    pub fn help(&self) -> Option<String> {
        match self {
            RunError::Task { .. } => {
                Some("fix the kernel or its input for this tile, and run the same command again".to_owned())
            }
            RunError::TimeLimit { .. } | RunError::StartTimeLimit { .. } => Some(
                "if the kernel is not in an endless loop, raise `limits = { time = \"...\" }` of its stage".to_owned(),
            ),
            RunError::RankDied { .. } => Some(
                "no output was published; look for the cause (out of memory? killed?) and run the same command again"
                    .to_owned(),
            ),
            RunError::InputChanged { .. } => Some("no output was changed; run the same command again".to_owned()),
            RunError::Interrupted { .. } => Some("no output was changed; run the same command again".to_owned()),
            RunError::NoOptimizedCode { .. } => Some("run with --tier auto or --tier baseline".to_owned()),
            RunError::PlanDisagreement { .. } => {
                Some("start the same binary on every node: compare `exuvia --version`".to_owned())
            }
            _ => None,
        }
    }
}

/// Returns an error with its causes and advice, one line each. Only the errors of a job file take more lines, to show
/// the place in the file.
pub fn render(error: &(dyn Error + 'static), help: Option<&str>) -> String {
    let format_one = |error: &(dyn Error + 'static)| {
        let is_framed = error.is::<JobError>() || matches!(error.downcast_ref(), Some(RunError::Job(_)));
        if is_framed { error.to_string() } else { text::line(&error.to_string()) }
    };
    let mut text = format!("error: {}", format_one(error));
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!("\ncaused by: {}", format_one(inner)));
        cause = inner.source();
    }
    let advice = text::advice(&text);
    for help in help.map(str::to_owned).into_iter().chain(advice) {
        text.push_str(&format!("\nhelp: {}", text::line(&help)));
    }
    text
}

/// Returns the name of the code that a fault is in, for messages that name the kernel.
pub(super) fn code_name(tier: Tier, merges: bool) -> &'static str {
    match (tier, merges) {
        (Tier::Baseline, false) => "baseline",
        (Tier::Optimized, false) => "optimized",
        (Tier::Baseline, true) => "merge, baseline",
        (Tier::Optimized, true) => "merge, optimized",
    }
}

/// A failed run, as one rank reports it.
#[derive(Debug)]
pub struct RunFailure {
    /// The exit status of the run.
    pub code: ExitCode,
    /// The text to print, if this rank is the one to print it and has not done so yet ([`Options::print_error`]).
    ///
    /// [`Options::print_error`]: crate::exec::options::Options::print_error
    pub text: Option<String>,
    /// Whether the cause was, or may have been, a failed rank.
    pub died: bool,
}

/// Exit statuses of the program. This is the only list of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum ExitCode {
    /// The command succeeded.
    Done = 0,
    /// The run failed.
    Failed = 1,
    /// The command line or the job is wrong.
    Usage = 2,
    /// MPI, HDF5 or LLVM does not work as required.
    Environment = 3,
    /// The run was stopped early; running it again resumes it.
    Resumable = 75,
    /// A bug in Exuvia.
    Bug = 101,
}

impl ExitCode {
    /// Returns the exit code with this number; an unknown number counts as a failed run.
    pub fn from_i32(code: i32) -> ExitCode {
        use ExitCode::*;
        [Done, Failed, Usage, Environment, Resumable, Bug].into_iter().find(|c| *c as i32 == code).unwrap_or(Failed)
    }
}
