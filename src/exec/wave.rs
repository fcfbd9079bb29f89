//! Stages that run at the same time, each with workers of its own, under one main loop.

use std::ops::Range;
use std::time::Duration;

use super::RunError;
use super::data::Data;
use super::link::Link;
use super::outputs::Stagings;
use super::stage::{Context, Running, StageOutcome};
use super::tiers::Tiers;
use crate::fabric::Backoff;

/// Messages of workers after which the main thread looks for those of ranks all the same.
const MESSAGES_AT_ONCE: usize = 16;
/// How long a worker that was told to may take to leave.
const LEAVE: Duration = Duration::from_secs(10);

/// Runs the stages of a wave to their ends on all ranks.
pub(super) fn run_wave(
    link: &mut Link,
    tiers: &mut Tiers,
    context: &Context<'_>,
    wave: Range<usize>,
    data: &mut Data,
    stagings: &mut Stagings,
) -> Result<Vec<StageOutcome>, RunError> {
    link.forget_late(data.next_run());
    let mut stages = Vec::with_capacity(wave.len());
    for stage_index in wave {
        stages.push(Running::begin(link, tiers, context, stage_index, data, stagings)?);
    }
    let from_workers = data.from_workers.clone();
    let mut backoff = Backoff::default();
    while stages.iter().any(|stage| !stage.is_done()) {
        // While workers are at work they wake this thread; after that it waits for other ranks alone.
        let waits = stages.iter().all(Running::waits_for_ranks);
        let patience = if waits { Duration::ZERO } else { Tiers::PATIENCE };
        let first = from_workers.recv_timeout(patience).ok();
        for (run, message) in first.into_iter().chain(from_workers.try_iter()).take(MESSAGES_AT_ONCE) {
            // What the scheduler of an earlier run said last, nobody needs.
            if let Some(stage) = stages.iter_mut().find(|stage| stage.run == run) {
                stage.heed_worker(link, message, stagings)?;
            }
        }
        for stage in stages.iter_mut().filter(|stage| !stage.is_done()) {
            if stage.look(link, tiers, stagings)? {
                backoff.reset();
            }
        }
        if waits {
            backoff.wait();
        }
    }
    stages.iter_mut().for_each(Running::release);
    while stages.iter().any(Running::has_workers) {
        let Ok((run, message)) = from_workers.recv_timeout(LEAVE) else {
            return Err(RunError::Worker { message: "it did not end".to_owned() });
        };
        if let Some(stage) = stages.iter_mut().find(|stage| stage.run == run) {
            stage.heed_worker(link, message, stagings)?;
        }
    }
    let mut outcomes = Vec::with_capacity(stages.len());
    for stage in stages {
        outcomes.push(stage.finish(link, data, stagings)?);
    }
    Ok(outcomes)
}
