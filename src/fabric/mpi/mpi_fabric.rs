//! The fabric over MPI. rsmpi initialises MPI; everything else goes through `raw`.

use std::marker::PhantomData;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ::mpi::Threading;

use super::library::{check_launcher, is_open_mpi, library};
use super::raw::{self, CollectiveRequest, MpiComm, ReceiveRequest, SendRequest};
use crate::fabric::abort::{end_all_ranks, exit_now, flush_output, set_mpi_live};
use crate::fabric::backoff::Backoff;
use crate::fabric::counters::Counters;
use crate::fabric::error::FabricError;
use crate::fabric::interface::Fabric;
use crate::fabric::limits::TAG_LIMIT;
use crate::fabric::members::{Delivery, LASTING_TAG, Members};
use crate::fabric::message::{Message, check_send};
use crate::fabric::payload::Payload;
use crate::topology::{Rank, launcher, launcher_outlives_ranks};

/// Most concurrent receives for [`Fabric::poll`]; other messages wait inside MPI, which slows their senders down.
const RECEIVES_AT_ONCE: usize = 16;
/// How long a rank waits for the others at a point that all are about to reach.
const MEETING_DEADLINE: Duration = Duration::from_secs(60);
/// How long the last messages of a rank may take where other ranks may have left.
const LAST_SENDS: Duration = Duration::from_millis(500);
/// How long MPI_Finalize may take once every rank has entered it.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Starts MPI on this thread, which must be the only one that uses the fabric. Fails where the launcher started
/// several ranks and MPI sees one: each of them would run the whole job.
pub fn mpi() -> Result<Box<dyn Fabric>, FabricError> {
    let started = ::mpi::initialize_with_threading(Threading::Funneled);
    let (universe, provided) = started.ok_or(FabricError::AlreadyInitialized)?;
    // Dropping it finalizes. That is for `Mpi::finalize` alone: on an error path or in a panic it would hang.
    std::mem::forget(universe);
    set_mpi_live(true);
    if provided < Threading::Funneled {
        return Err(FabricError::Threads { library: library() });
    }
    let world = MpiComm::world()?;
    let size = world.size()?;
    check_launcher(size, launcher())?;
    let collectives = world.duplicate(|pending| meet(pending, "setting up a second communicator"))?;
    let members = Members::new(world.rank()?, size);
    // Of the supported libraries, only Open MPI lets the other ranks continue and communicate when one fails.
    let outlives_ranks = launcher_outlives_ranks() && is_open_mpi() && members.fit(world.highest_tag()?);
    Ok(Box::new(Mpi {
        members,
        outlives_ranks,
        world,
        collectives,
        sends: Vec::new(),
        receives: Vec::new(),
        early: Vec::new(),
        counters: Counters::default(),
        this_thread_only: PhantomData,
    }))
}

/// Waits for an operation that every rank is about to enter.
fn meet(pending: &mut CollectiveRequest, what: &str) -> Result<(), FabricError> {
    wait_until(what, || pending.done())
}

fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool, FabricError>) -> Result<(), FabricError> {
    let started = Instant::now();
    let mut backoff = Backoff::default();
    while !done()? {
        if started.elapsed() > MEETING_DEADLINE {
            return Err(FabricError::Timeout { what: what.to_owned(), after: MEETING_DEADLINE });
        }
        backoff.wait();
    }
    Ok(())
}

/// A message from a rank that knows of more failures than this one.
#[derive(Debug)]
struct EarlyMessage {
    /// The source's rank at the start.
    origin: Rank,
    wire_tag: u32,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Mpi {
    members: Members,
    outlives_ranks: bool,
    /// For messages of callers. Ranks in both communicators are those of the start.
    world: MpiComm,
    /// For tags from `TAG_LIMIT` on.
    collectives: MpiComm,
    sends: Vec<SendRequest>,
    /// In the order in which MPI matched them, which per source and tag is the order of their sends. Their tags are
    /// wire tags.
    receives: Vec<ReceiveRequest>,
    /// Messages from ranks that know of more failures than this one.
    early: Vec<EarlyMessage>,
    counters: Counters,
    /// MPICH's handles are integers: without this the same code would be `Send` there and not with Open MPI.
    this_thread_only: PhantomData<*mut ()>,
}

impl Mpi {
    /// The communicator for a tag, and the wire tag there.
    fn route(&self, tag: u32) -> (MpiComm, u32) {
        match tag.checked_sub(TAG_LIMIT) {
            Some(tag) => (self.collectives, self.members.wire_tag(TAG_LIMIT + tag) - TAG_LIMIT),
            None => (self.world, self.members.wire_tag(tag)),
        }
    }

    /// Takes the completed receive at `index`; `None` if it is deferred or discarded.
    fn take(&mut self, index: usize) -> Option<Message> {
        let receive = self.receives.remove(index);
        let (origin, wire_tag) = (receive.source, receive.tag);
        let bytes = receive.into_bytes();
        self.counters.received(bytes.len());
        match self.members.delivery(origin, wire_tag) {
            Delivery::Accept => return Some(self.members.admit(origin, wire_tag, bytes)),
            Delivery::Defer => self.early.push(EarlyMessage { origin, wire_tag, bytes }),
            Delivery::Discard => {}
        }
        None
    }

