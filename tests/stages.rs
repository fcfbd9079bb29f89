//! The jobs of every stage kind (reductions, halos, iterations, redistribution) against numpy, and against themselves on
//! other numbers of ranks, threads and on other tiers.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod lab;

use std::fs;

use exuvia::exec::{self, Options, Signal, TierPolicy};
use exuvia::fabric;
use exuvia::store::{OutputSpec, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};
use lab::Lab;

#[test]
fn heat_spreads_as_numpy_says() {
    let lab = Lab::new(&["heat"]);
    let report = lab.agrees("heat2d");
    assert_eq!(report.ranks[0].iterations, Some(188));
    lab.agrees("heat3d");
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
fn regression_learns_the_digits() {
    let lab = Lab::new(&["softmax_regression"]);
    lab.agrees("softmax-regression");
}

#[test]
fn the_largest_of_many_is_found_with_its_place() {
    const ROWS: u64 = 20_011;
    const COLUMNS: u64 = 7;
    let lab = Lab::new(&["largest"]);
    let shape = Shape::new([ROWS, COLUMNS]).unwrap();
    // Few values, so that most of the largest are there more than once.
    let x: Vec<f64> = (0..ROWS * COLUMNS).map(|i| (i * 7919 % 1009) as f64).collect();
    let spec = OutputSpec { dataset: "x".into(), dtype: Dtype::F64, shape: shape.clone(), chunk: None, deflate: None };
    let mut staging = Staging::begin(&lab.path("in.h5")).unwrap();
    let layout = staging.create(&[spec]).unwrap().remove(0);
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    Writer::open(&layout).unwrap().write(&Region::whole(&shape), &bytes).unwrap();
    staging.publish().unwrap();
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
        exec::run(fabric::solo(), &job, &options, Signal::default()).unwrap_or_else(|f| panic!("{f:?}")).unwrap()
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
    // All work is in the upper rows, and enough of it for a thief to come.
    lab.job("unbalanced", |job| job.replace("value = 1000", "value = 20000"));
    let alone = lab.run(2, &["--threads", "1", "--no-steal"]);
    let expected = lab.results(&alone);
    assert_eq!((alone.totals().steals, alone.totals().moved_bytes()), (0, 0));
    for ranks in [2, 3] {
        let report = lab.run(ranks, &["--threads", "1"]);
        assert!(report.totals().stolen_slices > 0, "{ranks} ranks");
        // Results come back, and nothing else moves: thieves read inputs from the file.
        assert!(report.totals().moved_bytes() > 0 && report.totals().moved_bytes() < expected[0].1.len() as u64);
        assert!(lab.results(&report) == expected, "{ranks} ranks");
    }
}
