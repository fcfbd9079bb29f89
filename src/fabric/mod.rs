//! Moves owned byte buffers between ranks: over MPI, between threads of one process, or to oneself.
//!
//! Refuses to do: typed messages, one-sided access, anything that blocks. Nothing here waits inside MPI: every wait
//! is a loop of [`Fabric::poll`] (or `poll_from`), an `idle` callback that may give up, and a [`Backoff`], because
//! blocking MPI calls spin, and on a shared core a spinning rank keeps the one it waits for from running.
//!
//! Invariants. Messages of one source and tag arrive in the order they were sent. Collectives and point-to-point
//! messages never meet: they use separate tag spaces (on MPI, separate communicators), so a rank may still receive
//! other messages after a neighbour has entered a collective. Only the thread that called [`mpi()`] calls MPI, the
//! panic hook apart. After a failure MPI is aborted, never finalized.
//!
//! Where ranks may die without ending the others ([`Fabric::outlives_ranks`]), those that are left agree on who they are
//! (`exec`'s matter) and call [`Fabric::keep`]: no MPI call is needed for that, so none can wait for a rank that died meanwhile.

mod abort;
mod backoff;
pub mod collective;
mod error;
mod local;
mod members;
mod mpi;
mod payload;

pub use abort::install_panic_hook;
pub use backoff::Backoff;
pub use error::FabricError;
pub use local::{local, solo};
pub use members::LASTING_TAG;
pub use mpi::{is_open_mpi, library, mpi};
pub use payload::Payload;

pub use crate::topology::Rank;
use crate::topology::{Launcher, launcher};

/// Callers' tags lie below this; MPI promises no more than 2^15 of them.
pub const TAG_LIMIT: u32 = 1 << 15;
/// Most bytes in one message: MPI counts in `int`. Callers with more to send cut it; broadcasts cut by themselves.
pub const MESSAGE_LIMIT_BYTES: usize = i32::MAX as usize;

/// Bytes that arrived, now owned by whoever polled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub source: Rank,
    pub tag: u32,
    pub bytes: Vec<u8>,
}

/// What went through this rank so far, collectives included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    pub messages_sent: u64,
    pub bytes_sent: u64,
    pub messages_received: u64,
    pub bytes_received: u64,
}

impl Counters {
    fn sent(&mut self, bytes: usize) {
        self.messages_sent += 1;
        self.bytes_sent += bytes as u64;
    }

    fn received(&mut self, bytes: usize) {
        self.messages_received += 1;
        self.bytes_received += bytes as u64;
    }
}

/// One rank's end of the fabric.
pub trait Fabric: std::fmt::Debug {
    /// This rank, `0..size()`.
    fn rank(&self) -> Rank;

    /// How many ranks there are.
    fn size(&self) -> u32;

    /// Starts a send and returns at once; the fabric keeps the bytes until they have left. Sending to oneself is fine.
    ///
    /// Fails on more than [`MESSAGE_LIMIT_BYTES`]. Panics if `to` or `tag` is out of range.
    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError>;

    /// The next message that has arrived, of any source and tag (but no collective's); never blocks. Also moves
    /// pending sends along, so whoever has sent must keep polling.
    fn poll(&mut self) -> Result<Option<Message>, FabricError>;

    /// Like [`Fabric::poll`], but only a message of this source and tag: all others stay for later, in order.
    fn poll_from(&mut self, source: Rank, tag: u32) -> Result<Option<Message>, FabricError>;

    /// Moves pending sends along and takes no message.
    fn progress(&mut self) -> Result<(), FabricError>;

    /// Sends whose bytes have not left yet.
    fn sends_pending(&self) -> usize;

    /// Messages and bytes so far.
    fn counters(&self) -> Counters;

    /// Whether the ranks that are left can go on when others die.
    fn outlives_ranks(&self) -> bool;

    /// From now on only `survivors` count: ascending, by their numbers so far, this rank among them. They are numbered anew,
    /// from 0, and what was sent among more ranks than these is lost, [`LASTING_TAG`] apart. Every survivor calls it, with
    /// the same ranks; what one of them sends after that waits for the others to do so.
    fn keep(&mut self, survivors: &[Rank]);

    /// Ends every rank with this exit code, now. Prints nothing, so say why before. Between threads
    /// ([`local()`]) it unwinds this one, and the others get [`FabricError::Aborted`] from their next call.
    fn abort(&mut self, code: i32) -> !;

    /// Leaves in good order: the last sends go out, then every rank waits for the others, a minute at most. Call it on
    /// all ranks, after a [`collective::barrier`], and only when nothing has failed. `code` is what the process will
    /// exit with: should the MPI library hang in its own shutdown (MPICH 4.0 across nodes does), the process exits
    /// with it then and there, since all work is done.
    fn finalize(self: Box<Self>, code: i32) -> Result<(), FabricError>;
}

/// MPI where a launcher started ranks, otherwise one rank without it.
pub fn connect() -> Result<Box<dyn Fabric>, FabricError> {
    match launcher() {
        Launcher::None => Ok(solo()),
        Launcher::Mpi { .. } => mpi(),
    }
}

/// Refuses what no fabric can send; the same on all of them, so that tests between threads find it.
fn check_send(size: u32, to: Rank, tag: u32, bytes: usize) -> Result<(), FabricError> {
    assert!(to < size, "send to rank {to} of {size}");
    assert!(tag < TAG_LIMIT + collective::TAG_COUNT, "tag {tag} out of range");
    if bytes > MESSAGE_LIMIT_BYTES {
        return Err(FabricError::TooLarge { to, bytes });
    }
    Ok(())
}
