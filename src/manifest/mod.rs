//! The manifest: records of a run's completed work, in a folder next to the outputs that outlives the run's processes.
//!
//! One *header* describes the run and the location of its outputs; each rank appends *records* of completed work to its
//! own log. Every line has a checksum, so a torn or damaged line counts as never written, and records carry checksums
//! of the bytes that they describe.
//!
//! This module does not use MPI and does not decide what a record means or when one is due.

mod error;
mod folder;
mod log;
mod open_options;
mod syncer;

pub use error::ManifestError;
pub use folder::{Folder, write_json};
pub use log::{Log, Records, StoredPayload, read_payload};
pub use syncer::Syncer;
