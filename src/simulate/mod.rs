//! Simulation of a plan on another machine: the schedulers of all ranks under a discrete-event loop.
//!
//! The schedulers are those that run jobs, message for message. Tasks, reads, writes and messages take a time that
//! follows from a [`MachineModel`] or from the measured costs of a run ([`StageCosts`]). `docs/simulate.md` says what
//! is modelled and what is not. Refuses to do: I/O, clocks, threads, and any randomness but hashes of the seed.
//! Invariant: time is in integer nanoseconds, events at one time happen in the order of their making, so that equal
//! arguments give equal results, bit for bit.

mod block_costs;
mod calibrate;
mod contention;
mod cpu_sharing;
mod event;
mod event_queue;
mod exchange;
#[cfg(test)]
mod granularity_tests;
mod machine;
mod main_thread;
mod messages;
mod network;
mod phases;
mod placement;
#[cfg(test)]
mod placement_tests;
mod random;
mod rank_state;
mod results;
mod runs;
mod setup;
mod simulator;
mod stage_costs;
mod stage_model;
mod summary;
#[cfg(test)]
mod tests;
mod workers;

pub use calibrate::{Measured, MeasuredStage, calibrate};
pub use contention::Contention;
pub use exchange::{MovedBytes, moved};
pub use machine::{MachineError, MachineModel};
pub use placement::Placement;
pub use results::{Simulation, StageTimes};
pub use setup::{Iterations, Policy, SimulationSetup};
pub use simulator::simulate;
pub use stage_costs::StageCosts;
