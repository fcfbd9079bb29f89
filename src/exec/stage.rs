//! One stage on one rank: the main thread's side of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use super::link::{Link, tag};
use super::tiers::Tiers;
use super::worker::{BlockData, FromWorker, Setup, Shared, WorkerReport, lock, work};
use super::{Options, Progress, RunError};
use crate::engine::Tier;
use crate::fabric::{Message, Payload};
use crate::job::{Job, Source, Stage};
use crate::plan::{Distribution, Plan, Role, StagePlan, Tile};
use crate::report::{Counts, StageReport, Swap};
use crate::sched::{Action, Event, Scheduler};
use crate::store::{OutputLayout, OutputSpec, Reader, Staging, Storage, Writer, compress_chunks};
use crate::tensor::{Region, copy_region};
use crate::topology::Topology;

/// How often rank 0 hears from the others how far they are.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What stays the same over all stages of a run.
pub(super) struct Context<'a> {
    pub job: &'a Job,
    pub plan: Arc<Plan>,
    pub topology: &'a Topology,
    pub options: &'a Options,
    pub pool: &'a rayon::ThreadPool,
    pub process_start: Instant,
    /// Kernel of each stage, as [`Tiers`] numbers them.
    pub kernels: Vec<usize>,
}

/// Where a dataset is now: tensors that a stage of this run wrote lie in a staging file.
pub(super) type Places = BTreeMap<String, (PathBuf, String)>;

/// A stage's part in the report, and what only the first stage tells.
pub(super) struct StageOutcome {
    pub report: StageReport,
    pub swaps: Vec<Swap>,
    pub first_task: Option<Instant>,
}

/// Where the main thread gets the bytes of a split input.
enum Split<'a> {
    File(Reader),
    Inline {
        bytes: &'a [u8],
        whole: Region,
    },
    /// Shared, or an output.
    None,
}

enum Sink {
    Direct(Writer),
    Compressed,
    /// An input.
    None,
}

struct Running<'a> {
    context: &'a Context<'a>,
    stage_index: usize,
    shared: Arc<Shared>,
    from_workers: Receiver<FromWorker>,
    tiles: Vec<Tile>,
    sources: Vec<Split<'a>>,
    sinks: Vec<Sink>,
    layouts: Vec<OutputLayout>,
    report: StageReport,
    blocks_done: u64,
    complete: bool,
    /// Whether the workers have been given optimized code.
    optimized: bool,
    chunks_sent: u64,
    chunks_received: u64,
    chunks_expected: u64,
    ranks_done: u32,
    others: BTreeMap<u32, Progress>,
    last_progress: Instant,
}

