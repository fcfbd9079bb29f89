use std::time::Duration;

use super::limits::MESSAGE_LIMIT_BYTES;
use crate::encode::EncodeError;
use crate::topology::{Rank, Topology};

/// Why ranks can no longer communicate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    #[error(
        "{launcher} started {expected} ranks, but {library} sees only one: launcher and library use \
         different process-management interfaces; {help}"
    )]
    LauncherMismatch { launcher: &'static str, expected: u32, library: String, help: String },
    #[error("MPI is already initialised in this process")]
    AlreadyInitialized,
    #[error("{library} lacks MPI_THREAD_FUNNELED: it was built without thread support")]
    Threads { library: String },
    #[error("{call} failed: {message}")]
    Mpi { call: &'static str, message: String },
    #[error("a message of {bytes} bytes to rank {to} exceeds the limit of MPI ({MESSAGE_LIMIT_BYTES} bytes)")]
    TooLarge { to: Rank, bytes: usize },
    #[error("no memory for {bytes} bytes from rank {sender}")]
    Memory { sender: Rank, bytes: u64 },
    #[error("rank {sender} sent an unexpected message instead of {expected}")]
    Malformed { sender: Rank, expected: &'static str },
    #[error("rank {rank} (process {pid} on {hostname}) died")]
    RankDied { rank: Rank, pid: u32, hostname: String },
    #[error("rank {rank} aborted the run with code {code}")]
    Aborted { rank: Rank, code: i32 },
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("gave up on {what} after {after:?}")]
    Timeout { what: String, after: Duration },
}

impl FabricError {
    /// The error for a failed rank, with its process and host.
    pub fn rank_died(topology: &Topology, rank: Rank) -> FabricError {
        let host = topology.host(rank);
        FabricError::RankDied { rank, pid: host.pid, hostname: host.hostname.clone() }
    }
}
