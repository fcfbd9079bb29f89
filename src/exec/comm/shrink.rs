//! Going on without ranks that died: the ranks that are left agree on who that is, and begin the run again as fewer.
//!
//! Refuses to do: keeping what the dead had. What they had finished is in the manifest; the rest is computed again.

use std::time::{Duration, Instant};

use crate::exec::comm::communicator::{Communicator, tag};
use crate::exec::comm::monitor::Interruption;
use crate::exec::error::RunError;
use crate::fabric::{Backoff, Rank};
use crate::topology::{Topology, Watch};

/// For all survivors to say who has died: each does as soon as its main thread looks for messages.
const AGREEMENT: Duration = Duration::from_secs(30);
/// For a death to show that has broken a connection already.
const SHOWS: Duration = Duration::from_millis(200);

/// A rank that died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::exec) struct FailedRank {
    /// Its number when the run was started.
    pub rank: Rank,
    pub hostname: String,
}

/// How a run goes on after deaths.
#[derive(Debug)]
pub(in crate::exec) enum ShrinkOutcome {
    /// From the manifest, without these ranks.
    Without(Vec<FailedRank>),
    /// Not at all: its outputs are in place.
    Over,
}

impl Communicator {
    /// Whether the ranks that are left can go on after this error.
    pub fn outlives(&self, error: &RunError) -> bool {
        self.fabric.outlives_ranks() && matches!(error, RunError::RankDied { .. })
    }

    /// After an error: if it was a death that the others can go on without, agrees with them on who is dead, and numbers them
    /// anew. Otherwise it stays the error that it is.
    pub fn regroup(&mut self, mut error: RunError) -> Result<ShrinkOutcome, RunError> {
        if self.fabric.outlives_ranks() && matches!(error, RunError::Fabric(_)) {
            let until = Instant::now() + SHOWS;
            while !self.knows_of_deaths() && Instant::now() < until && self.notice().is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.knows_of_deaths() {
                error = self.monitor.error(crate::fabric::FabricError::Interrupted);
            }
        }
        if !self.outlives(&error) {
            return Err(error);
        }
        let (mut backoff, until) = (Backoff::default(), Instant::now() + AGREEMENT);
        loop {
            self.notice()?;
            if self.monitor.over.contains(&0) {
                return Ok(ShrinkOutcome::Over);
            }
            if self.monitor.agreement.is_reached() {
                break;
            }
            if Instant::now() > until {
                tracing::warn!("the ranks that are left have not agreed on who died within {AGREEMENT:?}");
                return Err(error);
            }
            backoff.wait();
        }
        Ok(ShrinkOutcome::Without(self.go_on_without_the_dead()))
    }

    fn knows_of_deaths(&self) -> bool {
        matches!(self.monitor.ending, Some(Interruption::Died { .. }))
    }

    /// Takes in what has arrived; fails if another rank has ended the run. Signals wait.
    fn notice(&mut self) -> Result<(), RunError> {
        self.monitor.ending.take_if(|ending| !matches!(ending, Interruption::Elsewhere(_)));
        let noticed = self.monitor.notice(&mut *self.fabric).map_err(RunError::Fabric);
        match self.monitor.ending {
            Some(Interruption::Elsewhere(_)) => Err(self.monitor.error(crate::fabric::FabricError::Interrupted)),
            _ => noticed,
        }
    }

    fn go_on_without_the_dead(&mut self) -> Vec<FailedRank> {
        let monitor = &mut self.monitor;
        let is_dead = |rank: &Rank| monitor.agreement.dead().contains(&monitor.members[*rank as usize]);
        let (gone, survivors): (Vec<Rank>, Vec<Rank>) = (0..monitor.members.len() as Rank).partition(is_dead);
        let (watch, hosts) = monitor.watch.take().map(|(watch, known)| (watch, known.hosts().to_vec())).unzip();
        let dead = |rank: &Rank| FailedRank {
            rank: monitor.members[*rank as usize],
            hostname: hosts.as_ref().map(|hosts| hosts[*rank as usize].hostname.clone()).unwrap_or_default(),
        };
        let dead = gone.iter().map(dead).collect();
        self.fabric.shrink(&survivors);
        monitor.members = survivors.iter().map(|rank| monitor.members[*rank as usize]).collect();
        if let Some(hosts) = hosts {
            let topology = Topology::new(survivors.iter().map(|rank| hosts[*rank as usize].clone()).collect());
            monitor.watch = Some((Watch::new(&topology, self.fabric.rank(), watch), topology));
        }
        (monitor.ending, monitor.patience, monitor.failed) = (None, None, 0);
        monitor.inbox.clear();
        monitor.over.clear();
        dead
    }

    /// The last step of a run: rank 0 says that the outputs are in place, and no rank leaves before it knows. Who dies from
    /// then on is not missed. Signals come too late.
    pub fn part(&mut self) -> Result<(), RunError> {
        let signal = std::mem::take(&mut self.monitor.signal);
        let parted = self.part_unasked();
        self.monitor.signal = signal;
        parted
    }

    fn part_unasked(&mut self) -> Result<(), RunError> {
        if self.rank() != 0 {
            let mut backoff = Backoff::default();
            while !self.monitor.over.contains(&0) {
                self.look()?;
                backoff.wait();
            }
            return self.send(0, tag::OVER, Vec::new().into());
        }
        for rank in 1..self.size() {
            self.send(rank, tag::OVER, Vec::new().into())?;
        }
        let all_know = |comm: &mut Communicator| {
            let _ = comm.look();
            let monitor = &comm.monitor;
            let knows = |rank: Rank| {
                monitor.over.contains(&rank) || monitor.agreement.dead().contains(&monitor.members[rank as usize])
            };
            (1..comm.size()).all(knows)
        };
        if !self.linger(crate::exec::comm::communicator::FAREWELL, all_know) {
            tracing::warn!("the outputs are in place, but not every rank has said that it knows");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::exec::comm::monitor::Signal;
    use crate::fabric;

    #[test]
    fn who_is_asked_to_end_while_outputs_are_put_in_place_has_nothing_to_end() {
        let asked = Signal::default();
        asked.store(15, Ordering::Relaxed);
        let part = |fabric| {
            let mut comm = Communicator::new(fabric, asked.clone());
            (comm.part(), comm.signal())
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = fabric::local(3).into_iter().map(|fabric| scope.spawn(|| part(fabric))).collect();
            for rank in ranks {
                let (parted, signal) = rank.join().expect("no panic");
                assert!(parted.is_ok() && signal == Some(15), "{parted:?}, {signal:?}");
            }
        });
    }

    #[test]
    fn nobody_leaves_before_rank_0_has_put_the_outputs_in_place_and_all_others_know() {
        for late in 0..3 {
            let ready = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for fabric in fabric::local(3) {
                    scope.spawn(|| {
                        let mut comm = Communicator::new(fabric, Signal::default());
                        if comm.rank() == late {
                            std::thread::sleep(Duration::from_millis(50));
                            ready.store(true, Ordering::SeqCst);
                        }
                        comm.part().expect("all are alive");
                        // Others than rank 0 know once it has told them.
                        let waits = late == 0 || comm.rank() == 0;
                        assert!(!waits || ready.load(Ordering::SeqCst), "rank {} leaves before {late}", comm.rank());
                    });
                }
            });
        }
    }
}
