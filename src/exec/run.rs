//! A whole run on one rank.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoints;
use super::costs::{self, CostBook};
use super::data::Data;
use super::link::{Link, Signal};
use super::outputs::{Outputs, Stagings, publish};
use super::resume::{Manifest, Resumed};
use super::stage::{Context, StageOutcome};
use super::tiers::{TierSetup, Tiers};
use super::wave::run_wave;
use super::{ExitCode, Options, RunError};
use crate::engine::{Cache, Cpu, Engine, EngineError, Kernel, Pipeline};
use crate::fabric::{Fabric, Payload, Rank};
use crate::job::{Iterate, Job, Source};
use crate::plan::{Layout, Machine, Plan, plan};
use crate::report::{Environment, RankReport, Report};
use crate::store;
use crate::topology::Topology;

/// Part of a node's memory that its ranks may plan with.
const MEMORY_SHARE: f64 = 0.8;

/// How much a worker gives way (on Linux a priority is a thread's own): to the main thread, which other ranks wait for,
/// and to the optimizing compiler, whose code will be many times faster than what the worker runs meanwhile.
const WORKER_NICENESS: i32 = 5;

/// A failed run: its exit status, and what this rank has to print, if it is the one to do so.
#[derive(Debug)]
pub struct Failure {
    pub code: ExitCode,
    /// Nothing where it has been said already ([`Options::say`]).
    pub text: Option<String>,
}

/// What rank 0 found out for all.
#[derive(Serialize, Deserialize)]
struct Opening {
    path: PathBuf,
    text: String,
    layouts: BTreeMap<String, Layout>,
    threads: Option<u32>,
    memory_bytes: Option<u64>,
}

/// What a rank tells the others before work begins.
#[derive(Serialize, Deserialize)]
struct Introduction {
    plan_hash: [u8; 32],
    cpu: Cpu,
}

/// Runs the job at `path` as one rank of `fabric`. Rank 0 gets the report of the whole run. On failure the others have
/// been told.
pub fn run(fabric: Box<dyn Fabric>, path: &Path, options: &Options, signal: Signal) -> Result<Option<Report>, Failure> {
    let mut link = Link::new(fabric, signal);
    let mut stagings = Stagings::default();
    match run_rank(&mut link, path, options, &mut stagings) {
        Ok(report) => {
            // Everything is written and published; what goes wrong from here on changes no result.
            if let Err(error) = link.finalize(ExitCode::Done) {
                tracing::warn!("leaving MPI: {error}");
            }
            Ok(report)
        }
        Err(error) => {
            link.await_others();
            let note = stagings
                .abandon()
                .then_some("what is finished is kept: run the same command again to go on from there");
            let (code, text) = link.fail(&error, note, options.say);
            Err(Failure { code, text })
        }
    }
}

