//! Stages that run at the same time, each with workers of its own, under one main loop.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::Tag;
use crate::exec::error::{ExitCode, RunError};
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::progress::ProgressReporter;
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

/// The state of a rank that the stages of a run change.
pub(in crate::exec) struct RankState<'a> {
    pub comm: &'a mut Communicator,
    pub tiers: &'a mut TierUp,
    pub progress: &'a mut ProgressReporter,
    pub data: &'a mut CarryOver,
    pub stagings: &'a mut Stagings,
    /// This rank's part of the report.
    pub report: &'a mut RankReport,
}

/// Runs the stages of a wave to their ends on all ranks. This rank's report has what it did in them, also if a failed
/// rank cuts them short.
pub(in crate::exec) fn run_wave(
    rank: &mut RankState<'_>,
    context: &Context<'_>,
    wave: Range<usize>,
) -> Result<(), RunError> {
    rank.comm.forget_late(rank.data.next_run());
    let mut stages = Vec::with_capacity(wave.len());
    let started = { wave }.try_for_each(|stage_index| {
        let RankState { comm, tiers, data, stagings, .. } = &mut *rank;
        stages.push(StageRun::begin(comm, tiers, context, stage_index, data, stagings)?);
        Ok(())
    });
    let from_workers = rank.data.from_workers.clone();
    let served = started.and_then(|()| serve(rank, &mut stages, &from_workers));
    let RankState { comm, data, stagings, .. } = &mut *rank;
    if let Err(error) = &served
        && (error.code() == ExitCode::Resumable || comm.can_shrink_after(error))
    {
        drain(comm, &mut stages, &from_workers, stagings);
    }
    let finished = served.and_then(|()| stages.iter_mut().try_for_each(|stage| stage.finish(comm, data, stagings)));
    for stage in stages {
        let outcome = stage.outcome();
        rank.progress.add_finished(&outcome.report.counts);
        add(rank.report, outcome, context.process_start);
    }
    finished
}

/// Adds the outcome of a stage to this rank's report; a stage that ran before adds to its own entry.
fn add(report: &mut RankReport, outcome: StageOutcome, process_start: Instant) {
    let since_start = |at: Instant| at.duration_since(process_start).as_nanos() as u64;
    let total = report.stage(&outcome.report.stage);
    total.started_ns = total.started_ns.or(Some(since_start(outcome.started)));
    // By now all data that the stage left behind is freed, which is a part of its time.
    total.wall_ns += outcome.started.elapsed().as_nanos() as u64;
    total.counts.add(&outcome.report.counts);
    report.swaps.extend(outcome.swaps);
    let first_task_ns = outcome.first_task.map(since_start);
    report.first_task_ns = report.first_task_ns.or(first_task_ns);
    for death in report.deaths.iter_mut().filter(|death| death.first_task_ns.is_none()) {
        death.first_task_ns = first_task_ns;
    }
}

/// Serves stages until all is done and their workers have left.
fn serve(
    rank: &mut RankState<'_>,
    stages: &mut [StageRun<'_>],
    from_workers: &Receiver<FromRun>,
) -> Result<(), RunError> {
    let mut backoff = Backoff::default();
    while stages.iter().any(|stage| !stage.is_done()) {
        // While workers are at work they wake this thread; after that it waits for other ranks alone.
        let waits = stages.iter().all(StageRun::waits_for_ranks);
        let patience = if waits { Duration::ZERO } else { TierUp::PATIENCE };
        let first = from_workers.recv_timeout(patience).ok();
        for (run, message) in first.into_iter().chain(from_workers.try_iter()).take(MESSAGES_AT_ONCE) {
            handle_worker(rank.comm, rank.stagings, stages, run, message)?;
        }
        rank.stagings.manifest.flush_if_due();
        if route_messages(rank, stages)? {
            backoff.reset();
        }
        for stage in stages.iter_mut().filter(|stage| !stage.is_done()) {
            stage.poll(rank.comm, rank.tiers, rank.stagings)?;
        }
        rank.progress.report(rank.comm, stages.iter().map(StageRun::progress))?;
        if waits {
            backoff.wait();
        }
    }
    stages.iter_mut().for_each(StageRun::release);
    while stages.iter().any(StageRun::has_workers) {
        let Ok((run, message)) = from_workers.recv_timeout(LEAVE) else {
            return Err(RunError::Worker { message: "it did not end".to_owned() });
        };
        handle_worker(rank.comm, rank.stagings, stages, run, message)?;
    }
    Ok(())
}

/// Passes a worker's message to its stage. The last messages of the scheduler of an earlier run are dropped.
fn handle_worker(
    comm: &mut Communicator,
    stagings: &mut Stagings,
    stages: &mut [StageRun<'_>],
    run: u64,
    message: FromWorker,
) -> Result<(), RunError> {
    match stages.iter_mut().find(|stage| stage.run() == run) {
        Some(stage) => stage.handle_worker(comm, message, stagings),
        None => Ok(()),
    }
}

/// Passes all messages of other ranks to where they belong. Returns whether there were any.
fn route_messages(rank: &mut RankState<'_>, stages: &mut [StageRun<'_>]) -> Result<bool, RunError> {
    let mut any = false;
    loop {
        let wanted = |tag| match tag {
            Tag::Artifact | Tag::Progress => true,
            Tag::Stage { run, .. } => stages.iter().any(|stage| stage.expects(run)),
            Tag::NodeMemory | Tag::Control(_) => false,
        };
        let Some(message) = rank.comm.poll(wanted)? else { return Ok(any) };
        any = true;
        match message.tag {
            Tag::Artifact => rank.tiers.receive(rank.comm, &message)?,
            Tag::Progress => rank.progress.record_report(&message),
            Tag::Stage { kind, run } => {
                if let Some(stage) = stages.iter_mut().find(|stage| stage.expects(run)) {
                    stage.handle_rank(rank.comm, kind, message, rank.stagings)?;
                }
            }
            Tag::NodeMemory | Tag::Control(_) => unreachable!("{:?} is not wanted", message.tag),
        }
    }
}

/// Stops a wave after an interruption or a failure: waits a limited time for the tasks that workers compute, and writes
/// the computed parts of their blocks.
fn drain(
    comm: &mut Communicator,
    stages: &mut [StageRun<'_>],
    from_workers: &Receiver<FromRun>,
    stagings: &mut Stagings,
) {
    stagings.manifest.flush();
    comm.forward_signal();
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
