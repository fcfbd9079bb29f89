use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;
use crate::job::Job;
use crate::plan::{self, Layout, Plan};
use crate::simulate::placement::BlockPlacement;
use crate::tensor::{Dtype, Shape};

const PLACEMENTS: [Placement; 3] = [Placement::Planned, Placement::Random, Placement::RoundRobin];

/// A tensor that a job reads, with its shape.
type Input = (&'static str, Dtype, &'static [u64]);

/// Jobs with the shapes of their inputs (`scripts/make-inputs`).
const JOBS: [(&str, &[Input]); 8] = [
    ("heat2d", &[("start", Dtype::F64, &[241, 317])]),
    ("heat3d", &[("start", Dtype::F32, &[45, 38, 52])]),
    ("matmul", &[("a", Dtype::F32, &[517, 389]), ("b", Dtype::F32, &[389, 743])]),
    ("kmeans", &[("x", Dtype::F32, &[20011, 8]), ("centres", Dtype::F32, &[12, 8]), ("old", Dtype::U32, &[20011])]),
    ("pca", &[("x", Dtype::F64, &[3001, 48]), ("v", Dtype::F64, &[48])]),
    ("transpose", &[("a", Dtype::F32, &[1021, 877])]),
    ("histogram", &[("values", Dtype::U8, &[3_000_017])]),
    ("unbalanced", &[("im", Dtype::F64, &[400]), ("re", Dtype::F64, &[520])]),
];

fn job_and_plan(name: &str, ranks: u32) -> (Job, Plan) {
    let job = Job::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("jobs/{name}.toml"))).unwrap();
    let inputs = JOBS.iter().find(|(job, _)| *job == name).unwrap().1;
    let layout = |shape: &[u64], dtype| Layout { dtype, shape: Shape::new(shape.to_vec()).unwrap(), chunk: None };
    let layouts: BTreeMap<String, Layout> =
        inputs.iter().map(|(tensor, dtype, shape)| ((*tensor).to_owned(), layout(shape, *dtype))).collect();
    let machine = plan::Machine { ranks, ranks_per_node: 16, threads: 1, memory_bytes: 1 << 30 };
    let plan = plan::plan(&job, &layouts, &machine).unwrap();
    (job, plan)
}

/// As many iterations as such a job takes.
fn setup(job: &Job, placement: Placement) -> SimulationSetup {
    let iterations = job.iterate.as_ref().map(|iterate| Iterations {
        stages: iterate.stages.clone(),
        count: iterate.count.min(25),
        exchange: iterate.exchange.iter().map(|pair| (pair.read.clone(), pair.written.clone())).collect(),
        until: iterate.until.as_ref().map(|until| until.tensor.clone()),
    });
    SimulationSetup { placement, iterations, ..SimulationSetup::default() }
}

/// Bytes that a whole run moves between ranks.
fn moved_bytes(plan: &Plan, setup: &SimulationSetup) -> u64 {
    let runs = |stage| match &setup.iterations {
        Some(iterations) if iterations.stages.contains(&stage) => iterations.count,
        _ => 1,
    };
    moved(plan, setup).iter().enumerate().map(|(stage, m)| m.once_bytes + runs(stage) * m.each_run_bytes).sum()
}

#[test]
fn what_moves_as_planned_is_what_the_plan_says() {
    for (name, _) in JOBS {
        for ranks in [1, 2, 3, 4, 7, 16] {
            let (job, plan) = job_and_plan(name, ranks);
            let moved = moved(&plan, &setup(&job, Placement::Planned));
            for (stage, moved) in plan.stages.iter().zip(moved) {
                let bytes = moved.once_bytes + moved.each_run_bytes;
                assert_eq!(bytes, stage.bytes.moved, "{name} {} on {ranks} ranks", stage.name);
            }
        }
    }
}

