//! Completed work that outlives a run: manifests, checkpoints, fingerprints.

pub mod checkpoint;
pub mod completed;
pub mod fingerprint;
pub mod header;
pub mod input_fingerprint;
pub mod manifest;
pub mod partial_sums;
pub mod record;
pub mod skip;
pub mod snapshot;
pub mod staging;
