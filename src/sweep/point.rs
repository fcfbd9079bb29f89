//! The points of a sweep and their settings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::exec::TierPolicy;
use crate::report::Report;
use crate::sweep::disk_baseline::DiskTimes;
use crate::sweep::timeline::WorkerLoad;

/// The parameter that a sweep varies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SweepKind {
    /// Ranks and threads, on one job.
    Strong,
    /// Ranks and threads, on a job that grows with them.
    Weak,
    /// The number of slices per task.
    Metg,
    /// The compiler tier.
    Tiers,
    /// Ranks and threads, to measure input and output.
    Io,
}

impl SweepKind {
    pub fn name(self) -> &'static str {
        match self {
            SweepKind::Strong => "strong",
            SweepKind::Weak => "weak",
            SweepKind::Metg => "metg",
            SweepKind::Tiers => "tiers",
            SweepKind::Io => "io",
        }
    }
}

/// The parameters of one run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Setting {
    pub ranks: u32,
    /// The number of threads per rank.
    pub threads: u32,
    /// The factor by which the job has grown.
    pub size: u64,
    /// The number of slices per task; `None` if the scheduler chooses.
    pub task_slices: Option<u64>,
    pub tier: TierPolicy,
}

impl Setting {
    /// The number of worker threads of all ranks.
    pub fn workers(&self) -> u32 {
        self.ranks * self.threads
    }
}

/// The properties that comparable points share.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SweepIdentity {
    /// Covers the job file, its kernels and the layouts of its inputs.
    pub job_hash: String,
    /// Covers the executable.
    pub program_hash: String,
    pub cpu: String,
    /// The cores of a node.
    pub cores: u32,
    /// The launcher of the ranks.
    pub launcher: String,
    /// The options of `exuvia run` that the user set.
    pub options: Vec<String>,
    /// The index along which the job grows.
    pub index: Option<String>,
}

/// One run of a sweep: a line of its file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Point {
    pub schema: u32,
    pub sweep: SweepKind,
    pub job: String,
    #[serde(flatten)]
    pub identity: SweepIdentity,
    #[serde(flatten)]
    pub setting: Setting,
    /// Counts from 1.
    pub repetition: u32,
    pub ended: String,
    /// The hosts of the ranks.
    pub hosts: Vec<String>,
    /// Whether some node had more threads than cores.
    pub oversubscribed: bool,
    /// The time of the whole command, including the start of MPI and of the program.
    pub command_ns: u64,
    /// The time from the start of rank 0's process to the end of the last stage.
    pub wall_ns: u64,
    /// The time from the start of the first stage to the end of the last one, with outputs published.
    pub in_stages_ns: u64,
    pub first_task_ns: Option<u64>,
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    /// The time of all workers inside kernels.
    pub baseline_ns: u64,
    pub optimized_ns: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub moved_bytes: u64,
    /// The plan's lower bound of moved bytes; `None` if the plan is not known here.
    pub least_moved_bytes: Option<u64>,
    /// Set in an `io` sweep.
    pub disk: Option<DiskTimes>,
    /// Set in a `tiers` sweep.
    pub load: Option<WorkerLoad>,
    pub versions: BTreeMap<String, String>,
}

impl Point {
    /// The schema version that this build writes.
    pub const SCHEMA: u32 = 1;

    /// Makes a point from the report of a run that took `command_ns`.
    pub fn new(
        (sweep, identity): (SweepKind, &SweepIdentity),
        (setting, repetition): (Setting, u32),
        report: &Report,
        command_ns: u64,
    ) -> Point {
        let totals = report.totals();
        let environment = &report.environment;
        // The clocks of ranks start with their processes: only times of rank 0 can be subtracted exactly.
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
