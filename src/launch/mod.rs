//! Launching ranks: the supervisor of `mpirun`, its hostfile, the status files of the ranks, and the filter of their output.
//!
//! Refuses to do: parsing arguments. Knows nothing of `cli`.

pub mod hostfile;
pub mod output_filter;
pub mod status_files;
pub mod supervisor;
