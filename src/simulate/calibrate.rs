//! What stages cost, from runs that were measured.
//!
//! Kernels: their time as it was. What else a stage takes is what a simulation of the same run falls short of: a part
//! that every rank has in every run of the stage, and a part that ranks share, which runs on different numbers of ranks
//! tell apart.

use std::collections::BTreeMap;

use super::{Machine, Placement, Policy, Setup, simulate};
use crate::plan::Plan;

/// Corrections of the estimate; each simulates every run again.
const ROUNDS: usize = 5;

/// What a stage costs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StageCosts {
    /// Of all tasks of one run of the stage, on optimized code and one core.
    pub kernel_ns: f64,
    /// How many times as long they take on baseline code; none: as the machine says.
    pub baseline_factor: Option<f64>,
    /// Cost of equal parts of the stage, in the order of ranks, over the mean; empty: all alike.
    pub density: Vec<f64>,
    /// Of a rank's main thread for each run of the stage.
    pub begin_ns: u64,
    /// Of all main threads together for each run of the stage, in proportion to what they bring to their workers.
    pub copy_ns: f64,
}

impl StageCosts {
    /// Mean cost of what `rank` of `ranks` has, over that of the stage.
    pub(super) fn density_of(&self, rank: u32, ranks: u32) -> f64 {
        let parts = self.density.len() as f64;
        let (from, to) = (f64::from(rank) / f64::from(ranks) * parts, f64::from(rank + 1) / f64::from(ranks) * parts);
        let common = |part: usize| (to.min(part as f64 + 1.0) - from.max(part as f64)).max(0.0);
        let sum: f64 = self.density.iter().enumerate().map(|(part, density)| density * common(part)).sum();
        if self.density.is_empty() { 1.0 } else { sum / (to - from) }
    }
}

/// One stage of a run that was measured.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MeasuredStage {
    /// Of the rank that spent most time in it, all runs of the stage together.
    pub wall_ns: u64,
    /// Inside kernels, on baseline and on optimized code, by rank.
    pub kernel_ns: Vec<[u64; 2]>,
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
    /// Whether ranks stole: then their kernels' times tell nothing of what they own.
    pub stole: bool,
    pub stages: BTreeMap<String, MeasuredStage>,
}

/// Ranks, cores of a node, and whether ranks stole.
type Shape = (u32, Option<u32>, bool);

