//! Compares the jobs of every stage kind (reductions, halos, iterations, redistribution) with numpy, and with
//! themselves on other numbers of ranks, threads and on other tiers.

use std::fs;

use crate::lab::Lab;
use exuvia::cli::kernel_build;
use exuvia::exec::{self, ExitCode, Options, Signal, TierPolicy};
use exuvia::fabric;
use exuvia::tensor::Dtype;

#[test]
fn heat_spreads_as_numpy_says() {
    let lab = Lab::new(&["heat"]);
    let report = lab.agrees("heat2d");
    assert_eq!(report.ranks[0].iterations, Some(188));
    lab.agrees("heat3d");
}

#[test]
fn grids_of_other_spacing_meet_as_numpy_says() {
    let lab = Lab::new(&["multigrid"]);
    let report = lab.agrees("multigrid");
    assert_eq!(report.ranks[0].iterations, Some(15));
    // Where stages are not iterated, ranks lend each other work.
    lab.job("multigrid", once);
    let expected = lab.results(&lab.run(1, &["--threads", "1"]));
    assert_eq!(expected.len(), 4);
    for ranks in [2, 3, 4, 7] {
        assert!(lab.results(&lab.run(ranks, &["--threads", "1"])) == expected, "{ranks} ranks");
    }
}

/// Returns multigrid with one pass over its stages, with chunks that do not end at pairs of elements.
fn once(job: String) -> String {
    let stages = job.split("[iterate]").next().unwrap();
    let chunked = |job: String, tensor: &str, chunk: &str| {
        let scratch = format!("[tensors.{tensor}]\n");
        let create = format!("create = \"multigrid.h5\"\ndataset = \"{tensor}\"\nchunk = {chunk}\ndeflate = 1\n");
        assert!(job.contains(&scratch));
        job.replace(&scratch, &(scratch.clone() + &create))
    };
    chunked(chunked(stages.to_owned(), "corrected", "[5, 14]"), "left", "[8, 9]")
}

#[test]
fn products_and_transposes_are_right() {
    let lab = Lab::new(&["matmul", "transpose"]);
    lab.agrees("matmul");
    lab.agrees("transpose");
}

#[test]
fn clusters_and_components_are_found() {
    let lab = Lab::new(&["kmeans", "pca"]);
    lab.agrees("kmeans");
    lab.agrees("pca");
}

#[test]
fn counts_and_uneven_maps_are_right() {
    let lab = Lab::new(&["histogram", "unbalanced"]);
    lab.agrees("histogram");
    lab.agrees("unbalanced");
}

#[test]
fn means_and_variances_are_merged_by_a_kernel() {
    let lab = Lab::new(&["variance"]);
    let report = lab.agrees("variance");
    assert!(report.totals().tasks() > 100, "many partial results");
    let expected = lab.results(&lab.run(1, &["--threads", "1"]));
    for ranks in [3, 7] {
        assert!(lab.results(&lab.run(ranks, &["--threads", "2", "--no-steal"])) == expected, "{ranks} ranks");
    }
}

/// A hash of numbers, in which each number is processed as often as it says. The hash of two ranges is made from their
/// hashes in one order only, and only its lower half does not depend on the cut.
const CHAIN: &str = r#"
#include "exuvia.h"
EXUVIA_EXPORT(hash) int32_t hash(const exuvia_view *v, uint32_t count)
{
    const uint64_t *x = exuvia_data(&v[0]);
    uint64_t *hash = exuvia_data(&v[1]);
    uint32_t *power = exuvia_data(&v[2]);
    *hash = 0;
    *power = 1;
    for (uint32_t i = 0; i < v[0].extent[0]; i++) {
        uint64_t mixed = x[i];
        for (uint64_t k = 0; k < x[i]; k++)
            mixed = mixed * 6364136223846793005u + 1442695040888963407u;
        *hash = *hash * 1000003u + mixed;
        *power *= 1000003u;
    }
    return count != 3;
}
EXUVIA_EXPORT(append) int32_t append(const exuvia_view *v, uint32_t count)
{
    const uint64_t *more = exuvia_data(&v[0]);
    const uint32_t *more_power = exuvia_data(&v[1]);
    uint64_t *hash = exuvia_data(&v[2]);
    uint32_t *power = exuvia_data(&v[3]);
    *hash = (uint32_t)*hash * (uint64_t)*more_power + *more;
    *power *= *more_power;
    return count != 4 || v[2].flags != EXUVIA_OUTPUT || v[0].flags != 0;
}
"#;