/// Runs a stage to its end on all ranks. `stagings` is rank 0's, by final file.
pub(super) fn run_stage(
    link: &mut Link,
    tiers: &mut Tiers,
    context: &Context<'_>,
    stage_index: usize,
    places: &mut Places,
    stagings: &mut BTreeMap<PathBuf, Staging>,
) -> Result<StageOutcome, RunError> {
    let started = Instant::now();
    let (stage, plan) = (&context.job.stages[stage_index], &context.plan.stages[stage_index]);
    let kernel = context.kernels[stage_index];
    // Before anything slow: whoever compiles can start while inputs are read.
    let code = tiers.code(link, kernel, &stage.name, context.options.swap_before_task.is_some())?;
    let layouts = create_outputs(link, context, stage_index, places, stagings)?;
    let mut report = StageReport { stage: stage.name.clone(), ..StageReport::default() };
    let whole = gather_whole(link, context, plan, places, &mut report.counts)?;
    let mut sources = Vec::new();
    for (operand, shared) in plan.operands.iter().zip(&whole) {
        sources.push(match (operand.role, shared) {
            (Role::Input, None) => open_split(context.job, &operand.tensor, places)?,
            _ => Split::None,
        });
    }
    let mut remaining = layouts.iter();
    let mut sinks = Vec::new();
    for operand in &plan.operands {
        let layout = if operand.role == Role::Output { remaining.next() } else { None };
        sinks.push(match layout {
            None => Sink::None,
            Some(OutputLayout { storage: Storage::Compressed { .. }, .. }) => Sink::Compressed,
            Some(layout) => Sink::Direct(Writer::open(layout)?),
        });
    }
    let tiles: Vec<Tile> = plan.blocks(link.rank()).collect();
    let workers = context.pool.current_num_threads();
    let in_flight = workers as u64 + 2;
    let scheduler = Scheduler::new(tiles.len() as u64, in_flight, workers, context.options.granularity);
    let (to_main, from_workers) = unbounded();
    let setup = Setup {
        plan: context.plan.clone(),
        stage_index,
        engine: tiers.engine().clone(),
        kernel: tiers.kernel(kernel).clone(),
        memory_limit_bytes: stage.limits.memory_bytes,
        whole,
        swap_before_task: context.options.swap_before_task,
        process_start: context.process_start,
        to_main,
    };
    let optimized = code.tier() == Tier::Optimized;
    let shared = Arc::new(Shared::new(setup, scheduler, code, workers));
    let mut running = Running {
        context,
        stage_index,
        shared: shared.clone(),
        from_workers,
        tiles,
        sources,
        sinks,
        layouts,
        report,
        blocks_done: 0,
        complete: false,
        optimized,
        chunks_sent: 0,
        chunks_received: 0,
        chunks_expected: 0,
        ranks_done: 0,
        others: BTreeMap::new(),
        last_progress: Instant::now(),
    };
    for worker in 0..workers {
        let shared = shared.clone();
        context.pool.spawn(move || work(&shared, worker));
    }
    shared.begin();
    running.until_complete(link, tiers, stagings)?;
    let workers = running.collect_workers()?;
    link.barrier()?;
    for staging in stagings.values_mut() {
        staging.settle()?;
    }
    let mut outcome = StageOutcome { report: running.report, swaps: Vec::new(), first_task: None };
    for worker in workers {
        outcome.report.counts.add(&worker.counts);
        outcome.swaps.extend(worker.swaps);
        outcome.first_task = [outcome.first_task, worker.first_task].into_iter().flatten().min();
    }
    outcome.report.wall_ns = started.elapsed().as_nanos() as u64;
    Ok(outcome)
}

/// Rank 0 creates the stage's datasets, everyone learns where they lie. Collective.
fn create_outputs(
    link: &mut Link,
    context: &Context<'_>,
    stage_index: usize,
    places: &mut Places,
    stagings: &mut BTreeMap<PathBuf, Staging>,
) -> Result<Vec<OutputLayout>, RunError> {
    let plan = &context.plan.stages[stage_index];
    let mut encoded = None;
    if link.rank() == 0 {
        let mut layouts = Vec::new();
        for operand in plan.operands.iter().filter(|operand| operand.role == Role::Output) {
            let (file, dataset) = destination(context.job, &operand.tensor);
            if !stagings.contains_key(&file) {
                stagings.insert(file.clone(), Staging::begin(&file)?);
            }
            let spec = OutputSpec {
                dataset,
                dtype: operand.dtype,
                shape: operand.shape.clone(),
                chunk: operand.chunk.clone(),
                deflate: operand.deflate,
            };
            if let Some(staging) = stagings.get_mut(&file) {
                layouts.extend(staging.create(&[spec])?);
            }
        }
        encoded = Some(Payload::from(serde_json::to_vec(&layouts).unwrap_or_default()));
    }
    let encoded = link.broadcast(encoded)?;
    let layouts: Vec<OutputLayout> = serde_json::from_slice(&encoded)
        .map_err(|_| RunError::Protocol { rank: 0, what: "the places of the outputs" })?;
    let outputs = plan.operands.iter().filter(|operand| operand.role == Role::Output);
    for (operand, layout) in outputs.zip(&layouts) {
        places.insert(operand.tensor.clone(), (layout.temporary.clone(), layout.dataset.clone()));
    }
    Ok(layouts)
}

/// The file and dataset that a tensor is written to. Scratch tensors lie in a file of their own beside the first output,
/// which is never published.
pub(super) fn destination(job: &Job, tensor: &str) -> (PathBuf, String) {
    match job.tensors.get(tensor).map(|decl| &decl.source) {
        Some(Source::Create { file, dataset, .. }) => (file.clone(), dataset.clone()),
        _ => {
            let created = job.tensors.values().find_map(|decl| match &decl.source {
                Source::Create { file, .. } => file.parent(),
                _ => None,
            });
            (created.unwrap_or_else(|| ".".as_ref()).join(format!("{}-scratch.h5", job.name)), tensor.to_owned())
        }
    }
}

