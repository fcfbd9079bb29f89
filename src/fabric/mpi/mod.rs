//! The fabric over MPI. rsmpi initialises and finalizes; everything between is in `raw`.

mod raw;

use std::marker::PhantomData;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ::mpi::Threading;

use self::raw::{Communicator, Pending, Receive, Send};
use super::abort::{end_all_ranks, exit_now, flush_output, set_mpi_live};
use super::{Backoff, Counters, Fabric, FabricError, Message, Payload, Rank, TAG_LIMIT, check_send};
use crate::topology::{Launcher, launcher};

/// Messages being received for [`Fabric::poll`]; the rest wait inside MPI, which slows their senders down.
const RECEIVES_AT_ONCE: usize = 16;
/// For the other ranks to come to a point that all of them are about to reach.
const MEETING_DEADLINE: Duration = Duration::from_secs(60);
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
    Ok(Box::new(Mpi {
        rank: world.rank()?,
        size,
        world,
        collectives,
        sends: Vec::new(),
        receives: Vec::new(),
        counters: Counters::default(),
        this_thread_only: PhantomData,
    }))
}

/// The MPI library in use and its version, such as `Open MPI v4.1.4`. May be asked before MPI starts.
pub fn library() -> String {
    let version = raw::library_version();
    version.map_or_else(|| "an unknown MPI library".to_owned(), |version| short_version(&version))
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
    rank: Rank,
    size: u32,
    /// Callers' messages.
    world: Communicator,
    /// Tags from `TAG_LIMIT` on.
    collectives: Communicator,
    sends: Vec<Send>,
    /// In the order MPI matched them, which is the order they were sent in per source and tag.
    receives: Vec<Receive>,
    counters: Counters,
    /// MPICH's handles are integers: without this the same code would be `Send` there and not with Open MPI.
    this_thread_only: PhantomData<*mut ()>,
}

impl Mpi {
    /// The communicator for a tag, and what the tag is there.
    fn route(&self, tag: u32) -> (Communicator, u32) {
        match tag.checked_sub(TAG_LIMIT) {
            Some(tag) => (self.collectives, tag),
            None => (self.world, tag),
        }
    }

    /// Takes the receive at `index` if it is complete.
    fn take(&mut self, index: usize) -> Result<Option<Message>, FabricError> {
        if !self.receives[index].done()? {
            return Ok(None);
        }
        let receive = self.receives.remove(index);
        let (source, tag) = (receive.source, receive.tag);
        let bytes = receive.into_bytes();
        self.counters.received(bytes.len());
        Ok(Some(Message { source, tag, bytes }))
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
        self.rank
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        check_send(self.size, to, tag, bytes.len())?;
        let length = bytes.len();
        let (communicator, tag) = self.route(tag);
        let mut send = communicator.send(to, tag, bytes)?;
        self.counters.sent(length);
        // Short messages are gone already.
        if !send.done()? {
            self.sends.push(send);
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Message>, FabricError> {
        self.progress()?;
        if self.receives.len() < RECEIVES_AT_ONCE {
            self.receives.extend(self.world.receive(None, None)?);
        }
        for index in 0..self.receives.len() {
            if self.receives[index].tag < TAG_LIMIT
                && !self.must_wait(index)
                && let Some(message) = self.take(index)?
            {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn poll_from(&mut self, source: Rank, tag: u32) -> Result<Option<Message>, FabricError> {
        self.progress()?;
        let wanted = |receive: &Receive| receive.source == source && receive.tag == tag;
        if let Some(index) = self.receives.iter().position(wanted) {
            return self.take(index);
        }
        let (communicator, routed_tag) = self.route(tag);
        let Some(mut receive) = communicator.receive(Some(source), Some(routed_tag))? else {
            return Ok(None);
        };
        receive.tag = tag;
        self.receives.push(receive);
        self.take(self.receives.len() - 1)
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

    fn abort(&mut self, code: i32) -> ! {
        end_all_ranks(code)
    }

    fn finalize(mut self: Box<Self>, code: i32) -> Result<(), FabricError> {
        wait_until("sending the last messages (has a rank stopped receiving?)", || {
            self.progress()?;
            Ok(self.sends.is_empty())
        })?;
        let mut everyone = self.collectives.barrier()?;
        meet(&mut everyone, "waiting for the other ranks to leave")?;
        self.collectives.free()?;
        set_mpi_live(false);
        let _returned = exit_if_shutdown_hangs(code);
        raw::finalize()
    }
}

/// Exits with `code` unless the returned sender is dropped in time.
fn exit_if_shutdown_hangs(code: i32) -> mpsc::Sender<()> {
    let (returned, watch) = mpsc::channel();
    thread::spawn(move || {
        if watch.recv_timeout(SHUTDOWN_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(
                "MPI_Finalize did not return within {SHUTDOWN_DEADLINE:?}; all work is done, so exiting without it"
            );
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
