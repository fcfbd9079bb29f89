//! One rank's connection to the others: messages and collectives.
//!
//! Failure protocol: a rank that fails reports to rank 0 ([`Control::Fail`]); rank 0 prints the first report and stops
//! all others ([`Control::Stop`]). A rank that waits, in a collective or not, keeps checking for these messages, for
//! signals and for failed ranks, so it never waits for a rank that is gone. If the fabric can continue without failed
//! ranks, a rank that detects one reports it to all others ([`Control::FailedRanks`]), and they
//! [`Communicator::shrink`].
//!
//! [`Control::Fail`]: crate::exec::comm::tag::Control::Fail
//! [`Control::Stop`]: crate::exec::comm::tag::Control::Stop
//! [`Control::FailedRanks`]: crate::exec::comm::tag::Control::FailedRanks

use std::collections::BTreeSet;
use std::time::Instant;

use crate::exec::comm::monitor::{Monitor, WatchedRanks};
use crate::exec::comm::signal::Signal;
use crate::exec::comm::tag::{Tag, TaggedMessage};
use crate::exec::error::RunError;
use crate::exec::trace::recorder::{TraceEventKind, Tracer};
use crate::fabric::{Backoff, Counters, Fabric, FabricError, Payload, Rank, collective};
use crate::report::{Distance, Moved, Reason, Traffic};
use crate::topology::{FailureDetector, Host, LivenessListener, Topology, host, node_addresses};

/// One rank's connection to the others.
#[derive(Debug)]
pub(in crate::exec) struct Communicator {
    pub(in crate::exec::comm) fabric: Box<dyn Fabric>,
    pub(in crate::exec::comm) monitor: Monitor,
    /// Lets other nodes detect that this process ended; only if the fabric can continue without failed ranks.
    listener: Option<LivenessListener>,
    /// Records this rank's transfers.
    pub tracer: Tracer,
}

impl Communicator {
    pub fn new(fabric: Box<dyn Fabric>, signal: Signal) -> Communicator {
        let monitor = Monitor::new(fabric.rank(), fabric.size(), signal);
        let listener = fabric.outlives_ranks().then(|| LivenessListener::open(node_addresses()));
        let warn =
            |error: &std::io::Error| tracing::warn!("other nodes cannot detect the failure of this rank: {error}");
        let listener = listener.and_then(|listener| listener.inspect_err(warn).ok());
        Communicator { fabric, monitor, listener, tracer: Tracer::default() }
    }

    pub fn rank(&self) -> Rank {
        self.fabric.rank()
    }

    pub fn size(&self) -> u32 {
        self.fabric.size()
    }

    /// By rank, the number that it had at the start of the run.
    pub fn initial_ranks(&self) -> &[Rank] {
        &self.monitor.initial_ranks
    }

    /// Starts to watch the other ranks for failures.
    pub fn watch(&mut self, topology: &Topology) {
        let before = self.monitor.watched.take().map(|watched| watched.detector);
        let detector = FailureDetector::new(topology, self.rank(), before);
        self.monitor.watched = Some(WatchedRanks { detector, topology: topology.clone() });
    }

    fn known_topology(&self) -> Option<&Topology> {
        self.monitor.watched.as_ref().map(|watched| &watched.topology)
    }

    /// The distance between this rank and `rank`.
    pub fn distance(&self, rank: Rank) -> Distance {
        let on_this_node = |topology: &Topology| topology.ranks_on_node(rank).contains(&self.rank());
        match self.known_topology() {
            _ if rank == self.rank() => Distance::Rank,
            Some(topology) if !on_this_node(topology) => Distance::Network,
            _ => Distance::Node,
        }
    }

    /// The ranks of this rank's node, in ascending order.
    pub fn ranks_on_node(&self) -> Vec<Rank> {
        match self.known_topology() {
            Some(topology) => topology.ranks_on_node(self.rank()).to_vec(),
            None => vec![self.rank()],
        }
    }

    /// The hostnames of all ranks, as far as they are known.
    pub fn hostnames(&self) -> BTreeSet<String> {
        let hosts = self.known_topology().into_iter().flat_map(Topology::hosts);
        hosts.map(|host| host.hostname.clone()).collect()
    }

    /// One rank of each node: `first`, then the lowest rank of each other node.
    pub fn one_per_node(&self, first: Rank) -> Vec<Rank> {
        let mut ranks = vec![first];
        if let Some(topology) = self.known_topology() {
            let home = topology.node_of(first);
            ranks.extend((0..self.size()).filter(|r| topology.local_rank(*r) == 0 && topology.node_of(*r) != home));
        }
        ranks
    }

    /// All ranks, starting with `first`.
    pub fn all_from(&self, first: Rank) -> Vec<Rank> {
        (first..self.size()).chain(0..first).collect()
    }

