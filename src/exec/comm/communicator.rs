//! One rank's connection to the others: messages, collectives, and the watch for whatever ends a run.
//!
//! Failure protocol: the rank that fails tells rank 0 ([`tag::FAIL`]), rank 0 prints the first failure it hears of and
//! tells everyone ([`tag::STOP`]). Whoever waits, in a collective or not, keeps looking for these messages, for
//! signals and for dead neighbours, so no rank waits for one that is gone. Where the fabric outlives them, whoever learns of a
//! death tells all others ([`tag::DEAD`]), and `survive` goes on from there.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exec::comm::agreement::Agreement;
use crate::exec::comm::monitor::{Failure, Interruption, Monitor, Signal};
use crate::exec::error::{ExitCode, RunError};
use crate::exec::progress::ProgressReporter;
use crate::exec::trace::recorder::{Incarnation, Tracer};
use crate::fabric::{Backoff, Counters, Fabric, FabricError, Message, Payload, Rank, collective};
use crate::report::{Distance, Reason, Traffic};
use crate::topology::{Host, LivenessListener, Topology, Watch, host, node_addresses};

/// Tags of the messages between ranks. Those that belong to a run of a stage have its number in the tag as well: a rank that is
/// ahead may send them before others have begun with it.
pub(in crate::exec) mod tag {
    pub const DEAD: u32 = crate::fabric::LASTING_TAG;
    pub const FAIL: u32 = 1;
    pub const STOP: u32 = 2;
    pub const ARTIFACT: u32 = 3;
    pub const PROGRESS: u32 = 4;
    pub const CHUNKS: u32 = 5;
    pub const STAGE_DONE: u32 = 6;
    pub const SHARD: u32 = 7;
    pub const PARTIAL: u32 = 8;
    pub const SCHEDULER: u32 = 9;
    pub const SHARED: u32 = 10;
    pub const DRAIN: u32 = 11;
    pub const OVER: u32 = 15;
    const KINDS: u32 = 16;
    /// Runs of stages that one rank may be ahead of another; a barrier sees to it.
    pub const RUNS: u64 = 1024;

    /// The tag of a message of this kind in this run of a stage.
    pub fn of_run(kind: u32, run: u64) -> u32 {
        kind + KINDS * (run % RUNS) as u32
    }

    /// Whether it is of a scheduler in a run before this one.
    pub fn is_late(tag: u32, run: u64) -> bool {
        let behind = (run % RUNS + RUNS - u64::from(tag / KINDS)) % RUNS;
        tag % KINDS == SCHEDULER && (1..=RUNS / 2).contains(&behind)
    }
}

/// How long a failed rank waits for rank 0 to take note.
pub(in crate::exec) const FAREWELL: Duration = Duration::from_secs(4);
/// How much longer than rank 0 others may take to finish what they had begun.
const DRAINED: Duration = Duration::from_secs(1);
/// How long the last words of a rank that is gone may be on their way.
const LATE: Duration = Duration::from_millis(200);

/// One rank's connection to the others.
#[derive(Debug)]
pub(in crate::exec) struct Communicator {
    pub(in crate::exec) fabric: Box<dyn Fabric>,
    pub(in crate::exec) monitor: Monitor,
    /// Where deaths are survived.
    door: Option<LivenessListener>,
    /// What is recorded of this rank now, and what has been since the run began.
    pub tracer: Tracer,
    pub(in crate::exec) lives: Vec<Incarnation>,
    pub pulse: ProgressReporter,
}

impl Communicator {
    pub fn new(fabric: Box<dyn Fabric>, signal: Signal) -> Communicator {
        let (rank, size) = (fabric.rank(), fabric.size());
        let monitor = Monitor {
            watch: None,
            signal,
            inbox: VecDeque::new(),
            members: (0..size).collect(),
            agreement: Agreement::new(rank, size),
            over: BTreeSet::new(),
            ending: None,
            failed: 0,
            leaves: false,
            patience: None,
        };
        let door = fabric.outlives_ranks().then(|| LivenessListener::open(node_addresses()));
        let warn = |error: &std::io::Error| tracing::warn!("other nodes cannot notice the death of this rank: {error}");
        let door = door.and_then(|door| door.inspect_err(warn).ok());
        Communicator {
            fabric,
            monitor,
            door,
            tracer: Tracer::default(),
            lives: Vec::new(),
            pulse: ProgressReporter::default(),
        }
    }

