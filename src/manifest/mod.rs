//! What of a run is finished, on disk: a folder beside the outputs that outlives the processes of the run.
//!
//! One *header* says what the run is and where its outputs lie; each rank appends *records* of what it has finished to a log of
//! its own. Nothing here is ever trusted blindly: every line has a checksum of its own, so a torn or damaged one is as
//! if it had never been written, and records carry the checksums of the bytes they speak of.
//!
//! Refuses to do: MPI, deciding what a record means or when one is due.

mod error;
mod folder;
mod log;
mod open_options;
mod syncer;

pub use error::ManifestError;
pub use folder::{Folder, write_whole};
pub use log::{Log, Records, StoredPayload, read_payload};
pub use syncer::Syncer;
