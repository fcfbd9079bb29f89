//! Measures the cost of keeping completed work for the next run: `cargo bench --bench resume`.
//!
//! Whole jobs run on one rank, with and without a manifest in turn. Their tasks are one row each and take about 10 ms
//! or about 1 ms. The same jobs then run with compressed outputs, of which copies are kept.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

mod lab;

use std::fs;
use std::path::Path;
use std::process::Command;

use exuvia::cli::kernel_build;
use exuvia::report::Report;
use exuvia::store::{OutputSpec, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};
use lab::{EXUVIA, median};

const ROUNDS: usize = 7;
/// The number of columns. A row of the input is 64 KiB, so that a block has few rows.
const COLUMNS: u64 = 8192;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kernels/slow.c");
    kernel_build::build(&source, &path("slow.wasm"), &[]).unwrap();
    println!("{:<34}{:>10}{:>12}{:>12}{:>9}", "job", "tasks", "without s", "with s", "ratio");
    for (name, rows, spin, deflate) in [
        ("10 ms tasks", 256, 3_800_000, ""),
        ("1 ms tasks", 1024, 380_000, ""),
        ("1 ms tasks, compressed outputs", 1024, 380_000, ", chunk = [1, 8192], deflate = 1"),
    ] {
        input(&path("in.h5"), rows);
        let job = format!(
            "[tensors]\nx = {{ file = \"in.h5\", dataset = \"x\" }}\nspin = {{ value = {spin}, dtype = \"u32\" }}\n\
             y = {{ create = \"out.h5\", dataset = \"y\", dtype = \"f64\"{deflate} }}\n\
             [[stages]]\nkernel = \"slow.wasm\"\nexport = \"slow\"\ncompute = \"x[n,d], spin[] -> y[n,d]\"\n"
        );
        fs::write(path("job.toml"), job).unwrap();
        let run = |forgetful: bool| {
            let mut command = Command::new(EXUVIA);
            command.args(["run", "--threads", "1", "--tier", "optimized", "--task-slices", "1", "--memory", "8MiB"]);
            command.args(forgetful.then_some("--forgetful")).arg("--report").arg(path("r.json")).arg(path("job.toml"));
            let output = command.env("EXUVIA_CACHE_DIR", path("cache")).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let report: Report = serde_json::from_slice(&fs::read(path("r.json")).unwrap()).unwrap();
            (report.stages[0].wall_ns as f64 / 1e9, report.totals().tasks())
        };
        run(true);
        let (mut without, mut with, mut tasks) = (Vec::new(), Vec::new(), 0);
        for round in 0..ROUNDS {
            // Each variant goes first every other time.
            for forgetful in [round % 2 == 0, round % 2 != 0] {
                let (seconds, count) = run(forgetful);
                tasks = count;
                if forgetful { without.push(seconds) } else { with.push(seconds) }
            }
        }
        let (without, with) = (median(without), median(with));
        println!("{name:<34}{tasks:>10}{without:>12.3}{with:>12.3}{:>9.3}", with / without);
    }
}

fn input(file: &Path, rows: u64) {
    let shape = Shape::new([rows, COLUMNS]).unwrap();
    let bytes: Vec<u8> = (0..rows * COLUMNS).flat_map(|i| (i as f64).to_le_bytes()).collect();
    let _ = fs::remove_file(file);
    let mut staging = Staging::begin(file, "input").unwrap();
    let spec = OutputSpec { dataset: "x".into(), dtype: Dtype::F64, shape: shape.clone(), chunk: None, deflate: None };
    let layout = staging.create(&[spec]).unwrap().remove(0);
    Writer::open(&layout).unwrap().write(&Region::whole(&shape), &bytes).unwrap();
    staging.publish().unwrap();
}
