//! Checkpoints: what is in the memory of the ranks between stages and iterations, in a file of the manifest from time to time.
//!
//! How often: what a checkpoint costs is weighed against what a failure would cost (Young 1974), and never takes more than a
//! hundredth of the time; where the allocation has an end, more often towards it. Rank 0 decides, at points that all ranks agree
//! on beforehand, so that iterations of microseconds are not held up.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::recovery::manifest::Manifest;
use crate::exec::recovery::snapshot::{CheckpointIndex, SavedTensor};
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::transfer::resident::{Holding, Resident};
use crate::fabric::Payload;
use crate::plan::Plan;
use crate::store::{OutputLayout, OutputSpec, Staging, Writer};
use crate::tensor::Region;
use crate::topology;

/// Ranks look that often whether a checkpoint is due, or the run is to end.
const LOOK: Duration = Duration::from_millis(250);
/// Between two failures of what a run runs on, by assumption.
const BETWEEN_FAILURES: Duration = Duration::from_secs(24 * 3600);
/// A checkpoint takes at most this part of the time.
const SHARE: u32 = 100;
/// What is written in a second, as long as none has been.
const BYTES_PER_SECOND: f64 = 200e6;

/// When checkpoints are taken.
#[derive(Debug)]
pub(in crate::exec) struct Checkpoints {
    /// Asked for; otherwise it follows from what they cost.
    every: Option<Duration>,
    last: Instant,
    cost: Option<Duration>,
    /// The next iteration after which ranks look.
    next_look: u64,
    looked: (u64, Instant),
    taken: u64,
}

/// What rank 0 says at a look.
#[derive(Serialize, Deserialize)]
struct CheckpointVote {
    signal: Option<usize>,
    is_due: bool,
    next_look: u64,
}

impl Checkpoints {
    pub fn new(every: Option<Duration>) -> Checkpoints {
        let now = Instant::now();
        Checkpoints { every, last: now, cost: None, next_look: 0, looked: (0, now), taken: 0 }
    }

    /// Iterations begin, after so many of earlier runs.
    pub fn begin_iterations(&mut self, iteration: u64) {
        (self.next_look, self.looked) = (iteration + 1, (iteration, Instant::now()));
    }

    /// Whether ranks look after this iteration.
    pub fn looks_after(&self, iteration: u64) -> bool {
        iteration == self.next_look
    }

    /// Takes a checkpoint if one is due or the run is to end; ends it then. `next` is the stage that comes next. Collective.
    pub fn look(
        &mut self,
        comm: &mut Communicator,
        plan: &Plan,
        (next, iteration): (usize, u64),
        resident: &Resident,
        manifest: &mut Manifest,
    ) -> Result<(), RunError> {
        let wrong = |rank| RunError::Protocol { rank, what: "whether a checkpoint is due" };
        let mine = CheckpointVote {
            signal: comm.signal(),
            is_due: comm.rank() == 0 && self.is_due(resident, comm.size()),
            next_look: self.after(iteration),
        };
        let all = comm.allgather(encode(&mine)?)?;
        let words = (0..).zip(&all).map(|(rank, bytes)| serde_json::from_slice(bytes).map_err(|_| wrong(rank)));
        let words: Vec<CheckpointVote> = words.collect::<Result<_, _>>()?;
        let signal = words.iter().find_map(|word| word.signal);
        let first = words.first().ok_or_else(|| wrong(0))?;
        (self.next_look, self.looked) = (first.next_look, (iteration, Instant::now()));
        if (first.is_due || signal.is_some()) && manifest.lasts() && !resident.is_empty() {
            self.take(comm, plan, (next, iteration), resident, manifest)?;
        }
        signal.map_or(Ok(()), |signal| Err(comm.end_by(signal)))
    }

    /// The iteration after which ranks look next, from how long those since the last look took.
    fn after(&self, iteration: u64) -> u64 {
        let each = self.looked.1.elapsed().as_secs_f64() / (iteration - self.looked.0).max(1) as f64;
        iteration + ((LOOK.as_secs_f64() / each.max(1e-9)) as u64).max(1)
    }

    fn is_due(&self, resident: &Resident, ranks: u32) -> bool {
        let guess = || Duration::from_secs_f64(resident.bytes() as f64 * f64::from(ranks) / BYTES_PER_SECOND);
        let cost = self.cost.unwrap_or_else(guess);
        let left = topology::allocation_end().map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        self.last.elapsed() >= self.every.unwrap_or_else(|| interval(cost, left))
    }

    /// Writes all that is resident. Collective.
    fn take(
        &mut self,
        comm: &mut Communicator,
        plan: &Plan,
        (next, iteration): (usize, u64),
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
            let stage = plan.stages[next].name.clone();
            manifest.note_checkpoint(CheckpointIndex { stage, iteration, file, tensors });
        }
        comm.tracer.end(Some(started), || TraceEventKind::Part("checkpoint"));
        self.taken += 1;
        (self.last, self.cost) = (Instant::now(), Some(started.elapsed()));
        Ok(())
    }
}

/// From one checkpoint to the next, each of which takes `cost`, when the allocation ends in `left`.
fn interval(cost: Duration, left: Option<Duration>) -> Duration {
    let seconds = (2.0 * cost.as_secs_f64() * BETWEEN_FAILURES.as_secs_f64()).sqrt();
    let interval = Duration::from_secs_f64(seconds).max(cost * SHARE);
    left.map_or(interval, |left| interval.min((left / 2).max(cost * 10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_checkpoints_come_often_and_the_end_brings_them_closer() {
        let seconds = Duration::from_secs;
        assert_eq!(interval(Duration::from_millis(500), None), Duration::from_secs_f64(86400f64.sqrt()));
        assert_eq!(interval(seconds(60), None), seconds(6000), "no more than a hundredth");
        assert_eq!(interval(seconds(60), Some(seconds(3600))), seconds(1800));
        assert_eq!(interval(seconds(60), Some(seconds(100))), seconds(600), "too late for another one");
        assert_eq!(interval(Duration::ZERO, None), Duration::ZERO);
    }

    #[test]
    fn ranks_look_about_four_times_a_second() {
        let mut checkpoints = Checkpoints::new(None);
        checkpoints.begin_iterations(5);
        assert!(checkpoints.looks_after(6) && !checkpoints.looks_after(7));
        checkpoints.looked = (5, Instant::now() - Duration::from_millis(100));
        let next = checkpoints.after(15);
        assert!((35..=40).contains(&next), "{next}");
        checkpoints.looked = (5, Instant::now() - Duration::from_secs(100));
        assert_eq!(checkpoints.after(6), 7);
    }
}
