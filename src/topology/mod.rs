//! The placement of ranks: nodes, local ranks, CPU classes, and the launcher.
//!
//! The only reader of `SLURM_*`, `OMPI_*`, `PMI_*` and `PMIX_*`. Refuses to do: MPI (the caller gathers the
//! [`Host`]s of all ranks), pinning, any decision about work.
//!
//! Invariant: a [`Topology`] is a function of the gathered hosts alone, so every rank computes the same one.
//! Two ranks are on the same node when hostname *and* pid namespace agree: only then is the pid of
//! one valid for the other, as [`FailureDetector`] needs.

mod cpu;
mod failure_detector;
mod host;
mod keepalive;
mod launcher;
mod process;
mod ranks;
mod slurm;

pub use cpu::{CpuClass, common_features};
pub use failure_detector::FailureDetector;
pub use host::{Host, host};
pub use keepalive::{Keepalive, LivenessListener};
pub use launcher::{
    Launcher, allocated_tasks, allocation_end, launcher, launcher_outlives_ranks, node_addresses, slurm_job,
};
pub use process::{Process, process_alive};
pub use ranks::{Rank, Topology};
pub use slurm::Allocation;

/// Returns the nodes on which this process may start ranks with `srun`.
pub fn allocation() -> Option<Allocation> {
    Allocation::read(&|name| std::env::var(name).ok())
}