    /// Takes a deferred message that is now acceptable.
    fn take_early(&mut self, wanted: impl Fn(Rank, u32) -> bool) -> Option<Message> {
        let due = |early: &EarlyMessage| {
            self.members.delivery(early.origin, early.wire_tag) == Delivery::Accept
                && wanted(early.origin, early.wire_tag)
        };
        let index = self.early.iter().position(due)?;
        let EarlyMessage { origin, wire_tag, bytes } = self.early.remove(index);
        Some(self.members.admit(origin, wire_tag, bytes))
    }

    /// Whether a message of the same source and tag was matched before this one and is still being received.
    fn must_wait(&self, index: usize) -> bool {
        let receive = &self.receives[index];
        let mut before = self.receives[..index].iter();
        before.any(|other| other.source == receive.source && other.tag == receive.tag)
    }
}

impl Fabric for Mpi {
    fn rank(&self) -> Rank {
        self.members.rank()
    }

    fn size(&self) -> u32 {
        self.members.size()
    }

    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        check_send(self.size(), to, tag, bytes.len())?;
        let length = bytes.len();
        let (communicator, tag) = self.route(tag);
        let mut send = communicator.send(self.members.origin(to), tag, bytes)?;
        self.counters.sent(length);
        // Short messages are sent immediately.
        if !send.done()? {
            self.sends.push(send);
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Message>, FabricError> {
        self.progress()?;
        if let Some(message) = self.take_early(|_, wire_tag| Members::tag_of(wire_tag) < TAG_LIMIT) {
            return Ok(Some(message));
        }
        // A receive from a failed rank may never complete: the notice of that failure must not wait for it.
        let tag = (self.receives.len() >= RECEIVES_AT_ONCE).then_some(LASTING_TAG);
        self.receives.extend(self.world.receive(None, tag)?);
        let mut index = 0;
        while index < self.receives.len() {
            let ours = Members::tag_of(self.receives[index].tag) < TAG_LIMIT;
            if ours && !self.must_wait(index) && self.receives[index].done()? {
                if let Some(message) = self.take(index) {
                    return Ok(Some(message));
                }
            } else {
                index += 1;
            }
        }
        Ok(None)
    }

    fn poll_from(&mut self, source: Rank, tag: u32) -> Result<Option<Message>, FabricError> {
        self.progress()?;
        let (origin, wire_tag) = (self.members.origin(source), self.members.wire_tag(tag));
        if let Some(message) = self.take_early(|from, tag| from == origin && tag == wire_tag) {
            return Ok(Some(message));
        }
        let wanted = |receive: &ReceiveRequest| receive.source == origin && receive.tag == wire_tag;
        let index = match self.receives.iter().position(wanted) {
            Some(index) => index,
            None => {
                let (communicator, routed_tag) = self.route(tag);
                let Some(mut receive) = communicator.receive(Some(origin), Some(routed_tag))? else {
                    return Ok(None);
                };
                receive.tag = wire_tag;
                self.receives.push(receive);
                self.receives.len() - 1
            }
        };
        Ok(if self.receives[index].done()? { self.take(index) } else { None })
    }

    fn progress(&mut self) -> Result<(), FabricError> {
        let mut index = 0;
        while let Some(send) = self.sends.get_mut(index) {
            if send.done()? {
                self.sends.swap_remove(index);
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    fn sends_pending(&self) -> usize {
        self.sends.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn outlives_ranks(&self) -> bool {
        self.outlives_ranks
    }

    fn shrink(&mut self, survivors: &[Rank]) {
        self.members.shrink(survivors);
        // Sends to failed ranks never complete; their bytes are leaked, since MPI may still access them.
        self.sends.clear();
        self.receives.retain(|receive| self.members.delivery(receive.source, receive.tag) != Delivery::Discard);
    }

    fn abort(&mut self, code: i32) -> ! {
        end_all_ranks(code)
    }

    fn finalize(mut self: Box<Self>, code: i32) -> Result<(), FabricError> {
        if self.outlives_ranks {
            // Sends to ranks that have left never complete, and are not needed.
            let (mut backoff, until) = (Backoff::default(), Instant::now() + LAST_SENDS);
            while !self.sends.is_empty() && Instant::now() < until {
                self.progress()?;
                backoff.wait();
            }
            // MPI_Finalize would wait for ranks that have failed or may still fail. The launcher lets ranks leave
            // without it.
            set_mpi_live(false);
            return Ok(());
        }
        wait_until("sending the last messages (has a rank stopped receiving?)", || {
            self.progress()?;
            Ok(self.sends.is_empty())
        })?;
        let mut everyone = self.collectives.barrier()?;
        meet(&mut everyone, "waiting for the other ranks to leave")?;
        self.collectives.free()?;
        set_mpi_live(false);
        let _returned = exit_if_shutdown_hangs(code, self.rank() == 0);
        raw::finalize()
    }
}

/// Exits with `code` unless the returned sender is dropped in time. Only one rank reports it.
fn exit_if_shutdown_hangs(code: i32, speaks: bool) -> mpsc::Sender<()> {
    let (returned, watch) = mpsc::channel();
    thread::spawn(move || {
        if watch.recv_timeout(SHUTDOWN_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            if speaks {
                tracing::warn!(
                    "MPI_Finalize did not return within {SHUTDOWN_DEADLINE:?}; all work is done, so exiting without it"
                );
            }
            flush_output();
            exit_now(code);
        }
    });
    returned
}
