//! Sweeps: one job run again and again, in settings that differ in one thing; what each run was like is a line on disk as
//! soon as it has ended, and a sweep that was interrupted goes on with those that are missing.
//!
//! Starts `exuvia run` and nothing else. Refuses to do: measuring (runs measure themselves, in their reports), printing.
//! Invariant: points of one file are comparable: same job, kernels, program, CPU, launcher and options; a file with others is
//! refused, never mixed.

mod charts;
mod disk_baseline;
mod measure;
mod order;
mod page;
mod point_log;
mod runner;
mod statistics;
mod table;
mod timeline;
mod variant;
mod weak_scaling;

pub use disk_baseline::Disk;
pub use measure::Bench;
pub use order::remaining;
pub use page::page;
pub use point_log::Log;
pub use runner::Launcher;
pub use statistics::{Figures, Metg, MetgOf, Rate, Row, Spread, figures};
pub use timeline::Load;
pub use variant::Variant;
pub use weak_scaling::{Growth, growth};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exec::TierPolicy;
use crate::job::JobError;
use crate::report::Report;
use crate::store::StoreError;

/// What is swept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Ranks and threads, on one job.
    Strong,
    /// Ranks and threads, on a job that grows with them.
    Weak,
    /// Slices of a task.
    Metg,
    /// Which code kernels run on.
    Tiers,
    /// Ranks, for what reading and writing take.
    Io,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Strong => "strong",
            Kind::Weak => "weak",
            Kind::Metg => "metg",
            Kind::Tiers => "tiers",
            Kind::Io => "io",
        }
    }
}

/// What one run is made with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Setting {
    pub ranks: u32,
    /// Of each rank.
    pub threads: u32,
    /// How many times as large the job is.
    pub size: u64,
    /// Of every task, where the scheduler would choose.
    pub task_slices: Option<u64>,
    pub tier: TierPolicy,
}

impl Setting {
    /// Of all ranks.
    pub fn workers(&self) -> u32 {
        self.ranks * self.threads
    }
}

/// What has to be the same for points to be comparable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Of the job file, its kernels and the layouts of its inputs.
    pub job_hash: String,
    /// Of the program.
    pub program_hash: String,
    pub cpu: String,
    /// Of a node.
    pub cores: u32,
    /// Who starts the ranks.
    pub launcher: String,
    /// Of `exuvia run`, beside those that are swept.
    pub options: Vec<String>,
    /// The index along which the job grows.
    pub index: Option<String>,
}

/// One run of a sweep: a line of its file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Point {
    pub schema: u32,
    pub sweep: Kind,
    pub job: String,
    #[serde(flatten)]
    pub identity: Identity,
    #[serde(flatten)]
    pub setting: Setting,
    /// From 1 on.
    pub repetition: u32,
    pub ended: String,
    /// Where the ranks were.
    pub hosts: Vec<String>,
    /// More threads than cores on some node.
    pub oversubscribed: bool,
    /// Of the whole command, with the start of MPI and of the program.
    pub command_ns: u64,
    /// From the start of rank 0's process to the end of the last stage.
    pub wall_ns: u64,
    /// From the beginning of the first stage to the end of the last, outputs published.
    pub in_stages_ns: u64,
    pub first_task_ns: Option<u64>,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    /// Inside kernels, of all workers together.
    pub baseline_ns: u64,
    pub optimized_ns: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub moved_bytes: u64,
    /// The least that must move by the plan's bound; none where the plan of the job is not known here.
    pub least_moved_bytes: Option<u64>,
    /// Of an `io` sweep.
    pub disk: Option<Disk>,
    /// Of a `tiers` sweep.
    pub load: Option<Load>,
    pub versions: BTreeMap<String, String>,
}

impl Point {
    /// Layout version that this build writes.
    pub const SCHEMA: u32 = 1;

    /// Of a run with this report, `command_ns` long.
    pub fn new(
        (sweep, identity): (Kind, &Identity),
        (setting, repetition): (Setting, u32),
        report: &Report,
        command_ns: u64,
    ) -> Point {
        let totals = report.totals();
        let environment = &report.environment;
        // Clocks of ranks begin with their processes: only those of rank 0 are told apart exactly.
        let began = |stages: &[crate::report::StageReport]| stages.iter().filter_map(|stage| stage.started_ns).min();
        let began = report.ranks.first().and_then(|rank| began(&rank.stages)).or_else(|| began(&report.stages));
        let mut hosts: Vec<String> = report.ranks.iter().map(|rank| rank.hostname.clone()).collect();
        hosts.dedup();
        let mut versions = environment.libraries.clone();
        versions.insert("exuvia".to_owned(), environment.exuvia.clone());
        let ranks_per_node = setting.ranks.div_ceil(environment.nodes.max(1));
        Point {
            schema: Point::SCHEMA,
            sweep,
            job: report.job.clone(),
            identity: identity.clone(),
            setting,
            repetition,
            ended: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            hosts,
            oversubscribed: ranks_per_node * setting.threads > identity.cores,
            command_ns,
            wall_ns: report.wall_ns,
            in_stages_ns: report.wall_ns.saturating_sub(began.unwrap_or(0)),
            first_task_ns: report.first_task_ns,
            baseline_tasks: totals.baseline_tasks,
            optimized_tasks: totals.optimized_tasks,
            baseline_ns: totals.baseline_ns,
            optimized_ns: totals.optimized_ns,
            read_bytes: totals.read_bytes,
            written_bytes: totals.written_bytes,
            moved_bytes: totals.moved_bytes(),
            least_moved_bytes: None,
            disk: None,
            load: None,
            versions,
        }
    }

    pub fn tasks(&self) -> u64 {
        self.baseline_tasks + self.optimized_tasks
    }
}

/// Why a sweep cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    #[error("cannot {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path}:{line} is no point of a sweep")]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{path} has points of {what}, which cannot be compared with new ones")]
    Other { path: PathBuf, what: &'static str },
    #[error("another sweep is writing {path}")]
    Busy { path: PathBuf },
    #[error("{path} is no job file")]
    Toml { path: PathBuf, source: toml::de::Error },
    #[error("the job cannot be written anew")]
    Written { source: toml::ser::Error },
    #[error(transparent)]
    Job { source: JobError },
    #[error("no stage of the job has an index '{index}'; it has {known}")]
    NoIndex { index: String, known: String },
    #[error("{why}: the job does not grow along '{index}'")]
    Rigid { index: String, why: String },
    #[error(transparent)]
    Store { source: StoreError },
    #[error("cannot start {program}")]
    Start { program: String, source: std::io::Error },
    #[error("`{command}` ended with {status}:\n{said}")]
    Run { command: String, status: String, said: String },
    #[error("a rank died during the run, which is no measurement then")]
    Died,
    #[error("{path} is no report of a run")]
    Report { path: PathBuf, source: serde_json::Error },
}

impl SweepError {
    /// A way out, where there is one to tell.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            SweepError::Other { .. } => Some("give --fresh to begin anew, or --out for another file"),
            SweepError::Line { .. } => Some("remove the line, or begin anew with --fresh"),
            SweepError::Died => Some("look for the cause (out of memory? killed?); the same command goes on"),
            SweepError::Rigid { .. } | SweepError::NoIndex { .. } => Some("choose another --index"),
            _ => None,
        }
    }

    fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> SweepError {
        move |source| SweepError::Io { what, path: path.to_owned(), source }
    }
}