fn run_rank(
    link: &mut Link,
    path: &Path,
    options: &Options,
    stagings: &mut Stagings,
) -> Result<Option<Report>, RunError> {
    let process_start = process_start();
    let topology = link.topology()?;
    link.watch(&topology);
    let (opening, job) = open(link, path, options)?;
    let machine = machine(&topology, &opening, &job);
    let plan = Arc::new(plan(&job, &opening.layouts, &machine).map_err(Box::new)?);
    let class = agree(link, &plan)?;
    let Loaded { kernels, of_stage, merges } = load_kernels(link, &job)?;
    let of_stages: Vec<&Kernel> = of_stage.iter().map(|kernel| &kernels[*kernel]).collect();
    let (manifest, resumed) = Manifest::open(link, (&job, &plan), &of_stages, options.resume, &mut stagings.files)?;
    stagings.manifest = manifest;
    if link.rank() == 0 {
        tell(&resumed, options);
    }
    let cache = open_cache(options);
    let costs = CostBook::load(link, cache.as_ref(), &kernels)?;
    let setup = TierSetup {
        engine: Engine::new(Cpu::host(), Pipeline::Full),
        policy: options.tier,
        cache: cache.clone(),
        helper: options.helper.clone(),
        threads: machine.threads as usize,
        class,
    };
    let mut tiers = Tiers::start(link, setup, kernels.clone())?;
    let iterated = job.iterate.as_ref().map_or(0..0, |iterate| iterate.stages.clone());
    let waves = plan.waves(iterated.clone());
    let (threads, width) = (machine.threads as usize, waves.iter().map(|wave| wave.len()).max().unwrap_or(1));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads * width).start_handler(|_| step_back());
    let pool = pool.build();
    let pool = pool.map_err(|e| RunError::Worker { message: e.to_string() })?;
    let rank = link.rank();
    let hostname = topology.host(rank).hostname.clone();
    let mut share = RankReport { rank, hostname, ..RankReport::default() };
    let context = Context {
        job: &job,
        plan: plan.clone(),
        topology: &topology,
        options,
        pool: &pool,
        threads,
        process_start,
        kernels: of_stage,
        merges,
    };
    let mut data = Data::new(costs, Checkpoints::new(options.checkpoint_every));
    let gone_on = stagings.manifest.load(&plan, &mut data.resident)?;
    for wave in waves.into_iter().filter(|wave| wave.start == iterated.start || !iterated.contains(&wave.start)) {
        if wave.start > 0 {
            data.checkpoints.look(link, &plan, (wave.start, 0), &data.resident, stagings)?;
        }
        let runs = !stagings.manifest.skips(&plan.stages[wave.start].name);
        let iterate = job.iterate.as_ref().filter(|iterate| runs && iterate.stages.contains(&wave.start));
        if let Some(iterate) = iterate {
            let first = gone_on.filter(|(next, _)| *next == wave.start).map_or(0, |(_, iteration)| iteration);
            link.wait_with_signals(true);
            let iterations =
                run_iterations(link, &mut tiers, &context, (iterate, first), &mut data, stagings, &mut share)?;
            link.wait_with_signals(false);
            share.iterations = Some(iterations);
        } else if iterated.contains(&wave.start) {
            // All of them are finished: what they left is taken up.
            for stage in iterated.clone() {
                run_wave(link, &mut tiers, &context, stage..stage + 1, &mut data, stagings)?;
            }
        } else {
            for outcome in run_wave(link, &mut tiers, &context, wave, &mut data, stagings)? {
                add_stage(&mut share, outcome, process_start);
            }
        }
    }
    tiers.finish();
    share.kernels = tiers.reports();
    for (index, kernel) in share.kernels.iter_mut().enumerate() {
        kernel.ns_per_slice = data.costs.measured(index).clone();
    }
    share.fabric = link.traffic();
    let shares = link.gather(serde_json::to_vec(&share).unwrap_or_default())?;
    let Some(shares) = shares else {
        // Nobody leaves before the outputs are in place: a rank that fails now must still be heard.
        link.barrier()?;
        return Ok(None);
    };
    let outputs = publish(&job, &plan, stagings)?;
    link.barrier()?;
    let mut ranks = Vec::new();
    for (rank, bytes) in (0..).zip(&shares) {
        let share: RankReport =
            serde_json::from_slice(bytes).map_err(|_| RunError::Protocol { rank, what: "its report" })?;
        ranks.push(share);
    }
    if let Some(cache) = &cache {
        costs::save(cache, &kernels, &ranks);
    }
    let hash = blake3::Hash::from_bytes(plan.hash()).to_hex().to_string();
    let environment = environment(&topology, &machine, options);
    let wall_ns = process_start.elapsed().as_nanos() as u64;
    let mut report = Report::join(job.name.clone(), hash, environment, wall_ns, ranks);
    report.outputs = outputs;
    report.resumed_bytes = resumed.bytes;
    Ok(Some(report))
}

/// Tells a person what is taken up from an earlier run.
fn tell(resumed: &Resumed, options: &Options) {
    let size = bytesize::ByteSize::b(resumed.bytes).display().iec();
    let went_on = (resumed.bytes > 0).then(|| match resumed.iteration {
        0 => format!("going on with what an earlier run finished: {size} of tensors"),
        iteration => format!("going on after iteration {iteration} of an earlier run, with {size} of tensors"),
    });
    for note in went_on.iter().chain(&resumed.notes) {
        match options.note {
            Some(tell) => tell(note),
            None => tracing::info!("{note}"),
        }
    }
}

