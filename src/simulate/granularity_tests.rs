use super::tests::rows_of;
use super::*;
use crate::sched::Granularity;
use std::collections::BTreeMap;

/// Tasks of automatic length take at most a tenth longer than those of the best fixed one, whatever the load.
#[test]
fn automatic_tasks_are_as_good_as_the_best_fixed_ones() {
    let even = MachineModel { rank_spread: 0.0, block_spread: 0.0, slice_spread: 0.0, ..MachineModel::default() };
    let setup = |machine: MachineModel| SimulationSetup { machine, ..SimulationSetup::default() };
    // Rows of 0.2 ms, and of 2 us.
    for (rows, columns) in [(5_000, 1024), (500_000, 10)] {
        let plan = rows_of(4, 4, rows, columns);
        let zipf = [1.0, 1.0 / 2.0, 1.0 / 3.0, 1.0 / 4.0].map(|part: f64| part * 4.0 * 12.0 / 25.0).to_vec();
        let kernel_ns = 50.0 * (4 * rows * 4 * (columns + 1)) as f64;
        let costs = StageCosts { kernel_ns, density: zipf, ..StageCosts::default() };
        let lognormal = MachineModel { shard_spread: 0.5, block_spread: 0.5, slice_spread: 0.5, ..even.clone() };
        let loads = [
            ("uniform", setup(even.clone())),
            ("lognormal", setup(lognormal)),
            ("zipf", SimulationSetup { costs: BTreeMap::from([("norm".to_owned(), costs)]), ..setup(even.clone()) }),
            ("slow rank", SimulationSetup { slow: vec![(2, 4.0)], ..setup(even.clone()) }),
            ("tier-up", setup(MachineModel { optimize_ns: 600_000_000, ..even.clone() })),
        ];
        for (load, setup) in loads {
            let time = |granularity| {
                simulate(&plan, &SimulationSetup { granularity, ..setup.clone() }).stages[0].makespan_ns as f64
            };
            let fixed = [1, 4, 16, 64, 256, 1024, 4096, 16384].map(|slices| time(Granularity::Fixed(slices)));
            let best = fixed.into_iter().fold(f64::MAX, f64::min);
            let ratio = time(Granularity::Adaptive) / best;
            assert!(ratio <= 1.1, "{load} of {columns} columns: {ratio}");
        }
    }
}
