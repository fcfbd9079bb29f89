//! The runs of stages that a simulation consists of.

use crate::plan::Plan;
use crate::simulate::placement::Placement;
use crate::simulate::setup::SimulationSetup;

/// Iterations that are simulated. Later ones take as long as the last of these, unless optimized code is still to come.
const SIMULATED: u64 = 6;

/// One run of a stage by all ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimRun {
    pub stage: usize,
    /// 0 for stages that are not iterated.
    pub iteration: u64,
    pub first: bool,
    /// Number of runs that it stands for, itself included.
    pub times: u64,
    /// After it, all ranks learn whether the iterations continue.
    pub decides: bool,
    is_random: bool,
}

impl SimRun {
    /// Number of its placement. A random placement alternates between two.
    pub fn parity(&self) -> usize {
        if self.is_random { (self.iteration % 2) as usize } else { 0 }
    }
}

/// All runs in their order.
pub(super) fn runs(plan: &Plan, setup: &SimulationSetup) -> Vec<SimRun> {
    let is_random = setup.placement == Placement::Random;
    let once = |stage| SimRun { stage, iteration: 0, first: true, times: 1, decides: false, is_random };
    let Some(iterations) = setup.iterations.as_ref().filter(|iterations| iterations.count > 0) else {
        return (0..plan.stages.len()).map(once).collect();
    };
    let count = if setup.machine.optimize_ns > 0 { iterations.count } else { iterations.count.min(SIMULATED) };
    let mut runs: Vec<SimRun> = (0..iterations.stages.start).map(once).collect();
    for iteration in 0..count {
        let times = if iteration + 1 == count { 1 + iterations.count - count } else { 1 };
        for stage in iterations.stages.clone() {
            let decides = iterations.until.is_some() && stage + 1 == iterations.stages.end;
            runs.push(SimRun { stage, iteration, first: iteration == 0, times, decides, is_random });
        }
    }
    runs.extend((iterations.stages.end..plan.stages.len()).map(once));
    runs
}
