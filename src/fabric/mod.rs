//! Moves owned byte buffers between ranks: over MPI, between threads of one process, or within one rank.
//!
//! This module has no typed messages, no one-sided access and no blocking calls. No wait happens inside MPI: every wait
//! is a loop of [`Fabric::poll`] (or `poll_from`), an `idle` callback that may give up, and a [`Backoff`]. Blocking MPI
//! calls spin, and on a shared core a spinning rank keeps the rank that it waits for from running.
//!
//! Invariants: messages of one source and tag arrive in the order in which they were sent. Collectives and
//! point-to-point messages use separate tag spaces (on MPI, separate communicators), so a rank may still receive other
//! messages after a neighbour has entered a collective. Only the thread that called [`mpi()`] calls MPI, except for the
//! panic hook. After a failure MPI is aborted, never finalized.
//!
//! Where ranks can fail without ending the others ([`Fabric::outlives_ranks`]), the survivors agree on the set of
//! failed ranks (in `exec`) and call [`Fabric::shrink`]. That needs no MPI call, which could wait for another failed
//! rank.

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
