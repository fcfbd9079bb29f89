//! The result of a simulation.

use serde::Serialize;

use crate::sched::StealCounts;

/// The simulated time of a whole run.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Simulation {
    /// Time before the first stage.
    pub start_ns: u64,
    /// From the start of the program to the end of the last stage on the last rank.
    pub makespan_ns: u64,
    /// When optimized code became available, counted from the first stage; `None` if it was there from the start, or
    /// not in time.
    pub optimized_at_ns: Option<u64>,
    pub stages: Vec<StageTimes>,
}

/// The simulated time of all runs of one stage. Sums are over all ranks and runs.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct StageTimes {
    pub stage: String,
    /// Number of runs.
    pub runs: u64,
    /// Time that a rank spends in the stage, until it knows that the stage is over; of the rank that spends most.
    pub makespan_ns: u64,
    /// Time of all kernels on optimized code, divided by the speed of all workers.
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
    /// Bytes of the split operands of all tasks.
    pub data_bytes: u64,
    /// The part of `data_bytes` that another rank of the owner's node computed.
    pub stolen_on_node_bytes: u64,
    /// The part of `data_bytes` that a rank of another node computed.
    pub stolen_between_nodes_bytes: u64,
    /// `stolen_between_nodes / data`.
    pub between_nodes: f64,
    /// Bytes of messages within nodes.
    pub moved_on_node_bytes: u64,
    /// Bytes of messages between nodes.
    pub moved_between_nodes_bytes: u64,
}

impl StageTimes {
    /// Adds what one rank's scheduler counted in one run.
    pub(super) fn add(&mut self, counts: StealCounts) {
        self.steal_requests += counts.requests;
        self.steal_grants += counts.grants;
        self.slices_stolen += counts.slices_stolen;
    }
}
