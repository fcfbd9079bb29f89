//! The datasets that a stage reads and writes.

pub mod inputs;
pub mod outputs;
pub mod target_files;
