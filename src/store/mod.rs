//! Reads and writes regions of tensors in HDF5 files; the only user of HDF5.
//!
//! Outputs need no parallel HDF5: rank 0 creates every dataset with its storage allocated, and each rank then writes
//! its bytes at their offsets in the file. Any MPI library will do, no write is collective, and a failed rank blocks no
//! other. The offset of a compressed chunk is unknown until the chunk exists: all ranks compress, and rank 0 writes.
//!
//! This module does not use MPI and does not decide which rank writes what. Invariant: at every moment, a file has
//! either all of its old content or all of the new.

mod catalog;
mod chunks;
mod creation;
mod dataset_info;
mod error;
mod existing_object;
mod file_layout;
mod file_lock;
mod filters;
mod grid;
mod links;
mod listing;
mod lookup;
mod merge;
mod metadata_checksum;
mod open_file;
mod output_layout;
mod path;
mod publish;
mod raw;
mod reader;
mod replace;
mod resume;
mod staging;
mod virtual_dataset;
mod writer;

pub use catalog::{Catalog, describe};
pub use chunks::{compress_chunks, expand_chunks};
pub use creation::may_create;
pub use dataset_info::DatasetInfo;
pub use error::StoreError;
pub use links::DataSource;
pub use listing::{ListedLink, Listing, list};
pub use metadata_checksum::metadata_checksum;
pub use output_layout::{ChunkRun, OutputLayout, OutputSpec, Storage};
pub use path::{FileId, PathIdentity, real_path};
pub use raw::guard::{CALL_LIMIT, contain_crashes};
pub use reader::Reader;
pub use staging::{Staging, Unfinished, is_unfinished};
pub use writer::Writer;

/// Version of the HDF5 library at run time.
pub fn library_version() -> String {
    let (major, minor, release) = hdf5::library_version();
    format!("{major}.{minor}.{release}")
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod output_tests;
