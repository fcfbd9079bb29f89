//! What users see first works: the README's job, the jobs of `jobs/`, and kernels in each language.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::lab::rows::{COLUMNS, ROWS, input};
use crate::lab::{EXUVIA, Lab, launch, python, root, text};

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

/// Its kernel, its job and its commands, taken from the text.
#[test]
fn what_the_readme_says_works() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let block = |with: &str| {
        let mut blocks = vec![String::new()];
        for line in readme.lines() {
            match line.strip_prefix("    ") {
                Some(code) => *blocks.last_mut().unwrap() += &format!("{code}\n"),
                // A block goes on after an empty line, and ends at text.
                None if line.is_empty() => *blocks.last_mut().unwrap() += "\n",
                None => blocks.push(String::new()),
            }
        }
        blocks.into_iter().find(|block| block.contains(with)).unwrap_or_else(|| panic!("no code with {with}"))
    };
    let lab = Lab::bare(&[]);
    input(&lab, &[ROWS * COLUMNS]);
    fs::write(lab.path("twice.c"), block("EXUVIA_EXPORT(twice)")).unwrap();
    fs::write(lab.path("job.toml"), block("[[stages]]")).unwrap();
    let path = format!("{}:{}", Path::new(EXUVIA).parent().unwrap().display(), std::env::var("PATH").unwrap());
    for line in block("exuvia kernel build").lines().filter(|line| !line.is_empty()) {
        let [program, arguments @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let mut command = match (*program, arguments) {
            ("mpirun", ["-n", ranks, "exuvia", rest @ ..]) => {
                let mut command = launch::ranks(ranks.parse().unwrap(), EXUVIA.as_ref());
                command.args(rest);
                command
            }
            ("exuvia", rest) => {
                let mut command = Command::new(EXUVIA);
                command.args(rest);
                command
            }
            _ => panic!("what is '{line}'?"),
        };
        let output = command.env("PATH", &path).current_dir(lab.path("")).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output));
    }
    let read = |file: &str, dataset: &str| {
        lab.read(file, dataset).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let (x, y) = (read("in.h5", "x"), read("out.h5", "y"));
    assert!(x.len() as u64 == ROWS * COLUMNS && x.iter().map(|x| 2.0 * x).eq(y));
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