/// Costs of all stages that `runs` tell of, by name. The runs were made on a machine like that of `setup`; of runs on
/// equally many ranks and cores the median counts.
pub fn calibrate(runs: &[Measured], setup: &Setup) -> BTreeMap<String, StageCosts> {
    let mut by_ranks: BTreeMap<Shape, Vec<&Measured>> = BTreeMap::new();
    runs.iter().for_each(|run| by_ranks.entry(run.shape()).or_default().push(run));
    let mut costs: BTreeMap<String, StageCosts> = BTreeMap::new();
    for name in runs.iter().flat_map(|run| run.stages.keys()) {
        costs.entry(name.clone()).or_insert_with(|| kernels(name, &by_ranks));
    }
    let mut setup = without_spreads(setup);
    for _ in 0..ROUNDS {
        setup.costs.clone_from(&costs);
        let mut short: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        for ((ranks, ..), runs) in &by_ranks {
            let Some(first) = runs.first() else { continue };
            let times = simulate(&first.plan, &setup_of(&setup, first));
            for times in &times.stages {
                let walls = runs.iter().filter_map(|run| Some(run.stages.get(&times.stage)?.wall_ns as f64));
                if let Some((name, wall_ns)) = costs.get_key_value(&times.stage).zip(median(walls.collect())) {
                    let ns = (wall_ns - times.makespan_ns as f64) / times.runs.max(1) as f64;
                    short.entry(name.0).or_default().push((f64::from(*ranks), ns));
                }
            }
        }
        let corrected: Vec<(String, f64, f64)> = short
            .into_iter()
            .filter_map(|(name, points)| {
                let costs = costs.get(name)?;
                let (begin, copy) = fit(&points, -(costs.begin_ns as f64), -costs.copy_ns);
                Some((name.to_owned(), costs.begin_ns as f64 + begin, costs.copy_ns + copy))
            })
            .collect();
        for (name, begin_ns, copy_ns) in corrected {
            if let Some(costs) = costs.get_mut(&name) {
                (costs.begin_ns, costs.copy_ns) = (begin_ns as u64, copy_ns);
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

/// What the kernels of a stage take. From the runs on fewest ranks, which disturb each other least; how the cost lies
/// from those on most that did not steal.
fn kernels(name: &str, by_ranks: &BTreeMap<Shape, Vec<&Measured>>) -> StageCosts {
    let stages = |runs: &[&Measured]| -> Vec<(u64, MeasuredStage)> {
        runs.iter().filter_map(|run| Some((run.iterations_of(name), run.stages.get(name)?.clone()))).collect()
    };
    let fewest = by_ranks.values().map(|runs| stages(runs)).find(|stages| !stages.is_empty()).unwrap_or_default();
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
    let most = by_ranks.values().rev().map(|runs| {
        let told = |run: &&&Measured| !run.stole && run.has_consecutive_shards(name) && run.plan.machine.ranks > 1;
        let runs: Vec<&Measured> = runs.iter().filter(told).copied().collect();
        stages(&runs)
    });
    let density = most.into_iter().find(|stages| !stages.is_empty()).map(|stages| {
        let ranks = stages[0].1.kernel_ns.len();
        let of = |rank: usize| {
            let ns = stages.iter().map(|(_, stage)| stage.kernel_ns[rank].iter().sum::<u64>() as f64);
            median(ns.collect()).unwrap_or(0.0)
        };
        let all: f64 = (0..ranks).map(of).sum();
        (0..ranks).map(|rank| of(rank) * ranks as f64 / all.max(1.0)).collect()
    });
    StageCosts {
        kernel_ns: optimized.or(baseline).unwrap_or(0.0),
        baseline_factor: baseline.zip(optimized).map(|(baseline, optimized)| (baseline / optimized).max(1.0)),
        density: density.unwrap_or_default(),
        begin_ns: 0,
        copy_ns: 0.0,
    }
}

impl Measured {
    fn shape(&self) -> Shape {
        (self.plan.machine.ranks, self.cores_per_node, self.stole)
    }

    /// How often the stage ran.
    fn iterations_of(&self, name: &str) -> u64 {
        let keeps = self.plan.stages.iter().any(|stage| stage.name == name && stage.keeps);
        self.iterations.filter(|_| keeps).unwrap_or(1).max(1)
    }

    fn has_consecutive_shards(&self, name: &str) -> bool {
        self.plan.stages.iter().any(|stage| stage.name == name && stage.process_grid.is_none())
    }
}

/// `(a, b)` such that `a + b / ranks` is near all points, in least squares, neither below its least.
fn fit(points: &[(f64, f64)], least_a: f64, least_b: f64) -> (f64, f64) {
    let mean = |of: &dyn Fn(f64, f64) -> f64| {
        points.iter().map(|(ranks, ns)| of(1.0 / ranks, *ns)).sum::<f64>() / points.len().max(1) as f64
    };
    let (x, y) = (mean(&|x, _| x), mean(&|_, y| y));
    let spread = mean(&|at, _| (at - x).powi(2));
    let slope = if spread < 1e-9 { 0.0 } else { mean(&|at, ns| (at - x) * (ns - y)) / spread };
    if y - slope * x < least_a {
        let slope = mean(&|at, ns| at * (ns - least_a)) / mean(&|at, _| at * at).max(1e-9);
        (least_a, slope.max(least_b))
    } else if slope < least_b {
        ((y - least_b * x).max(least_a), least_b)
    } else {
        (y - slope * x, slope)
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
    fn parts_for_all_and_for_each_are_told_apart() {
        let points = [(1.0, 110.0), (2.0, 60.0), (4.0, 35.0)];
        let (begin, copy) = fit(&points, 0.0, 0.0);
        assert!((begin - 10.0).abs() < 1e-6 && (copy - 100.0).abs() < 1e-6, "{begin} {copy}");
        assert_eq!(fit(&[(2.0, 60.0)], 0.0, 0.0), (60.0, 0.0));
        // Less than half on twice the ranks, and more on more ranks: noise, for which there is no cost.
        assert_eq!(fit(&[(1.0, 90.0), (2.0, 40.0)], 0.0, 0.0).0, 0.0);
        assert_eq!(fit(&[(1.0, 40.0), (2.0, 60.0)], 0.0, 0.0), (50.0, 0.0));
    }

    #[test]
    fn density_is_averaged_over_what_a_rank_has() {
        let costs = StageCosts { density: vec![1.5, 0.5], ..StageCosts::default() };
        let of = |ranks: u32| (0..ranks).map(|rank| costs.density_of(rank, ranks)).collect::<Vec<_>>();
        assert_eq!(of(1), [1.0]);
        assert_eq!(of(4), [1.5, 1.5, 0.5, 0.5]);
        assert!((of(3)[1] - 1.0).abs() < 1e-9);
    }
}
