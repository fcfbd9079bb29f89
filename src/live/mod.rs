//! Live snapshots of running jobs: each run publishes a small file in a folder of the user, which `exuvia top` reads.
//!
//! Refuses to do: MPI, and delaying a run: a separate thread writes the file, and snapshots that arrive while it is
//! busy are dropped. Invariant: a file exists no longer than its run: the run removes it, and readers remove those of
//! dead processes.

mod folder;
mod publisher;
mod snapshot;

pub use folder::{folder, list};
pub use publisher::Publisher;
pub use snapshot::{Iteration, RankSnapshot, Share, Snapshot, StageShare, StageSnapshot};
