//! The state of a run that outlives failed ranks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::exec::comm::shrink::FailedRank;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::progress::ProgressReporter;
use crate::exec::run::startup::JobSetup;
use crate::exec::trace::recorder::Incarnation;
use crate::fabric::Payload;
use crate::report::{Death, RankReport};

/// Completed work of an earlier run of the job that this run took up.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResumedWork {
    pub bytes: u64,
    pub tasks: u64,
}

/// The state that a rank keeps when the run continues without failed ranks.
pub(super) struct RunState {
    pub process_start: Instant,
    /// The job as it was first read, whatever has become of its file.
    pub setup: Option<JobSetup>,
    /// The kernel modules as they were first read, by stage.
    pub modules: Vec<Payload>,
    pub tiers: Option<TierUp>,
    pub progress: ProgressReporter,
    /// The name under which the run is published; that of its first rank 0.
    pub name: Option<String>,
    /// None before the manifest of an earlier run is taken up or cleared.
    pub resumed: Option<ResumedWork>,
    /// The trace so far.
    pub incarnations: Vec<Incarnation>,
    pub report: RankReport,
}

impl RunState {
    pub fn new() -> RunState {
        RunState {
            process_start: process_start(),
            setup: None,
            modules: Vec::new(),
            tiers: None,
            progress: ProgressReporter::default(),
            name: None,
            resumed: None,
            incarnations: Vec::new(),
            report: RankReport::default(),
        }
    }

    /// Adds failed ranks to the report.
    pub fn record_failed(&mut self, failed: &[FailedRank]) {
        let at_ns = self.process_start.elapsed().as_nanos() as u64;
        let death = |failed: &FailedRank| Death {
            rank: failed.rank,
            hostname: failed.hostname.clone(),
            at_ns,
            first_task_ns: None,
        };
        self.report.deaths.extend(failed.iter().map(death));
    }
}

/// A note about failed ranks and those that are left.
pub(super) fn format_failed_ranks(dead: &[FailedRank], left: u32, hostnames: &BTreeSet<String>) -> String {
    let each = |dead: &FailedRank| match dead.hostname.as_str() {
        "" => format!("rank {}", dead.rank),
        hostname => format!("rank {} ({hostname})", dead.rank),
    };
    let one_node = hostnames.len() <= 1 && dead.iter().all(|dead| hostnames.iter().all(|one| *one == dead.hostname));
    let nodes = if one_node { String::new() } else { format!(" on {} node(s)", hostnames.len()) };
    let dead: Vec<String> = dead.iter().map(each).collect();
    format!("{} died; going on with {left} rank(s){nodes}", dead.join(" and "))
}

/// When this process started, to the kernel's clock tick; now, where that cannot be known.
fn process_start() -> Instant {
    let now = Instant::now();
    let age = || -> Option<Duration> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let started_ticks: f64 = stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
        let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
        let age = uptime - started_ticks / rustix::param::clock_ticks_per_second() as f64;
        Duration::try_from_secs_f64(age).ok()
    };
    age().and_then(|age| now.checked_sub(age)).unwrap_or(now)
}
