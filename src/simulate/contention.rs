//! How much longer a stage takes where more threads share a node.
//!
//! Measured are some crowds; what others make of it is put together from two parts: from how many cores are busy together, which
//! share memory and caches, and from how many threads there are to a core, of which some wait for others that wait for a core.

use std::collections::BTreeMap;

use crate::plan::Plan;

/// Threads of a node's ranks, and how many cores they share.
pub type Crowd = (u64, u64);

/// Work takes no smaller and no larger part of what it took on fewest threads: what is beyond is waiting.
const FACTORS: (f64, f64) = (0.3, 2.0);

/// What a crowd makes of a stage.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Slowdown {
    /// How many times as long its work takes.
    pub factor: f64,
    /// How long each rank waits in each run of the stage, whatever there is to do.
    pub wait_ns: f64,
}

impl Slowdown {
    pub const NONE: Slowdown = Slowdown { factor: 1.0, wait_ns: 0.0 };

    /// What makes `work_ns` so much longer.
    fn from_more(more_ns: f64, work_ns: f64) -> Slowdown {
        let factor = (1.0 + more_ns / work_ns.max(1.0)).clamp(FACTORS.0, FACTORS.1);
        Slowdown { factor, wait_ns: (more_ns - (factor - 1.0) * work_ns).max(0.0) }
    }
}

/// Of a stage.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Crowding {
    measured: BTreeMap<Crowd, Slowdown>,
}

impl Crowding {
    /// With a crowd that others are compared with.
    pub fn from(base: Option<Crowd>) -> Crowding {
        Crowding { measured: base.into_iter().map(|crowd| (crowd, Slowdown::NONE)).collect() }
    }

    /// The stage, whose work takes `work_ns` alone, takes so much longer in this crowd than was known.
    pub fn add(&mut self, crowd: Crowd, more_ns: f64, work_ns: f64) {
        let known = self.of(crowd);
        let more_ns = (known.factor - 1.0) * work_ns + known.wait_ns + more_ns;
        self.measured.insert(crowd, Slowdown::from_more(more_ns, work_ns));
    }

    /// As it was measured, or between or beyond: factors on straight lines in logarithms, waiting on straight lines.
    pub(super) fn of(&self, crowd: Crowd) -> Slowdown {
        if let Some(slowdown) = self.measured.get(&crowd) {
            return *slowdown;
        }
        let (busy, share) = (self.busy(crowd.1), crowd.0 as f64 / crowd.1 as f64);
        let mut shared = vec![(1.0, Slowdown::NONE)];
        for ((threads, cores), slowdown) in self.measured.iter().filter(|((threads, cores), _)| threads > cores) {
            let busy = self.busy(*cores);
            let wait_ns = (slowdown.wait_ns - busy.wait_ns).max(0.0);
            let slowdown = Slowdown { factor: slowdown.factor / busy.factor, wait_ns };
            shared.push((*threads as f64 / *cores as f64, slowdown));
        }
        shared.sort_by(|a, b| a.0.total_cmp(&b.0));
        let shared = on_line(&shared, share);
        Slowdown { factor: busy.factor * shared.factor, wait_ns: busy.wait_ns + shared.wait_ns }
    }

    /// Where each thread has a core. With more cores than in any run, as with most.
    fn busy(&self, cores: u64) -> Slowdown {
        let alone = self.measured.iter().filter(|((threads, cores), _)| threads == cores);
        let alone: Vec<(f64, Slowdown)> = alone.map(|((_, cores), slowdown)| (*cores as f64, *slowdown)).collect();
        on_line(&alone, (cores as f64).min(alone.last().map_or(1.0, |(cores, _)| *cores)))
    }
}

/// What a plan makes of nodes with so many cores; with 0, each thread has its own.
pub(super) fn crowd(plan: &Plan, cores_per_node: u32) -> Crowd {
    let machine = &plan.machine;
    let threads = u64::from(machine.ranks.min(machine.ranks_per_node)) * u64::from(machine.threads);
    (threads, if cores_per_node == 0 { threads } else { threads.min(u64::from(cores_per_node)) })
}

/// What lies at `x`; before the first point as there, after the last as between the last two, but neither falling nor, the
/// factor, steeper than `x` itself: a thread does not take more from others than there is of it.
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

    fn near(slowdown: Slowdown, (factor, wait_ns): (f64, f64)) {
        let is_near = (slowdown.factor / factor - 1.0).abs() < 1e-9 && (slowdown.wait_ns - wait_ns).abs() < 1e-6;
        assert!(is_near, "{slowdown:?}, not {factor} and {wait_ns}");
    }

    fn crowding<const N: usize>(measured: [(Crowd, f64, f64); N]) -> Crowding {
        let points = measured.map(|(crowd, factor, wait_ns)| (crowd, Slowdown { factor, wait_ns }));
        Crowding { measured: points.into() }
    }

    #[test]
    fn what_was_measured_is_found_and_the_rest_put_together_from_it() {
        near(Crowding::default().of((16, 2)), (1.0, 0.0));
        let measured = [((1, 1), 1.0, 0.0), ((2, 2), 1.2, 100.0), ((2, 1), 1.4, 200.0), ((4, 1), 1.6, 500.0)];
        let crowding = crowding(measured);
        measured.iter().for_each(|(crowd, factor, wait_ns)| near(crowding.of(*crowd), (*factor, *wait_ns)));
        near(crowding.of((4, 2)), (1.2 * 1.4, 300.0));
        near(crowding.of((3, 2)), (1.2 * 1.4_f64.powf(1.5_f64.log2()), 200.0));
        near(crowding.of((16, 2)), (1.2 * 1.6 * 1.6 / 1.4, 100.0 + 500.0 + 4.0 * 150.0));
        // More cores than in any run.
        near(crowding.of((64, 64)), (1.2, 100.0));
    }

    #[test]
    fn what_work_cannot_explain_is_waiting() {
        let mut crowding = Crowding::from(Some((1, 1)));
        crowding.add((2, 2), 4.0, 10.0);
        near(crowding.of((2, 2)), (1.4, 0.0));
        crowding.add((2, 2), 106.0, 10.0);
        near(crowding.of((2, 2)), (2.0, 100.0));
        crowding.add((2, 2), -105.0, 10.0);
        near(crowding.of((2, 2)), (1.5, 0.0));
        // It was thought to be as with two.
        crowding.add((4, 4), 2.0, 10.0);
        near(crowding.of((4, 4)), (1.7, 0.0));
    }

    #[test]
    fn threads_take_neither_more_than_there_is_of_them_nor_less_than_nothing() {
        let one = |factor: f64| Slowdown { factor, wait_ns: 0.0 };
        near(on_line(&[(1.0, one(1.0)), (2.0, one(3.0))], 4.0), (6.0, 0.0));
        near(on_line(&[(1.0, one(1.5)), (2.0, one(1.2))], 4.0), (1.2, 0.0));
    }
}
