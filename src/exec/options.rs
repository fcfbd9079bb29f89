//! How a job is run, and how far a run is.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::CompileLimits;
use crate::sched::Granularity;

/// Which code kernels run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierPolicy {
    /// Baseline code at once, optimized code as soon as there is some.
    #[default]
    Auto,
    /// Baseline code only; nothing is optimized.
    Baseline,
    /// Optimized code only; the first task waits for it.
    Optimized,
}

impl TierPolicy {
    /// As written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TierPolicy::Auto => "auto",
            TierPolicy::Baseline => "baseline",
            TierPolicy::Optimized => "optimized",
        }
    }
}

/// What becomes of what earlier runs of the job have finished, and of what this one does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Resume {
    /// Goes on with it; what this run finishes outlives it.
    #[default]
    GoOn,
    /// Begins anew; what this run finishes outlives it.
    Fresh,
    /// Begins anew and keeps nothing: for comparison.
    Never,
}

impl Resume {
    /// When the run begins again without ranks that died: what it has finished is no longer an earlier run's.
    pub fn after_shrink(self) -> Resume {
        match self {
            Resume::GoOn | Resume::Fresh => Resume::GoOn,
            Resume::Never => Resume::Never,
        }
    }
}

/// How to run a job.
#[derive(Clone, Debug)]
pub struct Options {
    /// Workers per rank; by default what the node has for each of its ranks.
    pub threads: Option<u32>,
    pub tier: TierPolicy,
    pub cache_dir: Option<PathBuf>,
    /// Budget per rank; by default a share of the node's memory.
    pub memory_bytes: Option<u64>,
    pub granularity: Granularity,
    /// Whether ranks without work take some from others.
    pub steal: bool,
    /// Every worker goes to optimized code right before its task of this number, waiting for it if need be, and not
    /// earlier: tests move the swap to any place.
    pub swap_before_task: Option<u64>,
    /// The program whose `compile-kernel` verb compiles what may take long; none: a thread of this process does.
    pub helper: Option<PathBuf>,
    /// What that may take.
    pub compile_limits: CompileLimits,
    /// What becomes of finished work.
    pub resume: Resume,
    /// Time from one checkpoint to the next; by default it follows from what they cost.
    pub checkpoint_every: Option<Duration>,
    /// Whether to record what every thread does, for [`Report::trace`](crate::report::Report).
    pub trace: bool,
    /// Tells a person at once why the run failed; without it, [`RunFailure`](crate::exec::RunFailure) has the text.
    pub print_error: Option<fn(&str)>,
    /// Tells a person what is worth knowing, but no error.
    pub note: Option<fn(&str)>,
    /// Whether to tell of kernels that `exuvia check` has not passed.
    pub suggest_check: bool,
    /// Where a person sees how far the run is.
    pub progress: Option<fn(&Progress)>,
    /// Folder in which the run makes itself known ([`live`](crate::live)); none: nowhere.
    pub live: Option<PathBuf>,
    /// Called on each rank once it detects the failure of other ranks.
    pub on_started: Option<fn()>,
}

impl Options {
    /// Tells the user what [`Options::note`] is for; without it, logs it.
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

/// How far a stage is, all ranks together.
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
