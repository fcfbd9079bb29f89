//! A stage as the simulator sees it: everything that does not change while it runs.

use super::exchange::{Deals, Exchange, Level, Prelude};
use super::{Policy, Setup};
use crate::plan::{Origin, Plan, Role};
use crate::sched::{Costs, Path};
use crate::simulate::block_costs::Work;
use crate::simulate::machine::Machine;

/// A stage and all that is known of it before it runs.
pub(super) struct StageWorld {
    /// By deal, as all that follows.
    pub work: Vec<Work>,
    /// Of the first run, and of the others.
    pub preludes: [Vec<Prelude>; 2],
    pub levels: Vec<Vec<Vec<Level>>>,
    pub steals: bool,
    /// No rank goes on before all have done their part.
    pub together: bool,
    pub costs: Option<Costs>,
}

pub(super) fn stage_world(plan: &Plan, setup: &Setup, deals: &Deals, number: usize) -> StageWorld {
    let (stage, machine) = (&plan.stages[number], &setup.machine);
    let iterated = setup.iterations.as_ref().is_some_and(|iterations| iterations.stages.contains(&number));
    let exchange = |parity| Exchange { plan, iterations: setup.iterations.as_ref(), deals, stage: number, parity };
    let parities = || 0..deals[number].len();
    let work = deals[number].iter().map(|deal| Work::new(plan, stage, setup, deal)).collect::<Vec<_>>();
    let is_written = stage.operands.iter().any(|o| o.role == Role::Output && o.origin == Origin::Created);
    let later = |parity| if iterated { exchange(parity).prelude(false) } else { Prelude::default() };
    StageWorld {
        costs: Some(costs(machine, &work[0])),
        work,
        preludes: [parities().map(|parity| exchange(parity).prelude(true)).collect(), parities().map(later).collect()],
        levels: parities().map(|parity| exchange(parity).combine().0).collect(),
        steals: setup.policy == Policy::Steal && plan.machine.ranks > 1 && !iterated,
        together: is_written && !iterated,
    }
}

fn costs(machine: &Machine, work: &Work) -> Costs {
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
