//! Options of a run, and its progress as shown to the user.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::CompileLimits;
use crate::sched::Granularity;

/// The code that kernels run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierPolicy {
    /// Baseline code at once, optimized code once it is compiled.
    #[default]
    Auto,
    /// Baseline code only; no kernel is optimized.
    Baseline,
    /// Optimized code only; the first task waits for it.
    Optimized,
}

impl TierPolicy {
    /// The name of this policy on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TierPolicy::Auto => "auto",
            TierPolicy::Baseline => "baseline",
            TierPolicy::Optimized => "optimized",
        }
    }
}

/// The use of completed work: that of earlier runs of the job, and that of this run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Resume {
    /// Resumes an earlier run, and keeps completed work.
    #[default]
    GoOn,
    /// Starts afresh, and keeps completed work.
    Fresh,
    /// Starts afresh and keeps nothing, for comparison.
    Never,
}

impl Resume {
    /// The use of completed work once the run has shrunk: it is no longer an earlier run's.
    pub fn after_shrink(self) -> Resume {
        match self {
            Resume::GoOn | Resume::Fresh => Resume::GoOn,
            Resume::Never => Resume::Never,
        }
    }
}

/// Options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Workers per rank; by default the CPUs of the node divided by its ranks.
    pub threads: Option<u32>,
    pub tier: TierPolicy,
    pub cache_dir: Option<PathBuf>,
    /// The memory budget of a rank; by default its part of the node's memory.
    pub memory_bytes: Option<u64>,
    pub granularity: Granularity,
    /// Whether ranks without work steal from others.
    pub steal: bool,
    /// The number of the task before which every worker swaps to optimized code, and waits for it if need be. Tests use
    /// this to move the swap.
    pub swap_before_task: Option<u64>,
    /// The program whose `compile-kernel` command compiles kernels in the background; by default a thread does.
    pub helper: Option<PathBuf>,
    /// The limits of such a compilation.
    pub compile_limits: CompileLimits,
    /// The use of completed work.
    pub resume: Resume,
    /// The time from one checkpoint to the next; by default it follows from their cost.
    pub checkpoint_every: Option<Duration>,
    /// Whether to record what every thread does, for [`Report::trace`](crate::report::Report).
    pub trace: bool,
    /// Prints the error of a failed run at once; without it, [`RunFailure`](crate::exec::error::RunFailure) has the
    /// text.
    pub print_error: Option<fn(&str)>,
    /// Prints a note for the user.
    pub note: Option<fn(&str)>,
    /// Whether to print a note about kernels that `exuvia check` has not passed.
    pub suggest_check: bool,
    /// Shows the progress of the run to the user.
    pub progress: Option<fn(&Progress)>,
    /// The folder in which the run publishes its progress ([`live`](crate::live)), if it does.
    pub live: Option<PathBuf>,
    /// Called on each rank once it detects the failure of other ranks.
    pub on_started: Option<fn()>,
}

impl Options {
    /// Prints notes for the user; without [`Options::note`], logs them.
    pub(in crate::exec) fn notify(&self, notes: &[String]) {
        for note in notes {
            match self.note {
                Some(print) => print(note),
                None => tracing::info!("{note}"),
            }
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: None,
            tier: TierPolicy::Auto,
            cache_dir: None,
            memory_bytes: None,
            granularity: Granularity::Adaptive,
            steal: true,
            swap_before_task: None,
            helper: None,
            compile_limits: CompileLimits::default(),
            resume: Resume::default(),
            checkpoint_every: None,
            trace: false,
            print_error: None,
            note: None,
            suggest_check: false,
            progress: None,
            live: None,
            on_started: None,
        }
    }
}

/// The progress of a stage on all ranks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub stage: String,
    pub stage_index: usize,
    pub stage_count: usize,
    pub blocks_done: u64,
    pub blocks: u64,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    pub processed_bytes: u64,
}
