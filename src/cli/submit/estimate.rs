//! The predicted time of a run, from the measured costs of its kernels.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::cli::simulate::measured_runs;
use crate::engine::{Cache, Kernel, Tier};
use crate::exec;
use crate::job::Job;
use crate::plan::Plan;
use crate::simulate::{MachineModel, SimulationSetup, StageCosts, simulate};

/// Simulates the plan with the task costs of earlier runs on a default machine. `kernels` are those of the stages.
/// Fails with the name of a kernel without known costs.
pub(in crate::cli) fn estimate(
    job: &Job,
    plan: &Plan,
    kernels: &[Kernel],
    cache: Option<&Path>,
) -> Result<Duration, String> {
    let cache = Cache::open(cache).ok();
    let mut costs = BTreeMap::new();
    for (stage, kernel) in plan.stages.iter().zip(kernels) {
        let known = |tier| exec::known_ns_per_slice(cache.as_ref()?, stage, kernel, tier);
        let (baseline, optimized) = (known(Tier::Baseline), known(Tier::Optimized));
        let slice_ns = optimized.or(baseline).ok_or_else(|| kernel.name().to_owned())?;
        let blocks = (0..plan.machine.ranks).flat_map(|rank| stage.blocks(rank));
        let slices: u64 = blocks.map(|block| stage.slices(&block)).sum();
        let baseline_factor = baseline.zip(optimized).map(|(baseline, optimized)| (baseline / optimized).max(1.0));
        let kernel_ns = slice_ns * slices as f64;
        costs.insert(stage.name.clone(), StageCosts { kernel_ns, baseline_factor, ..StageCosts::default() });
    }
    // The measured costs include their spread.
    let machine = MachineModel { rank_spread: 0.0, block_spread: 0.0, slice_spread: 0.0, ..MachineModel::default() };
    let setup = SimulationSetup {
        machine,
        costs,
        iterations: measured_runs::iterations(job, None),
        ..SimulationSetup::default()
    };
    Ok(Duration::from_nanos(simulate(plan, &setup).makespan_ns))
}
