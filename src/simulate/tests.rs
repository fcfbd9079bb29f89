use super::*;
use crate::job::Job;
use crate::plan::{self, Layout, Plan};
use crate::tensor::{Dtype, Shape};
use std::collections::BTreeMap;

const JOB: &str = r#"
name = "rows"
[tensors]
x = { file = "x.h5", dataset = "x" }
y = { create = "y.h5", dataset = "y", dtype = "f32" }
[[stages]]
name = "norm"
kernel = "norm.wasm"
compute = "x[n,w] -> y[n]"
"#;

/// A plan with 5,000 rows of 4 KiB for every rank: about 1 s of work on the default machine, in 8 blocks.
fn rows(ranks: u32, ranks_per_node: u32) -> Plan {
    rows_of(ranks, ranks_per_node, 5000, 1024)
}

/// So many rows for every rank.
pub(super) fn rows_of(ranks: u32, ranks_per_node: u32, rows: u64, columns: u64) -> Plan {
    let job = Job::parse(JOB, std::path::Path::new("jobs/rows.toml")).unwrap();
    let shape = Shape::new([u64::from(ranks) * rows, columns]).unwrap();
    let layouts = BTreeMap::from([("x".to_owned(), Layout { dtype: Dtype::F32, shape, chunk: None })]);
    let machine = plan::Machine { ranks, ranks_per_node, threads: 1, memory_bytes: 1 << 30 };
    plan::plan(&job, &layouts, &machine).unwrap()
}

fn setup(policy: Policy, shard_spread: f64) -> SimulationSetup {
    let machine = MachineModel { shard_spread, ..MachineModel::default() };
    SimulationSetup { machine, policy, ..SimulationSetup::default() }
}

fn norm(plan: &Plan, setup: &SimulationSetup) -> StageTimes {
    simulate(plan, setup).stages.remove(0)
}

#[test]
fn equal_ranks_need_no_stealing_and_lose_little() {
    let times = norm(&rows(4, 4), &setup(Policy::Static, 0.0));
    assert!(times.efficiency > 0.95, "{times:?}");
    assert_eq!((times.steal_requests, times.slices_stolen), (0, 0));
    assert_eq!((times.slices, times.blocks), (20_000, 32));
}

#[test]
fn a_slow_rank_does_not_hold_up_the_others() {
    let plan = rows(4, 4);
    let slow = |policy| norm(&plan, &SimulationSetup { slow: vec![(2, 4.0)], ..setup(policy, 0.0) }).efficiency;
    let (stolen, fixed) = (slow(Policy::Steal), slow(Policy::Static));
    assert!(stolen > 0.95, "{stolen}");
    assert!(fixed < 0.4, "{fixed}");
}

#[test]
fn spread_costs_are_balanced_on_64_ranks() {
    let plan = rows(64, 8);
    let stolen = norm(&plan, &setup(Policy::Steal, 0.5));
    let fixed = norm(&plan, &setup(Policy::Static, 0.5));
    assert!(stolen.efficiency > 0.95 && fixed.efficiency < 0.5, "{stolen:?} {fixed:?}");
}

#[test]
fn ten_thousand_ranks_are_balanced_and_most_data_stays_on_its_node() {
    let plan = rows(10_240, 64);
    let times = norm(&plan, &setup(Policy::Steal, 0.5));
    assert!(times.efficiency > 0.95, "{times:?}");
    assert!(times.between_nodes < 0.03, "{times:?}");
}

#[test]
fn one_seed_is_one_result() {
    let plan = rows(64, 8);
    let times = norm(&plan, &setup(Policy::Steal, 0.5));
    assert_eq!(times, norm(&plan, &setup(Policy::Steal, 0.5)));
    assert_ne!(times, norm(&plan, &SimulationSetup { seed: 2, ..setup(Policy::Steal, 0.5) }));
}

#[test]
fn a_hundred_thousand_ranks() {
    let plan = rows(102_400, 64);
    let times = norm(&plan, &setup(Policy::Steal, 0.5));
    assert!(times.efficiency > 0.93 && times.between_nodes < 0.03, "{times:?}");
}