/// Bytes of every operand that all tasks share. Rank 0 reads, the others receive. Collective.
fn gather_whole(
    link: &mut Link,
    context: &Context<'_>,
    plan: &StagePlan,
    places: &Places,
    counts: &mut Counts,
) -> Result<Vec<Option<Payload>>, RunError> {
    let mut whole = Vec::new();
    for operand in &plan.operands {
        if operand.distribution != Distribution::Broadcast {
            whole.push(None);
            continue;
        }
        if let Some(Source::Inline { bytes, .. }) = context.job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
            whole.push(Some(Payload::from(bytes.clone())));
            continue;
        }
        let mut bytes = None;
        if link.rank() == 0 {
            let (file, dataset) = place(context.job, &operand.tensor, places);
            let mut read = Vec::new();
            Reader::open(&file, &dataset)?.read(&Region::whole(&operand.shape), &mut read)?;
            counts.read_bytes += read.len() as u64;
            bytes = Some(Payload::from(read));
        }
        let bytes = link.broadcast(bytes)?;
        if link.rank() != 0 {
            counts.moved_bytes += bytes.len() as u64;
        }
        whole.push(Some(bytes));
    }
    Ok(whole)
}

fn place(job: &Job, tensor: &str, places: &Places) -> (PathBuf, String) {
    match (places.get(tensor), job.tensors.get(tensor).map(|decl| &decl.source)) {
        (Some(place), _) => place.clone(),
        (None, Some(Source::File { file, dataset })) => (file.clone(), dataset.clone()),
        _ => destination(job, tensor),
    }
}

fn open_split<'a>(job: &'a Job, tensor: &str, places: &Places) -> Result<Split<'a>, RunError> {
    if let Some(Source::Inline { shape, bytes, .. }) = job.tensors.get(tensor).map(|decl| &decl.source) {
        return Ok(Split::Inline { bytes, whole: Region::whole(shape) });
    }
    let (file, dataset) = place(job, tensor, places);
    Ok(Split::File(Reader::open(&file, &dataset)?))
}