    pub fn rank(&self) -> Rank {
        self.fabric.rank()
    }

    pub fn size(&self) -> u32 {
        self.fabric.size()
    }

    /// From now on deaths of other ranks are noticed.
    pub fn watch(&mut self, topology: &Topology) {
        let before = self.monitor.watch.take().map(|(watch, _)| watch);
        self.monitor.watch = Some((Watch::new(topology, self.rank(), before), topology.clone()));
    }

    /// How far away `rank` is.
    pub fn distance(&self, rank: Rank) -> Distance {
        let same_node = |(_, topology): &(Watch, Topology)| topology.ranks_on_node(rank).contains(&self.rank());
        match &self.monitor.watch {
            _ if rank == self.rank() => Distance::Rank,
            Some(known) if !same_node(known) => Distance::Network,
            _ => Distance::Node,
        }
    }

    /// The ranks of this rank's node, ascending.
    pub fn node(&self) -> Vec<Rank> {
        match &self.monitor.watch {
            Some((_, topology)) => topology.ranks_on_node(self.rank()).to_vec(),
            None => vec![self.rank()],
        }
    }

    /// Of all ranks, as far as they are known.
    pub fn hostnames(&self) -> BTreeSet<String> {
        let hosts = self.monitor.watch.iter().flat_map(|(_, topology)| topology.hosts());
        hosts.map(|host| host.hostname.clone()).collect()
    }

    /// A rank of each node: the lowest, but on the node of `first` that one, which comes first.
    pub fn one_per_node(&self, first: Rank) -> Vec<Rank> {
        let mut ranks = vec![first];
        if let Some((_, topology)) = &self.monitor.watch {
            let home = topology.node_of(first);
            ranks.extend((0..self.size()).filter(|r| topology.local_rank(*r) == 0 && topology.node_of(*r) != home));
        }
        ranks
    }

    /// All ranks, `first` first.
    pub fn all_from(&self, first: Rank) -> Vec<Rank> {
        (first..self.size()).chain(0..first).collect()
    }

    /// What the fabric has counted so far.
    pub fn traffic(&self) -> Traffic {
        let Counters { messages_sent, bytes_sent, messages_received, bytes_received } = self.fabric.counters();
        Traffic { messages_sent, bytes_sent, messages_received, bytes_received }
    }