/// With cores for all, sharing them changes nothing, but that the end of every task is an event.
#[test]
fn tasks_that_nobody_follows_end_like_those_that_are_followed() {
    let mut plan = rows(16, 4);
    let cases = [Policy::Static, Policy::Steal].into_iter().flat_map(|policy| [1, 3].map(|threads| (policy, threads)));
    for ((policy, threads), optimize_ns) in cases.flat_map(|case| [0, 300_000_000].map(|ns| (case, ns))) {
        plan.machine.threads = threads;
        let times = |cores_per_node| {
            let mut setup = setup(policy, 0.5);
            (setup.machine.cores_per_node, setup.machine.optimize_ns) = (cores_per_node, optimize_ns);
            norm(&plan, &setup)
        };
        let (own, shared) = (times(0), times(1000));
        assert!(own.tasks > 3000 && (own.slices_stolen > 10_000) == (policy == Policy::Steal), "{own:?}");
        // Only events of ranks are counted.
        assert_eq!(own, StageTimes { events: shared.events + own.tasks, ..shared }, "{policy:?}, {threads} threads");
    }
}

/// Iterations that a machine with a swap goes through.
fn iterated(count: u64, ranks: u32) -> (Plan, SimulationSetup) {
    let text = r#"
name = "plate"
[tensors]
a = { file = "x.h5", dataset = "a" }
b = { create = "y.h5", dataset = "b", dtype = "f32" }
[[stages]]
name = "step"
kernel = "k.wasm"
compute = "a[y~1,x~1] -> b[y,x]"
boundary = "clamp"
[iterate]
count = 1000
exchange = [["a", "b"]]
"#;
    let job = Job::parse(text, std::path::Path::new("jobs/plate.toml")).unwrap();
    let shape = Shape::new([400, 400]).unwrap();
    let layouts = BTreeMap::from([("a".to_owned(), Layout { dtype: Dtype::F32, shape, chunk: None })]);
    let machine = plan::Machine { ranks, ranks_per_node: ranks, threads: 1, memory_bytes: 1 << 30 };
    let exchange = vec![("a".to_owned(), "b".to_owned())];
    let iterations = Some(Iterations { stages: 0..1, count, exchange, until: None });
    (plan::plan(&job, &layouts, &machine).unwrap(), SimulationSetup { iterations, ..setup(Policy::Steal, 0.0) })
}

#[test]
fn iterations_add_up_and_those_not_simulated_are_like_the_last() {
    let time = |count| {
        let (plan, setup) = iterated(count, 4);
        let simulation = simulate(&plan, &setup);
        assert_eq!(simulation.stages[0].runs, count);
        (simulation.makespan_ns - simulation.start_ns) as f64
    };
    let (few, many) = (time(5), time(500));
    assert!((0.97..1.03).contains(&(many / few / 100.0)), "{few} {many}");
}

#[test]
fn the_swap_comes_when_the_compiler_is_done_and_saves_what_is_left() {
    let (plan, mut setup) = iterated(200, 2);
    let optimized = simulate(&plan, &setup).stages.remove(0);
    setup.machine.optimize_ns = 500_000_000;
    let swapped = simulate(&plan, &setup);
    assert_eq!(swapped.optimized_at_ns, Some(500_000_000));
    setup.machine.optimize_ns = 1_000_000_000_000;
    let baseline = simulate(&plan, &setup).stages.remove(0);
    let swapped = &swapped.stages[0];
    assert!(swapped.baseline_tasks > 0 && swapped.baseline_tasks < swapped.tasks, "{swapped:?}");
    assert_eq!((optimized.baseline_tasks, baseline.baseline_tasks), (0, baseline.tasks));
    // Half a second of baseline code does an eighth of what optimized code does in that time.
    let expected = optimized.makespan_ns as f64 + 500e6 * 7.0 / 8.0;
    assert!((0.97..1.03).contains(&(swapped.makespan_ns as f64 / expected)), "{swapped:?} {expected}");
    assert!(baseline.makespan_ns > 6 * optimized.makespan_ns, "{baseline:?}");
}

