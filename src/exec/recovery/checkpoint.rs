//! Checkpoints: from time to time, between stages and iterations, all resident tensors are saved in a file of the
//! manifest.
//!
//! The interval balances the cost of a checkpoint against the cost of a failure (Young 1974), and keeps checkpoints to
//! a hundredth of the time. Towards the end of an allocation they come more often. Rank 0 decides, at points that all
//! ranks agree on beforehand, so that iterations of microseconds are not held up.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::recovery::manifest::Manifest;
use crate::exec::recovery::snapshot::{CheckpointIndex, ResumePoint, SavedTensor};
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::transfer::resident::{Holding, Resident};
use crate::fabric::Payload;
use crate::plan::Plan;
use crate::store::{OutputLayout, OutputSpec, Staging, Writer};
use crate::tensor::Region;
use crate::topology;

/// How often ranks vote on whether a checkpoint is due or the run is to end.
const VOTE_INTERVAL: Duration = Duration::from_millis(250);
/// Assumed time between two failures of the nodes of a run.
const BETWEEN_FAILURES: Duration = Duration::from_secs(24 * 3600);
/// A checkpoint takes at most one part in this many of the time.
const COST_PART: u32 = 100;
/// Assumed write rate until the first checkpoint is taken.
const BYTES_PER_SECOND: f64 = 200e6;

/// Decides when checkpoints are taken, and takes them.
#[derive(Debug)]
pub(in crate::exec) struct Checkpoints {
    /// The interval that the user asked for; otherwise it follows from the cost.
    every: Option<Duration>,
    last: Instant,
    cost: Option<Duration>,
    /// The iteration after which ranks vote next.
    next_vote: u64,
    last_vote: VotePoint,
    taken: u64,
}

/// The iteration and time of a vote.
#[derive(Clone, Copy, Debug)]
struct VotePoint {
    iteration: u64,
    at: Instant,
}

/// A rank's vote on whether a checkpoint is due. Only that of rank 0 counts, but a signal may reach any rank.
#[derive(Serialize, Deserialize)]
struct CheckpointVote {
    signal: Option<usize>,
    is_due: bool,
    next_look: u64,
}

impl Checkpoints {
    pub fn new(every: Option<Duration>) -> Checkpoints {
        let now = Instant::now();
        Checkpoints {
            every,
            last: now,
            cost: None,
            next_vote: 0,
            last_vote: VotePoint { iteration: 0, at: now },
            taken: 0,
        }
    }

    /// Begins with iterations; earlier runs completed `iteration` of them.
    pub fn begin_iterations(&mut self, iteration: u64) {
        self.next_vote = iteration + 1;
        self.last_vote = VotePoint { iteration, at: Instant::now() };
    }

    /// Whether ranks vote after this iteration.
    pub fn votes_after(&self, iteration: u64) -> bool {
        iteration == self.next_vote
    }

    /// Takes a checkpoint if one is due or a signal ends the run; returns the signal's error then. Collective.
    pub fn take_if_due(
        &mut self,
        comm: &mut Communicator,
        plan: &Plan,
        next: ResumePoint,
        resident: &Resident,
        manifest: &mut Manifest,
    ) -> Result<(), RunError> {
        let wrong = |rank| RunError::Protocol { rank, what: "whether a checkpoint is due" };
        let mine = CheckpointVote {
            signal: comm.signal(),
            is_due: comm.rank() == 0 && self.is_due(resident, comm.size()),
            next_look: self.vote_after(next.iteration),
        };
        let all = comm.allgather(encode(&mine)?)?;
        let votes = (0..).zip(&all).map(|(rank, bytes)| serde_json::from_slice(bytes).map_err(|_| wrong(rank)));
        let votes: Vec<CheckpointVote> = votes.collect::<Result<_, _>>()?;
        let signal = votes.iter().find_map(|vote| vote.signal);
        let first = votes.first().ok_or_else(|| wrong(0))?;
        self.next_vote = first.next_look;
        self.last_vote = VotePoint { iteration: next.iteration, at: Instant::now() };
        if (first.is_due || signal.is_some()) && manifest.lasts() && !resident.is_empty() {
            self.take(comm, plan, next, resident, manifest)?;
        }
        signal.map_or(Ok(()), |signal| Err(comm.interrupt(signal)))
    }

    /// Returns the iteration after which ranks vote next, given how long those since the last vote took.
    fn vote_after(&self, iteration: u64) -> u64 {
        let each = self.last_vote.at.elapsed().as_secs_f64() / (iteration - self.last_vote.iteration).max(1) as f64;
        iteration + ((VOTE_INTERVAL.as_secs_f64() / each.max(1e-9)) as u64).max(1)
    }

    fn is_due(&self, resident: &Resident, ranks: u32) -> bool {
        let guess = || Duration::from_secs_f64(resident.bytes() as f64 * f64::from(ranks) / BYTES_PER_SECOND);
        let cost = self.cost.unwrap_or_else(guess);
        let left = topology::allocation_end().map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        self.last.elapsed() >= self.every.unwrap_or_else(|| interval(cost, left))
    }

