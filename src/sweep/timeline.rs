//! The load of the workers over time.

use serde::{Deserialize, Serialize};

use crate::report::Timeline;

const INTERVALS: usize = 100;

/// The mean number of workers in kernels, by tier, in equal intervals from the start of the run to its last kernel
/// call.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkerLoad {
    pub interval_ns: u64,
    pub baseline: Vec<f64>,
    pub optimized: Vec<f64>,
}

impl WorkerLoad {
    pub fn of(timeline: &Timeline) -> WorkerLoad {
        let calls = || timeline.0.values().flat_map(|rank| rank.values()).flat_map(|worker| &worker.calls);
        let end_ns = calls().map(|call| call.at_ns + call.ns).fold(1.0, f64::max);
        let interval_ns = (end_ns / INTERVALS as f64).ceil();
        let mut tiers = [vec![0.0; INTERVALS], vec![0.0; INTERVALS]];
        for call in calls() {
            let intervals = tiers[usize::from(call.optimized)].iter_mut().enumerate();
            for (number, workers) in intervals.skip((call.at_ns / interval_ns) as usize) {
                let from_ns = number as f64 * interval_ns;
                let within = (call.at_ns + call.ns).min(from_ns + interval_ns) - call.at_ns.max(from_ns);
                if within <= 0.0 {
                    break;
                }
                *workers += within / interval_ns;
            }
        }
        // Three digits are enough for a chart.
        tiers.iter_mut().flatten().for_each(|workers| *workers = (*workers * 1000.0).round() / 1000.0);
        let [baseline, optimized] = tiers;
        WorkerLoad { interval_ns: interval_ns as u64, baseline, optimized }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{KernelCall, WorkerTimeline};

    #[test]
    fn workers_add_up_in_each_interval() {
        let call = |at_ns, ns, optimized| KernelCall { at_ns, ns, optimized };
        let worker = |calls| WorkerTimeline { calls, ..WorkerTimeline::default() };
        let workers =
            [worker(vec![call(0.0, 250.0, false), call(500.0, 9500.0, true)]), worker(vec![call(100.0, 100.0, false)])];
        let mut timeline = Timeline::default();
        workers.into_iter().zip(0..).for_each(|(worker, rank)| {
            timeline.0.entry(rank).or_default().insert(1, worker);
        });
        let load = WorkerLoad::of(&timeline);
        assert_eq!(load.interval_ns, 100);
        assert_eq!(load.baseline[..4], [1.0, 2.0, 0.5, 0.0]);
        assert_eq!((load.optimized[4], load.optimized[5], load.optimized[99]), (0.0, 1.0, 1.0));
    }
}
