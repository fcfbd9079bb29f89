//! The interface that every fabric implements.

use super::counters::Counters;
use super::error::FabricError;
use super::message::Message;
use super::payload::Payload;
use crate::topology::Rank;

/// One rank's end of the fabric.
pub trait Fabric: std::fmt::Debug {
    /// This rank, `0..size()`.
    fn rank(&self) -> Rank;

    /// How many ranks there are.
    fn size(&self) -> u32;

    /// Starts a send and returns at once; the fabric keeps the bytes until they have left. Sending to oneself is fine.
    ///
    /// Fails on more than [`MESSAGE_LIMIT_BYTES`](super::MESSAGE_LIMIT_BYTES). Panics if `to` or `tag` is out of range.
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
    /// from 0, and what was sent among more ranks than these is lost, [`LASTING_TAG`](super::LASTING_TAG) apart. Every survivor calls it, with
    /// the same ranks; what one of them sends after that waits for the others to do so.
    fn shrink(&mut self, survivors: &[Rank]);

    /// Ends every rank with this exit code, now. Prints nothing, so say why before. Between threads
    /// ([`local()`](super::local())) it unwinds this one, and the others get [`FabricError::Aborted`] from their next call.
    fn abort(&mut self, code: i32) -> !;

    /// Leaves in good order: the last sends go out, then every rank waits for the others, a minute at most. Call it on
    /// all ranks, after a [`collective::barrier`](super::collective::barrier), and only when nothing has failed. `code` is what the process will
    /// exit with: should the MPI library hang in its own shutdown (MPICH 4.0 across nodes does), the process exits
    /// with it then and there, since all work is done.
    fn finalize(self: Box<Self>, code: i32) -> Result<(), FabricError>;
}