    /// The messages and bytes that the fabric has counted so far.
    pub fn traffic(&self) -> Traffic {
        let Counters { messages_sent, bytes_sent, messages_received, bytes_received } = self.fabric.counters();
        Traffic { messages_sent, bytes_sent, messages_received, bytes_received }
    }

    /// Sends a message without waiting for its arrival.
    pub fn send(&mut self, to: Rank, tag: Tag, bytes: Payload) -> Result<(), RunError> {
        self.fabric.send(to, tag.encode(), bytes).map_err(|e| self.monitor.error(e))
    }

    /// Fails if the run must end.
    pub fn check_interrupts(&mut self) -> Result<(), RunError> {
        self.monitor.check_interrupts(&mut *self.fabric).map_err(|e| self.monitor.error(e))
    }

    /// Returns the next message whose tag is `wanted`; others stay, in their order. Never waits.
    pub fn poll(&mut self, wanted: impl Fn(Tag) -> bool) -> Result<Option<TaggedMessage>, RunError> {
        self.check_interrupts()?;
        Ok(self.take(|message| wanted(message.tag)))
    }

    /// Waits for the next message of this source and tag; others stay, in their order.
    pub fn receive(&mut self, source: Rank, tag: Tag) -> Result<Vec<u8>, RunError> {
        let mut backoff = Backoff::default();
        loop {
            self.check_interrupts()?;
            if let Some(message) = self.take(|message| message.source == source && message.tag == tag) {
                return Ok(message.bytes);
            }
            backoff.wait();
        }
    }

    fn take(&mut self, wanted: impl Fn(&TaggedMessage) -> bool) -> Option<TaggedMessage> {
        let at = self.monitor.inbox.iter().position(wanted)?;
        self.monitor.inbox.remove(at)
    }

    /// Drops messages that schedulers sent before the end of their run and that arrived after it: no one needs them,
    /// and their tags will be used again. `run` is the next run of a stage on this rank.
    pub fn forget_late(&mut self, run: u64) {
        self.monitor.inbox.retain(|message| !message.tag.is_late(run));
    }

    /// Counts bytes of a tensor that this rank has received from `from`, which may be this rank itself.
    pub fn received(&self, moved: &mut Moved, reason: Reason, from: Rank, bytes: u64) {
        moved.count(reason, self.distance(from), bytes);
        if from != self.rank() {
            self.tracer.mark(|| TraceEventKind::Received { from, reason, bytes });
        }
    }

    /// Records that bytes of a tensor have been sent since `started`. Their receiver counts them
    /// ([`Communicator::received`]).
    pub fn sent(&self, started: Option<Instant>, to: Rank, reason: Reason, bytes: u64) {
        self.tracer.end(started, || TraceEventKind::Sent { to, reason, bytes });
    }

    pub fn topology(&mut self) -> Result<Topology, RunError> {
        let door = self.listener.as_ref().map(LivenessListener::addresses).unwrap_or_default();
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

    /// Returns the `bytes` of rank 0 on every rank.
    pub fn broadcast(&mut self, bytes: Option<Payload>) -> Result<Payload, RunError> {
        self.wait(|fabric, idle| collective::broadcast(fabric, 0, bytes, idle))
    }

    /// Returns the `bytes` of the first of `members` on all of them, which all call it, and the rank that sent them to
    /// this one. A `reason` is given for bytes of tensors.
    pub fn broadcast_among(
        &mut self,
        members: &[Rank],
        bytes: Option<Payload>,
        reason: Option<Reason>,
    ) -> Result<(Payload, Rank), RunError> {
        let started = self.tracer.begin();
        let source = collective::broadcast_source(self.rank(), members).unwrap_or(self.rank());
        let bytes = self.wait(|fabric, idle| collective::broadcast_among(fabric, members, bytes, idle))?;
        if let (Some(reason), Some(_)) = (reason, started) {
            for to in collective::broadcast_targets(self.rank(), members) {
                self.sent(started, to, reason, bytes.len() as u64);
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
        let mut idle = |fabric: &mut dyn Fabric| monitor.check_interrupts(fabric);
        let result = collective(&mut **fabric, &mut idle);
        result.map_err(|e| monitor.error(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::comm::tag::{RUNS, StageMessage};

    #[test]
    fn late_scheduler_messages_are_dropped_before_their_tags_repeat() {
        let mut comm = Communicator::new(crate::fabric::solo(), Signal::default());
        let run = 3 * RUNS + 5;
        let late = [run - 1, run - RUNS / 2].map(|run| Tag::stage(StageMessage::Scheduler, run));
        // Other ranks may be this far ahead, and messages of other kinds are expected.
        let others = [
            Tag::stage(StageMessage::Scheduler, run),
            Tag::stage(StageMessage::Scheduler, run + RUNS / 2 - 1),
            Tag::stage(StageMessage::Partial, run - 1),
            Tag::stage(StageMessage::Shard, 0),
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
