//! Progress of a run: a few times a second each rank sends a report to rank 0, which shows it to the user and publishes
//! it ([`live`](crate::live)).
//!
//! A report never waits for another rank. A rank between stages, or in a collective operation, sends none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{Tag, TaggedMessage};
use crate::exec::error::RunError;
use crate::exec::options::Progress;
use crate::fabric::Rank;
use crate::live::{Iteration, Publisher, RankSnapshot, Share, Snapshot, StageShare, StageSnapshot};
use crate::plan::Plan;
use crate::report::Counts;
use crate::topology::Topology;

/// The shortest time between two reports of a rank.
const INTERVAL: Duration = Duration::from_millis(200);
/// The time that rank 0 has for the reports of each rank, of which it needs a small part.
const PER_RANK: Duration = Duration::from_micros(100);
/// The shortest run that is published.
const SHORT: Duration = Duration::from_millis(500);
/// The shortest time between two published snapshots.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(400);

/// Facts of a run that its progress is shown with.
#[derive(Debug)]
pub(in crate::exec) struct ProgressSetup {
    pub plan: Arc<Plan>,
    pub topology: Topology,
    pub process_start: Instant,
    pub show: Option<fn(&Progress)>,
    /// The folder to publish in, if the run is published.
    pub live: Option<PathBuf>,
    /// The name of the published file, which the run keeps if another rank becomes rank 0.
    pub name: String,
    /// The fields of a snapshot that stay the same.
    pub snapshot: Snapshot,
}

/// The progress of a stage on this rank.
pub(in crate::exec) struct StageProgress {
    pub share: StageShare,
    pub counts: Counts,
    /// The time since the stage started.
    pub age: Duration,
}

/// Sends a rank's progress; on rank 0, shows and publishes that of all ranks.
#[derive(Debug, Default)]
pub(in crate::exec) struct ProgressReporter {
    setup: Option<ProgressSetup>,
    last: Option<Instant>,
    /// The counts of finished stages.
    finished: Counts,
    iteration: Option<Iteration>,
    /// Rank 0: the last report of each rank.
    reports: BTreeMap<Rank, Share>,
    publisher: Option<SnapshotPublisher>,
}

/// Publishes the run from rank 0.
#[derive(Debug)]
struct SnapshotPublisher {
    folder: PathBuf,
    last: Option<Instant>,
    speeds: BTreeMap<Rank, Speed>,
    /// None before the first snapshot, and if the folder cannot be used.
    publisher: Option<Publisher>,
}

/// The speed of a rank, and the report that it was computed from.
#[derive(Debug, Default)]
struct Speed {
    at_ns: u64,
    bytes: u64,
    bytes_per_s: f64,
}

impl ProgressReporter {
    /// Starts to report, also when the run continues without failed ranks. `rank` is this rank.
    pub fn start(&mut self, rank: Rank, setup: ProgressSetup) {
        self.reports.clear();
        self.last = Some(Instant::now());
        let folder = setup.live.clone().filter(|_| rank == 0);
        self.publisher =
            folder.map(|folder| SnapshotPublisher { folder, last: None, speeds: BTreeMap::new(), publisher: None });
        self.setup = Some(setup);
    }

    /// Stops publishing.
    pub fn end(&mut self) {
        self.publisher = None;
    }

    /// Sets the iteration that the run is in, if it is in one.
    pub fn set_iteration(&mut self, iteration: Option<Iteration>) {
        self.iteration = iteration;
    }

    /// Adds the counts of a finished stage.
    pub fn add_finished(&mut self, counts: &Counts) {
        self.finished.add(counts);
    }

    /// Records the report of another rank.
    pub fn record_report(&mut self, message: &TaggedMessage) {
        if let Ok(report) = serde_json::from_slice(&message.bytes) {
            self.reports.insert(message.source, report);
        }
    }

    /// Reports this rank's progress, if it is time to. `stages` are the stages that run.
    pub fn report(
        &mut self,
        comm: &mut Communicator,
        stages: impl Iterator<Item = StageProgress>,
    ) -> Result<(), RunError> {
        let interval = INTERVAL.max(PER_RANK * comm.size());
        let Some(setup) = &self.setup else { return Ok(()) };
        if self.last.is_some_and(|last| last.elapsed() < interval) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let stages: Vec<StageProgress> = stages.collect();
        let report = self.own_report(setup, &stages);
        if comm.rank() != 0 {
            return comm.send(0, Tag::Progress, encode(&report)?.into());
        }
        self.reports.insert(0, report);
        if let Some(show) = setup.show {
            // No one could read the progress of a stage that ends so soon.
            for stage in stages.iter().filter(|stage| stage.age >= INTERVAL) {
                show(&self.stage_progress(setup, stage.share.index));
            }
        }
        if let Some(publisher) = &mut self.publisher {
            publisher.publish_if_due(setup, &self.reports, self.iteration);
        }
        Ok(())
    }

