use super::*;
use crate::job::Job;
use crate::plan::{self, Layout};
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
    let job = Job::parse(JOB, std::path::Path::new("jobs/rows.toml")).unwrap();
    let shape = Shape::new([u64::from(ranks) * 5000, 1024]).unwrap();
    let layouts = BTreeMap::from([("x".to_owned(), Layout { dtype: Dtype::F32, shape, chunk: None })]);
    let machine = plan::Machine { ranks, ranks_per_node, threads: 1, memory_bytes: 1 << 30 };
    plan::plan(&job, &layouts, &machine).unwrap()
}

fn setup(policy: Policy, shard_spread: f64) -> Setup {
    let machine = Machine { shard_spread, ..Machine::default() };
    Setup { machine, policy, granularity: Granularity::Adaptive, slow: Vec::new(), seed: 1 }
}

fn norm(plan: &Plan, setup: &Setup) -> StageTimes {
    simulate(plan, setup).remove(0)
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
    let slow = |policy| norm(&plan, &Setup { slow: vec![(2, 4.0)], ..setup(policy, 0.0) }).efficiency;
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
    assert_ne!(times, norm(&plan, &Setup { seed: 2, ..setup(Policy::Steal, 0.5) }));
}

#[test]
fn a_hundred_thousand_ranks() {
    let plan = rows(102_400, 64);
    let times = norm(&plan, &setup(Policy::Steal, 0.5));
    assert!(times.efficiency > 0.93 && times.between_nodes < 0.03, "{times:?}");
}
