//! The stages of a run: its waves, and the iterations of iterated stages.

use std::ops::Range;

use crate::exec::comm::communicator::Communicator;
use crate::exec::dataset::outputs::Outputs;
use crate::exec::error::RunError;
use crate::exec::kernels::cost_history::CostHistory;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::options::Options;
use crate::exec::progress::ProgressSetup;
use crate::exec::recovery::checkpoint::Checkpoints;
use crate::exec::recovery::snapshot::ResumePoint;
use crate::exec::recovery::staging::Stagings;
use crate::exec::run::prepare::Prepared;
use crate::exec::run::state::RunState;
use crate::exec::run::trace_collection;
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::context::Context;
use crate::exec::stage::main_loop::{RankState, run_wave};
use crate::exec::trace::recorder::TraceEventKind;
use crate::job::Iterate;
use crate::live::{Iteration, Snapshot};

/// How much a worker gives way to the main thread, which other ranks wait for, and to the optimizing compiler. On Linux
/// each thread has a priority of its own.
const WORKER_NICENESS: i32 = 5;

/// Runs all stages of the job. Collective.
pub(super) fn execute(
    comm: &mut Communicator,
    options: &Options,
    prepared: &Prepared,
    state: &mut RunState,
    stagings: &mut Stagings,
) -> Result<(), RunError> {
    let Prepared { job, plan, topology, machine, loaded, .. } = prepared;
    let costs = CostHistory::load(comm, prepared.cache.as_ref(), &loaded.kernels)?;
    let tiers = TierUp::start(comm, prepared.tier_setup(options), loaded.kernels.clone(), &mut state.tiers)?;
    let iterated = job.iterate.as_ref().map_or(0..0, |iterate| iterate.stages.clone());
    let waves = plan.waves(iterated.clone());
    let threads = machine.threads as usize;
    let pool_size = threads * waves.iter().map(|wave| wave.len()).max().unwrap_or(1);
    if prepared.setup.trace {
        trace_collection::start(comm, &mut state.incarnations, plan, pool_size);
        comm.tracer.end(Some(prepared.started), || TraceEventKind::Part("start"));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(pool_size).start_handler(|_| lower_priority()).build();
    let pool = pool.map_err(|e| RunError::Worker { message: e.to_string() })?;
    let context = Context {
        job,
        plan: plan.clone(),
        topology,
        options,
        pool: &pool,
        threads,
        process_start: state.process_start,
        kernels: loaded.of_stage.clone(),
        merges: loaded.merges.clone(),
    };
    let host = topology.host(0);
    let name = state.name.get_or_insert_with(|| format!("{}-{}", host.hostname, host.pid));
    state.report.rank = comm.rank();
    state.report.hostname = topology.host(comm.rank()).hostname.clone();
    state.progress.start(comm.rank(), progress_setup(&context, name, state.report.deaths.len() as u32));
    let mut data = CarryOver::new(costs, Checkpoints::new(options.checkpoint_every));
    let RunState { progress, report, .. } = state;
    let mut rank = RankState { comm, tiers, progress, data: &mut data, stagings, report };
    run_waves(&mut rank, &context, waves, iterated)?;
    tiers.finish();
    report.kernels = tiers.reports();
    for (index, kernel) in report.kernels.iter_mut().enumerate() {
        kernel.ns_per_slice = data.costs.measured(index).clone();
    }
    report.fabric = comm.traffic();
    Ok(())
}

fn progress_setup(context: &Context<'_>, name: &str, deaths: u32) -> ProgressSetup {
    let snapshot = Snapshot {
        schema: Snapshot::SCHEMA,
        job: context.job.name.clone(),
        file: context.job.path.clone(),
        slurm_job: crate::topology::slurm_job(),
        rank_0: context.topology.host(0).process(),
        nodes: context.topology.node_count(),
        threads_per_rank: context.threads as u32,
        deaths,
        ..Snapshot::default()
    };
    ProgressSetup {
        plan: context.plan.clone(),
        topology: context.topology.clone(),
        process_start: context.process_start,
        show: context.options.progress,
        live: context.options.live.clone(),
        name: name.to_owned(),
        snapshot,
    }
}

fn run_waves(
    rank: &mut RankState<'_>,
    context: &Context<'_>,
    waves: Vec<Range<usize>>,
    iterated: Range<usize>,
) -> Result<(), RunError> {
    let resume_point = rank.stagings.manifest.load(&context.plan, &mut rank.data.resident)?;
    for wave in waves.into_iter().filter(|wave| wave.start == iterated.start || !iterated.contains(&wave.start)) {
        if wave.start > 0 {
            take_checkpoint_if_due(rank, context, ResumePoint { stage: wave.start, iteration: 0 })?;
        }
        if !iterated.contains(&wave.start) {
            run_wave(rank, context, wave)?;
            continue;
        }
        let is_complete = rank.stagings.manifest.skips(&context.plan.stages[wave.start].name);
        match context.job.iterate.as_ref().filter(|_| !is_complete) {
            Some(iterate) => {
                let first = resume_point.filter(|point| point.stage == wave.start).map_or(0, |point| point.iteration);
                rank.comm.defer_signals(true);
                let iterations = run_iterations(rank, context, iterate, first)?;
                rank.comm.defer_signals(false);
                rank.progress.set_iteration(None);
                rank.report.iterations = Some(iterations);
            }
            // An earlier run has completed all of them: only what they left is taken up.
            None => iterated.clone().try_for_each(|stage| run_wave(rank, context, stage..stage + 1))?,
        }
    }
    Ok(())
}

fn take_checkpoint_if_due(rank: &mut RankState<'_>, context: &Context<'_>, next: ResumePoint) -> Result<(), RunError> {
    let RankState { comm, data, stagings, .. } = rank;
    data.checkpoints.take_if_due(comm, &context.plan, next, &data.resident, &mut stagings.manifest)
}

/// Runs the iterated stages until their condition holds, or as often as the job says, and writes their outputs. Earlier
/// runs made the `first` iterations. Returns the number of all iterations.
fn run_iterations(
    rank: &mut RankState<'_>,
    context: &Context<'_>,
    iterate: &Iterate,
    first: u64,
) -> Result<u64, RunError> {
    rank.data.deferred = true;
    rank.data.balance.begin();
    let mut iteration = first;
    rank.data.checkpoints.begin_iterations(first);
    rank.progress.set_iteration(Some(Iteration { done: first, most: iterate.count }));
    loop {
        let started = rank.comm.tracer.begin();
        for stage_index in iterate.stages.clone() {
            run_wave(rank, context, stage_index..stage_index + 1)?;
        }
        iteration += 1;
        rank.progress.set_iteration(Some(Iteration { done: iteration, most: iterate.count }));
        rank.comm.tracer.end(started, || TraceEventKind::Iteration(iteration));
        let done = match &iterate.until {
            Some(until) => until.holds(rank.data.resident.scalar(rank.comm, &context.plan, &until.tensor)?),
            None => false,
        };
        if done || iteration == iterate.count {
            break;
        }
        for pair in &iterate.exchange {
            rank.data.resident.exchange(&pair.read, &pair.written);
        }
        if context.options.steal {
            rank.data.balance.end_iteration(rank.comm)?;
        }
        if rank.data.checkpoints.votes_after(iteration) {
            take_checkpoint_if_due(rank, context, ResumePoint { stage: iterate.stages.start, iteration })?;
        }
    }
    rank.data.deferred = false;
    write_iterated(rank, context, iterate)?;
    Ok(iteration)
}

/// Writes the outputs of iterated stages, which wait in memory for the last iteration.
fn write_iterated(rank: &mut RankState<'_>, context: &Context<'_>, iterate: &Iterate) -> Result<(), RunError> {
    let RankState { comm, data, stagings, report, .. } = rank;
    for stage_index in iterate.stages.clone() {
        let plan = &context.plan.stages[stage_index];
        let (run, resident) = (data.begin_run(), &data.resident);
        let counts = &mut report.stage(&plan.name).counts;
        let (started, written_before) = (comm.tracer.begin(), counts.written_bytes);
        Outputs::flush(comm, context.job, plan, run, resident, &mut data.places, stagings, counts)?;
        let written_bytes = counts.written_bytes - written_before;
        comm.tracer.end(started, || TraceEventKind::Write { stage: stage_index, written_bytes });
    }
    Ok(())
}

/// Lowers the priority of this thread.
fn lower_priority() {
    if let Err(error) = rustix::process::nice(WORKER_NICENESS) {
        tracing::debug!("a worker keeps its priority: {error}");
    }
}
