//! The fabric over MPI. rsmpi initialises and finalizes; everything between is in `raw`.

mod raw;

use std::marker::PhantomData;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ::mpi::Threading;

use self::raw::{Communicator, Pending, Receive, Send};
use super::abort::{end_all_ranks, exit_now, flush_output, set_mpi_live};
use super::members::{Judgement, LASTING_TAG, Members};
use super::{Counters, Fabric, Message, Rank, TAG_LIMIT, check_send};
use crate::fabric::backoff::Backoff;
use crate::fabric::error::FabricError;
use crate::fabric::payload::Payload;
use crate::topology::{Launcher, launcher, launcher_outlives_ranks};

/// Messages being received for [`Fabric::poll`]; the rest wait inside MPI, which slows their senders down.
const RECEIVES_AT_ONCE: usize = 16;
/// For the other ranks to come to a point that all of them are about to reach.
const MEETING_DEADLINE: Duration = Duration::from_secs(60);
/// For what a rank has said as it left, where others may be gone already.
const LAST_SENDS: Duration = Duration::from_millis(500);
/// For MPI_Finalize, once every rank has come to it.
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
    let world = Communicator::world()?;
    let size = world.size()?;
    check_launcher(size, launcher())?;
    let collectives = world.duplicate(|pending| meet(pending, "setting up a second communicator"))?;
    let members = Members::new(world.rank()?, size);
    // Of the libraries here only Open MPI's ranks live on, and go on talking, when one is gone.
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

/// The MPI library in use and its version, such as `Open MPI v4.1.4`. May be asked before MPI starts.
pub fn library() -> String {
    let version = raw::library_version();
    version.map_or_else(|| "an unknown MPI library".to_owned(), |version| short_version(&version))
}

/// Whether the library is Open MPI. May be asked before MPI starts.
pub fn is_open_mpi() -> bool {
    library().starts_with("Open MPI")
}

/// Open MPI: `Open MPI v4.1.4, package: ...`. MPICH: `MPICH Version:\t4.0.2\nMPICH Release date: ...`.
fn short_version(version: &str) -> String {
    let first = version.split(['\n', ',']).next().unwrap_or_default();
    let words = first.split_whitespace().filter(|&word| word != "Version:");
    words.collect::<Vec<_>>().join(" ")
}

fn check_launcher(size: u32, launcher: Launcher) -> Result<(), FabricError> {
    match launcher {
        Launcher::Mpi { size_hint: Some(expected), name, .. } if expected > 1 && size == 1 => {
            let library = library();
            Err(FabricError::LauncherMismatch {
                launcher: name,
                expected,
                help: mismatch_help(name, &library),
                library,
            })
        }
        _ => Ok(()),
    }
}

fn mismatch_help(launcher: &str, library: &str) -> String {
    if !launcher.starts_with("srun") {
        return format!(
            "start with the mpirun or mpiexec of {library}, or rebuild with MPICC naming the compiler wrapper of the \
             other MPI, in a target directory of its own"
        );
    }
    let (pmi, runner) = match library.starts_with("Open MPI") {
        true => ("pmix", "mpirun"),
        false => ("pmi2", "mpiexec"),
    };
    format!(
        "start with `srun --mpi={pmi}` (`srun --mpi=list` shows what Slurm has), or with `{runner}` in the allocation"
    )
}

