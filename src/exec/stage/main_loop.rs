//! Stages that run at the same time, each with workers of its own, under one main loop.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::exec::comm::communicator::Communicator;
use crate::exec::error::{ExitCode, RunError};
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::recovery::staging::Stagings;
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::context::Context;
use crate::exec::stage::stage_run::{StageOutcome, StageRun};
use crate::exec::worker::message::{FromRun, FromWorker};
use crate::fabric::Backoff;
use crate::report::RankReport;
use crate::sched::Action;

/// Messages of workers after which the main thread looks for those of ranks all the same.
const MESSAGES_AT_ONCE: usize = 16;
/// How long a worker that was told to may take to leave.
const LEAVE: Duration = Duration::from_secs(10);

/// How long the tasks under way may take, once the run is asked to end.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs the stages of a wave to their ends on all ranks. What this rank does in them is in its share of the report, also if a death
/// cuts them short.
pub(in crate::exec) fn run_wave(
    comm: &mut Communicator,
    tiers: &mut TierUp,
    context: &Context<'_>,
    wave: Range<usize>,
    data: &mut CarryOver,
    stagings: &mut Stagings,
    share: &mut RankReport,
) -> Result<(), RunError> {
    comm.forget_late(data.next_run());
    let mut stages = Vec::with_capacity(wave.len());
    let begun = { wave }.try_for_each(|stage_index| {
        stages.push(StageRun::begin(comm, tiers, context, stage_index, data, stagings)?);
        Ok(())
    });
    let from_workers = data.from_workers.clone();
    let watched = begun.and_then(|()| watch(comm, tiers, context, &mut stages, &from_workers, stagings));
    if let Err(error) = &watched
        && (error.code() == ExitCode::Resumable || comm.outlives(error))
    {
        drain(comm, &mut stages, &from_workers, stagings);
    }
    let finished = watched.and_then(|()| stages.iter_mut().try_for_each(|stage| stage.finish(comm, data, stagings)));
    for stage in stages {
        add(comm, share, stage.outcome(), context.process_start);
    }
    finished
}

/// Adds what a stage did to the rank's share of the report; a stage that ran before adds to its own.
fn add(comm: &mut Communicator, share: &mut RankReport, outcome: StageOutcome, process_start: Instant) {
    comm.pulse.add(&outcome.report.counts);
    let since_start = |at: Instant| at.duration_since(process_start).as_nanos() as u64;
    let total = share.stage(&outcome.report.stage);
    total.started_ns = total.started_ns.or(Some(since_start(outcome.started)));
    // By now all that the stage left behind is cleared away, which is a part of its time.
    total.wall_ns += outcome.started.elapsed().as_nanos() as u64;
    total.counts.add(&outcome.report.counts);
    share.swaps.extend(outcome.swaps);
    let first_task_ns = outcome.first_task.map(since_start);
    share.first_task_ns = share.first_task_ns.or(first_task_ns);
    for death in share.deaths.iter_mut().filter(|death| death.first_task_ns.is_none()) {
        death.first_task_ns = first_task_ns;
    }
}

/// Looks after stages until all is done and their workers have left.
fn watch(
    comm: &mut Communicator,
    tiers: &mut TierUp,
    context: &Context<'_>,
    stages: &mut [StageRun<'_>],
    from_workers: &Receiver<FromRun>,
    stagings: &mut Stagings,
) -> Result<(), RunError> {
    let mut backoff = Backoff::default();
    while stages.iter().any(|stage| !stage.is_done()) {
        // While workers are at work they wake this thread; after that it waits for other ranks alone.
        let waits = stages.iter().all(StageRun::waits_for_ranks);
        let patience = if waits { Duration::ZERO } else { TierUp::PATIENCE };
        let first = from_workers.recv_timeout(patience).ok();
        for (run, message) in first.into_iter().chain(from_workers.try_iter()).take(MESSAGES_AT_ONCE) {
            // What the scheduler of an earlier run said last, nobody needs.
            if let Some(stage) = stages.iter_mut().find(|stage| stage.run() == run) {
                stage.handle_worker(comm, message, stagings)?;
            }
        }
        stagings.manifest.flush_if_due();
        for stage in stages.iter_mut().filter(|stage| !stage.is_done()) {
            if stage.look(comm, tiers, stagings)? {
                backoff.reset();
            }
        }
        comm.beat(stages, context)?;
        if waits {
            backoff.wait();
        }
    }
    stages.iter_mut().for_each(StageRun::release);
    while stages.iter().any(StageRun::has_workers) {
        let Ok((run, message)) = from_workers.recv_timeout(LEAVE) else {
            return Err(RunError::Worker { message: "it did not end".to_owned() });
        };
        if let Some(stage) = stages.iter_mut().find(|stage| stage.run() == run) {
            stage.handle_worker(comm, message, stagings)?;
        }
    }
    Ok(())
}

/// The run is asked to end, or to go on without some ranks: finishes the tasks that workers are at, as long as that takes no longer than one may wait, and
/// writes what is computed.
fn drain(
    comm: &mut Communicator,
    stages: &mut [StageRun<'_>],
    from_workers: &Receiver<FromRun>,
    stagings: &mut Stagings,
) {
    stagings.manifest.flush();
    comm.pass_on_ending();
    let until = Instant::now() + DRAIN;
    stages.iter_mut().for_each(StageRun::release);
    let finish = || -> Result<(), RunError> {
        while stages.iter().any(StageRun::has_workers) && Instant::now() < until {
            let Ok((run, message)) = from_workers.recv_timeout(Duration::from_millis(20)) else { continue };
            let begins =
                matches!(message, FromWorker::Do(Action::Fetch { .. } | Action::Take { .. } | Action::Send { .. }));
            if let Some(stage) = stages.iter_mut().find(|stage| stage.run() == run && !begins) {
                stage.handle_worker(comm, message, stagings)?;
            }
        }
        stages.iter_mut().try_for_each(|stage| stage.save_parts(comm, stagings, true))
    };
    if let Err(error) = { finish }() {
        tracing::warn!("while finishing what was begun: {error}");
    }
    stagings.manifest.flush();
}
