//! How a run says that it goes on: a few times a second each rank tells rank 0 how it is getting on, which shows that to
//! a person and makes it known ([`live`](crate::live)).
//!
//! Refuses to do: waiting for anybody. Ranks that are between stages, or in a collective operation, say nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::encode::encode;
use crate::exec::comm::communicator::{Communicator, tag};
use crate::exec::error::RunError;
use crate::exec::options::Progress;
use crate::exec::stage::context::Context;
use crate::exec::stage::stage_run::StageRun;
use crate::fabric::{Message, Rank};
use crate::live::{Iteration, Publisher, RankSnapshot, Share, Snapshot, StageShare, StageSnapshot};
use crate::report::Counts;

/// How often rank 0 hears from each of the others.
pub(super) const INTERVAL: Duration = Duration::from_millis(200);
/// But for each of them it has so much time, of which it needs a small part.
const PER_RANK: Duration = Duration::from_micros(100);
/// Nobody wants to see shorter runs.
const SHORT: Duration = Duration::from_millis(500);
/// From one snapshot to the next that is made known.
const MADE_KNOWN: Duration = Duration::from_millis(400);

/// What a rank keeps for it.
#[derive(Debug, Default)]
pub(super) struct ProgressReporter {
    last: Option<Instant>,
    /// What stages did that are over.
    before: Counts,
    pub iteration: Option<Iteration>,
    /// What each rank last said. Rank 0's.
    heard: BTreeMap<Rank, Share>,
    known: Option<SnapshotPublisher>,
}

/// How rank 0 makes the run known.
#[derive(Debug)]
struct SnapshotPublisher {
    folder: PathBuf,
    /// Of the file: the run keeps it when another rank becomes rank 0.
    name: String,
    /// What stays the same.
    about: Snapshot,
    last: Option<Instant>,
    speeds: BTreeMap<Rank, Speed>,
    /// None: it cannot be made known.
    publisher: Option<Publisher>,
}

/// When a rank had processed how much, and how fast that was.
#[derive(Debug, Default)]
struct Speed {
    at_ns: u64,
    bytes: u64,
    bytes_per_s: f64,
}

impl ProgressReporter {
    /// A stage is over.
    pub fn add(&mut self, counts: &Counts) {
        self.before.add(counts);
    }

    /// Another rank has said how it is getting on.
    pub fn hear(&mut self, message: &Message) {
        if let Ok(share) = serde_json::from_slice(&message.bytes) {
            self.heard.insert(message.source, share);
        }
    }

    /// Nothing is made known any more.
    pub fn end(&mut self) {
        self.known = None;
    }

