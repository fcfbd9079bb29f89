//! Worker threads: they take spans from the scheduler, run kernels on them and merge partial results.

pub mod block;
pub mod fault;
pub mod instances;
pub mod message;
pub mod setup;
pub mod shared_state;
pub mod task;
pub mod worker_loop;
