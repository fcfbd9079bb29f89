//! What workers ran over time, in few numbers.

use serde::{Deserialize, Serialize};

use crate::report::Timeline;

const INTERVALS: usize = 100;

/// How many workers were in kernels on which code, in the mean of each of some equal intervals from the beginning of the run to
/// its last call of a kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Load {
    pub interval_ns: u64,
    pub baseline: Vec<f64>,
    pub optimized: Vec<f64>,
}

impl Load {
    pub fn of(timeline: &Timeline) -> Load {
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
        // Three digits are all that can be seen.
        tiers.iter_mut().flatten().for_each(|workers| *workers = (*workers * 1000.0).round() / 1000.0);
        let [baseline, optimized] = tiers;
        Load { interval_ns: interval_ns as u64, baseline, optimized }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Call, Worker};

    #[test]
    fn workers_add_up_in_each_interval() {
        let call = |at_ns, ns, optimized| Call { at_ns, ns, optimized };
        let worker = |calls| Worker { calls, ..Worker::default() };
        let workers =
            [worker(vec![call(0.0, 250.0, false), call(500.0, 9500.0, true)]), worker(vec![call(100.0, 100.0, false)])];
        let mut timeline = Timeline::default();
        workers.into_iter().zip(0..).for_each(|(worker, rank)| {
            timeline.0.entry(rank).or_default().insert(1, worker);
        });
        let load = Load::of(&timeline);
        assert_eq!(load.interval_ns, 100);
        assert_eq!(load.baseline[..4], [1.0, 2.0, 0.5, 0.0]);
        assert_eq!((load.optimized[4], load.optimized[5], load.optimized[99]), (0.0, 1.0, 1.0));
    }
}
