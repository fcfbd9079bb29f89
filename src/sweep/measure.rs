//! One run of a sweep: its preparation, its start and its point.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::Signal;
use crate::exec::{TierPolicy, layouts};
use crate::job::Job;
use crate::plan::{Machine, plan};
use crate::report::{FileTimes, Report, Timeline};
use crate::sweep::disk_baseline::{DiskTimes, evict};
use crate::sweep::error::SweepError;
use crate::sweep::point::{Point, Setting, SweepIdentity, SweepKind};
use crate::sweep::runner::RankLauncher;
use crate::sweep::runner::{RunSpec, start_and_await};
use crate::sweep::timeline::WorkerLoad;
use crate::sweep::variant::Variant;
use crate::sweep::weak_scaling::JobGrowth;

/// The state that all runs of a sweep share.
#[derive(Debug)]
pub struct Sweep {
    pub kind: SweepKind,
    pub identity: SweepIdentity,
    pub launcher: RankLauncher,
    pub exuvia: PathBuf,
    pub variant: Variant,
    pub growth: Option<JobGrowth>,
    /// The memory of a node that plans may use.
    pub memory_bytes: u64,
    /// Set by a signal that ends the sweep.
    pub signal: Signal,
    /// The number of runs so far.
    pub measured: u32,
}

impl Sweep {
    /// Runs the job once to fill the caches of code, task costs and files. Returns false if it was interrupted.
    pub fn warm_up(&mut self, setting: Setting) -> Result<bool, SweepError> {
        let tier = if setting.tier == TierPolicy::Baseline { TierPolicy::Baseline } else { TierPolicy::Optimized };
        let setting = Setting { tier, size: 1, task_slices: None, ..setting };
        Ok(self.run(setting, &self.place("cache"), false)?.is_some())
    }

    /// Measures a point; returns `None` if the run was interrupted.
    pub fn measure(&mut self, setting: Setting, repetition: u32) -> Result<Option<Point>, SweepError> {
        let cache = match self.kind {
            // A new cache for each run: a compiler left behind by an earlier run may still write to its cache.
            SweepKind::Tiers => self.place(&format!("cold-{}", self.measured)),
            _ => self.place("cache"),
        };
        self.measured += 1;
        if self.kind == SweepKind::Io {
            for input in self.variant.inputs() {
                evict(input).map_err(SweepError::io("read", input))?;
            }
        }
        let traced = matches!(self.kind, SweepKind::Tiers | SweepKind::Io);
        let Some(took) = self.run(setting, &cache, traced)? else { return Ok(None) };
        let file = self.place(REPORT);
        let report: Report = parse(&file, |text| serde_json::from_slice(text))?;
        // The time would not be that of a complete, undisturbed run.
        if !report.deaths.is_empty() || report.resumed_bytes > 0 {
            return Err(SweepError::RankFailed);
        }
        let point = Point::new((self.kind, &self.identity), (setting, repetition), &report, took.as_nanos() as u64);
        let (mut disk, mut load) = (None, None);
        let trace = self.place(TRACE);
        match self.kind {
            SweepKind::Tiers => load = Some(WorkerLoad::of(&parse(&trace, Timeline::read)?)),
            SweepKind::Io => {
                let times: FileTimes = parse(&trace, FileTimes::read)?;
                let (read, written) = (point.read_bytes, point.written_bytes);
                disk = Some(DiskTimes::measure(&self.place("plain"), (times.read_ns, times.write_ns), read, written)?);
            }
            _ => {}
        }
        Ok(Some(Point { disk, load, least_moved_bytes: self.least_moved_bytes(&report), ..point }))
    }

    /// Runs the job; returns its time, or `None` if it was interrupted.
    fn run(&mut self, setting: Setting, cache: &Path, traced: bool) -> Result<Option<Duration>, SweepError> {
        let job = self.variant.write(self.growth.as_ref(), setting.size)?;
        let (report, trace) = (self.place(REPORT), self.place(TRACE));
        let work = RunSpec {
            exuvia: &self.exuvia,
            launcher: &self.launcher,
            job: &job,
            setting,
            cache,
            report: &report,
            trace: traced.then_some(trace.as_path()),
            options: &self.identity.options,
        };
        start_and_await(work.command(), &self.signal)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.variant.folder().join(name)
    }

    /// Of the job as it was run; none where it cannot be planned here.
    fn least_moved_bytes(&self, report: &Report) -> Option<u64> {
        let job = Job::load(&self.variant.file()).ok()?;
        let environment = &report.environment;
        let ranks = environment.ranks.max(1);
        let ranks_per_node = ranks.div_ceil(environment.nodes.max(1));
        let memory_bytes = job.memory_bytes.unwrap_or(self.memory_bytes / u64::from(ranks_per_node));
        let machine = Machine { ranks, ranks_per_node, threads: environment.threads_per_rank.max(1), memory_bytes };
        let plan = plan(&job, &layouts(&job).ok()?, &machine).ok()?;
        let iterations = report.ranks.first()?.iterations.unwrap_or(1);
        let iterated = |stage: usize| job.iterate.as_ref().is_some_and(|iterate| iterate.stages.contains(&stage));
        let runs = |stage: usize| if iterated(stage) { iterations } else { 1 };
        let least = plan.stages.iter().enumerate().map(|(number, stage)| stage.least_moved_bytes(runs(number)));
        Some(least.sum::<f64>() as u64)
    }
}

const REPORT: &str = "report.json";
const TRACE: &str = "trace.json";

fn parse<T>(file: &Path, parse: impl Fn(&[u8]) -> serde_json::Result<T>) -> Result<T, SweepError> {
    let text = fs::read(file).map_err(SweepError::io("read", file))?;
    parse(&text).map_err(|source| SweepError::Report { path: file.to_owned(), source })
}