/// Element by element: the points of a plate that ranks need for their blocks, and do not have.
#[test]
fn halos_are_counted_as_by_brute_force() {
    let text = r#"
name = "plate"
[tensors]
a = { file = "x.h5", dataset = "a" }
b = { create = "y.h5", dataset = "b", dtype = "f32" }
[[stages]]
kernel = "k.wasm"
compute = "a[y~1,x~2] -> b[y,x]"
boundary = "clamp"
[iterate]
count = 9
exchange = [["a", "b"]]
"#;
    let job = Job::parse(text, Path::new("jobs/plate.toml")).unwrap();
    let (height, width) = (13i64, 17i64);
    let shape = Shape::new([13, 17]).unwrap();
    let layouts = BTreeMap::from([("a".to_owned(), Layout { dtype: Dtype::F32, shape, chunk: None })]);
    for ranks in [2, 3, 4, 6] {
        let machine = plan::Machine { ranks, ranks_per_node: ranks, threads: 1, memory_bytes: 1 << 30 };
        let plan = plan::plan(&job, &layouts, &machine).unwrap();
        for placement in PLACEMENTS {
            let setup = setup(&job, placement);
            // Each run of a random placement finds what the one before left.
            let placements: Vec<BlockPlacement> = (0..placement.alternatives())
                .map(|run| BlockPlacement::new(&plan.stages[0], ranks, placement, setup.seed, run))
                .collect();
            let points = |placement: &BlockPlacement, rank: u32| -> BTreeSet<(i64, i64)> {
                let tiles: Vec<plan::Tile> = match &placement.blocks {
                    Some(blocks) => blocks[rank as usize].iter().map(|block| block.tile.clone()).collect(),
                    None => plan.stages[0].blocks(rank).collect(),
                };
                let of = |tile: &plan::Tile| {
                    let (y, x) = (tile.0.offset[0]..tile.0.end(0), tile.0.offset[1]..tile.0.end(1));
                    y.flat_map(move |y| x.clone().map(move |x| (y as i64, x as i64))).collect::<Vec<_>>()
                };
                tiles.iter().flat_map(of).collect()
            };
            let mut bytes = 0;
            for rank in 0..ranks {
                let owned = points(placements.last().unwrap(), rank);
                let near = |(y, x): (i64, i64)| (-1..=1).flat_map(move |dy| (-2..=2).map(move |dx| (y + dy, x + dx)));
                let around = points(&placements[0], rank).into_iter().flat_map(near);
                let needs: BTreeSet<_> = around.map(|(y, x)| (y.clamp(0, height - 1), x.clamp(0, width - 1))).collect();
                bytes += 4 * needs.difference(&owned).count() as u64;
            }
            assert_eq!(moved(&plan, &setup)[0].each_run_bytes, bytes, "{placement:?} on {ranks} ranks");
        }
    }
}

#[test]
fn jobs_with_locality_move_at_most_0_6_of_what_random_placement_moves() {
    for name in ["heat2d", "heat3d", "matmul", "kmeans", "pca"] {
        for ranks in [4, 16, 64] {
            let (job, plan) = job_and_plan(name, ranks);
            let bytes = |placement| moved_bytes(&plan, &setup(&job, placement)) as f64;
            let ratio = bytes(Placement::Planned) / bytes(Placement::Random);
            // Of a product on many ranks each has little more than one block, and one is as good as another.
            let most = if (name, ranks) == ("matmul", 64) { 0.7 } else { 0.6 };
            assert!(ratio <= most, "{name} on {ranks} ranks: {ratio}");
        }
    }
}

#[test]
fn no_other_placement_is_faster_by_more_than_a_twentieth() {
    for (name, _) in JOBS {
        for ranks in [4, 16, 64] {
            let (job, plan) = job_and_plan(name, ranks);
            let time = |placement| {
                let simulation = simulate(&plan, &setup(&job, placement));
                (simulation.makespan_ns - simulation.start_ns) as f64
            };
            let planned = time(Placement::Planned);
            for placement in [Placement::Random, Placement::RoundRobin] {
                let ratio = planned / time(placement);
                assert!(ratio <= 1.05, "{name} on {ranks} ranks: {ratio} times as long as {placement:?}");
            }
        }
    }
}