impl Running<'_> {
    fn stage(&self) -> &Stage {
        &self.context.job.stages[self.stage_index]
    }

    fn plan(&self) -> &StagePlan {
        &self.context.plan.stages[self.stage_index]
    }

    /// The main loop: until this rank's blocks are written and, on rank 0, until all others' are.
    fn until_complete(
        &mut self,
        link: &mut Link,
        tiers: &mut Tiers,
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(), RunError> {
        let kernel = self.context.kernels[self.stage_index];
        loop {
            match self.from_workers.recv_timeout(Tiers::PATIENCE) {
                Ok(message) => self.heed_worker(link, message, stagings)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            while let Some(message) = link.poll()? {
                self.heed_rank(link, tiers, &message, stagings)?;
            }
            tiers.poll(link)?;
            if !self.optimized
                && let Some(code) = tiers.optimized(kernel)
            {
                self.optimized = true;
                self.shared.adopt(code.clone());
            }
            self.check_time_limit(link)?;
            self.tell_progress(link)?;
            let others_done = link.rank() != 0
                || (self.ranks_done + 1 == link.size() && self.chunks_received == self.chunks_expected);
            if self.complete && others_done {
                return Ok(());
            }
        }
    }

    fn heed_worker(
        &mut self,
        link: &mut Link,
        message: FromWorker,
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(), RunError> {
        match message {
            FromWorker::Do(Action::Fetch { block }) => self.fetch(block),
            FromWorker::Do(Action::Write { block }) => self.write(link, block, stagings),
            FromWorker::Do(Action::Complete) => {
                self.complete = true;
                if link.rank() != 0 {
                    link.send(0, tag::STAGE_DONE, self.chunks_sent.to_le_bytes().to_vec().into())?;
                }
                Ok(())
            }
            FromWorker::Do(Action::Start { .. }) => unreachable!("workers start themselves"),
            FromWorker::Fault { task, tier, fault } => Err(RunError::Task {
                task,
                rank: link.rank(),
                hostname: self.context.topology.host(link.rank()).hostname.clone(),
                kernel: self.shared.kernel.name().to_owned(),
                tier: tier.name(),
                source: Box::new(fault),
            }),
            FromWorker::Engine(source) => Err(RunError::Engine {
                kernel: self.shared.kernel.name().to_owned(),
                stage: self.stage().name.clone(),
                source: Box::new(source),
            }),
            FromWorker::Panicked(message) => Err(RunError::Worker { message }),
            FromWorker::Ended(_) => Err(RunError::Worker { message: "it left before the stage was over".to_owned() }),
        }
    }

    fn fetch(&mut self, number: u64) -> Result<(), RunError> {
        let tile = self.tiles[number as usize].clone();
        let plan = self.shared.stage();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for (index, operand) in plan.operands.iter().enumerate() {
            let region = plan.region(index, &tile);
            let bytes = region.elements() as usize * operand.dtype.size_bytes();
            let mut input = Vec::new();
            match &self.sources[index] {
                Split::File(reader) => {
                    reader.read(&region, &mut input)?;
                    self.report.counts.read_bytes += bytes as u64;
                }
                Split::Inline { bytes: constant, whole } => {
                    input.resize(bytes, 0);
                    copy_region(constant, whole, &mut input, &region, &region, operand.dtype.size_bytes());
                }
                Split::None => {}
            }
            inputs.push(input);
            let output = if operand.role == Role::Output { vec![0; bytes] } else { Vec::new() };
            outputs.push(Mutex::new(output));
        }
        let slices = tile.0.extent.get(plan.task_axis(&tile)).copied().unwrap_or(1);
        let block = Arc::new(BlockData { tile, inputs, outputs });
        lock(&self.shared.blocks).insert(number, block);
        self.shared.event(Event::Fetched { block: number, slices });
        Ok(())
    }

    fn write(
        &mut self,
        link: &mut Link,
        number: u64,
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(), RunError> {
        let block = lock(&self.shared.blocks).remove(&number);
        let Some(block) = block else { panic!("block {number} is not in memory") };
        let mut output = 0;
        for index in 0..self.plan().operands.len() {
            let region = self.plan().region(index, &block.tile);
            let bytes = std::mem::take(&mut *lock(&block.outputs[index]));
            match &mut self.sinks[index] {
                Sink::None => continue,
                Sink::Direct(writer) => self.report.counts.written_bytes += writer.write(&region, &bytes)?,
                Sink::Compressed => {
                    let chunks = compress_chunks(&self.layouts[output], &region, &bytes)?;
                    self.report.counts.written_bytes += chunks.iter().map(|(_, c)| c.len() as u64).sum::<u64>();
                    if link.rank() == 0 {
                        self.write_chunks(output, &chunks, stagings)?;
                    } else {
                        link.send(0, tag::CHUNKS, encode_chunks(output, &chunks).into())?;
                        self.chunks_sent += 1;
                    }
                }
            }
            output += 1;
        }
        self.blocks_done += 1;
        self.shared.event(Event::Written { block: number });
        Ok(())
    }

    fn write_chunks(
        &self,
        output: usize,
        chunks: &[StoredChunk],
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(), RunError> {
        let layout = &self.layouts[output];
        if let Some(staging) = stagings.values_mut().find(|staging| staging.temporary() == layout.temporary) {
            staging.write_chunks(layout, chunks)?;
        }
        Ok(())
    }

    fn heed_rank(
        &mut self,
        link: &mut Link,
        tiers: &mut Tiers,
        message: &Message,
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(), RunError> {
        let wrong = |what| RunError::Protocol { rank: message.source, what };
        match message.tag {
            tag::ARTIFACT => tiers.receive(link, message),
            tag::CHUNKS => {
                let decoded = decode_chunks(&message.bytes).filter(|(output, _)| *output < self.layouts.len());
                let (output, chunks) = decoded.ok_or_else(|| wrong("compressed chunks"))?;
                self.chunks_received += 1;
                self.report.counts.moved_bytes += message.bytes.len() as u64;
                self.write_chunks(output, &chunks, stagings)
            }
            tag::STAGE_DONE => {
                let sent = message.bytes.as_slice().try_into().map_err(|_| wrong("the end of its stage"))?;
                self.ranks_done += 1;
                self.chunks_expected += u64::from_le_bytes(sent);
                Ok(())
            }
            tag::PROGRESS => {
                if let Ok([blocks_done, baseline, optimized, bytes, stage]) =
                    serde_json::from_slice::<[u64; 5]>(&message.bytes)
                    && stage == self.stage_index as u64
                {
                    let progress = Progress {
                        blocks_done,
                        baseline_tasks: baseline,
                        optimized_tasks: optimized,
                        processed_bytes: bytes,
                        ..Progress::default()
                    };
                    self.others.insert(message.source, progress);
                }
                Ok(())
            }
            _ => Err(wrong("a message of unknown kind")),
        }
    }

    /// A kernel that never returns cannot be stopped from within: naming it ends the run, and with it the process.
    fn check_time_limit(&self, link: &Link) -> Result<(), RunError> {
        let limit = self.stage().limits.task_time;
        for current in &self.shared.current {
            let Some(current) = lock(current).clone() else { continue };
            if current.started.elapsed() > limit {
                return Err(RunError::TimeLimit {
                    task: self.plan().task_name(&current.tile),
                    rank: link.rank(),
                    hostname: self.context.topology.host(link.rank()).hostname.clone(),
                    kernel: self.shared.kernel.name().to_owned(),
                    tier: current.tier.name(),
                    limit,
                });
            }
        }
        Ok(())
    }

    fn tell_progress(&mut self, link: &mut Link) -> Result<(), RunError> {
        if self.last_progress.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.last_progress = Instant::now();
        let count = |index: usize| self.shared.counts[index].load(Ordering::Relaxed);
        let (baseline, optimized) = (count(Tier::Baseline as usize), count(Tier::Optimized as usize));
        let processed_bytes = count(2);
        if link.rank() != 0 {
            let numbers = [self.blocks_done, baseline, optimized, processed_bytes, self.stage_index as u64];
            return link.send(0, tag::PROGRESS, serde_json::to_vec(&numbers).unwrap_or_default().into());
        }
        if let Some(show) = self.context.options.progress {
            let sum = |of: fn(&Progress) -> u64| self.others.values().map(of).sum::<u64>();
            show(&Progress {
                stage: self.stage().name.clone(),
                stage_index: self.stage_index,
                stage_count: self.context.plan.stages.len(),
                blocks_done: self.blocks_done + sum(|p| p.blocks_done),
                blocks: self.plan().block_count,
                baseline_tasks: baseline + sum(|p| p.baseline_tasks),
                optimized_tasks: optimized + sum(|p| p.optimized_tasks),
                processed_bytes: processed_bytes + sum(|p| p.processed_bytes),
            });
        }
        Ok(())
    }

    /// Lets the workers go and takes their reports.
    fn collect_workers(&mut self) -> Result<Vec<WorkerReport>, RunError> {
        self.shared.end();
        let mut reports = Vec::new();
        while reports.len() < self.shared.current.len() {
            match self.from_workers.recv_timeout(Duration::from_secs(10)) {
                Ok(FromWorker::Ended(report)) => reports.push(*report),
                Ok(FromWorker::Panicked(message)) => return Err(RunError::Worker { message }),
                Ok(other) => return Err(RunError::Worker { message: format!("it said {other:?} at the end") }),
                Err(_) => return Err(RunError::Worker { message: "it did not end".to_owned() }),
            }
        }
        Ok(reports)
    }
}

/// Number and stored bytes of a chunk.
type StoredChunk = (u64, Vec<u8>);

/// Output number, then number, length and bytes of each chunk.
fn encode_chunks(output: usize, chunks: &[StoredChunk]) -> Vec<u8> {
    let mut bytes = (output as u64).to_le_bytes().to_vec();
    for (number, stored) in chunks {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(stored.len() as u64).to_le_bytes());
        bytes.extend_from_slice(stored);
    }
    bytes
}

fn decode_chunks(bytes: &[u8]) -> Option<(usize, Vec<StoredChunk>)> {
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let (output, mut rest) = bytes.split_first_chunk::<8>()?;
    let mut chunks = Vec::new();
    while let Some((number, after)) = rest.split_first_chunk::<8>() {
        let (length, after) = after.split_first_chunk::<8>()?;
        let (stored, after) = after.split_at_checked(usize::try_from(word(length)).ok()?)?;
        chunks.push((word(number), stored.to_vec()));
        rest = after;
    }
    Some((usize::try_from(word(output)).ok()?, chunks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_survive_the_wire_and_cut_messages_are_refused() {
        let chunks = vec![(3, vec![1, 2, 3]), (9, vec![])];
        let bytes = encode_chunks(2, &chunks);
        assert_eq!(decode_chunks(&bytes), Some((2, chunks)));
        assert_eq!(decode_chunks(&bytes[..7]), None);
        assert_eq!(decode_chunks(&bytes[..26]), None);
    }
}
