//! Jobs and kernels work: the main job, the jobs of `jobs/`, and kernels in each language.

use std::fs;
use std::process::Command;

use crate::lab::{EXUVIA, Lab, python, root, text};

#[test]
fn the_digits_are_what_numpy_finds() {
    let lab = Lab::bare(&["knn", "enlarge"]);
    lab.job("digits", |job| job);
    let output = lab.output(4, &[]);
    assert!(output.status.success(), "{}", text(&output));
    let mut oracle = python("tests/oracle.py");
    let output = oracle.arg("digits").arg(lab.path("digits.h5")).arg("81").current_dir(root()).output().unwrap();
    assert!(output.status.success() && text(&output).contains("0 differ from numpy"), "{}", text(&output));
}

#[test]
fn a_kernel_in_rust_runs_on_both_tiers() {
    let lab = Lab::bare(&[]);
    lab.kernel("axpb.rs");
    let x: Vec<f64> = (0..1000).map(|i| f64::from(i) / 7.0).collect();
    let job = format!(
        "[tensors.a]\nvalue = 2.5\ndtype = \"f64\"\n[tensors.b]\nvalue = -0.1\ndtype = \"f64\"\n\
         [tensors.x]\nvalues = {x:?}\ndtype = \"f64\"\n\
         [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f64\"\n\
         [[stages]]\nkernel = \"axpb.wasm\"\ncompute = \"a[], x[n], b[] -> y[n]\"\n"
    );
    fs::write(lab.path("job.toml"), job).unwrap();
    let want: Vec<u8> = x.iter().flat_map(|x| (2.5 * x - 0.1).to_le_bytes()).collect();
    for tier in ["baseline", "optimized"] {
        let output = lab.output(2, &["--tier", tier]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(lab.read("out.h5", "y") == want, "on the {tier} tier");
    }
}

#[test]
fn a_kernel_written_by_hand_runs_with_constants_of_the_job() {
    let lab = Lab::bare(&[]);
    lab.kernel("scale.wat");
    let job = "[tensors.a]\nvalue = 2.5\ndtype = \"f64\"\n[tensors.x]\nvalues = [1, -2, 3.5]\ndtype = \"f64\"\n\
                [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f64\"\n\
                [[stages]]\nkernel = \"scale.wasm\"\ncompute = \"a[], x[n] -> y[n]\"\n";
    fs::write(lab.path("job.toml"), job).unwrap();
    for ranks in [1, 2] {
        let output = lab.output(ranks, &[]);
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(lab.read("out.h5", "y"), [2.5f64, -5.0, 8.75].map(f64::to_ne_bytes).concat());
    }
}

#[test]
fn every_job_of_the_repository_plans() {
    let lab = Lab::new(&[
        "enlarge",
        "heat",
        "histogram",
        "kmeans",
        "knn",
        "matmul",
        "multigrid",
        "pca",
        "softmax_regression",
        "transpose",
        "unbalanced",
        "variance",
    ]);
    for entry in fs::read_dir(root().join("jobs")).unwrap() {
        let job = entry.unwrap().path();
        let job = lab.job(&job.file_stem().unwrap().to_string_lossy(), |text| text);
        for ranks in ["1", "2", "3", "7"] {
            let output = Command::new(EXUVIA).args(["plan", "--ranks", ranks, "--output", "json"]).arg(&job).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}: {}", job.display(), text(&output));
            let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(plan["schema"], 1);
            assert_eq!(plan["plan"]["machine"]["ranks"].to_string(), ranks);
        }
    }
}
