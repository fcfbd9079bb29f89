//! Costs of stages from measured runs.
//!
//! Kernels cost their measured time. The rest of a stage's time, which a simulation of the run on fewest threads falls
//! short of, is work of main threads in proportion to data. Runs with more threads on a node show the effect of
//! contention.

use std::collections::BTreeMap;

use crate::plan::Plan;
use crate::simulate::contention::{Contention, NodeLoad, node_load};
use crate::simulate::machine::MachineModel;
use crate::simulate::placement::Placement;
use crate::simulate::setup::{Policy, SimulationSetup};
use crate::simulate::simulator::simulate;
use crate::simulate::stage_costs::StageCosts;

/// Number of corrections of the estimate; each simulates every run again.
const ROUNDS: usize = 6;

/// One stage of a measured run.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MeasuredStage {
    /// Time of the rank that spent most in the stage, over all runs of the stage.
    pub wall_ns: u64,
    /// Time inside kernels on baseline and on optimized code, by rank.
    pub kernel_ns: Vec<[u64; 2]>,
    /// Time inside optimized kernels, by equal parts of the first split index.
    pub profile_ns: Vec<u64>,
    /// Tasks on baseline and on optimized code, all ranks together.
    pub tasks: [u64; 2],
}

/// A measured run.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// The plan of the run.
    pub plan: Plan,
    /// Cores of each node that it ran on; `None` if they are those of the machine.
    pub cores_per_node: Option<u32>,
    pub iterations: Option<u64>,
    /// Whether ranks stole.
    pub stole: bool,
    pub stages: BTreeMap<String, MeasuredStage>,
}

/// Runs of equal shape are measurements of the same thing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RunShape {
    ranks: u32,
    load: NodeLoad,
    stole: bool,
}

/// Returns the costs of all stages in `runs`, by name. The runs were made on a machine like that of `setup`; of runs of
/// equal shape the median counts.
pub fn calibrate(runs: &[Measured], setup: &SimulationSetup) -> BTreeMap<String, StageCosts> {
    let mut by_shape: BTreeMap<RunShape, Vec<&Measured>> = BTreeMap::new();
    runs.iter().for_each(|run| by_shape.entry(run.shape(&setup.machine)).or_default().push(run));
    let mut costs: BTreeMap<String, StageCosts> = BTreeMap::new();
    for name in runs.iter().flat_map(|run| run.stages.keys()) {
        costs.entry(name.clone()).or_insert_with(|| kernels(name, &by_shape));
    }
    // All others are compared with the load under which threads disturb each other least.
    let least = |shape: &&RunShape| (shape.load.threads.div_ceil(shape.load.cores), shape.load.threads);
    let base = by_shape.keys().min_by_key(least).map(|shape| shape.load);
    costs.values_mut().for_each(|costs| costs.contention = Contention::from(base));
    let mut setup = without_spreads(setup);
    for _ in 0..ROUNDS {
        setup.costs.clone_from(&costs);
        for (RunShape { load, .. }, runs) in &by_shape {
            let Some(first) = runs.first() else { continue };
            let setup = setup_of(&setup, first);
            for times in &simulate(&first.plan, &setup).stages {
                let walls = runs.iter().filter_map(|run| Some(run.stages.get(&times.stage)?.wall_ns as f64));
                let Some((costs, wall_ns)) = costs.get_mut(&times.stage).zip(median(walls.collect())) else { continue };
                let short_ns = (wall_ns - times.makespan_ns as f64) / times.runs.max(1) as f64;
                if Some(*load) == base {
                    costs.copy_ns = (costs.copy_ns + short_ns * f64::from(first.plan.machine.ranks)).max(0.0);
                } else {
                    let work_ns = (costs.kernel_ns + costs.copy_ns) / load.cores as f64;
                    costs.contention.add(*load, short_ns, work_ns);
                }
            }
        }
    }
    costs
}

/// The setup that `run` was made with.
fn setup_of(setup: &SimulationSetup, run: &Measured) -> SimulationSetup {
    let mut setup = setup.clone();
    setup.machine.cores_per_node = run.cores_per_node.unwrap_or(setup.machine.cores_per_node);
    setup.policy = if run.stole { Policy::Steal } else { Policy::Static };
    if let (Some(iterations), Some(count)) = (&mut setup.iterations, run.iterations) {
        iterations.count = count;
    }
    setup
}

fn without_spreads(setup: &SimulationSetup) -> SimulationSetup {
    let machine = MachineModel {
        rank_spread: 0.0,
        shard_spread: 0.0,
        block_spread: 0.0,
        slice_spread: 0.0,
        optimize_ns: 0,
        ..setup.machine.clone()
    };
    SimulationSetup { machine, placement: Placement::Planned, slow: Vec::new(), ..setup.clone() }
}

/// The kernel costs of a stage, from the runs on fewest ranks, which disturb each other least.
fn kernels(name: &str, by_shape: &BTreeMap<RunShape, Vec<&Measured>>) -> StageCosts {
    let stages = |runs: &[&Measured]| -> Vec<(u64, MeasuredStage)> {
        runs.iter().filter_map(|run| Some((run.iterations_of(name), run.stages.get(name)?.clone()))).collect()
    };
    let fewest = by_shape.values().map(|runs| stages(runs)).find(|stages| !stages.is_empty()).unwrap_or_default();
    // Where a run used both kinds of code, each had the share of the work that it had of the tasks.
    let tier = |tier: usize| {
        let whole = |(runs, stage): &(u64, MeasuredStage)| {
            let ns: u64 = stage.kernel_ns.iter().map(|ns| ns[tier]).sum();
            let share = stage.tasks[tier] as f64 / (stage.tasks[0] + stage.tasks[1]).max(1) as f64;
            (stage.tasks[tier] > 0).then(|| ns as f64 / share / *runs as f64)
        };
        median(fewest.iter().filter_map(whole).collect())
    };
    let (baseline, optimized) = (tier(0), tier(1));
    // The median removes disturbances of single runs.
    let part =
        |at: usize| median(fewest.iter().filter_map(|(_, stage)| Some(*stage.profile_ns.get(at)? as f64)).collect());
    let profile: Vec<f64> = (0..).map_while(part).collect();
    let mean = profile.iter().sum::<f64>() / profile.len().max(1) as f64;
    let density = profile.iter().filter(|_| mean > 0.0).map(|ns| ns / mean).collect();
    StageCosts {
        kernel_ns: optimized.or(baseline).unwrap_or(0.0),
        baseline_factor: baseline.zip(optimized).map(|(baseline, optimized)| (baseline / optimized).max(1.0)),
        density,
        copy_ns: 0.0,
        contention: Contention::default(),
    }
}

impl Measured {
    fn shape(&self, machine: &MachineModel) -> RunShape {
        let cores = self.cores_per_node.unwrap_or(machine.cores_per_node);
        RunShape { ranks: self.plan.machine.ranks, load: node_load(&self.plan, cores), stole: self.stole }
    }

    /// Number of runs of the stage.
    fn iterations_of(&self, name: &str) -> u64 {
        let keeps = self.plan.stages.iter().any(|stage| stage.name == name && stage.keeps);
        self.iterations.filter(|_| keeps).unwrap_or(1).max(1)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
