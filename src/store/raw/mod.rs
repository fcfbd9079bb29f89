//! HDF5's C API, for what the safe crate lacks: element types that are known only at run time, hyperslabs as plain
//! bytes, the mappings of virtual datasets, storage that is allocated early and not filled, chunks in their stored
//! form, link kinds, and attributes of any type.
//!
//! This is the fourth `unsafe` door of the crate. Every call is made under the safe crate's lock, and every handle is
//! closed by its owner.
#![expect(unsafe_code, reason = "HDF5's C API")]

pub(super) mod attributes;
pub(super) mod dataset;
pub mod guard;
mod handle;
pub(super) mod links;
pub(super) mod output;
pub(super) mod types;
