//! Regions of tensors to and from HDF5 files; the only user of HDF5.
//!
//! Outputs need no parallel HDF5: rank 0 creates every dataset with its storage allocated, and each rank then writes its
//! bytes at their places in the file. So any MPI will do, no write is collective, and a dead rank holds up nobody.
//! Compressed chunks have no place before they are made: ranks compress them, rank 0 writes them.
//!
//! Refuses to do: MPI, deciding who writes what. Invariant: a file keeps its old content, or has all of the new, at
//! every moment.

mod chunks;
mod create;
mod error;
mod grid;
mod links;
mod listing;
mod merge;
mod outside;
mod parts;
mod path;
mod place;
mod raw;
mod read;
mod replace;
mod staging;
mod standing;
mod turn;
mod writer;

pub use chunks::{compress_chunks, expand_chunks};
pub use create::{ChunkRun, OutputLayout, OutputSpec, Storage, may_create};
pub use error::StoreError;
pub use links::Source;
pub use listing::{ListedLink, Listing, list};
pub use outside::checksum_outside;
pub use path::{FileId, Place, real_path};
pub use read::{Catalog, DatasetInfo, Reader, describe};
pub use staging::{Staging, Unfinished, is_unfinished};
pub use writer::Writer;

/// CPU time after which HDF5 is taken to be in an endless loop, while it says what is in a file.
pub const CALL_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// From now on a crash of HDF5 on a damaged file, or a call of it without an end, ends the process with exit status 1 and an
/// error that names the file. `word`, if there is one, is told the status. To be called once, before kernels are compiled.
pub fn contain_crashes(word: Option<std::fs::File>, call_limit: std::time::Duration) {
    raw::guard::contain_crashes(word, call_limit);
}

/// Version of the HDF5 library at run time.
pub fn library_version() -> String {
    let (major, minor, release) = hdf5::library_version();
    format!("{major}.{minor}.{release}")
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod output_tests;
