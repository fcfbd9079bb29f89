//! Exuvia: tensor jobs on MPI ranks, computed by portable WebAssembly kernels.
//!
//! A rank starts a kernel at once on baseline code and sheds that code for optimized code while the job runs.
//! `ARCHITECTURE.md` tells which module may use which, and the invariants that hold between them.

pub mod check;
pub mod cli;
pub mod encode;
pub mod engine;
pub mod exec;
pub mod fabric;
pub mod job;
pub mod launch;
pub mod live;
pub mod manifest;
pub mod placement;
pub mod plan;
pub mod regular_file;
pub mod report;
pub mod sched;
pub mod simulate;
pub mod slurm;
pub mod store;
pub mod sweep;
pub mod tensor;
pub mod text;
pub mod topology;
