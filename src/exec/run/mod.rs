//! A whole run on one rank.

pub mod startup;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::encode::encode;
use crate::engine::{Cache, Cpu, Engine, Kernel, Pipeline};
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::monitor::Signal;
use crate::exec::comm::shrink::{FailedRank, ShrinkOutcome};
use crate::exec::dataset::outputs::{Outputs, publish};
use crate::exec::error::{ExitCode, RunError, RunFailure};
use crate::exec::kernels::cost_history;
use crate::exec::kernels::cost_history::CostHistory;
use crate::exec::kernels::tier_up::{TierSetup, TierUp};
use crate::exec::options::Options;
use crate::exec::recovery::checkpoint::Checkpoints;
use crate::exec::recovery::header::CurrentJob;
use crate::exec::recovery::manifest::{Manifest, Resumed};
use crate::exec::recovery::snapshot::ResumePoint;
use crate::exec::recovery::staging::Stagings;
use crate::exec::run::startup::{Loaded, Opening, agree, load_kernels, machine, open};
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::context::Context;
use crate::exec::stage::main_loop::run_wave;
use crate::exec::trace::recorder::TraceEventKind;
use crate::fabric::{Fabric, Payload};
use crate::job::Iterate;
use crate::live::Iteration;
use crate::plan::{Machine, plan};
use crate::report::{Death, Environment, RankReport, Report};
use crate::store;
use crate::topology::Topology;

/// How much a worker gives way (on Linux a priority is a thread's own): to the main thread, which other ranks wait for,
/// and to the optimizing compiler, whose code will be many times faster than what the worker runs meanwhile.
const WORKER_NICENESS: i32 = 5;

/// What a rank takes along when the run begins again without ranks that died.
struct Kept {
    process_start: Instant,
    /// The job as it was, and its modules by stage, whatever has become of their files.
    opening: Option<Opening>,
    modules: Vec<Payload>,
    tiers: Option<TierUp>,
    /// By which it makes itself known: of its first rank 0.
    name: Option<String>,
    /// What earlier runs of the job have left, once that is taken up or cleared away.
    /// Bytes and tasks, as the report says.
    resumed: Option<(u64, u64)>,
    /// What the rank did so far.
    share: RankReport,
}

impl Kept {
    fn note(&mut self, dead: &[FailedRank]) {
        let at_ns = self.process_start.elapsed().as_nanos() as u64;
        let death =
            |dead: &FailedRank| Death { rank: dead.rank, hostname: dead.hostname.clone(), at_ns, first_task_ns: None };
        self.share.deaths.extend(dead.iter().map(death));
    }
}

/// Runs the job at `path` as one rank of `fabric`. Rank 0, as it is in the end, gets the report of the whole run, and hands it to
/// `conclude` before the ranks leave: MPI may not let go of the process, which then exits with what that says. On failure the others
/// have been told.
pub fn run(
    fabric: Box<dyn Fabric>,
    path: &Path,
    options: &Options,
    signal: Signal,
    conclude: impl FnOnce(&Report) -> ExitCode,
) -> Result<Option<Report>, RunFailure> {
    let mut comm = Communicator::new(fabric, signal);
    let (process_start, share) = (process_start(), RankReport::default());
    let mut kept =
        Kept { process_start, opening: None, modules: Vec::new(), tiers: None, name: None, resumed: None, share };
    loop {
        let mut stagings = Stagings::default();
        let result = run_rank(&mut comm, path, options, &mut kept, &mut stagings);
        let regrouped = match result {
            Ok(report) => {
                comm.pulse.end();
                let code = report.as_ref().map_or(ExitCode::Done, conclude);
                leave(comm, code);
                return Ok(report);
            }
            Err(error) => comm.regroup(error),
        };
        match regrouped {
            Ok(ShrinkOutcome::Over) => {
                comm.pulse.end();
                leave(comm, ExitCode::Done);
                return Ok(None);
            }
            Ok(ShrinkOutcome::Without(dead)) => {
                stagings.suspend();
                kept.note(&dead);
                dead.iter().for_each(|dead| comm.tracer.mark(|| TraceEventKind::Died { rank: dead.rank }));
                if comm.rank() == 0 {
                    tell(&[format_deaths(&dead, comm.size(), &comm.hostnames())], options);
                }
            }
            Err(error) => {
                comm.pulse.end();
                comm.await_others();
                let note = stagings
                    .abandon()
                    .then_some("what is finished is kept: run the same command again to go on from there");
                return Err(comm.fail(&error, note, options.print_error));
            }
        }
    }
}

