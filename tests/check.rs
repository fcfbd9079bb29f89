//! Errors of kernels are found together with their place: by `exuvia check`, and by runs as far as that costs nothing.
//! Correct kernels pass.

use std::fs;
use std::process::{Command, Output};

use crate::lab::{EXUVIA, Lab, root, text};
use exuvia::cli::kernel_build;
use exuvia::tensor::Dtype;
use serde_json::Value;

const ELEMENTS: u64 = 1000;
const SIDE: u64 = 20;

/// Returns a lab with `wrong.wasm`, a row of 1000 numbers and a plate of 20 by 20.
fn wrong() -> Lab {
    let lab = Lab::bare(&[]);
    kernel_build::build(&root().join("tests/kernels/wrong.c"), &lab.path("wrong.wasm"), &[]).unwrap();
    let numbers = |count: u64| (0..count).flat_map(|i| (i as f64 + 1.0).to_le_bytes()).collect();
    lab.dataset(Dtype::F64, &[ELEMENTS], numbers(ELEMENTS));
    lab.dataset_of("plate.h5", Dtype::F64, &[SIDE, SIDE], numbers(SIDE * SIDE));
    lab
}

/// Writes a job with a stage for each export and its notation. Each output is named like its export.
fn job(lab: &Lab, stages: &[(&str, &str, &str)]) {
    let mut job =
        "[tensors]\nx = { file = \"in.h5\", dataset = \"x\" }\nu = { file = \"plate.h5\", dataset = \"x\" }\n"
            .to_owned();
    for (export, _, _) in stages {
        job += &format!("{export} = {{ create = \"out.h5\", dataset = \"{export}\", dtype = \"f64\" }}\n");
    }
    // A job must not contain tensors that no stage uses.
    if stages.iter().all(|(_, compute, _)| !compute.contains("u[")) {
        job = job.replace("u = { file = \"plate.h5\", dataset = \"x\" }\n", "");
    }
    if stages.iter().all(|(_, compute, _)| !compute.contains("x[")) {
        job = job.replace("x = { file = \"in.h5\", dataset = \"x\" }\n", "");
    }
    for (export, compute, more) in stages {
        job += &format!("[[stages]]\nname = \"{export}\"\nkernel = \"wrong.wasm\"\ncompute = \"{compute}\"\n{more}\n");
        if !more.contains("export") {
            job += &format!("export = \"{export}\"\n");
        }
    }
    fs::write(lab.path("job.toml"), job).unwrap();
}

fn exuvia(lab: &Lab, arguments: &[&str]) -> Output {
    Command::new(EXUVIA)
        .args(arguments)
        .current_dir(lab.path(""))
        .env("EXUVIA_CACHE_DIR", lab.path("cache"))
        .output()
        .unwrap()
}

