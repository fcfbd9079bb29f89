//! The model of a stage: all that does not change while it runs.

use crate::plan::{Origin, Plan, Role};
use crate::sched::{Costs, Path};
use crate::simulate::block_costs::BlockCosts;
use crate::simulate::exchange::{Level, Prelude, StageExchange, StagePlacements};
use crate::simulate::machine::MachineModel;
use crate::simulate::setup::{Policy, SimulationSetup};

/// All that is known of a stage before it runs.
pub(super) struct StageModel {
    /// Costs of the blocks, by placement.
    pub work: Vec<BlockCosts>,
    /// Exchanges before the first run and before later runs, by placement.
    pub preludes: [Vec<Prelude>; 2],
    /// Levels of a reduction, by placement and rank.
    pub levels: Vec<Vec<Vec<Level>>>,
    pub steals: bool,
    /// All ranks wait for each other at the end.
    pub has_barrier: bool,
    pub costs: Option<Costs>,
}

pub(super) fn stage_model(
    plan: &Plan,
    setup: &SimulationSetup,
    placements: &StagePlacements,
    number: usize,
) -> StageModel {
    let (stage, machine) = (&plan.stages[number], &setup.machine);
    let iterated = setup.iterations.as_ref().is_some_and(|iterations| iterations.stages.contains(&number));
    let exchange =
        |parity| StageExchange { plan, iterations: setup.iterations.as_ref(), placements, stage: number, parity };
    let parities = || 0..placements[number].len();
    let work =
        placements[number].iter().map(|placement| BlockCosts::new(plan, stage, setup, placement)).collect::<Vec<_>>();
    let is_written = stage.operands.iter().any(|o| o.role == Role::Output && o.origin == Origin::Created);
    let later = |parity| if iterated { exchange(parity).prelude(false) } else { Prelude::default() };
    StageModel {
        costs: Some(costs(machine, &work[0])),
        work,
        preludes: [parities().map(|parity| exchange(parity).prelude(true)).collect(), parities().map(later).collect()],
        levels: parities().map(|parity| exchange(parity).combine().0).collect(),
        steals: setup.policy == Policy::Steal && plan.machine.ranks > 1 && !iterated,
        has_barrier: is_written && !iterated,
    }
}

fn costs(machine: &MachineModel, work: &BlockCosts) -> Costs {
    let (unfetched, fetched) = work.typical().map_or((0, 0), |form| {
        let kept = form.memory_bytes + form.returned_bytes;
        (kept, kept + form.file_bytes)
    });
    let path = |latency_ns, ns_per_byte| Path { latency_ns: latency_ns + machine.answer_ns, ns_per_byte };
    Costs {
        node: path(machine.node_latency_ns, machine.node_ns_per_byte),
        network: path(machine.network_latency_ns, machine.network_ns_per_byte),
        unfetched_block_bytes: unfetched,
        fetched_block_bytes: fetched,
    }
}