/// Everything is written and published; what goes wrong from here on changes no result.
fn leave(comm: Communicator, code: ExitCode) {
    if let Err(error) = comm.finalize(code) {
        tracing::warn!("leaving MPI: {error}");
    }
}

fn format_deaths(dead: &[FailedRank], left: u32, hostnames: &BTreeSet<String>) -> String {
    let each = |dead: &FailedRank| match dead.hostname.as_str() {
        "" => format!("rank {}", dead.rank),
        hostname => format!("rank {} ({hostname})", dead.rank),
    };
    let one_node = hostnames.len() <= 1 && dead.iter().all(|dead| hostnames.iter().all(|one| *one == dead.hostname));
    let nodes = if one_node { String::new() } else { format!(" on {} node(s)", hostnames.len()) };
    let dead: Vec<String> = dead.iter().map(each).collect();
    format!("{} died; going on with {left} rank(s){nodes}", dead.join(" and "))
}

fn run_rank(
    comm: &mut Communicator,
    path: &Path,
    options: &Options,
    kept: &mut Kept,
    stagings: &mut Stagings,
) -> Result<Option<Report>, RunError> {
    let (process_start, begun) = (kept.process_start, Instant::now());
    let topology = comm.topology()?;
    comm.watch(&topology);
    if let Some(watched) = options.watched {
        watched();
    }
    let (opening, job) = open(comm, path, options, &mut kept.opening)?;
    let machine = machine(&topology, &opening, &job);
    let plan = Arc::new(plan(&job, &opening.layouts, &machine).map_err(Box::new)?);
    let class = agree(comm, &plan)?;
    let Loaded { kernels, of_stage, merges } = load_kernels(comm, &job, &mut kept.modules)?;
    let of_stages: Vec<&Kernel> = of_stage.iter().map(|kernel| &kernels[*kernel]).collect();
    let again = kept.resumed.is_some();
    let resume = if again { options.resume.once_begun() } else { options.resume };
    let current = CurrentJob { job: &job, plan: &plan, kernels: &of_stages, input_files: &opening.sources };
    let opened = Manifest::open(comm, current, resume, &mut stagings.files);
    // They are an earlier run's, and stay so until this one has taken them up.
    let (manifest, resumed) = opened.inspect_err(|_| stagings.leave())?;
    stagings.manifest = manifest;
    let (resumed_bytes, resumed_tasks) = *kept.resumed.get_or_insert((resumed.bytes, resumed.tasks));
    if comm.rank() == 0 {
        tell(&taken_up(&resumed, again), options);
        let undecided = plan.stages.iter().filter_map(|stage| Some((&stage.name, stage.undecided()?)));
        let notes = undecided.map(|(name, note)| format!("stage '{name}': {note}"));
        tell(&notes.filter(|_| !again).collect::<Vec<_>>(), options);
    }
    let cache = open_cache(options);
    if comm.rank() == 0 && options.suggest_check && !again {
        tell(unchecked(&kernels, cache.as_ref(), path).as_slice(), options);
    }
    let costs = CostHistory::load(comm, cache.as_ref(), &kernels)?;
    let setup = TierSetup {
        engine: Engine::new(Cpu::host(), Pipeline::Full),
        policy: options.tier,
        cache: cache.clone(),
        helper: options.helper.clone(),
        limits: options.compile_limits,
        threads: machine.threads as usize,
        class,
    };
    let tiers = TierUp::start(comm, setup, kernels.clone(), &mut kept.tiers)?;
    let iterated = job.iterate.as_ref().map_or(0..0, |iterate| iterate.stages.clone());
    let waves = plan.waves(iterated.clone());
    let (threads, width) = (machine.threads as usize, waves.iter().map(|wave| wave.len()).max().unwrap_or(1));
    if opening.trace {
        comm.record(&plan, threads * width);
        comm.tracer.end(Some(if again { begun } else { process_start }), || TraceEventKind::Part("start"));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads * width).start_handler(|_| step_back());
    let pool = pool.build();
    let pool = pool.map_err(|e| RunError::Worker { message: e.to_string() })?;
    let share = &mut kept.share;
    share.rank = comm.rank();
    share.hostname = topology.host(share.rank).hostname.clone();
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
    let host = topology.host(0);
    let name = kept.name.get_or_insert_with(|| format!("{}-{}", host.hostname, host.pid));
    comm.begin_pulse(&context, name, share.deaths.len() as u32);
    let mut data = CarryOver::new(costs, Checkpoints::new(options.checkpoint_every));
    let gone_on = stagings.manifest.load(&plan, &mut data.resident)?;
    for wave in waves.into_iter().filter(|wave| wave.start == iterated.start || !iterated.contains(&wave.start)) {
        if wave.start > 0 {
            let next = ResumePoint { stage: wave.start, iteration: 0 };
            data.checkpoints.take_if_due(comm, &plan, next, &data.resident, &mut stagings.manifest)?;
        }
        let runs = !stagings.manifest.skips(&plan.stages[wave.start].name);
        let iterate = job.iterate.as_ref().filter(|iterate| runs && iterate.stages.contains(&wave.start));
        if let Some(iterate) = iterate {
            let first = gone_on.filter(|point| point.stage == wave.start).map_or(0, |point| point.iteration);
            comm.wait_with_signals(true);
            let iterations = run_iterations(comm, tiers, &context, (iterate, first), &mut data, stagings, share)?;
            comm.wait_with_signals(false);
            comm.pulse.iteration = None;
            share.iterations = Some(iterations);
        } else if iterated.contains(&wave.start) {
            // All of them are finished: what they left is taken up.
            for stage in iterated.clone() {
                run_wave(comm, tiers, &context, stage..stage + 1, &mut data, stagings, share)?;
            }
        } else {
            run_wave(comm, tiers, &context, wave, &mut data, stagings, share)?;
        }
    }
    tiers.finish();
    share.kernels = tiers.reports();
    for (index, kernel) in share.kernels.iter_mut().enumerate() {
        kernel.ns_per_slice = data.costs.measured(index).clone();
    }
    share.fabric = comm.traffic();
    let shares = comm.gather(encode(share)?)?;
    let Some(shares) = shares else {
        // Nobody leaves before the outputs are in place: a rank that fails now must still be heard.
        comm.part()?;
        comm.gather_trace(&topology, process_start);
        return Ok(None);
    };
    tell(&stagings.notes, options);
    let begun = comm.tracer.begin();
    let targets: Vec<PathBuf> = stagings.files.keys().cloned().collect();
    opening.sources.check(&targets)?;
    let (outputs, notes) = publish(&job, &plan, stagings)?;
    tell(&notes, options);
    comm.tracer.end(begun, || TraceEventKind::Part("publish"));
    comm.part()?;
    stagings.manifest.conclude();
    let mut ranks = Vec::new();
    for (rank, bytes) in (0..).zip(&shares) {
        let share: RankReport =
            serde_json::from_slice(bytes).map_err(|_| RunError::Protocol { rank, what: "its report" })?;
        ranks.push(share);
    }
    if let Some(cache) = &cache {
        cost_history::save(cache, &kernels, &ranks);
    }
    let hash = blake3::Hash::from_bytes(plan.hash()).to_hex().to_string();
    let environment = environment(&topology, &machine, options);
    let wall_ns = process_start.elapsed().as_nanos() as u64;
    let mut report = Report::join(job.name.clone(), hash, environment, wall_ns, ranks);
    report.outputs = outputs;
    report.resumed_bytes = resumed_bytes;
    report.resumed_tasks = resumed_tasks;
    report.trace = comm.gather_trace(&topology, process_start);
    Ok(Some(report))
}