    /// This rank, with what its stages say of themselves.
    fn share(&self, stages: &[StageRun<'_>], context: &Context<'_>) -> Share {
        let mut counts = self.before;
        let mut under_way = Vec::with_capacity(stages.len());
        for stage in stages {
            let (share, so_far) = stage.share();
            counts.add(&so_far);
            under_way.push(share);
        }
        Share {
            at_ns: context.process_start.elapsed().as_nanos() as u64,
            baseline_tasks: counts.baseline_tasks,
            optimized_tasks: counts.optimized_tasks,
            processed_bytes: counts.processed_bytes,
            read_bytes: counts.read_bytes,
            written_bytes: counts.written_bytes,
            moved_bytes: counts.moved_bytes(),
            stolen_slices: counts.stolen_slices,
            memory_bytes: resident_bytes(),
            stages: under_way,
        }
    }

    /// All that ranks have last said of a stage.
    fn of_stage(&self, index: usize) -> impl Iterator<Item = &StageShare> {
        self.heard.values().flat_map(|share| &share.stages).filter(move |stage| stage.index == index)
    }

    fn show(&self, stages: &[StageRun<'_>], context: &Context<'_>) {
        let Some(show) = context.options.progress else { return };
        // Nobody could read what is over so soon.
        for stage in stages.iter().filter(|stage| stage.age() >= INTERVAL) {
            let plan = &context.plan.stages[stage.index()];
            let sum = |of: fn(&StageShare) -> u64| self.of_stage(stage.index()).map(of).sum();
            show(&Progress {
                stage: plan.name.clone(),
                stage_index: stage.index(),
                stage_count: context.plan.stages.len(),
                blocks_done: sum(|share| share.blocks_done),
                blocks: plan.block_count,
                baseline_tasks: sum(|share| share.baseline_tasks),
                optimized_tasks: sum(|share| share.optimized_tasks),
                processed_bytes: sum(|share| share.processed_bytes),
            });
        }
    }
}

impl SnapshotPublisher {
    fn tell(&mut self, heard: &BTreeMap<Rank, Share>, iteration: Option<Iteration>, context: &Context<'_>) {
        let elapsed = context.process_start.elapsed();
        if elapsed < SHORT || self.last.is_some_and(|last| last.elapsed() < MADE_KNOWN) {
            return;
        }
        if self.last.is_none() {
            let started = Publisher::start(&self.folder, &self.name).inspect_err(|error| {
                tracing::debug!("nobody will see how the run is getting on: {}: {error}", self.folder.display());
            });
            self.publisher = started.ok();
        }
        self.last = Some(Instant::now());
        let Some(publisher) = &self.publisher else { return };
        let speeds = &mut self.speeds;
        let rank = |(rank, share): (&Rank, &Share)| {
            let Speed { at_ns, bytes, bytes_per_s } = speeds.entry(*rank).or_default();
            if share.at_ns > *at_ns {
                let ns = (share.at_ns - *at_ns) as f64;
                *bytes_per_s = share.processed_bytes.saturating_sub(*bytes) as f64 / ns * 1e9;
                (*at_ns, *bytes) = (share.at_ns, share.processed_bytes);
            }
            let hostname = context.topology.host(*rank).hostname.clone();
            RankSnapshot { rank: *rank, hostname, bytes_per_s: *bytes_per_s, share: share.clone() }
        };
        let ranks = heard.iter().map(rank).collect();
        let mut stages: BTreeMap<usize, StageSnapshot> = BTreeMap::new();
        for share in heard.values().flat_map(|share| &share.stages) {
            let Some(plan) = context.plan.stages.get(share.index) else { continue };
            let stage = stages.entry(share.index).or_default();
            (stage.stage, stage.blocks) = (plan.name.clone(), plan.block_count);
            stage.bytes += share.bytes;
            stage.processed_bytes += share.processed_bytes;
        }
        let stages = stages.into_values().collect();
        let elapsed_ns = elapsed.as_nanos() as u64;
        publisher.publish(Snapshot { elapsed_ns, iteration, stages, ranks, ..self.about.clone() });
    }
}

impl Communicator {
    /// Begins, or begins again without ranks that died. `name` is that of the run's file.
    pub fn begin_pulse(&mut self, context: &Context<'_>, name: &str, deaths: u32) {
        let pulse = &mut self.pulse;
        pulse.heard.clear();
        pulse.last = Some(Instant::now());
        let folder = context.options.live.clone().filter(|_| self.fabric.rank() == 0);
        pulse.known = folder.map(|folder| SnapshotPublisher {
            folder,
            name: name.to_owned(),
            about: Snapshot {
                schema: Snapshot::SCHEMA,
                job: context.job.name.clone(),
                file: context.job.path.clone(),
                slurm_job: crate::topology::slurm_job(),
                rank_0: context.topology.host(0).process(),
                nodes: context.topology.node_count(),
                threads_per_rank: context.threads as u32,
                deaths,
                ..Snapshot::default()
            },
            last: None,
            speeds: BTreeMap::new(),
            publisher: None,
        });
    }

    /// Says how the run is getting on, if it is time to.
    pub fn beat(&mut self, stages: &[StageRun<'_>], context: &Context<'_>) -> Result<(), RunError> {
        let interval = INTERVAL.max(PER_RANK * self.size());
        if self.pulse.last.is_some_and(|last| last.elapsed() < interval) {
            return Ok(());
        }
        self.pulse.last = Some(Instant::now());
        let share = self.pulse.share(stages, context);
        if self.rank() != 0 {
            return self.send(0, tag::PROGRESS, encode(&share)?.into());
        }
        self.pulse.heard.insert(0, share);
        self.pulse.show(stages, context);
        let ProgressReporter { known, heard, iteration, .. } = &mut self.pulse;
        if let Some(known) = known {
            known.tell(heard, *iteration, context);
        }
        Ok(())
    }
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
