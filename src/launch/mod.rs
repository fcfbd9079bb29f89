//! Launching ranks: the supervisor of `mpirun`, the hostfile, the status files of the ranks, and the filter of their
//! output.
//!
//! Refuses to do: parsing arguments and printing results. Knows nothing of `cli`.

pub mod error;
pub mod hostfile;
pub mod launcher;
pub mod output_filter;
pub mod signal;
pub mod status_files;
pub mod supervisor;
