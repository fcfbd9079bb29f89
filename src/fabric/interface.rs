//! The interface that every fabric implements.

use super::counters::Counters;
use super::error::FabricError;
use super::message::Message;
use super::payload::Payload;
use crate::topology::Rank;

/// One rank's endpoint of the fabric.
pub trait Fabric: std::fmt::Debug {
    /// This rank, `0..size()`.
    fn rank(&self) -> Rank;

    /// The number of ranks.
    fn size(&self) -> u32;

    /// Starts a send and returns at once; the fabric keeps the bytes until they are sent. A rank may send to itself.
    ///
    /// Fails on more than [`MESSAGE_LIMIT_BYTES`](crate::fabric::limits::MESSAGE_LIMIT_BYTES). Panics if `to` or `tag`
    /// is out of range.
    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError>;

    /// The next message that has arrived, of any source and tag except those of collectives. Never blocks. Also makes
    /// progress on pending sends, so a rank that has sent must keep polling.
    fn poll(&mut self) -> Result<Option<Message>, FabricError>;

    /// Like [`Fabric::poll`], but only a message of this source and tag: all others stay for later, in order.
    fn poll_from(&mut self, source: Rank, tag: u32) -> Result<Option<Message>, FabricError>;

    /// Makes progress on pending sends without taking a message.
    fn progress(&mut self) -> Result<(), FabricError>;

    /// The number of sends in progress.
    fn sends_pending(&self) -> usize;

    /// Messages and bytes so far.
    fn counters(&self) -> Counters;

    /// Whether the surviving ranks can continue when others fail.
    fn outlives_ranks(&self) -> bool;

    /// Reduces the ranks to `survivors`: ascending, by their present numbers, this rank among them. They are renumbered
    /// from 0, and messages that were sent within a larger set of ranks are dropped,
    /// [`LASTING_TAG`](crate::fabric::members::LASTING_TAG) excepted. Every survivor calls it with the same ranks; what
    /// one of them sends afterwards waits until the receiver has called it too.
    fn shrink(&mut self, survivors: &[Rank]);

    /// Ends every rank with this exit code, immediately. Prints nothing: the caller reports the reason first. Between
    /// threads ([`local()`](crate::fabric::local::local())) it unwinds this one, and the others get
    /// [`FabricError::Aborted`] from their next call.
    fn abort(&mut self, code: i32) -> !;

    /// Shuts down in order: completes the last sends, then waits for the other ranks, for a minute at most. Call it on
    /// all ranks, after a [`collective::barrier`](super::collective::barrier), and only when nothing has failed. `code`
    /// is what the process will exit with: should the MPI library hang in its own shutdown (MPICH 4.0 across nodes
    /// does), the process exits with it then and there, since all work is done.
    fn finalize(self: Box<Self>, code: i32) -> Result<(), FabricError>;
}