fn tell(notes: &[String], options: &Options) {
    for note in notes {
        match options.note {
            Some(tell) => tell(note),
            None => tracing::info!("{note}"),
        }
    }
}

/// Which kernels nobody has checked, for a person.
fn unchecked(kernels: &[Kernel], cache: Option<&Cache>, job: &Path) -> Option<String> {
    let unchecked = kernels.iter().filter(|kernel| !cache.is_some_and(|cache| cache.is_checked(kernel)));
    let named: Vec<String> = unchecked.map(|kernel| format!("{} of {}", kernel.export(), kernel.name())).collect();
    let verb = if named.len() == 1 { "has" } else { "have" };
    (!named.is_empty())
        .then(|| format!("{} {verb} not been checked here; try `exuvia check {}`", named.join(", "), job.display()))
}

/// What is taken up from an earlier run, or from this one before deaths, for a person.
fn taken_up(resumed: &Resumed, again: bool) -> Vec<String> {
    let mut what = format!("{} of tensors", bytesize::ByteSize::b(resumed.bytes).display().iec());
    if resumed.tasks > 0 {
        what += &format!(", the partial results of {} tasks", resumed.tasks);
    }
    let went_on = (resumed.bytes + resumed.tasks > 0).then(|| match resumed.iteration {
        _ if again => format!("{what} are finished, and not computed again"),
        0 => format!("going on with what an earlier run finished: {what}"),
        iteration => format!("going on after iteration {iteration} of an earlier run, with {what}"),
    });
    went_on.into_iter().chain(resumed.notes.iter().cloned()).collect()
}