/// Adds what a stage did to the rank's share of the report; a stage that ran before adds to its own.
fn add_stage(share: &mut RankReport, outcome: StageOutcome, process_start: Instant) {
    let since_start = |at: Instant| at.duration_since(process_start).as_nanos() as u64;
    let total = share.stage(&outcome.report.stage);
    total.started_ns = total.started_ns.or(Some(since_start(outcome.started)));
    // By now all that the stage left behind is cleared away, which is a part of its time.
    total.wall_ns += outcome.started.elapsed().as_nanos() as u64;
    total.counts.add(&outcome.report.counts);
    share.swaps.extend(outcome.swaps);
    share.first_task_ns = share.first_task_ns.or(outcome.first_task.map(since_start));
}

/// Runs the iterated stages until their condition holds, or as often as the job says, and writes what they left; `first` of these
/// iterations were made by earlier runs. Returns the number of iterations, those included.
fn run_iterations(
    link: &mut Link,
    tiers: &mut Tiers,
    context: &Context<'_>,
    (iterate, first): (&Iterate, u64),
    data: &mut Data,
    stagings: &mut Stagings,
    share: &mut RankReport,
) -> Result<u64, RunError> {
    data.deferred = true;
    data.balance.begin();
    let mut iteration = first;
    data.checkpoints.begin_iterations(first);
    loop {
        for stage_index in iterate.stages.clone() {
            for outcome in run_wave(link, tiers, context, stage_index..stage_index + 1, data, stagings)? {
                add_stage(share, outcome, context.process_start);
            }
        }
        iteration += 1;
        let done = match &iterate.until {
            Some(until) => until.holds(data.resident.scalar(link, &context.plan, &until.tensor)?),
            None => false,
        };
        if done || iteration == iterate.count {
            break;
        }
        for pair in &iterate.exchange {
            data.resident.exchange(&pair.read, &pair.written);
        }
        if context.options.steal {
            data.balance.end_iteration(link)?;
        }
        if data.checkpoints.looks_after(iteration) {
            let next = (iterate.stages.start, iteration);
            data.checkpoints.look(link, &context.plan, next, &data.resident, stagings)?;
        }
    }
    data.deferred = false;
    for stage_index in iterate.stages.clone() {
        let plan = &context.plan.stages[stage_index];
        let (run, resident) = (data.begin_run(), &data.resident);
        let counts = &mut share.stage(&plan.name).counts;
        Outputs::flush(link, context.job, plan, run, resident, &mut data.places, stagings, counts)?;
    }
    Ok(iteration)
}