#[test]
fn kernels_merge_in_order_whoever_computed() {
    // The input is large enough for groups of several leaves.
    const NUMBERS: u64 = 3_300_000;
    let lab = Lab::new(&[]);
    fs::write(lab.path("chain.c"), CHAIN).unwrap();
    kernel_build::build(&lab.path("chain.c"), &lab.path("chain.wasm"), &[]).unwrap();
    // The first part takes most of the time, so that thieves steal from its rank.
    let x = |i: u64| if i < NUMBERS / 3 { 200 + i % 7 } else { i % 5 };
    lab.dataset(Dtype::U64, &[NUMBERS], (0..NUMBERS).flat_map(|i| x(i).to_le_bytes()).collect());
    let text = "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
                [tensors.hash]\ncreate = \"out.h5\"\ndataset = \"hash\"\ndtype = \"u64\"\n\
                [tensors.power]\ncreate = \"out.h5\"\ndataset = \"power\"\ndtype = \"u32\"\n\
                [[stages]]\nkernel = \"chain.wasm\"\nexport = \"hash\"\ncompute = \"x[n] -> hash[], power[]\"\n\
                combine = { export = \"append\" }\n";
    fs::write(lab.path("job.toml"), text).unwrap();
    let alone = lab.run(1, &["--threads", "1"]);
    let expected = lab.results(&alone);
    let step = |x: u32| x.wrapping_mul(1_284_865_837).wrapping_add(4_150_755_663);
    let mixed = |i| (0..x(i)).fold(x(i) as u32, |mixed, _| step(mixed));
    let hash = (0..NUMBERS).fold(0u32, |hash, i| hash.wrapping_mul(1_000_003).wrapping_add(mixed(i)));
    let power = (0..NUMBERS).fold(1u32, |power, _| power.wrapping_mul(1_000_003));
    assert_eq!((&expected[0].1[..4], &expected[1].1[..]), (&hash.to_le_bytes()[..], &power.to_le_bytes()[..]));
    let mut stolen = 0;
    for (ranks, threads, steals) in [(1, "2", true), (2, "1", true), (3, "2", true), (3, "1", false), (7, "1", true)] {
        let arguments = ["--threads", threads, "--no-steal"];
        let report = lab.run(ranks, &arguments[..if steals { 2 } else { 3 }]);
        stolen += report.totals().stolen_slices;
        assert!(lab.results(&report) == expected, "{ranks} ranks");
        assert!(steals || report.totals().stolen_slices == 0);
    }
    assert!(stolen > 0, "nothing was stolen");
}

#[test]
fn regression_learns_the_digits() {
    let lab = Lab::new(&["softmax_regression"]);
    lab.agrees("softmax-regression");
}

#[test]
fn the_largest_of_many_is_found_with_its_place() {
    const ROWS: u64 = 20_011;
    const COLUMNS: u64 = 7;
    let lab = Lab::new(&["largest"]);
    // There are few values, so that most of the largest occur more than once.
    let x: Vec<f64> = (0..ROWS * COLUMNS).map(|i| (i * 7919 % 1009) as f64).collect();
    lab.dataset(Dtype::F64, &[ROWS, COLUMNS], x.iter().flat_map(|x| x.to_le_bytes()).collect());
    let text = "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
                [tensors.value]\ncreate = \"out.h5\"\ndataset = \"value\"\ndtype = \"f64\"\n\
                [tensors.row]\ncreate = \"out.h5\"\ndataset = \"row\"\ndtype = \"u64\"\n\
                [[stages]]\nkernel = \"largest.wasm\"\ncompute = \"x[n,d] -> value[d], row[d]\"\ncombine = \"argmax\"\n";
    fs::write(lab.path("job.toml"), text).unwrap();
    let column = |d: u64| (0..ROWS).map(move |n| n * COLUMNS + d).map(|i| x[i as usize]);
    let largest = |d| column(d).fold(f64::MIN, f64::max);
    let first = |d| column(d).position(|x| x == largest(d)).unwrap() as u64;
    let values: Vec<u8> = (0..COLUMNS).flat_map(|d| largest(d).to_le_bytes()).collect();
    let rows: Vec<u8> = (0..COLUMNS).flat_map(|d| first(d).to_le_bytes()).collect();
    for ranks in [1, 2, 5] {
        let report = lab.run(ranks, &["--threads", "2"]);
        assert!(report.totals().tasks() > 1);
        assert!(lab.results(&report) == [("value".to_owned(), values.clone()), ("row".to_owned(), rows.clone())]);
    }
}

#[test]
fn a_swap_before_any_partial_result_changes_no_bit() {
    let lab = Lab::new(&["pca"]);
    let job = lab.job("pca", |job| job.replace("count = ", "count = 2 # "));
    let run = |tier, swap_before_task| {
        let options = Options {
            threads: Some(1),
            tier,
            cache_dir: Some(lab.path("cache")),
            swap_before_task,
            ..Options::default()
        };
        exec::run(fabric::solo(), &job, &options, Signal::default(), |_| ExitCode::Done)
            .unwrap_or_else(|f| panic!("{f:?}"))
            .unwrap()
    };
    let expected = lab.results(&run(TierPolicy::Baseline, None));
    assert!(lab.results(&run(TierPolicy::Optimized, None)) == expected);
    for swap in [0, 1, 2, 7, 50, 149] {
        let report = run(TierPolicy::Auto, Some(swap));
        assert!(report.totals().baseline_tasks > 0 || swap == 0, "{swap}");
        assert!(lab.results(&report) == expected, "swap before task {swap}");
    }
}

