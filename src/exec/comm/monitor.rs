//! Interruptions of a run: failures elsewhere, failed ranks and signals. Messages of other kinds wait in its inbox.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::encode::encode;
use crate::exec::comm::agreement::Agreement;
use crate::exec::comm::signal::{Signal, signal_name};
use crate::exec::comm::tag::{Control, Tag, TaggedMessage};
use crate::exec::error::{ExitCode, RunError};
use crate::fabric::{Fabric, FabricError, Message, Payload, Rank};
use crate::topology::{FailureDetector, Topology};

/// The longest time that a signal waits for the end of an iteration.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(3);

/// A failure that another rank reported.
#[derive(Clone, Debug)]
pub(in crate::exec::comm) struct RemoteFailure {
    pub code: i32,
    /// Whether the cause was a failed rank.
    pub died: bool,
    /// The text to print; empty if the sender does not ask this rank to print it.
    pub text: String,
}

/// The cause that ends a run early.
#[derive(Debug)]
pub(in crate::exec::comm) enum Interruption {
    Elsewhere(RemoteFailure),
    /// `rank` is the number that the failed rank had at the start of the run.
    RankFailed {
        rank: Rank,
        pid: u32,
        hostname: String,
    },
    Signal(usize),
}

/// The other ranks, once this rank knows their hosts.
#[derive(Debug)]
pub(in crate::exec::comm) struct WatchedRanks {
    pub detector: FailureDetector,
    pub topology: Topology,
}

/// When a signal ends the run.
#[derive(Debug)]
pub(in crate::exec::comm) enum SignalPolicy {
    AtOnce,
    /// At the end of an iteration, unless that takes too long; `since` is the time at which the signal was first seen.
    AfterIteration {
        since: Option<Instant>,
    },
}

/// The state of a run as one rank knows it. It is apart from the fabric, so that a collective can borrow both.
#[derive(Debug)]
pub(in crate::exec::comm) struct Monitor {
    pub watched: Option<WatchedRanks>,
    pub signal: Signal,
    pub inbox: VecDeque<TaggedMessage>,
    /// By rank, the number that it had at the start of the run.
    pub initial_ranks: Vec<Rank>,
    pub agreement: Agreement,
    /// Ranks that have said that the run is over.
    pub finished: BTreeSet<Rank>,
    /// Set once: every later check fails in the same way.
    pub interruption: Option<Interruption>,
    /// The number of ranks that have reported a failure.
    pub failure_reports: u32,
    /// Whether this rank is leaving after a failure.
    pub is_leaving: bool,
    pub signal_policy: SignalPolicy,
}

impl Monitor {
    pub fn new(rank: Rank, size: u32, signal: Signal) -> Monitor {
        Monitor {
            watched: None,
            signal,
            inbox: VecDeque::new(),
            initial_ranks: (0..size).collect(),
            agreement: Agreement::new(rank, size),
            finished: BTreeSet::new(),
            interruption: None,
            failure_reports: 0,
            is_leaving: false,
            signal_policy: SignalPolicy::AtOnce,
        }
    }

    /// Takes all messages that have arrived, and looks for failed ranks.
    pub fn update(&mut self, fabric: &mut dyn Fabric) -> Result<(), FabricError> {
        let mut is_news = false;
        while let Some(message) = fabric.poll()? {
            let Message { source, tag, bytes } = message;
            match Tag::decode(tag) {
                Some(Tag::Control(control)) => is_news |= self.handle_control(control, source, &bytes),
                Some(tag) => self.inbox.push_back(TaggedMessage { source, tag, bytes }),
                None => tracing::warn!("rank {source} sent a message with the unknown tag {tag}"),
            }
        }
        if let Some(WatchedRanks { detector, .. }) = &mut self.watched
            && let Some(rank) = detector.failed_rank()
        {
            is_news |= self.agreement.add_failed(self.initial_ranks[rank as usize]);
        }
        if is_news && fabric.outlives_ranks() {
            self.announce_failed_ranks(fabric)?;
        }
        // A rank that failed by itself has said so before it left; its message may still be on the way.
        if self.interruption.is_none() {
            self.interruption = self.first_failed_rank();
        }
        Ok(())
    }

