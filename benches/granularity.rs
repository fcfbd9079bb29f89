//! Compares tasks of automatic length with tasks of a fixed number of slices: `cargo bench --bench granularity`.
//!
//! The simulator excludes all other influences. There, 4 ranks steal from each other, and rows are expensive (0.2 ms, 1
//! s of work for each rank) or cheap (2 us). Real runs follow, in which `--task-slices` fixes the length.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

mod lab;

use std::collections::BTreeMap;
use std::path::Path;

use exuvia::job::Job;
use exuvia::plan::{self, Layout, Plan};
use exuvia::sched::Granularity;
use exuvia::simulate::{MachineModel, SimulationSetup, StageCosts, simulate};
use exuvia::tensor::{Dtype, Shape};
use lab::{Lab, in_stages, median};

const RANKS: u32 = 4;
const FIXED: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16384];
const ROUNDS: usize = 3;

fn rows(rows: u64, columns: u64) -> Plan {
    let text = "name = \"rows\"\n[tensors]\nx = { file = \"x.h5\", dataset = \"x\" }\n\
                y = { create = \"y.h5\", dataset = \"y\", dtype = \"f32\" }\n\
                [[stages]]\nname = \"norm\"\nkernel = \"norm.wasm\"\ncompute = \"x[n,w] -> y[n]\"\n";
    let job = Job::parse(text, Path::new("rows.toml")).unwrap();
    let shape = Shape::new([u64::from(RANKS) * rows, columns]).unwrap();
    let layouts = BTreeMap::from([("x".to_owned(), Layout { dtype: Dtype::F32, shape, chunk: None })]);
    let machine = plan::Machine { ranks: RANKS, ranks_per_node: RANKS, threads: 1, memory_bytes: 1 << 30 };
    plan::plan(&job, &layouts, &machine).unwrap()
}

/// The loads by name. Each costs 50 ns per byte on average.
fn loads(bytes: f64) -> Vec<(&'static str, SimulationSetup)> {
    let even = MachineModel { rank_spread: 0.0, block_spread: 0.0, slice_spread: 0.0, ..MachineModel::default() };
    let setup = |machine: MachineModel| SimulationSetup { machine, ..SimulationSetup::default() };
    let zipf: f64 = (1..=RANKS).map(|rank| 1.0 / f64::from(rank)).sum();
    let density = (1..=RANKS).map(|rank| f64::from(RANKS) / f64::from(rank) / zipf).collect();
    let costs = StageCosts { kernel_ns: 50.0 * bytes, density, ..StageCosts::default() };
    let lognormal = MachineModel { shard_spread: 0.5, block_spread: 0.5, slice_spread: 0.5, ..even.clone() };
    vec![
        ("uniform", setup(even.clone())),
        ("lognormal", setup(lognormal)),
        (
            "Zipf over shards",
            SimulationSetup { costs: BTreeMap::from([("norm".to_owned(), costs)]), ..setup(even.clone()) },
        ),
        ("one rank at 1/4", SimulationSetup { slow: vec![(2, 4.0)], ..setup(even.clone()) }),
        ("tier-up half way", setup(MachineModel { optimize_ns: 600_000_000, ..even })),
    ]
}

fn main() {
    println!("simulated: s; fixed slices per task, and automatic");
    let header: String = FIXED.iter().map(|slices| format!("{slices:>9}")).collect();
    println!("{:<26}{header}{:>9}{:>11}", "load", "auto", "auto/best");
    for (kind, count, columns) in [("dear", 5_000, 1024), ("cheap", 500_000, 10)] {
        let plan = rows(count, columns);
        for (load, setup) in loads((u64::from(RANKS) * count * 4 * (columns + 1)) as f64) {
            let time = |granularity| {
                simulate(&plan, &SimulationSetup { granularity, ..setup.clone() }).stages[0].makespan_ns as f64 / 1e9
            };
            let fixed = FIXED.map(|slices| time(Granularity::Fixed(slices)));
            let (auto, best) = (time(Granularity::Adaptive), fixed.iter().copied().fold(f64::MAX, f64::min));
            let cells: String = fixed.iter().map(|seconds| format!("{seconds:>9.3}")).collect();
            println!("{:<26}{cells}{auto:>9.3}{:>11.3}", format!("{kind}, {load}"), auto / best);
        }
    }
    let lab = Lab::new();
    println!("real: ms inside stages, {RANKS} ranks on {} cores, medians of {ROUNDS}", lab.cores);
    let swept = [1u64, 4, 16, 64];
    let header: String = swept.iter().map(|slices| format!("{slices:>9}")).collect();
    println!("{:<26}{header}{:>9}{:>11}", "job", "auto", "auto/best");
    // Twenty times the work outweighs the other load of the machine.
    let large = lab.variant("unbalanced", "value = 1000", "value = 20000");
    for (name, job) in [("unbalanced", "unbalanced"), ("unbalanced, 20 times", &large), ("matmul", "matmul")] {
        lab.run(job, 1, false, &["--tier", "optimized"], "warm.json");
        let mut times = vec![Vec::new(); swept.len() + 1];
        for _ in 0..ROUNDS {
            for (times, slices) in times.iter_mut().zip(swept.iter().map(Some).chain([None])) {
                let slices = slices.map(u64::to_string);
                let arguments: Vec<&str> = slices.iter().flat_map(|slices| ["--task-slices", slices]).collect();
                times.push(in_stages(&lab.run(job, RANKS, false, &arguments, "run.json")) / 1e6);
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        let best = medians[..swept.len()].iter().copied().fold(f64::MAX, f64::min);
        let cells: String = medians.iter().map(|ms| format!("{ms:>9.1}")).collect();
        println!("{name:<26}{cells}{:>11.3}", medians[swept.len()] / best);
    }
}