#[test]
fn a_rank_without_work_takes_some_and_changes_no_bit() {
    let lab = Lab::new(&["unbalanced"]);
    // All work is in the upper rows, and there is enough for a thief to come.
    lab.job("unbalanced", |job| job.replace("value = 1000", "value = 20000"));
    let alone = lab.run(2, &["--threads", "1", "--no-steal", "--tier", "optimized"]);
    let expected = lab.results(&alone);
    let counts = alone.totals();
    assert_eq!((counts.steals, counts.moved_bytes()), (0, 0));
    // The report shows where the time was spent: each task rounds what it adds to sixteen parts.
    let known: u64 = counts.profile_ns.iter().sum();
    assert!(known.abs_diff(counts.optimized_ns) <= 16 * counts.optimized_tasks, "{known} of {}", counts.optimized_ns);
    assert!(counts.profile_ns[0] > 10 * counts.profile_ns[15], "{:?}", counts.profile_ns);
    for ranks in [2, 3] {
        let report = lab.run(ranks, &["--threads", "1"]);
        assert!(report.totals().stolen_slices > 0, "{ranks} ranks");
        // Results come back, and no other data moves: thieves read inputs from the file.
        assert!(report.totals().moved_bytes() > 0 && report.totals().moved_bytes() < expected[0].1.len() as u64);
        assert!(lab.results(&report) == expected, "{ranks} ranks");
    }
}

/// Tests that independent stages run at the same time, and return their outputs one after the other.
#[test]
fn independent_stages_overlap() {
    let lab = Lab::new(&["transpose", "unbalanced"]);
    let job = |name: &str, iterations: u64| {
        let text = fs::read_to_string(lab.job(name, |job| job)).unwrap();
        text.replace("value = 1000", &format!("value = {iterations}"))
    };
    // The second stage begins while the first, which takes longer, runs.
    let (first, second) = (job("unbalanced", 20_000), job("transpose", 0));
    fs::write(lab.path("job.toml"), &second).unwrap();
    let alone = lab.results(&lab.run(1, &[]));
    let (tensors, stages) = second.split_once("[[stages]]").unwrap();
    fs::write(lab.path("job.toml"), format!("{tensors}\n{first}\n[[stages]]{stages}")).unwrap();
    let mut results = Vec::new();
    for (ranks, steal) in [(1, true), (2, true), (3, false)] {
        let arguments: &[&str] = if steal { &["--threads", "1"] } else { &["--threads", "1", "--no-steal"] };
        let report = lab.run(ranks, arguments);
        let [slow, quick] = report.stages.as_slice() else { panic!("two stages") };
        let (begins, ends) = (quick.started_ns.unwrap(), slow.started_ns.unwrap() + slow.wall_ns);
        assert!(begins < ends, "{ranks} ranks: the second begins at {begins} ns, the first ends at {ends} ns");
        results.push(lab.results(&report));
    }
    assert!(results.iter().all(|result| *result == results[0]));
    assert!(results[0].ends_with(&alone));
}

/// A kernel that replaces each point by the next one. It reads the whole tensor, of which the ranks of a node have one
/// copy.
const NEXT: &str = r#"
#include "exuvia.h"
EXUVIA_EXPORT(next) int32_t next(const exuvia_view *v, uint32_t count)
{
    const double *u = exuvia_data(&v[0]);
    double *w = exuvia_data(&v[1]);
    for (uint32_t i = 0; i < v[1].extent[0]; i++)
        w[i] = u[(v[1].origin[0] + i + 1) % v[0].extent[0]];
    return count != 2;
}
"#;

