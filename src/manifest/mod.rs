//! What of a run is finished, on disk: a folder beside the outputs that outlives the processes of the run.
//!
//! One *header* says what the run is and where its outputs lie; each rank appends *records* of what it has finished to a log of
//! its own. Nothing here is ever trusted blindly: every line has a checksum of its own, so a torn or damaged one is as
//! if it had never been written, and records carry the checksums of the bytes they speak of.
//!
//! Refuses to do: MPI, deciding what a record means or when one is due.

mod folder;
mod log;
mod syncer;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

pub use folder::{Folder, write_whole};
pub use log::{Log, Payload, Records, read_payload};
pub use syncer::Syncer;

/// Why a manifest cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("another run writes the outputs of this job ({by}; {})", folder.display())]
    Busy { folder: PathBuf, by: String },
    #[error("{} {why}: it is not used", folder.display())]
    NotOurs { folder: PathBuf, why: String },
    #[error("cannot {what} {}", path.display())]
    Io { path: PathBuf, what: &'static str, source: std::io::Error },
}

/// Opens no links: whoever may write to a folder could have planted one that leads elsewhere.
fn unlinked() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}