#[test]
fn ranks_that_share_cores_take_turns() {
    let time = |cores_per_node| {
        let plan = rows(8, 8);
        let mut setup = setup(Policy::Steal, 0.0);
        setup.machine.cores_per_node = cores_per_node;
        norm(&plan, &setup).makespan_ns as f64
    };
    assert!((0.97..1.05).contains(&(time(8) / time(0))), "{} {}", time(8), time(0));
    assert!((3.8..4.3).contains(&(time(2) / time(8))), "{} {}", time(2), time(8));
}

#[test]
fn a_run_like_one_that_was_measured_takes_as_long() {
    let (plan, mut setup) = iterated(50, 2);
    setup.machine.cores_per_node = 2;
    let stage = MeasuredStage {
        wall_ns: 400_000_000,
        kernel_ns: vec![[0, 300_000_000]; 2],
        tasks: [0, 900],
        ..MeasuredStage::default()
    };
    let stages = BTreeMap::from([("step".to_owned(), stage)]);
    let run = Measured { plan: plan.clone(), cores_per_node: None, iterations: Some(50), stole: false, stages };
    setup.costs = calibrate(&[run], &setup);
    let spreads = |machine: &mut MachineModel| {
        (machine.rank_spread, machine.block_spread, machine.slice_spread) = (0.0, 0.0, 0.0)
    };
    spreads(&mut setup.machine);
    let makespan_ns = simulate(&plan, &setup).stages[0].makespan_ns as f64;
    assert!((0.97..1.03).contains(&(makespan_ns / 400e6)), "{makespan_ns}");
    assert!((setup.costs["step"].kernel_ns - 12e6).abs() < 1e3);
}

#[test]
fn what_was_measured_in_a_crowd_comes_out_again() {
    let (one, mut setup) = iterated(50, 1);
    let (two, _) = iterated(50, 2);
    let spreads = |machine: &mut MachineModel| {
        (machine.rank_spread, machine.block_spread, machine.slice_spread) = (0.0, 0.0, 0.0)
    };
    spreads(&mut setup.machine);
    let run = |plan: &Plan, cores: u32, wall_ms: u64| {
        let kernel_ns = vec![[0, 300_000_000 / u64::from(plan.machine.ranks)]; plan.machine.ranks as usize];
        let stage =
            MeasuredStage { wall_ns: wall_ms * 1_000_000, kernel_ns, tasks: [0, 900], ..MeasuredStage::default() };
        let stages = BTreeMap::from([("step".to_owned(), stage)]);
        Measured { plan: plan.clone(), cores_per_node: Some(cores), iterations: Some(50), stole: false, stages }
    };
    // Twice as long on a shared core is a slowdown; ten times is waiting for the most part.
    for shared_ms in [800, 4000] {
        let runs = [run(&one, 1, 400), run(&two, 2, 240), run(&two, 1, shared_ms)];
        setup.costs = calibrate(&runs, &setup);
        let makespan_ms = |plan: &Plan, cores_per_node: u32| {
            let machine = MachineModel { cores_per_node, ..setup.machine.clone() };
            let setup = SimulationSetup { machine, ..setup.clone() };
            simulate(plan, &setup).stages[0].makespan_ns as f64 / 1e6
        };
        for (plan, cores, wall_ms) in [(&one, 1, 400), (&two, 2, 240), (&two, 1, shared_ms)] {
            let got = makespan_ms(plan, cores);
            assert!((0.97..1.03).contains(&(got / wall_ms as f64)), "{got} for {wall_ms}");
        }
    }
}

#[test]
fn who_has_the_dear_part_takes_longest_unless_others_steal_it() {
    let plan = rows(4, 4);
    let mut costs = StageCosts { kernel_ns: 4e9, density: vec![2.5, 0.5, 0.5, 0.5], ..StageCosts::default() };
    let seconds = |policy, costs: &StageCosts| {
        let setup = SimulationSetup { costs: [("norm".to_owned(), costs.clone())].into(), ..setup(policy, 0.0) };
        norm(&plan, &setup).makespan_ns as f64 / 1e9
    };
    let (fixed, stolen) = (seconds(Policy::Static, &costs), seconds(Policy::Steal, &costs));
    assert!((2.4..2.8).contains(&fixed) && (1.0..1.3).contains(&stolen), "{fixed} {stolen}");
    costs.density.clear();
    assert!((1.0..1.3).contains(&seconds(Policy::Static, &costs)));
}
