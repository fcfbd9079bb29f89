//! What a rank looks out for while it waits: failures and deaths elsewhere, signals, and messages that are for others.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::encode::encode;
use crate::exec::comm::agreement::Agreement;
use crate::exec::comm::communicator::tag;
use crate::exec::error::{ExitCode, RunError};
use crate::fabric::{Fabric, FabricError, Message, Payload, Rank};
use crate::topology::{Topology, Watch};

/// How long a signal may wait for the end of an iteration.
const PATIENCE: Duration = Duration::from_secs(3);

/// Set by signal handlers: 0, or the signal that asks the run to end.
pub type Signal = Arc<AtomicUsize>;

/// What ended the run, as seen by [`Monitor`].
#[derive(Debug)]
pub(in crate::exec) struct Failure {
    pub code: i32,
    /// Whether it is the death of a rank.
    pub died: bool,
    /// What to print; empty when the rank that sent it is not the one to print.
    pub text: String,
}

/// What a rank looks out for while it waits; apart from the fabric, so that a collective can borrow both.
#[derive(Debug)]
pub(in crate::exec) struct Monitor {
    pub watch: Option<(Watch, Topology)>,
    pub signal: Signal,
    pub inbox: VecDeque<Message>,
    /// What each rank was at the start.
    pub members: Vec<Rank>,
    pub agreement: Agreement,
    /// Ranks that have said that the run is over.
    pub over: BTreeSet<Rank>,
    /// Set once: every later look fails in the same way.
    pub ending: Option<Interruption>,
    /// Ranks that have said that they failed.
    pub failed: u32,
    /// Whether this rank is leaving.
    pub leaves: bool,
    /// Where a signal need not end the run at once: since when there is one.
    pub patience: Option<Option<Instant>>,
}

#[derive(Debug)]
pub(in crate::exec) enum Interruption {
    Elsewhere(Failure),
    /// Called what it was at the start.
    Died {
        rank: Rank,
        pid: u32,
        hostname: String,
    },
    Signal(usize),
}

impl Monitor {
    /// Takes in what has arrived, and who has died.
    pub fn notice(&mut self, fabric: &mut dyn Fabric) -> Result<(), FabricError> {
        let mut news = false;
        while let Some(message) = fabric.poll()? {
            match message.tag {
                // Once this rank leaves, only how the others end counts.
                tag::DRAIN if self.leaves => {}
                tag::DRAIN => {
                    let number = message.bytes.first().map_or(15, |number| usize::from(*number));
                    self.signal.store(number, Ordering::Relaxed);
                }
                tag::DEAD => {
                    if let (Some(from), Ok(dead)) =
                        (self.members.get(message.source as usize), serde_json::from_slice(&message.bytes))
                    {
                        news |= self.agreement.hear(*from, dead);
                    }
                }
                tag::OVER => drop(self.over.insert(message.source)),
                tag::FAIL | tag::STOP => {
                    self.failed += u32::from(message.tag == tag::FAIL);
                    // It explains a death.
                    if matches!(self.ending, None | Some(Interruption::Died { .. })) {
                        self.ending = Some(Interruption::Elsewhere(Failure::decode(&message.bytes)));
                    }
                }
                _ => self.inbox.push_back(message),
            }
        }
        if let Some((watch, _)) = &mut self.watch
            && let Some(rank) = watch.dead()
        {
            news |= self.agreement.see(self.members[rank as usize]);
        }
        if news && fabric.outlives_ranks() {
            self.tell_of_deaths(fabric)?;
        }
        // A rank that failed by itself has said so before it left; its message may still be on the way.
        if self.ending.is_none() {
            self.ending = self.died();
        }
        Ok(())
    }

    fn tell_of_deaths(&self, fabric: &mut dyn Fabric) -> Result<(), FabricError> {
        let dead = Payload::from(encode(self.agreement.dead())?);
        for other in self.agreement.others() {
            if let Ok(rank) = self.members.binary_search(&other) {
                fabric.send(rank as Rank, tag::DEAD, dead.clone())?;
            }
        }
        Ok(())
    }

    /// The death of a rank that still counts.
    fn died(&self) -> Option<Interruption> {
        if self.members.len() == self.agreement.alive() {
            return None;
        }
        let (at, rank) = self.members.iter().enumerate().find(|(_, rank)| self.agreement.dead().contains(rank))?;
        let host = self.watch.as_ref().map(|(_, topology)| topology.host(at as Rank));
        let (pid, hostname) = host.map(|host| (host.pid, host.hostname.clone())).unwrap_or_default();
        Some(Interruption::Died { rank: *rank, pid, hostname })
    }

    /// Takes in what has arrived; fails when the run must end.
    pub fn look(&mut self, fabric: &mut dyn Fabric) -> Result<(), FabricError> {
        self.notice(fabric)?;
        let signal = self.signal.load(Ordering::Relaxed);
        if self.ending.is_none() && signal != 0 {
            let waits =
                self.patience.as_mut().is_some_and(|since| since.get_or_insert_with(Instant::now).elapsed() < PATIENCE);
            if !waits {
                self.ending = Some(Interruption::Signal(signal));
            }
        }
        match self.ending {
            Some(_) => Err(FabricError::Interrupted),
            None => Ok(()),
        }
    }

    pub fn error(&self, error: FabricError) -> RunError {
        match (&self.ending, error) {
            (Some(Interruption::Elsewhere(failure)), _) => RunError::Elsewhere { code: failure.code },
            (Some(Interruption::Died { rank, pid, hostname }), _) => {
                RunError::RankDied { rank: *rank, pid: *pid, hostname: hostname.clone() }
            }
            (Some(Interruption::Signal(signal)), _) => RunError::Interrupted { signal: signal_name(*signal) },
            (None, error) => RunError::Fabric(error),
        }
    }
}

pub(in crate::exec) fn signal_name(signal: usize) -> &'static str {
    match signal as i32 {
        signal_hook::consts::SIGINT => "SIGINT",
        signal_hook::consts::SIGUSR1 => "SIGUSR1",
        _ => "SIGTERM",
    }
}

impl Failure {
    pub fn encode(code: i32, died: bool, text: &str) -> Vec<u8> {
        let mut bytes = code.to_le_bytes().to_vec();
        bytes.push(u8::from(died));
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Failure {
        let (code, died, text) = match bytes {
            [a, b, c, d, died, text @ ..] => (i32::from_le_bytes([*a, *b, *c, *d]), *died == 1, text),
            _ => (ExitCode::Failed as i32, false, bytes),
        };
        Failure { code, died, text: String::from_utf8_lossy(text).into_owned() }
    }
}