/// Waits for an operation that every rank is about to enter.
fn meet(pending: &mut Pending, what: &str) -> Result<(), FabricError> {
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

#[derive(Debug)]
struct Mpi {
    members: Members,
    outlives_ranks: bool,
    /// Callers' messages. Its ranks are those of the start, here and below.
    world: Communicator,
    /// Tags from `TAG_LIMIT` on.
    collectives: Communicator,
    sends: Vec<Send>,
    /// In the order MPI matched them, which is the order they were sent in per source and tag; their tags are stamped.
    receives: Vec<Receive>,
    /// Messages from ranks that know of more deaths than this one: what the source was at the start, stamped tag, bytes.
    early: Vec<(Rank, u32, Vec<u8>)>,
    counters: Counters,
    /// MPICH's handles are integers: without this the same code would be `Send` there and not with Open MPI.
    this_thread_only: PhantomData<*mut ()>,
}

impl Mpi {
    /// The communicator for a tag, and what the tag is there.
    fn route(&self, tag: u32) -> (Communicator, u32) {
        match tag.checked_sub(TAG_LIMIT) {
            Some(tag) => (self.collectives, self.members.stamp(TAG_LIMIT + tag) - TAG_LIMIT),
            None => (self.world, self.members.stamp(tag)),
        }
    }

    /// Takes the receive at `index`, which is complete; `None` if it is of another time.
    fn take(&mut self, index: usize) -> Option<Message> {
        let receive = self.receives.remove(index);
        let (origin, stamped) = (receive.source, receive.tag);
        let bytes = receive.into_bytes();
        self.counters.received(bytes.len());
        match self.members.judge(origin, stamped) {
            Judgement::Take => return Some(self.members.admit(origin, stamped, bytes)),
            Judgement::Later => self.early.push((origin, stamped, bytes)),
            Judgement::Drop => {}
        }
        None
    }

    /// A message that came too early, and no longer is.
    fn take_early(&mut self, wanted: impl Fn(Rank, u32) -> bool) -> Option<Message> {
        let due = |(origin, stamped, _): &(Rank, u32, Vec<u8>)| {
            self.members.judge(*origin, *stamped) == Judgement::Take && wanted(*origin, *stamped)
        };
        let index = self.early.iter().position(due)?;
        let (origin, stamped, bytes) = self.early.remove(index);
        Some(self.members.admit(origin, stamped, bytes))
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
        // Short messages are gone already.
        if !send.done()? {
            self.sends.push(send);
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Message>, FabricError> {
        self.progress()?;
        if let Some(message) = self.take_early(|_, stamped| Members::tag(stamped) < TAG_LIMIT) {
            return Ok(Some(message));
        }
        // What is received from a rank that died may never be complete: word of that must not wait for it.
        let tag = (self.receives.len() >= RECEIVES_AT_ONCE).then_some(LASTING_TAG);
        self.receives.extend(self.world.receive(None, tag)?);
        let mut index = 0;
        while index < self.receives.len() {
            let ours = Members::tag(self.receives[index].tag) < TAG_LIMIT;
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
        let (origin, stamped) = (self.members.origin(source), self.members.stamp(tag));
        if let Some(message) = self.take_early(|from, tag| from == origin && tag == stamped) {
            return Ok(Some(message));
        }
        let wanted = |receive: &Receive| receive.source == origin && receive.tag == stamped;
        let index = match self.receives.iter().position(wanted) {
            Some(index) => index,
            None => {
                let (communicator, routed_tag) = self.route(tag);
                let Some(mut receive) = communicator.receive(Some(origin), Some(routed_tag))? else {
                    return Ok(None);
                };
                receive.tag = stamped;
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

    fn keep(&mut self, survivors: &[Rank]) {
        self.members.keep(survivors);
        // What goes to those who are gone never leaves; the bytes stay where MPI may still read or write them.
        self.sends.clear();
        self.receives.retain(|receive| self.members.judge(receive.source, receive.tag) != Judgement::Drop);
    }

    fn abort(&mut self, code: i32) -> ! {
        end_all_ranks(code)
    }

    fn finalize(mut self: Box<Self>, code: i32) -> Result<(), FabricError> {
        if self.outlives_ranks {
            // What goes to ranks that have left before never leaves, and nobody needs it.
            let (mut backoff, until) = (Backoff::default(), Instant::now() + LAST_SENDS);
            while !self.sends.is_empty() && Instant::now() < until {
                self.progress()?;
                backoff.wait();
            }
            // MPI_Finalize waits for ranks that are gone, or may be any moment. The launcher knows that ranks may leave without.
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

/// Exits with `code` unless the returned sender is dropped in time. One rank speaks for all.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(name: &'static str, size: u32) -> Launcher {
        Launcher::Mpi { size_hint: Some(size), rank_hint: Some(0), name }
    }

    #[test]
    fn versions_are_short() {
        let open_mpi = "Open MPI v4.1.4, package: Debian Open MPI, ident: 4.1.4";
        assert_eq!(short_version(open_mpi), "Open MPI v4.1.4");
        let mpich = "MPICH Version:\t4.0.2\nMPICH Release date:\tThu";
        assert_eq!(short_version(mpich), "MPICH 4.0.2");
    }

    #[test]
    fn a_singleton_among_launched_ranks_is_refused_with_a_way_out() {
        assert!(check_launcher(1, Launcher::None).is_ok());
        assert!(check_launcher(1, launched("srun --mpi=pmix", 1)).is_ok());
        assert!(check_launcher(4, launched("srun --mpi=pmix", 4)).is_ok());
        let text = check_launcher(1, launched("srun without PMI", 4)).unwrap_err().to_string();
        assert!(text.starts_with("srun without PMI started 4 ranks"), "{text}");
        assert!(mismatch_help("srun", "Open MPI v4.1.4").contains("srun --mpi=pmix"));
        assert!(mismatch_help("srun", "MPICH 4.0.2").contains("srun --mpi=pmi2"));
        assert!(mismatch_help("mpiexec (Hydra)", "Open MPI v4.1.4").contains("MPICC"));
    }
}