fn check(lab: &Lab, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = exuvia(lab, &[&["check", "job.toml", "--output", "json"], arguments].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    (output.status.code(), report)
}

#[test]
fn every_fault_of_a_kernel_is_found_where_it_is() {
    let lab = wrong();
    let map = |export: &'static str| (export, format!("x[n] -> {export}[n]"), String::new());
    let maps = [
        "right",
        "write_behind",
        "write_before",
        "read_behind",
        "read_before",
        "write_input",
        "null_pointer",
        "far",
        "first_only",
        "narrow",
        "rewrite_input",
        "adds",
        "counts",
        "tile_mean",
        "refuses",
        "heap",
    ];
    let mut stages: Vec<(&str, String, String)> = maps.into_iter().map(map).collect();
    let halo = "boundary = \"clamp\"".to_owned();
    stages.push(("wide_stencil", "u[y~1,x~1] -> wide_stencil[y,x]".to_owned(), halo));
    stages.push(("mean", "x[n] -> mean[]".to_owned(), "combine = \"sum\"".to_owned()));
    stages.push(("sum", "x[n] -> sum[]".to_owned(), "combine = \"sum\"".to_owned()));
    let merge = |export: &str| format!("export = \"sum\"\ncombine = {{ export = \"{export}\" }}");
    stages.push(("forget", "x[n] -> forget[]".to_owned(), merge("forget")));
    stages.push(("merge_behind", "x[n] -> merge_behind[]".to_owned(), merge("merge_behind")));
    let borrowed: Vec<(&str, &str, &str)> = stages.iter().map(|(a, b, c)| (*a, b.as_str(), c.as_str())).collect();
    job(&lab, &borrowed);
    let (code, report) = check(&lab, &["--time", "20s"]);
    assert_eq!(code, Some(1), "{report:#}");

    // The export, the kind of the error, the tensor of the operand, and the element.
    type Expected = (&'static str, &'static str, Option<&'static str>, Option<Vec<i64>>);
    let expected: &[Expected] = &[
        ("write_behind", "writes-outside", Some("write_behind"), Some(vec![1])),
        ("write_before", "writes-outside", Some("write_before"), Some(vec![-1])),
        ("read_behind", "reads-outside", Some("x"), Some(vec![3])),
        ("read_before", "reads-outside", Some("x"), Some(vec![-2])),
        ("write_input", "writes-input", Some("x"), Some(vec![7])),
        ("rewrite_input", "writes-input", None, None),
        ("null_pointer", "touches-elsewhere", None, None),
        ("far", "touches-elsewhere", None, None),
        ("first_only", "unwritten", Some("first_only"), Some(vec![1])),
        ("narrow", "unwritten", Some("narrow"), Some(vec![500])),
        ("adds", "reads-what-was-there", Some("adds"), Some(vec![0])),
        ("counts", "stateful", Some("counts"), Some(vec![0])),
        ("tile_mean", "depends-on-cut", Some("tile_mean"), Some(vec![0])),
        ("refuses", "status", None, None),
        ("heap", "touches-elsewhere", None, None),
        ("wide_stencil", "reads-outside", Some("u"), Some(vec![-2, 20])),
        ("mean", "depends-on-cut", Some("mean"), Some(vec![])),
        ("forget", "depends-on-cut", Some("forget"), Some(vec![])),
        ("merge_behind", "touches-elsewhere", None, None),
    ];
    let findings = report["findings"].as_array().unwrap();
    for (stage, kind, operand, position) in expected {
        let of_stage: Vec<&Value> = findings.iter().filter(|finding| finding["stage"] == *stage).collect();
        let [finding] = of_stage[..] else { panic!("{stage}: {of_stage:#?}") };
        let found = (&finding["kind"], &finding["operand"], &finding["position"]);
        let wanted = (&Value::from(*kind), &Value::from(*operand), &serde_json::to_value(position).unwrap());
        assert_eq!(found, wanted, "{finding:#}");
        assert!(finding["task"].as_str().unwrap().starts_with(&format!("{stage}@")));
        assert_eq!(finding["kernel"], "wrong.wasm");
    }
    assert_eq!(findings.len(), expected.len(), "right kernels pass: {findings:#?}");
    for stage in report["stages"].as_array().unwrap() {
        let right = ["right", "sum"].contains(&stage["stage"].as_str().unwrap());
        assert_eq!(stage["passed"], right, "{stage:#}");
        assert_eq!(stage["tiers"], serde_json::json!(["baseline", "optimized"]));
    }
}

#[test]
fn a_kernel_that_does_not_return_is_found_too() {
    let lab = wrong();
    job(&lab, &[("right", "x[n] -> right[n]", ""), ("forever", "x[n] -> forever[n]", "limits = { time = \"300ms\" }")]);
    let output = exuvia(&lab, &["check", "job.toml", "--time", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("right") && said.contains("passed"), "{said}");
    assert!(said.contains("finding in kernel forever of wrong.wasm, task forever@n=0..1"), "{said}");
    assert!(said.contains("300ms"), "{said}");
}

#[test]
fn runs_notice_what_they_can_and_are_the_same_each_time() {
    let lab = wrong();
    let run = |export: &str, tier: &str| {
        job(&lab, &[(export, &format!("x[n] -> {export}[n]"), "")]);
        let _ = fs::remove_file(lab.path("out.h5"));
        lab.output(1, &["--fresh", "--tier", tier, "--threads", "1", "--task-slices", "100"])
    };
    for tier in ["baseline", "optimized"] {
        for export in
            ["write_behind", "write_before", "write_input", "null_pointer", "far", "heap", "first_only", "narrow"]
        {
            let output = run(export, tier);
            assert_eq!(output.status.code(), Some(1), "{export} on {tier}: {}", text(&output));
            assert!(text(&output).contains("exuvia check"), "{}", text(&output));
        }
        for export in ["read_before", "adds"] {
            let results: Vec<Vec<u8>> = (0..2)
                .map(|_| {
                    let output = run(export, tier);
                    assert!(output.status.success(), "{}", text(&output));
                    lab.read("out.h5", export)
                })
                .collect();
            assert!(results[0] == results[1], "{export} on {tier}");
            let third = f64::from_le_bytes(results[0][8 * 3..8 * 4].try_into().unwrap());
            assert!(export == "read_before" || third.is_nan(), "{export}: what is not written is no number: {third}");
        }
    }
}

/// Checks run one after the other, since each uses all cores.
#[test]
fn the_kernels_of_all_jobs_pass() {
    let sources = fs::read_dir(root().join("examples/kernels")).unwrap().flatten();
    let names = sources.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".c").map(str::to_owned));
    let names: Vec<String> = names.collect();
    let lab = Lab::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut jobs = 0;
    for entry in fs::read_dir(root().join("jobs")).unwrap().flatten() {
        let name = entry.path().file_stem().unwrap().to_string_lossy().into_owned();
        lab.job(&name, |job| job);
        let (code, report) = check(&lab, &["--time", "2s", "--sample", "128KiB"]);
        assert_eq!(code, Some(0), "{name}: {report:#}");
        assert!(report["findings"].as_array().unwrap().is_empty());
        jobs += 1;
    }
    assert!(jobs > 10);
}

#[test]
fn a_kernel_is_called_without_a_job() {
    let lab = wrong();
    let call = |arguments: &[&str]| exuvia(&lab, &[&["kernel", "call", "wrong.wasm"], arguments].concat());
    let right = &["x[n] -> y[n]", "--export", "right", "x=[1,2.5,-3]:f64"];
    let output = call(&[&right[..], &["y=f64"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output), "y f64 [3]\n  2 5 -6\n");
    let output = call(&["u[y~1,x~1] -> w[y,x]", "--export", "wide_stencil", "u=plate.h5:x", "w=f64"]);
    assert!(!output.status.success() && text(&output).contains("boundary"), "{}", text(&output));
    let output = call(&["x[n] -> y[n]", "--export", "right", "x=in.h5:x", "y=made/y.h5:group/y:f64", "--optimized"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output));
    let want: Vec<u8> = (1..=ELEMENTS).flat_map(|i| (2.0 * i as f64).to_le_bytes()).collect();
    assert!(lab.read("made/y.h5", "group/y") == want);
    let output = call(&["x[] -> y[n]", "--export", "first_only", "x=1", "y=f64", "--size", "n=2", "--output", "json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["outputs"][0]["values"], serde_json::json!(["7", "NaN"]), "{printed:#}");
    for (export, said) in [("write_behind", "touched memory"), ("refuses", "exuvia check"), ("forever", "200ms")] {
        let output = call(&["x[n] -> y[n]", "--export", export, "x=in.h5:x", "y=f64", "--time", "200ms"]);
        let fails = export != "refuses";
        assert_eq!(output.status.success(), !fails, "{}", text(&output));
        assert!(!fails || text(&output).contains(said), "{}", text(&output));
    }
}

#[test]
fn runs_know_which_kernels_have_passed() {
    let lab = wrong();
    let checked = |stage: &str| {
        let output = exuvia(&lab, &["inspect", "wrong.wasm", "--output", "json"]);
        let module: Value = serde_json::from_slice(&output.stdout).unwrap();
        let file = lab.path("cache").join(format!("{}.checked", module["module"]["hash"].as_str().unwrap()));
        fs::read_to_string(file).is_ok_and(|exports| exports.lines().any(|export| export == stage))
    };
    job(&lab, &[("right", "x[n] -> right[n]", ""), ("adds", "x[n] -> adds[n]", "")]);
    assert!(!checked("right"));
    let (code, _) = check(&lab, &["--time", "1s"]);
    assert_eq!((code, checked("right"), checked("adds")), (Some(1), true, false));
    let exuvia::exec::Options { suggest_check, .. } = Default::default();
    assert!(!suggest_check, "only where somebody reads it");
    let notes = || {
        use std::sync::Mutex;
        static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        NOTES.lock().unwrap().clear();
        let options = exuvia::exec::Options {
            suggest_check: true,
            note: Some(|note| NOTES.lock().unwrap().push(note.to_owned())),
            cache_dir: Some(lab.path("cache")),
            resume: exuvia::exec::Resume::Never,
            ..Default::default()
        };
        lab.run_here(&options);
        NOTES.lock().unwrap().clone()
    };
    let [note] = &notes()[..] else { panic!("one note") };
    assert!(note.starts_with("adds of wrong.wasm has not been checked here; try `exuvia check "), "{note}");
    job(&lab, &[("right", "x[n] -> right[n]", "")]);
    assert_eq!(notes(), [""; 0]);
}