    /// Sends and forgets.
    pub fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), RunError> {
        self.fabric.send(to, tag, bytes).map_err(|e| self.monitor.error(e))
    }

    /// Looks for whatever ends the run.
    pub(in crate::exec) fn look(&mut self) -> Result<(), RunError> {
        self.monitor.look(&mut *self.fabric).map_err(|e| self.monitor.error(e))
    }

    /// The next message with a tag that is `wanted`; others stay, in their order. Never waits.
    pub fn poll(&mut self, wanted: impl Fn(u32) -> bool) -> Result<Option<Message>, RunError> {
        self.look()?;
        let at = self.monitor.inbox.iter().position(|message| wanted(message.tag));
        Ok(at.and_then(|at| self.monitor.inbox.remove(at)))
    }

    /// Drops what schedulers said to one another that has arrived after the end of their run: nobody needs it any more, and
    /// its tag will come again. `run` is the next one of this rank.
    pub fn forget_late(&mut self, run: u64) {
        self.monitor.inbox.retain(|message| !tag::is_late(message.tag, run));
    }

    /// Waits for the next message of this source and tag; others stay, in their order.
    pub fn receive(&mut self, source: Rank, tag: u32) -> Result<Vec<u8>, RunError> {
        let mut backoff = Backoff::default();
        loop {
            self.look()?;
            let wanted = |message: &Message| message.source == source && message.tag == tag;
            if let Some(message) =
                self.monitor.inbox.iter().position(wanted).and_then(|at| self.monitor.inbox.remove(at))
            {
                return Ok(message.bytes);
            }
            backoff.wait();
        }
    }

    pub fn topology(&mut self) -> Result<Topology, RunError> {
        let door = self.door.as_ref().map(LivenessListener::places).unwrap_or_default();
        let here = Host { door, ..host() };
        self.wait(|fabric, idle| collective::topology(fabric, &here, idle))
    }

    pub fn barrier(&mut self) -> Result<(), RunError> {
        self.wait(collective::barrier)
    }

    pub fn allgather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, RunError> {
        self.wait(|fabric, idle| collective::allgather(fabric, bytes, idle))
    }

    pub fn gather(&mut self, bytes: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, RunError> {
        self.wait(|fabric, idle| collective::gather(fabric, 0, bytes, idle))
    }

    /// `bytes` of rank 0, on every rank.
    pub fn broadcast(&mut self, bytes: Option<Payload>) -> Result<Payload, RunError> {
        self.wait(|fabric, idle| collective::broadcast(fabric, 0, bytes, idle))
    }

    /// `bytes` of the first of `members`, on all of them, who call it; and the one that sent them on to this rank. `reason` is
    /// that of tensors.
    pub fn broadcast_among(
        &mut self,
        members: &[Rank],
        bytes: Option<Payload>,
        reason: Option<Reason>,
    ) -> Result<(Payload, Rank), RunError> {
        let begun = self.tracer.begin();
        let source = collective::broadcast_source(self.rank(), members).unwrap_or(self.rank());
        let bytes = self.wait(|fabric, idle| collective::broadcast_among(fabric, members, bytes, idle))?;
        if let (Some(reason), Some(_)) = (reason, begun) {
            for to in collective::broadcast_targets(self.rank(), members) {
                self.sent(begun, to, reason, bytes.len() as u64);
            }
        }
        Ok((bytes, source))
    }

    /// See [`collective::allreduce`].
    pub fn allreduce(&mut self, numbers: Vec<u64>, combine: impl Fn(&mut [u64], &[u64])) -> Result<Vec<u64>, RunError> {
        self.wait(|fabric, idle| collective::allreduce(fabric, numbers, combine, idle))
    }

    fn wait<T>(
        &mut self,
        collective: impl FnOnce(&mut dyn Fabric, collective::Idle<'_>) -> Result<T, FabricError>,
    ) -> Result<T, RunError> {
        let Communicator { fabric, monitor, .. } = self;
        let mut idle = |fabric: &mut dyn Fabric| monitor.look(fabric);
        let result = collective(&mut **fabric, &mut idle);
        result.map_err(|e| monitor.error(e))
    }

    /// Leaves after success.
    pub fn finalize(self, code: ExitCode) -> Result<(), RunError> {
        self.fabric.finalize(code as i32).map_err(RunError::Fabric)
    }

    /// Whether a signal may wait for a while, since the ranks are soon going to ask for it ([`Communicator::signal`]).
    pub fn wait_with_signals(&mut self, waits: bool) {
        self.monitor.patience = waits.then_some(None);
    }

    /// The signal that asks the run to end, if there is one.
    pub fn signal(&self) -> Option<usize> {
        Some(self.monitor.signal.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }

    /// Ends the run for a signal that this or another rank got.
    pub fn end_by(&mut self, signal: usize) -> RunError {
        self.monitor.ending.get_or_insert(Interruption::Signal(signal));
        self.monitor.error(FabricError::Interrupted)
    }

    /// Lets all ranks know of the signal that ends the run: some launchers send it to one rank alone.
    pub fn pass_on_ending(&mut self) {
        if let Some(Interruption::Signal(number)) = self.monitor.ending {
            let others = if self.rank() == 0 { 1..self.size() } else { 0..1 };
            for rank in others {
                let _ = self.fabric.send(rank, tag::DRAIN, vec![number as u8].into());
            }
        }
    }

    /// On rank 0, after a signal: waits until the others have finished what they had begun and said so.
    pub fn await_others(&mut self) {
        if self.rank() == 0 && matches!(self.monitor.ending, Some(Interruption::Signal(_))) {
            self.linger(DRAINED, |comm| {
                let _ = comm.monitor.look(&mut *comm.fabric);
                comm.monitor.failed + 1 >= comm.fabric.size()
            });
        }
    }

    /// Tells the others that this rank failed. Returns the run's exit status and what this rank has to print: rank 0
    /// prints for all, rank 1 where rank 0 is gone, and others only when nobody hears them. Rank 0 gives it to `say`, if there
    /// is one, before it tells the others: once they leave, the launcher may end this process at any moment.
    /// `note` goes with the text of whichever rank rank 0 prints.
    pub fn fail(
        mut self,
        error: &RunError,
        note: Option<&str>,
        say: Option<fn(&str)>,
    ) -> crate::exec::error::RunFailure {
        let text = error.render();
        // From here on only messages count.
        self.monitor.signal = Signal::default();
        self.monitor.leaves = true;
        let died = matches!(self.monitor.ending, Some(Interruption::Died { .. }));
        let rank_0_died =
            matches!(self.monitor.ending, Some(Interruption::Died { rank, .. }) if rank == self.monitor.members[0]);
        if died {
            // Whoever left may have failed and said so, in a message that is only now arriving.
            self.monitor.ending = None;
            self.monitor.watch = None;
            self.linger(LATE, Communicator::has_heard);
        }
        let heard = match &self.monitor.ending {
            Some(Interruption::Elsewhere(failure)) => {
                Some((ExitCode::from_i32(failure.code), failure.died, failure.text.clone()))
            }
            _ => None,
        };
        // Some libraries fail where a rank or its node is gone.
        let died = died || matches!(error, RunError::Fabric(FabricError::Mpi { .. }));
        let (code, died) = heard.as_ref().map_or((error.code(), died), |(code, died, _)| (*code, *died));
        let failure = |text| crate::exec::error::RunFailure { code, text, died };
        if self.rank() == 0 {
            let text = heard.map(|(.., text)| text).filter(|heard| !heard.is_empty()).unwrap_or(text);
            let note = note.map(|note| format!("\nnote: {note}")).unwrap_or_default();
            let mut text = Some(text + &note);
            if let Some(say) = say {
                text.take().iter().for_each(|text| say(text));
            }
            for rank in 1..self.size() {
                let _ = self.fabric.send(rank, tag::STOP, Failure::encode(code as i32, died, "").into());
            }
            self.linger(FAREWELL, |comm| comm.fabric.sends_pending() == 0);
            // What MPI calls sent may still be on its way out of this process.
            if self.size() as usize > self.node().len() {
                self.linger(LATE, |_| false);
            }
            return failure(text);
        }
        if heard.is_some() {
            return failure(None);
        }
        if rank_0_died {
            return failure((self.rank() == 1).then_some(text));
        }
        let _ = self.fabric.send(0, tag::FAIL, Failure::encode(code as i32, died, &text).into());
        self.monitor.ending = None;
        self.monitor.watch = None;
        let heard = self.linger(FAREWELL, Communicator::has_heard);
        failure((!heard).then_some(text))
    }

    /// Whether another rank's failure has become known.
    fn has_heard(&mut self) -> bool {
        let _ = self.monitor.look(&mut *self.fabric);
        matches!(self.monitor.ending, Some(Interruption::Elsewhere(_)))
    }

    pub(in crate::exec) fn linger(
        &mut self,
        patience: Duration,
        mut done: impl FnMut(&mut Communicator) -> bool,
    ) -> bool {
        let (mut backoff, until) = (Backoff::default(), Instant::now() + patience);
        while Instant::now() < until {
            if done(self) {
                return true;
            }
            if self.fabric.progress().is_err() {
                return false;
            }
            backoff.wait();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_schedulers_say_after_the_end_is_dropped_before_its_tag_comes_again() {
        let mut comm = Communicator::new(crate::fabric::solo(), Signal::default());
        let run = 3 * tag::RUNS + 5;
        let late = [run - 1, run - tag::RUNS / 2].map(|run| tag::of_run(tag::SCHEDULER, run));
        // Other ranks may be this far ahead; and what is no scheduler's is waited for by somebody.
        let others = [
            tag::of_run(tag::SCHEDULER, run),
            tag::of_run(tag::SCHEDULER, run + tag::RUNS / 2 - 1),
            tag::of_run(tag::PARTIAL, run - 1),
            tag::SHARD,
        ];
        for tag in late.into_iter().chain(others) {
            comm.send(0, tag, Vec::new().into()).unwrap();
        }
        assert!(comm.poll(|_| false).unwrap().is_none());
        comm.forget_late(run);
        let mut left = Vec::new();
        while let Some(message) = comm.poll(|_| true).unwrap() {
            left.push(message.tag);
        }
        assert_eq!(left, others);
    }
}