    fn own_report(&self, setup: &ProgressSetup, stages: &[StageProgress]) -> Share {
        let mut counts = self.finished;
        stages.iter().for_each(|stage| counts.add(&stage.counts));
        Share {
            at_ns: setup.process_start.elapsed().as_nanos() as u64,
            baseline_tasks: counts.baseline_tasks,
            optimized_tasks: counts.optimized_tasks,
            processed_bytes: counts.processed_bytes,
            read_bytes: counts.read_bytes,
            written_bytes: counts.written_bytes,
            moved_bytes: counts.moved_bytes(),
            stolen_slices: counts.stolen_slices,
            memory_bytes: resident_bytes(),
            stages: stages.iter().map(|stage| stage.share.clone()).collect(),
        }
    }

    /// The progress of a stage on all ranks.
    fn stage_progress(&self, setup: &ProgressSetup, index: usize) -> Progress {
        let plan = &setup.plan.stages[index];
        let of_stage = || self.reports.values().flat_map(|report| &report.stages).filter(|stage| stage.index == index);
        let sum = |of: fn(&StageShare) -> u64| of_stage().map(of).sum();
        Progress {
            stage: plan.name.clone(),
            stage_index: index,
            stage_count: setup.plan.stages.len(),
            blocks_done: sum(|share| share.blocks_done),
            blocks: plan.block_count,
            baseline_tasks: sum(|share| share.baseline_tasks),
            optimized_tasks: sum(|share| share.optimized_tasks),
            processed_bytes: sum(|share| share.processed_bytes),
        }
    }
}

impl SnapshotPublisher {
    fn publish_if_due(&mut self, setup: &ProgressSetup, reports: &BTreeMap<Rank, Share>, iteration: Option<Iteration>) {
        let elapsed = setup.process_start.elapsed();
        if elapsed < SHORT || self.last.is_some_and(|last| last.elapsed() < PUBLISH_INTERVAL) {
            return;
        }
        if self.last.is_none() {
            let started = Publisher::start(&self.folder, &setup.name).inspect_err(|error| {
                tracing::debug!("the run's progress is not published: {}: {error}", self.folder.display());
            });
            self.publisher = started.ok();
        }
        self.last = Some(Instant::now());
        let speeds = &mut self.speeds;
        let Some(publisher) = &self.publisher else { return };
        let rank = |(rank, report): (&Rank, &Share)| RankSnapshot {
            rank: *rank,
            hostname: setup.topology.host(*rank).hostname.clone(),
            bytes_per_s: speeds.entry(*rank).or_default().update(report),
            share: report.clone(),
        };
        let ranks = reports.iter().map(rank).collect();
        let (elapsed_ns, stages) = (elapsed.as_nanos() as u64, stage_snapshots(&setup.plan, reports));
        publisher.publish(Snapshot { elapsed_ns, iteration, stages, ranks, ..setup.snapshot.clone() });
    }
}

impl Speed {
    /// Returns the speed in bytes per second between the report before and this one.
    fn update(&mut self, report: &Share) -> f64 {
        if report.at_ns > self.at_ns {
            let ns = (report.at_ns - self.at_ns) as f64;
            self.bytes_per_s = report.processed_bytes.saturating_sub(self.bytes) as f64 / ns * 1e9;
            self.at_ns = report.at_ns;
            self.bytes = report.processed_bytes;
        }
        self.bytes_per_s
    }
}

fn stage_snapshots(plan: &Plan, reports: &BTreeMap<Rank, Share>) -> Vec<StageSnapshot> {
    let mut stages: BTreeMap<usize, StageSnapshot> = BTreeMap::new();
    for share in reports.values().flat_map(|report| &report.stages) {
        let Some(stage_plan) = plan.stages.get(share.index) else { continue };
        let stage = stages.entry(share.index).or_default();
        stage.stage = stage_plan.name.clone();
        stage.blocks = stage_plan.block_count;
        stage.bytes += share.bytes;
        stage.processed_bytes += share.processed_bytes;
    }
    stages.into_values().collect()
}

/// The resident memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
