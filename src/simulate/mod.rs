//! What a plan would take on a machine that is not at hand: the schedulers of all its ranks under a discrete-event
//! loop.
//!
//! The schedulers are those that run jobs, message for message; simulated are the time that tasks, reads, writes and
//! messages take, by a few figures of a [`Machine`] or as a run showed them ([`StageCosts`]). `docs/simulate.md` says
//! what is modelled and what is not.
//! Refuses to do: I/O, clocks, threads, and any randomness but hashes of the seed.
//! Invariant: time is in integer nanoseconds, events at one time happen in the order of their making, so that equal
//! arguments give equal results, bit for bit.

mod block_costs;
mod calibrate;
mod contention;
mod cpu_sharing;
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
mod simulator;
mod stage_model;
#[cfg(test)]
mod tests;
mod workers;

pub use calibrate::{Measured, MeasuredStage, StageCosts, calibrate};
pub use contention::Crowding;
pub use exchange::{Moved, moved};
pub use machine::{Machine, MachineError};
pub use placement::Placement;

use std::collections::BTreeMap;
use std::ops::Range;

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

/// Stages that run again and again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Iterations {
    pub stages: Range<usize>,
    pub count: u64,
    /// Tensors that change places after each: the one read, the one written.
    pub exchange: Vec<(String, String)>,
    /// All ranks learn this scalar after each, to see whether it was the last.
    pub until: Option<String>,
}

/// What is simulated, beside the plan.
#[derive(Clone, Debug)]
pub struct Setup {
    pub machine: Machine,
    pub policy: Policy,
    pub granularity: Granularity,
    pub placement: Placement,
    /// None: every stage runs once.
    pub iterations: Option<Iterations>,
    /// Of stages, by name, that cost what a run has shown, and not what the machine says.
    pub costs: BTreeMap<String, StageCosts>,
    /// Ranks that are slower than the machine says, by these factors.
    pub slow: Vec<(u32, f64)>,
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            machine: Machine::default(),
            policy: Policy::Steal,
            granularity: Granularity::Adaptive,
            placement: Placement::Planned,
            iterations: None,
            costs: BTreeMap::new(),
            slow: Vec::new(),
            seed: 1,
        }
    }
}

/// What a whole run would take.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Simulation {
    /// Before the first stage.
    pub start_ns: u64,
    /// From the start of the program to the end of the last stage on the last rank.
    pub makespan_ns: u64,
    /// When optimized code was there, since the first stage began; none if it was before, or not in time.
    pub optimized_at_ns: Option<u64>,
    pub stages: Vec<StageTimes>,
}

/// What all runs of one stage would take. Sums are over all ranks and runs.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct StageTimes {
    pub stage: String,
    /// How often it runs.
    pub runs: u64,
    /// Time that a rank spends in the stage, until it knows that it is over: the rank that spends most.
    pub makespan_ns: u64,
    /// The time of all kernels, on optimized code, over the speed of all workers.
    pub ideal_ns: u64,
    /// `ideal / makespan`; 1 for a stage without work.
    pub efficiency: f64,
    pub blocks: u64,
    pub tasks: u64,
    /// Tasks that ran on baseline code.
    pub baseline_tasks: u64,
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

/// Runs all stages of `plan` in their order, iterated ones as often as `setup` says.
pub fn simulate(plan: &Plan, setup: &Setup) -> Simulation {
    simulator::Simulator::new(plan, setup).run()
}