    /// Handles a message about the run. Returns whether it names a failed rank that was not known.
    fn handle_control(&mut self, control: Control, source: Rank, bytes: &[u8]) -> bool {
        match control {
            // Once this rank leaves, only how the others end counts.
            Control::Drain if self.is_leaving => {}
            Control::Drain => {
                let number = bytes.first().map_or(15, |number| usize::from(*number));
                self.signal.store(number, Ordering::Relaxed);
            }
            Control::FailedRanks => {
                let initial_rank = self.initial_ranks.get(source as usize);
                if let (Some(from), Ok(failed)) = (initial_rank, serde_json::from_slice(bytes)) {
                    return self.agreement.record_report(*from, failed);
                }
            }
            Control::Over => drop(self.finished.insert(source)),
            Control::Fail | Control::Stop => {
                self.failure_reports += u32::from(control == Control::Fail);
                // A reported failure explains why its rank's process ended.
                if matches!(self.interruption, None | Some(Interruption::RankFailed { .. })) {
                    self.interruption = Some(Interruption::Elsewhere(RemoteFailure::decode(bytes)));
                }
            }
        }
        false
    }

    fn announce_failed_ranks(&self, fabric: &mut dyn Fabric) -> Result<(), FabricError> {
        let failed = Payload::from(encode(self.agreement.failed())?);
        for other in self.agreement.others() {
            if let Ok(rank) = self.initial_ranks.binary_search(&other) {
                fabric.send(rank as Rank, Tag::Control(Control::FailedRanks).encode(), failed.clone())?;
            }
        }
        Ok(())
    }

    /// The first failed rank that the run has not been shrunk by.
    fn first_failed_rank(&self) -> Option<Interruption> {
        if self.initial_ranks.len() == self.agreement.alive() {
            return None;
        }
        let mut ranks = self.initial_ranks.iter().enumerate();
        let (at, rank) = ranks.find(|(_, rank)| self.agreement.failed().contains(rank))?;
        let host = self.watched.as_ref().map(|watched| watched.topology.host(at as Rank));
        let (pid, hostname) = host.map(|host| (host.pid, host.hostname.clone())).unwrap_or_default();
        Some(Interruption::RankFailed { rank: *rank, pid, hostname })
    }

    /// Takes all messages that have arrived. Fails if the run must end.
    pub fn check_interrupts(&mut self, fabric: &mut dyn Fabric) -> Result<(), FabricError> {
        self.update(fabric)?;
        let signal = self.signal.load(Ordering::Relaxed);
        if self.interruption.is_none() && signal != 0 && self.signal_policy.is_due() {
            self.interruption = Some(Interruption::Signal(signal));
        }
        match self.interruption {
            Some(_) => Err(FabricError::Interrupted),
            None => Ok(()),
        }
    }

    /// The error to report for a fabric's error: the interruption, if there is one.
    pub fn error(&self, error: FabricError) -> RunError {
        match (&self.interruption, error) {
            (Some(Interruption::Elsewhere(failure)), _) => RunError::Elsewhere { code: failure.code },
            (Some(Interruption::RankFailed { rank, pid, hostname }), _) => {
                RunError::RankDied { rank: *rank, pid: *pid, hostname: hostname.clone() }
            }
            (Some(Interruption::Signal(signal)), _) => RunError::Interrupted { signal: signal_name(*signal) },
            (None, error) => RunError::Fabric(error),
        }
    }
}

impl SignalPolicy {
    /// Whether a signal that has arrived ends the run now.
    fn is_due(&mut self) -> bool {
        match self {
            SignalPolicy::AtOnce => true,
            SignalPolicy::AfterIteration { since } => {
                since.get_or_insert_with(Instant::now).elapsed() >= SIGNAL_PATIENCE
            }
        }
    }
}

impl RemoteFailure {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.code.to_le_bytes().to_vec();
        bytes.push(u8::from(self.died));
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> RemoteFailure {
        let (code, died, text) = match bytes {
            [a, b, c, d, died, text @ ..] => (i32::from_le_bytes([*a, *b, *c, *d]), *died == 1, text),
            _ => (ExitCode::Failed as i32, false, bytes),
        };
        RemoteFailure { code, died, text: String::from_utf8_lossy(text).into_owned() }
    }
}
