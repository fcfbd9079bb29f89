//! One rank's part in a run: agrees with the others on the plan, feeds events to `sched`, and carries out its actions
//! on `engine`, `fabric` and `store`; the only glue between them.
//!
//! The main thread talks MPI and HDF5, and nothing else does; the workers of a rayon pool run kernels; a helper process
//! optimizes them. Refuses to do: deciding who computes what (that is `plan` and `sched`), parsing arguments, printing
//! results. Invariant: an error on any rank ends all ranks, is printed once, and leaves no output behind; what is
//! finished is kept for the next run. A death is an error too, unless the fabric outlives it: then the ranks that are
//! left are that next run (`survive`).

mod comm;
mod dataset;
mod dataset_paths;
mod error;
mod kernels;
mod options;
mod progress;
mod recovery;
mod reduce;
mod run;
mod stage;
mod sync;
#[cfg(test)]
mod test_plans;
mod trace;
mod transfer;
mod worker;

pub use comm::signal::Signal;
pub use dataset::target_files::real_outputs;
pub use dataset_paths::first_folder;
pub use error::{ExitCode, RunError, RunFailure, render};
pub use kernels::cost_history::known_ns_per_slice;
pub use options::{Options, Progress, Resume, TierPolicy};
pub(crate) use reduce::fold::{Merge, Merger};
pub use run::run;
pub use run::startup::{check_outputs, layouts, load_kernel};