#[test]
fn a_copy_for_a_node_is_a_new_one_in_every_iteration() {
    const POINTS: u64 = 40_000;
    let lab = Lab::new(&[]);
    fs::write(lab.path("next.c"), NEXT).unwrap();
    kernel_build::build(&lab.path("next.c"), &lab.path("next.wasm"), &[]).unwrap();
    lab.dataset(Dtype::F64, &[POINTS], (0..POINTS).flat_map(|i| (i as f64).to_le_bytes()).collect());
    let text = format!(
        "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
         [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f64\"\n\
         [[stages]]\nkernel = \"next.wasm\"\ncompute = \"x[a] -> y[b]\"\nsizes = {{ b = {POINTS} }}\n\
         [iterate]\ncount = 7\nexchange = [[\"x\", \"y\"]]\n"
    );
    fs::write(lab.path("job.toml"), text).unwrap();
    let expected: Vec<u8> = (0..POINTS).flat_map(|i| (((i + 7) % POINTS) as f64).to_le_bytes()).collect();
    for ranks in [1, 2, 3, 7] {
        let report = lab.run(ranks, &["--threads", "2"]);
        assert!(lab.results(&report)[0].1 == expected, "{ranks} ranks");
        // A mapped tensor is no copy and does not move.
        let operand = report.totals().moved.operand;
        let whole = POINTS * 8;
        assert!(operand.moved() <= 6 * whole && (ranks == 1 || operand.rank >= 6 * whole * u64::from(ranks - 1)));
    }
}

/// Tests rows that differ in cost by a factor of 30, and ranks too: also in iterations, idle ranks help the others.
#[test]
fn iterations_that_are_unbalanced_steal_and_change_no_bit() {
    const ROWS: usize = 6400;
    const COLUMNS: usize = 20;
    const ITERATIONS: usize = 9;
    let lab = Lab::new(&["reaction"]);
    // The expensive rows are fewer than a rank's share of four, and have so many steps that a rank can lend some.
    let steps: Vec<u32> = (0..ROWS).map(|y| if y < 1560 { 360 } else { 12 }).collect();
    let mut u: Vec<f64> = (0..ROWS * COLUMNS).map(|i| (i * 7919 % 1009) as f64 / 1009.0).collect();
    let (rows, columns) = (ROWS as u64, COLUMNS as u64);
    lab.dataset_of("u.h5", Dtype::F64, &[rows, columns], u.iter().flat_map(|u| u.to_le_bytes()).collect());
    lab.dataset_of("steps.h5", Dtype::U32, &[rows], steps.iter().flat_map(|n| n.to_le_bytes()).collect());
    let text = format!(
        "[tensors.u]\nfile = \"u.h5\"\ndataset = \"x\"\n\
         [tensors.steps]\nfile = \"steps.h5\"\ndataset = \"x\"\n\
         [tensors.v]\ncreate = \"out.h5\"\ndataset = \"v\"\ndtype = \"f64\"\n\
         [tensors.heat]\ncreate = \"out.h5\"\ndataset = \"heat\"\ndtype = \"f64\"\n\
         [[stages]]\nkernel = \"reaction.wasm\"\nexport = \"react\"\n\
         compute = \"u[y~1,x~1], steps[y] -> v[y,x]\"\nboundary = \"clamp\"\n\
         [[stages]]\nkernel = \"reaction.wasm\"\nexport = \"released\"\n\
         compute = \"v[y,x], steps[y] -> heat[]\"\ncombine = \"sum\"\nreduce = [\"y\", \"x\"]\n\
         [iterate]\ncount = {ITERATIONS}\nexchange = [[\"u\", \"v\"]]\n"
    );
    fs::write(lab.path("job.toml"), text).unwrap();
    let expected = lab.results(&lab.run(1, &["--threads", "1"]));
    for _ in 0..ITERATIONS {
        let at = |y: usize, x: usize| u[y * COLUMNS + x];
        let next = |i: usize| {
            let (y, x) = (i / COLUMNS, i % COLUMNS);
            let vertical = at(y.saturating_sub(1), x) + at((y + 1).min(ROWS - 1), x);
            let around = vertical + at(y, x.saturating_sub(1)) + at(y, (x + 1).min(COLUMNS - 1));
            let step = 0.5 / f64::from(steps[y]);
            let spread = at(y, x) + 0.1 * (around - 4.0 * at(y, x));
            (0..steps[y]).fold(spread, |value, _| value + step * (value * (1.0 - value)))
        };
        u = (0..ROWS * COLUMNS).map(next).collect();
    }
    assert!(expected[0].1 == u.iter().flat_map(|u| u.to_le_bytes()).collect::<Vec<u8>>());
    let mut sums_stolen = 0;
    for ranks in [2, 3, 4] {
        let left = lab.run(ranks, &["--threads", "1", "--no-steal"]);
        assert!(lab.results(&left) == expected, "{ranks} ranks");
        assert_eq!((left.totals().steals, left.totals().moved.steal.moved()), (0, 0));
        let report = lab.run(ranks, &["--threads", "1"]);
        assert!(lab.results(&report) == expected, "{ranks} ranks, stealing");
        let stolen = |stage: usize| report.stages[stage].counts.stolen_slices;
        assert!(report.totals().steals > 0 && stolen(0) > 0, "{ranks} ranks");
        sums_stolen += stolen(1);
        // Its inputs are in the memory of its owner, and travel with the work.
        assert!(report.totals().moved.steal.moved() > 0);
    }
    // A reduction has less to lend: its slices are longer.
    assert!(sums_stolen > 0);
}
