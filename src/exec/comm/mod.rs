//! The messages of one rank: point to point, collectives, failure detection, shutdown.

pub mod agreement;
pub mod communicator;
pub mod monitor;
pub mod shrink;
pub mod shutdown;
pub mod signal;
pub mod tag;
pub mod trailer;