/// Rank 0 reads the job and looks at its datasets; everyone learns the outcome. Collective.
fn open(link: &mut Link, path: &Path, options: &Options) -> Result<(Opening, Job), RunError> {
    let mut encoded = None;
    if link.rank() == 0 {
        let job = Job::load(path).map_err(Box::new)?;
        let mut layouts = BTreeMap::new();
        for decl in job.tensors.values() {
            if let Source::File { file, dataset } = &decl.source {
                let info = store::describe(file, dataset)?;
                let layout = Layout { dtype: info.dtype, shape: info.shape, chunk: info.chunk };
                layouts.insert(decl.name.clone(), layout);
            }
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let text = job.text().to_owned();
        let (threads, memory_bytes) = (options.threads, options.memory_bytes);
        let opening = Opening { path, text, layouts, threads, memory_bytes };
        encoded = Some(Payload::from(serde_json::to_vec(&opening).unwrap_or_default()));
    }
    let encoded = link.broadcast(encoded)?;
    let opening: Opening =
        serde_json::from_slice(&encoded).map_err(|_| RunError::Protocol { rank: 0, what: "the job" })?;
    let job = Job::parse(&opening.text, &opening.path).map_err(Box::new)?;
    Ok((opening, job))
}

/// The same on every rank: made of what was gathered and of what rank 0 said.
fn machine(topology: &Topology, opening: &Opening, job: &Job) -> Machine {
    let ranks = 0..topology.size();
    let on_node = |rank: Rank| topology.ranks_on_node(rank).len() as u32;
    let ranks_per_node = ranks.clone().map(on_node).max().unwrap_or(1);
    let threads =
        opening.threads.unwrap_or_else(|| ranks.clone().map(|r| topology.default_threads(r)).min().unwrap_or(1));
    let share = |rank: Rank| {
        let node = topology.host(rank).memory_bytes as f64 * MEMORY_SHARE;
        (node / f64::from(on_node(rank))) as u64
    };
    let memory_bytes = opening.memory_bytes.or(job.memory_bytes).or_else(|| ranks.map(share).min()).unwrap_or(u64::MAX);
    Machine { ranks: topology.size(), ranks_per_node, threads: threads.max(1), memory_bytes }
}

/// All ranks must have made the same plan. Returns the ranks whose CPU is like this rank's. Collective.
fn agree(link: &mut Link, plan: &Plan) -> Result<Vec<Rank>, RunError> {
    let mine = Introduction { plan_hash: plan.hash(), cpu: Cpu::host() };
    let all = link.allgather(serde_json::to_vec(&mine).unwrap_or_default())?;
    let mut introductions = Vec::new();
    for (rank, bytes) in (0..).zip(&all) {
        let one: Introduction =
            serde_json::from_slice(bytes).map_err(|_| RunError::Protocol { rank, what: "its plan" })?;
        introductions.push(one);
    }
    let ranks = || (0..).zip(&introductions);
    let differing: Vec<Rank> =
        ranks().filter(|(_, i)| i.plan_hash != introductions[0].plan_hash).map(|(rank, _)| rank).collect();
    if !differing.is_empty() {
        return Err(RunError::PlanDisagreement { ranks: differing });
    }
    Ok(ranks().filter(|(_, i)| i.cpu == mine.cpu).map(|(rank, _)| rank).collect())
}

/// The kernels of a job.
#[derive(Default)]
struct Loaded {
    /// The distinct ones that compute tiles.
    kernels: Vec<Kernel>,
    /// Which of them each stage runs.
    of_stage: Vec<usize>,
    /// The one that merges the partial results of each stage, if one does.
    merges: Vec<Option<Kernel>>,
}

/// Rank 0 reads each module once and sends it to the others, so that all run the same bytes. Collective.
fn load_kernels(link: &mut Link, job: &Job) -> Result<Loaded, RunError> {
    let mut loaded = Loaded::default();
    let Loaded { kernels, of_stage, merges } = &mut loaded;
    for stage in &job.stages {
        let failed = |source: EngineError| RunError::Engine {
            kernel: stage.kernel.display().to_string(),
            stage: stage.name.clone(),
            source: Box::new(source),
        };
        let mut bytes = None;
        if link.rank() == 0 {
            let kernel = Kernel::load(&stage.kernel, stage.export.as_deref()).map_err(failed)?;
            // Here, so that it is told before any other rank stumbles over it.
            stage.merge.as_deref().map(|export| kernel.sibling(export)).transpose().map_err(failed)?;
            bytes = Some(Payload::from(kernel.bytes().to_vec()));
        }
        let bytes = link.broadcast(bytes)?;
        let name = stage.kernel.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let kernel = Kernel::from_bytes(&name, &bytes, stage.export.as_deref()).map_err(failed)?;
        merges.push(stage.merge.as_deref().map(|export| kernel.sibling(export)).transpose().map_err(failed)?);
        let same = |other: &Kernel| other.hash() == kernel.hash() && other.export() == kernel.export();
        of_stage.push(kernels.iter().position(same).unwrap_or(kernels.len()));
        if !kernels.iter().any(same) {
            kernels.push(kernel);
        }
    }
    Ok(loaded)
}

/// Without a usable cache the run works all the same, only it compiles again.
fn open_cache(options: &Options) -> Option<Cache> {
    match Cache::open(options.cache_dir.as_deref()) {
        Ok(cache) => Some(cache),
        Err(error) => {
            tracing::warn!("running without a cache: {error}");
            None
        }
    }
}

fn environment(topology: &Topology, machine: &Machine, options: &Options) -> Environment {
    let mut cpus: Vec<String> = topology.hosts().iter().map(|host| host.cpu.name.clone()).collect();
    cpus.sort();
    cpus.dedup();
    let libraries = [
        ("mpi".to_owned(), crate::fabric::library()),
        ("hdf5".to_owned(), store::library_version()),
        ("compilers".to_owned(), crate::engine::COMPILER.to_owned()),
    ];
    Environment {
        exuvia: env!("CARGO_PKG_VERSION").to_owned(),
        libraries: libraries.into(),
        ranks: topology.size(),
        nodes: topology.node_count(),
        threads_per_rank: machine.threads,
        cpus,
        tier_policy: options.tier.name().to_owned(),
    }
}

/// Lowers the priority of this thread.
fn step_back() {
    if let Err(error) = rustix::process::nice(WORKER_NICENESS) {
        tracing::debug!("a worker keeps its priority: {error}");
    }
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
