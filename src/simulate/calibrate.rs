//! What stages cost, from runs that were measured.
//!
//! Kernels: their time as it was. What else a stage takes is what a simulation of the run on fewest threads falls short of: work
//! of main threads, in proportion to data. Runs where more threads shared a node, and its cores, show how much longer it takes then.

use std::collections::BTreeMap;

use super::{Policy, Setup, simulate};
use crate::plan::Plan;
use crate::simulate::contention::{Crowd, Crowding, crowd};
use crate::simulate::machine::Machine;
use crate::simulate::placement::Placement;

/// Corrections of the estimate; each simulates every run again.
const ROUNDS: usize = 6;

/// What a stage costs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StageCosts {
    /// Of all tasks of one run of the stage, on optimized code and one core.
    pub kernel_ns: f64,
    /// How many times as long they take on baseline code; none: as the machine says.
    pub baseline_factor: Option<f64>,
    /// Cost of equal parts of the first index along which the stage is split, over the mean; empty: all alike.
    pub density: Vec<f64>,
    /// Of all main threads together for each run of the stage, in proportion to what they bring to their workers.
    pub copy_ns: f64,
    /// How much longer all of this takes in a crowd.
    pub crowding: Crowding,
}

impl StageCosts {
    /// Mean cost of what lies from the one part of that index to the other, over that of the stage.
    pub(super) fn density_of(&self, from: f64, to: f64) -> f64 {
        let parts = self.density.len() as f64;
        let (from, to) = (from * parts, to * parts);
        let common = |part: usize| (to.min(part as f64 + 1.0) - from.max(part as f64)).max(0.0);
        let sum: f64 = self.density.iter().enumerate().map(|(part, density)| density * common(part)).sum();
        if to > from { sum / (to - from) } else { 1.0 }
    }
}

/// One stage of a run that was measured.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MeasuredStage {
    /// Of the rank that spent most time in it, all runs of the stage together.
    pub wall_ns: u64,
    /// Inside kernels, on baseline and on optimized code, by rank.
    pub kernel_ns: Vec<[u64; 2]>,
    /// Inside optimized kernels, by equal parts of the first index along which the stage is split.
    pub profile_ns: Vec<u64>,
    /// Tasks on baseline and on optimized code, all ranks together.
    pub tasks: [u64; 2],
}

/// A run that was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// Made as for that run.
    pub plan: Plan,
    /// Cores of each node that it ran on; none: those of the machine.
    pub cores_per_node: Option<u32>,
    pub iterations: Option<u64>,
    /// Whether ranks stole.
    pub stole: bool,
    pub stages: BTreeMap<String, MeasuredStage>,
}

/// Ranks, their crowd, and whether they stole.
type Shape = (u32, Crowd, bool);

/// Costs of all stages that `runs` tell of, by name. The runs were made on a machine like that of `setup`; of runs on
/// equally many ranks and cores the median counts.
pub fn calibrate(runs: &[Measured], setup: &Setup) -> BTreeMap<String, StageCosts> {
    let mut by_shape: BTreeMap<Shape, Vec<&Measured>> = BTreeMap::new();
    runs.iter().for_each(|run| by_shape.entry(run.shape(&setup.machine)).or_default().push(run));
    let mut costs: BTreeMap<String, StageCosts> = BTreeMap::new();
    for name in runs.iter().flat_map(|run| run.stages.keys()) {
        costs.entry(name.clone()).or_insert_with(|| kernels(name, &by_shape));
    }
    // All others are compared with the one where threads disturb each other least.
    let least = |(_, (threads, cores), _): &&Shape| (threads.div_ceil(*cores), *threads);
    let base = by_shape.keys().min_by_key(least).map(|(_, crowd, _)| *crowd);
    costs.values_mut().for_each(|costs| costs.crowding = Crowding::from(base));
    let mut setup = without_spreads(setup);
    for _ in 0..ROUNDS {
        setup.costs.clone_from(&costs);
        for ((_, crowd, _), runs) in &by_shape {
            let Some(first) = runs.first() else { continue };
            let setup = setup_of(&setup, first);
            for times in &simulate(&first.plan, &setup).stages {
                let walls = runs.iter().filter_map(|run| Some(run.stages.get(&times.stage)?.wall_ns as f64));
                let Some((costs, wall_ns)) = costs.get_mut(&times.stage).zip(median(walls.collect())) else { continue };
                let short_ns = (wall_ns - times.makespan_ns as f64) / times.runs.max(1) as f64;
                if Some(*crowd) == base {
                    costs.copy_ns = (costs.copy_ns + short_ns * f64::from(first.plan.machine.ranks)).max(0.0);
                } else {
                    let work_ns = (costs.kernel_ns + costs.copy_ns) / crowd.1 as f64;
                    costs.crowding.add(*crowd, short_ns, work_ns);
                }
            }
        }
    }
    costs
}

/// As `run` was made.
fn setup_of(setup: &Setup, run: &Measured) -> Setup {
    let mut setup = setup.clone();
    setup.machine.cores_per_node = run.cores_per_node.unwrap_or(setup.machine.cores_per_node);
    setup.policy = if run.stole { Policy::Steal } else { Policy::Static };
    if let (Some(iterations), Some(count)) = (&mut setup.iterations, run.iterations) {
        iterations.count = count;
    }
    setup
}

fn without_spreads(setup: &Setup) -> Setup {
    let machine = Machine {
        rank_spread: 0.0,
        shard_spread: 0.0,
        block_spread: 0.0,
        slice_spread: 0.0,
        optimize_ns: 0,
        ..setup.machine.clone()
    };
    Setup { machine, placement: Placement::Planned, slow: Vec::new(), ..setup.clone() }
}

/// What the kernels of a stage take, from the runs on fewest ranks, which disturb each other least.
fn kernels(name: &str, by_shape: &BTreeMap<Shape, Vec<&Measured>>) -> StageCosts {
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
    // What disturbs one part in one run is not there in the next.
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
        crowding: Crowding::default(),
    }
}

impl Measured {
    fn shape(&self, machine: &Machine) -> Shape {
        let cores = self.cores_per_node.unwrap_or(machine.cores_per_node);
        (self.plan.machine.ranks, crowd(&self.plan, cores), self.stole)
    }

    /// How often the stage ran.
    fn iterations_of(&self, name: &str) -> u64 {
        let keeps = self.plan.stages.iter().any(|stage| stage.name == name && stage.keeps);
        self.iterations.filter(|_| keeps).unwrap_or(1).max(1)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn density_is_averaged_over_what_is_asked_for() {
        let costs = StageCosts { density: vec![1.5, 0.5], ..StageCosts::default() };
        let of = |parts: u32| -> Vec<f64> {
            let part = |at: u32| f64::from(at) / f64::from(parts);
            (0..parts).map(|at| costs.density_of(part(at), part(at + 1))).collect()
        };
        assert_eq!(of(1), [1.0]);
        assert_eq!(of(4), [1.5, 1.5, 0.5, 0.5]);
        assert!((of(3)[1] - 1.0).abs() < 1e-9);
    }
}
