//! The slowdown of a stage where several threads share a node.
//!
//! Runs measure some loads of a node. The slowdown under other loads is composed of two parts: the number of busy
//! cores, which share memory and caches, and the number of threads for each core, some of which wait for others that
//! wait for a core.

use std::collections::BTreeMap;

use crate::plan::Plan;

/// The threads of the ranks of a node, and the cores that they share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeLoad {
    pub threads: u64,
    pub cores: u64,
}

/// Limits of the factor, relative to the load with fewest threads. What is beyond them counts as waiting.
const FACTORS: (f64, f64) = (0.3, 2.0);

/// The effect of a load on a stage.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Slowdown {
    /// How many times as long the work of the stage takes.
    pub factor: f64,
    /// How long each rank waits in each run of the stage, whatever the amount of work.
    pub wait_ns: f64,
}

impl Slowdown {
    pub const NONE: Slowdown = Slowdown { factor: 1.0, wait_ns: 0.0 };

    /// The slowdown that lengthens `work_ns` by `more_ns`.
    fn from_more(more_ns: f64, work_ns: f64) -> Slowdown {
        let factor = (1.0 + more_ns / work_ns.max(1.0)).clamp(FACTORS.0, FACTORS.1);
        Slowdown { factor, wait_ns: (more_ns - (factor - 1.0) * work_ns).max(0.0) }
    }
}

/// The measured slowdowns of a stage.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Contention {
    measured: BTreeMap<NodeLoad, Slowdown>,
}

impl Contention {
    /// Starts with the load that others are compared with.
    pub fn from(base: Option<NodeLoad>) -> Contention {
        Contention { measured: base.into_iter().map(|load| (load, Slowdown::NONE)).collect() }
    }

    /// Corrects the slowdown under `load`: a stage whose work takes `work_ns` alone takes `more_ns` longer than known
    /// so far.
    pub fn add(&mut self, load: NodeLoad, more_ns: f64, work_ns: f64) {
        let known = self.slowdown(load);
        let more_ns = (known.factor - 1.0) * work_ns + known.wait_ns + more_ns;
        self.measured.insert(load, Slowdown::from_more(more_ns, work_ns));
    }

    /// The slowdown under `load`: measured, interpolated or extrapolated. Factors lie on straight lines in logarithms,
    /// waiting times on straight lines.
    pub(super) fn slowdown(&self, load: NodeLoad) -> Slowdown {
        if let Some(slowdown) = self.measured.get(&load) {
            return *slowdown;
        }
        let (busy, per_core) = (self.busy(load.cores), load.threads as f64 / load.cores as f64);
        let mut shared = vec![(1.0, Slowdown::NONE)];
        for (load, slowdown) in self.measured.iter().filter(|(load, _)| load.threads > load.cores) {
            let busy = self.busy(load.cores);
            let wait_ns = (slowdown.wait_ns - busy.wait_ns).max(0.0);
            let slowdown = Slowdown { factor: slowdown.factor / busy.factor, wait_ns };
            shared.push((load.threads as f64 / load.cores as f64, slowdown));
        }
        shared.sort_by(|a, b| a.0.total_cmp(&b.0));
        let shared = on_line(&shared, per_core);
        Slowdown { factor: busy.factor * shared.factor, wait_ns: busy.wait_ns + shared.wait_ns }
    }

    /// The slowdown where each thread has a core. With more cores than in any run it is that of the most cores
    /// measured.
    fn busy(&self, cores: u64) -> Slowdown {
        let alone = self.measured.iter().filter(|(load, _)| load.threads == load.cores);
        let alone: Vec<(f64, Slowdown)> = alone.map(|(load, slowdown)| (load.cores as f64, *slowdown)).collect();
        on_line(&alone, (cores as f64).min(alone.last().map_or(1.0, |(cores, _)| *cores)))
    }
}

/// The load of a plan on nodes with this number of cores; with 0, each thread has its own.
pub(super) fn node_load(plan: &Plan, cores_per_node: u32) -> NodeLoad {
    let machine = &plan.machine;
    let threads = u64::from(machine.ranks.min(machine.ranks_per_node)) * u64::from(machine.threads);
    NodeLoad { threads, cores: if cores_per_node == 0 { threads } else { threads.min(u64::from(cores_per_node)) } }
}

