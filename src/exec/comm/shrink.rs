//! Shrinking: after ranks have failed, the surviving ranks agree on the failed set and continue with new numbers.
//!
//! The data of failed ranks is not restored here: completed work is in the manifest, and the rest is computed again.

use std::time::{Duration, Instant};

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::monitor::{Interruption, SignalPolicy, WatchedRanks};
use crate::exec::error::RunError;
use crate::fabric::{Backoff, FabricError, Rank};
use crate::topology::{FailureDetector, Topology};

/// The longest time for all survivors to report: each does once its main thread polls for messages.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time for a failed rank to be detected after its connection broke.
const DETECTION_TIMEOUT: Duration = Duration::from_millis(200);

/// A failed rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::exec) struct FailedRank {
    /// Its number at the start of the run.
    pub rank: Rank,
    pub hostname: String,
}

/// The outcome of shrinking.
#[derive(Debug)]
pub(in crate::exec) enum ShrinkOutcome {
    /// The run continues from the manifest, without these ranks.
    Without(Vec<FailedRank>),
    /// The run has ended: its outputs are in place.
    Over,
}

impl Communicator {
    /// Whether the surviving ranks can continue after this error.
    pub fn can_shrink_after(&self, error: &RunError) -> bool {
        self.fabric.outlives_ranks() && matches!(error, RunError::RankDied { .. })
    }

    /// Shrinks the run after an error: if a failed rank caused it, agrees with the others on the failed set, and
    /// renumbers the survivors. Returns any other error as it is.
    pub fn shrink(&mut self, mut error: RunError) -> Result<ShrinkOutcome, RunError> {
        if self.fabric.outlives_ranks() && matches!(error, RunError::Fabric(_)) {
            let until = Instant::now() + DETECTION_TIMEOUT;
            while !self.knows_failed_rank() && Instant::now() < until && self.update().is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.knows_failed_rank() {
                error = self.monitor.error(FabricError::Interrupted);
            }
        }
        if !self.can_shrink_after(&error) {
            return Err(error);
        }
        let (mut backoff, until) = (Backoff::default(), Instant::now() + AGREEMENT_TIMEOUT);
        loop {
            self.update()?;
            if self.monitor.finished.contains(&0) {
                return Ok(ShrinkOutcome::Over);
            }
            if self.monitor.agreement.is_reached() {
                break;
            }
            if Instant::now() > until {
                tracing::warn!("the surviving ranks have not agreed on the failed ranks within {AGREEMENT_TIMEOUT:?}");
                return Err(error);
            }
            backoff.wait();
        }
        Ok(ShrinkOutcome::Without(self.remove_failed_ranks()))
    }

    fn knows_failed_rank(&self) -> bool {
        matches!(self.monitor.interruption, Some(Interruption::RankFailed { .. }))
    }

    /// Takes all messages that have arrived. Fails if another rank has ended the run; signals wait.
    fn update(&mut self) -> Result<(), RunError> {
        self.monitor.interruption.take_if(|cause| !matches!(cause, Interruption::Elsewhere(_)));
        let updated = self.monitor.update(&mut *self.fabric).map_err(RunError::Fabric);
        match self.monitor.interruption {
            Some(Interruption::Elsewhere(_)) => Err(self.monitor.error(FabricError::Interrupted)),
            _ => updated,
        }
    }

    fn remove_failed_ranks(&mut self) -> Vec<FailedRank> {
        let monitor = &mut self.monitor;
        let has_failed = |rank: &Rank| monitor.agreement.failed().contains(&monitor.initial_ranks[*rank as usize]);
        let (failed, survivors): (Vec<Rank>, Vec<Rank>) =
            (0..monitor.initial_ranks.len() as Rank).partition(has_failed);
        let watched = monitor.watched.take().map(|watched| (watched.detector, watched.topology.hosts().to_vec()));
        let (detector, hosts) = watched.unzip();
        let describe = |rank: &Rank| FailedRank {
            rank: monitor.initial_ranks[*rank as usize],
            hostname: hosts.as_ref().map(|hosts| hosts[*rank as usize].hostname.clone()).unwrap_or_default(),
        };
        let failed = failed.iter().map(describe).collect();
        self.fabric.shrink(&survivors);
        monitor.initial_ranks = survivors.iter().map(|rank| monitor.initial_ranks[*rank as usize]).collect();
        if let Some(hosts) = hosts {
            let topology = Topology::new(survivors.iter().map(|rank| hosts[*rank as usize].clone()).collect());
            let detector = FailureDetector::new(&topology, self.fabric.rank(), detector);
            monitor.watched = Some(WatchedRanks { detector, topology });
        }
        monitor.interruption = None;
        monitor.signal_policy = SignalPolicy::AtOnce;
        monitor.failure_reports = 0;
        monitor.inbox.clear();
        monitor.finished.clear();
        failed
    }
}
