//! The settings of a simulation, beside the plan.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use crate::sched::Granularity;
use crate::simulate::machine::MachineModel;
use crate::simulate::placement::Placement;
use crate::simulate::stage_costs::StageCosts;

/// How ranks share work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Ranks without work steal.
    Steal,
    /// Each rank computes what it owns.
    Static,
}

/// The iterated stages of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Iterations {
    pub stages: Range<usize>,
    pub count: u64,
    /// Pairs of tensors that are exchanged after each iteration: the one that is read, the one that is written.
    pub exchange: Vec<(String, String)>,
    /// The scalar that decides after each iteration whether another one follows. All ranks receive it.
    pub until: Option<String>,
}

/// The settings of a simulation, beside the plan.
#[derive(Clone, Debug)]
pub struct SimulationSetup {
    pub machine: MachineModel,
    pub policy: Policy,
    pub granularity: Granularity,
    pub placement: Placement,
    /// `None` if every stage runs once.
    pub iterations: Option<Iterations>,
    /// Measured costs by stage name; they replace those of the machine.
    pub costs: BTreeMap<String, StageCosts>,
    /// Ranks that are slower than the machine says, with the factor.
    pub slow: Vec<(u32, f64)>,
    pub seed: u64,
}

impl Default for SimulationSetup {
    fn default() -> Self {
        SimulationSetup {
            machine: MachineModel::default(),
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