/// The slowdown at `x`. Before the first point it is that of the first point. After the last it continues the line
/// between the last two, but neither falls nor, as a factor, rises faster than `x`: a thread takes at most its own time
/// from others.
fn on_line(points: &[(f64, Slowdown)], x: f64) -> Slowdown {
    let after = points.partition_point(|point| point.0 < x);
    let (from, to) = match (points.len(), after) {
        (0, _) => return Slowdown::NONE,
        (1, _) | (_, 0) => return points[0].1,
        (count, after) => (points[after.min(count - 1) - 1], points[after.min(count - 1)]),
    };
    let exponent = (to.1.factor / from.1.factor).ln() / (to.0 / from.0).ln();
    let slope_ns = (to.1.wait_ns - from.1.wait_ns) / (to.0 - from.0);
    let (exponent, slope_ns) =
        if x > to.0 { (exponent.clamp(0.0, 1.0), slope_ns.max(0.0)) } else { (exponent, slope_ns) };
    Slowdown { factor: to.1.factor * (x / to.0).powf(exponent), wait_ns: to.1.wait_ns + slope_ns * (x - to.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(threads: u64, cores: u64) -> NodeLoad {
        NodeLoad { threads, cores }
    }

    fn near(slowdown: Slowdown, (factor, wait_ns): (f64, f64)) {
        let is_near = (slowdown.factor / factor - 1.0).abs() < 1e-9 && (slowdown.wait_ns - wait_ns).abs() < 1e-6;
        assert!(is_near, "{slowdown:?}, not {factor} and {wait_ns}");
    }

    fn contention<const N: usize>(measured: [((u64, u64), f64, f64); N]) -> Contention {
        let points =
            measured.map(|((threads, cores), factor, wait_ns)| (load(threads, cores), Slowdown { factor, wait_ns }));
        Contention { measured: points.into() }
    }

    #[test]
    fn measured_loads_are_returned_and_others_composed_from_them() {
        near(Contention::default().slowdown(load(16, 2)), (1.0, 0.0));
        let measured = [((1, 1), 1.0, 0.0), ((2, 2), 1.2, 100.0), ((2, 1), 1.4, 200.0), ((4, 1), 1.6, 500.0)];
        let contention = contention(measured);
        measured.iter().for_each(|((threads, cores), factor, wait_ns)| {
            near(contention.slowdown(load(*threads, *cores)), (*factor, *wait_ns))
        });
        near(contention.slowdown(load(4, 2)), (1.2 * 1.4, 300.0));
        near(contention.slowdown(load(3, 2)), (1.2 * 1.4_f64.powf(1.5_f64.log2()), 200.0));
        near(contention.slowdown(load(16, 2)), (1.2 * 1.6 * 1.6 / 1.4, 100.0 + 500.0 + 4.0 * 150.0));
        // More cores than in any run.
        near(contention.slowdown(load(64, 64)), (1.2, 100.0));
    }

    #[test]
    fn time_beyond_the_limit_of_the_factor_is_waiting() {
        let mut contention = Contention::from(Some(load(1, 1)));
        contention.add(load(2, 2), 4.0, 10.0);
        near(contention.slowdown(load(2, 2)), (1.4, 0.0));
        contention.add(load(2, 2), 106.0, 10.0);
        near(contention.slowdown(load(2, 2)), (2.0, 100.0));
        contention.add(load(2, 2), -105.0, 10.0);
        near(contention.slowdown(load(2, 2)), (1.5, 0.0));
        // Until now it was extrapolated from two threads.
        contention.add(load(4, 4), 2.0, 10.0);
        near(contention.slowdown(load(4, 4)), (1.7, 0.0));
    }

    #[test]
    fn extrapolation_neither_falls_nor_rises_faster_than_the_load() {
        let one = |factor: f64| Slowdown { factor, wait_ns: 0.0 };
        near(on_line(&[(1.0, one(1.0)), (2.0, one(3.0))], 4.0), (6.0, 0.0));
        near(on_line(&[(1.0, one(1.5)), (2.0, one(1.2))], 4.0), (1.2, 0.0));
    }
}