/// Runs the iterated stages until their condition holds, or as often as the job says, and writes what they left; `first` of these
/// iterations were made by earlier runs. Returns the number of iterations, those included.
fn run_iterations(
    comm: &mut Communicator,
    tiers: &mut TierUp,
    context: &Context<'_>,
    (iterate, first): (&Iterate, u64),
    data: &mut CarryOver,
    stagings: &mut Stagings,
    share: &mut RankReport,
) -> Result<u64, RunError> {
    data.deferred = true;
    data.balance.begin();
    let mut iteration = first;
    data.checkpoints.begin_iterations(first);
    comm.pulse.iteration = Some(Iteration { done: first, most: iterate.count });
    loop {
        let begun = comm.tracer.begin();
        for stage_index in iterate.stages.clone() {
            run_wave(comm, tiers, context, stage_index..stage_index + 1, data, stagings, share)?;
        }
        iteration += 1;
        comm.pulse.iteration = Some(Iteration { done: iteration, most: iterate.count });
        comm.tracer.end(begun, || TraceEventKind::Iteration(iteration));
        let done = match &iterate.until {
            Some(until) => until.holds(data.resident.scalar(comm, &context.plan, &until.tensor)?),
            None => false,
        };
        if done || iteration == iterate.count {
            break;
        }
        for pair in &iterate.exchange {
            data.resident.exchange(&pair.read, &pair.written);
        }
        if context.options.steal {
            data.balance.end_iteration(comm)?;
        }
        if data.checkpoints.votes_after(iteration) {
            let next = ResumePoint { stage: iterate.stages.start, iteration };
            data.checkpoints.take_if_due(comm, &context.plan, next, &data.resident, &mut stagings.manifest)?;
        }
    }
    data.deferred = false;
    for stage_index in iterate.stages.clone() {
        let plan = &context.plan.stages[stage_index];
        let (run, resident) = (data.begin_run(), &data.resident);
        let counts = &mut share.stage(&plan.name).counts;
        let (begun, written_before) = (comm.tracer.begin(), counts.written_bytes);
        Outputs::flush(comm, context.job, plan, run, resident, &mut data.places, stagings, counts)?;
        let written_bytes = counts.written_bytes - written_before;
        comm.tracer.end(begun, || TraceEventKind::Write { stage: stage_index, written_bytes });
    }
    Ok(iteration)
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
