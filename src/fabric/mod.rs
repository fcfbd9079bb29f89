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
//! (`exec`'s matter) and call [`Fabric::shrink`]: no MPI call is needed for that, so none can wait for a rank that died meanwhile.

mod abort;
mod backoff;
pub mod collective;
mod connect;
mod counters;
mod error;
mod interface;
mod limits;
mod local;
mod members;
mod message;
mod mpi;
mod payload;

pub use abort::install_panic_hook;
pub use backoff::Backoff;
pub use connect::connect;
pub use counters::Counters;
pub use error::FabricError;
pub use interface::Fabric;
pub use limits::{MESSAGE_LIMIT_BYTES, TAG_LIMIT};
pub use local::{local, solo};
pub use members::LASTING_TAG;
pub use message::Message;
pub use mpi::{is_open_mpi, library, mpi};
pub use payload::Payload;

pub use crate::topology::Rank;