    /// Saves all resident tensors. Collective.
    fn take(
        &mut self,
        comm: &mut Communicator,
        plan: &Plan,
        next: ResumePoint,
        resident: &Resident,
        manifest: &mut Manifest,
    ) -> Result<(), RunError> {
        let started = Instant::now();
        let wrong = |rank| RunError::Protocol { rank, what: "its part of a checkpoint" };
        let holdings: Vec<(&String, &Holding)> = resident.all().collect();
        let (mut staging, mut encoded) = (None, None);
        if comm.rank() == 0 {
            let (file, mut specs) = (manifest.checkpoint_file(self.taken), Vec::new());
            for (tensor, holding) in &holdings {
                let operand = &plan.stages[holding.stage].operands[holding.operand];
                let (dtype, shape) = (operand.dtype, operand.shape.clone());
                specs.push(OutputSpec { dataset: (*tensor).clone(), dtype, shape, chunk: None, deflate: None });
            }
            let mut begun = Staging::anew(&file, "new")?;
            encoded = Some(Payload::from(encode(&begun.create(&specs)?)?));
            staging = Some((begun, file));
        }
        let layouts: Vec<OutputLayout> = serde_json::from_slice(&comm.broadcast(encoded)?).map_err(|_| wrong(0))?;
        let mut mine: Vec<Vec<(Region, u32)>> = Vec::with_capacity(holdings.len());
        for ((_, holding), layout) in holdings.iter().zip(&layouts) {
            let mut writer = Writer::open(layout)?;
            let mut pieces = Vec::with_capacity(holding.pieces.len());
            for piece in &holding.pieces {
                writer.write(&piece.region, &piece.bytes)?;
                pieces.push((piece.region.clone(), crc32fast::hash(&piece.bytes)));
            }
            mine.push(pieces);
        }
        let all = comm.gather(encode(&mine)?)?;
        if let (Some(all), Some((mut staging, file))) = (all, staging) {
            let mut tensors: Vec<SavedTensor> = Vec::with_capacity(holdings.len());
            for ((tensor, holding), mut layout) in holdings.into_iter().zip(layouts) {
                layout.temporary = file.clone();
                let stage = plan.stages[holding.stage].name.clone();
                let (tensor, operand) = (tensor.clone(), holding.operand);
                tensors.push(SavedTensor { tensor, stage, operand, layout, pieces: Vec::new() });
            }
            for (rank, bytes) in (0..).zip(&all) {
                let parts: Vec<Vec<(Region, u32)>> = serde_json::from_slice(bytes).map_err(|_| wrong(rank))?;
                tensors.iter_mut().zip(parts).for_each(|(tensor, parts)| tensor.pieces.extend(parts));
            }
            staging.publish()?;
            let stage = plan.stages[next.stage].name.clone();
            manifest.record_checkpoint(CheckpointIndex { stage, iteration: next.iteration, file, tensors });
        }
        comm.tracer.end(Some(started), || TraceEventKind::Part("checkpoint"));
        self.taken += 1;
        (self.last, self.cost) = (Instant::now(), Some(started.elapsed()));
        Ok(())
    }
}

/// Returns the interval between checkpoints that take `cost` each, in an allocation that ends in `left`.
fn interval(cost: Duration, left: Option<Duration>) -> Duration {
    let seconds = (2.0 * cost.as_secs_f64() * BETWEEN_FAILURES.as_secs_f64()).sqrt();
    let interval = Duration::from_secs_f64(seconds).max(cost * COST_PART);
    left.map_or(interval, |left| interval.min((left / 2).max(cost * 10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_follows_from_the_cost_and_shrinks_towards_the_end_of_an_allocation() {
        let seconds = Duration::from_secs;
        assert_eq!(interval(Duration::from_millis(500), None), Duration::from_secs_f64(86400f64.sqrt()));
        assert_eq!(interval(seconds(60), None), seconds(6000), "no more than a hundredth");
        assert_eq!(interval(seconds(60), Some(seconds(3600))), seconds(1800));
        assert_eq!(interval(seconds(60), Some(seconds(100))), seconds(600), "no time for another one");
        assert_eq!(interval(Duration::ZERO, None), Duration::ZERO);
    }

    #[test]
    fn ranks_vote_about_four_times_a_second() {
        let mut checkpoints = Checkpoints::new(None);
        checkpoints.begin_iterations(5);
        assert!(checkpoints.votes_after(6) && !checkpoints.votes_after(7));
        checkpoints.last_vote.at = Instant::now() - Duration::from_millis(100);
        let next = checkpoints.vote_after(15);
        assert!((35..=40).contains(&next), "{next}");
        checkpoints.last_vote.at = Instant::now() - Duration::from_secs(100);
        assert_eq!(checkpoints.vote_after(6), 7);
    }
}
