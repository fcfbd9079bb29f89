//! What a plan would take on a machine that is not at hand: the schedulers of all its ranks under a discrete-event
//! loop.
//!
//! The schedulers are those that run jobs, message for message; simulated are the time that tasks, reads, writes and
//! messages take, by a few figures of a [`Machine`]. `docs/simulate.md` says what is modelled and what is not.
//! Refuses to do: I/O, clocks, threads, and any randomness but hashes of the seed.
//! Invariant: time is in integer nanoseconds, events at one time happen in the order of their making, so that equal
//! arguments give equal results, bit for bit.

mod chance;
mod links;
mod machine;
mod queue;
#[cfg(test)]
mod tests;
mod work;
mod world;

pub use machine::{Machine, MachineError};

use serde::Serialize;

use crate::plan::Plan;
use crate::sched::{Granularity, StealCounts};

/// How ranks share work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Ranks without work steal.
    Steal,
    /// Each rank computes what it owns.
    Static,
}

/// What is simulated, beside the plan.
#[derive(Clone, Debug)]
pub struct Setup {
    pub machine: Machine,
    pub policy: Policy,
    pub granularity: Granularity,
    /// Ranks that are slower than the machine says, by these factors.
    pub slow: Vec<(u32, f64)>,
    pub seed: u64,
}

/// What one stage would take. Sums are over all ranks.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct StageTimes {
    pub stage: String,
    /// Until the last rank knows that the stage is over.
    pub makespan_ns: u64,
    /// The time of all kernels over the speed of all workers.
    pub ideal_ns: u64,
    /// `ideal / makespan`; 1 for a stage without work.
    pub efficiency: f64,
    pub blocks: u64,
    pub tasks: u64,
    /// Events that were simulated.
    pub events: u64,
    pub steal_requests: u64,
    pub steal_grants: u64,
    pub slices: u64,
    pub slices_stolen: u64,
    /// Split operands of all tasks.
    pub data_bytes: u64,
    /// Of these, computed by another rank of the owner's node, and by one of another node.
    pub stolen_on_node_bytes: u64,
    pub stolen_between_nodes_bytes: u64,
    /// `stolen_between_nodes / data`.
    pub between_nodes: f64,
    /// What messages carried within nodes, and between them.
    pub moved_on_node_bytes: u64,
    pub moved_between_nodes_bytes: u64,
}

impl StageTimes {
    fn add(&mut self, counts: StealCounts) {
        self.steal_requests += counts.requests;
        self.steal_grants += counts.grants;
        self.slices_stolen += counts.slices_stolen;
    }
}

/// Runs every stage of `plan`, one after the other, iterated ones once.
pub fn simulate(plan: &Plan, setup: &Setup) -> Vec<StageTimes> {
    plan.stages.iter().map(|stage| world::run(plan, stage, setup)).collect()
}
