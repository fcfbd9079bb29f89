//! Measures the gain of the swap: `cargo bench --bench tiers` runs whole jobs with a cold cache on each tier policy.
//!
//! "wait" waits for LLVM and then runs (`--tier optimized`); "swap" starts at once on baseline code (`--tier auto`).
//! Both are separate processes, interleaved, and the results are medians over the rounds. Baseline-only runs are long,
//! so each job has one.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use exuvia::cli::kernel_build;
use exuvia::report::Report;
use exuvia::store::{OutputSpec, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};

const ROUNDS: usize = 5;
/// The number of functions of the large module, which makes it somewhat larger than 700 kB.
const FUNCTIONS: u64 = 2_400;
const ROWS: u64 = 400_000;
const COLUMNS: u64 = 64;
/// The number of times that a row is computed. With it, LLVM costs about as much time as it can save.
const REPEATS: u64 = 100;

/// Returns a kernel in which every row calls another function. The price is the compilation of as many functions.
fn large_kernel() -> String {
    let mut text = "#include \"exuvia.h\"\n".to_owned();
    let mut table = String::new();
    // Constants from a fixed linear congruential generator (Knuth's MMIX).
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    };
    for number in 0..FUNCTIONS {
        let [a, b, c, d, e] = std::array::from_fn(|_| next() as f64 / f64::from(1 << 24));
        let (seed, factor, bits) = (next(), next() | 1, next() % 256);
        write!(
            text,
            "__attribute__((noinline)) static double f{number}(const double *x, uint32_t n) {{\n\
             double s = {a}; uint32_t h = {seed}u;\n\
             for (uint32_t i = 0; i < n; i++) {{\n\
             s = s * {b} + x[i] * {c}; h ^= h << 3; h *= {factor}u; if ((h & {bits}) == 7) s -= (double)(h >> 8) * {d};\n\
             switch (h % 7) {{ case 0: s += x[i]; break; case 1: s *= 1.02; break; case 2: s -= x[i]; break;\n\
             case 3: s = s / (1.5 + x[i] * x[i]); break; case 4: s += {e} * i; break; default: s += 0.25; }} }}\n\
             for (uint32_t i = 1; i < n; i += 2) s += x[i - 1] * x[i] * {e};\nreturn s; }}\n"
        )
        .unwrap();
        write!(table, "f{number},").unwrap();
    }
    write!(
        text,
        "static double (*const table[])(const double *, uint32_t) = {{{table}}};\n\
         EXUVIA_EXPORT(large) int32_t large(const exuvia_view *v, uint32_t count) {{\n\
         if (count != 2) return 1;\n\
         const double *x = exuvia_data(&v[0]); double *y = exuvia_data(&v[1]); uint32_t d = v[0].extent[1];\n\
         for (uint32_t r = 0; r < {REPEATS}; r++) for (uint32_t i = 0; i < v[0].extent[0]; i++)\n\
         y[i] = table[(uint32_t)(v[1].origin[0] + i) % {FUNCTIONS}u](x + i * d, d);\nreturn 0; }}\n"
    )
    .unwrap();
    text
}

fn large_job(folder: &Path) -> PathBuf {
    fs::write(folder.join("large.c"), large_kernel()).unwrap();
    kernel_build::build(&folder.join("large.c"), &folder.join("large.wasm"), &[]).unwrap();
    let shape = Shape::new([ROWS, COLUMNS]).unwrap();
    let spec = OutputSpec { dataset: "x".into(), dtype: Dtype::F64, shape: shape.clone(), chunk: None, deflate: None };
    let mut staging = Staging::begin(&folder.join("in.h5"), "input").unwrap();
    let layout = staging.create(&[spec]).unwrap().remove(0);
    let bytes: Vec<u8> = (0..ROWS * COLUMNS).flat_map(|i| ((i * 37 % 101) as f64 / 9.0).to_le_bytes()).collect();
    Writer::open(&layout).unwrap().write(&Region::whole(&shape), &bytes).unwrap();
    staging.publish().unwrap();
    let text = "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
                [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f64\"\n\
                [[stages]]\nkernel = \"large.wasm\"\ncompute = \"x[n,d] -> y[n]\"\n";
    fs::write(folder.join("large.toml"), text).unwrap();
    folder.join("large.toml")
}

/// Makes one run with the cache in `cache`.
fn run(job: &Path, tier: &str, cache: &Path) -> Report {
    let record = cache.with_extension("json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_exuvia"));
    command.arg("run").arg(job).args(["--tier", tier, "--cache-dir"]).arg(cache).arg("--report").arg(&record);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    // A compilation that outlasts its run must not disturb the next run.
    let kernels = if tier == "baseline" { 0 } else { report.kernels.len() };
    let artifacts = || fs::read_dir(cache).unwrap().flatten().filter(|e| e.path().extension().is_some_and(is_artifact));
    while artifacts().count() < kernels {
        sleep(Duration::from_millis(10));
    }
    report
}

fn is_artifact(extension: &OsStr) -> bool {
    extension == "artifact"
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for kernel in ["enlarge", "knn"] {
        let source = root.join(format!("examples/kernels/{kernel}.c"));
        kernel_build::build(&source, &root.join(format!("target/kernels/{kernel}.wasm")), &[]).unwrap();
    }
    let jobs = [root.join("jobs/digits.toml"), root.join("jobs/digits-large.toml"), large_job(folder.path())];
    println!("cold cache, one rank, all CPUs; medians of {ROUNDS}, baseline once; s of wall time from process start");
    println!(
        "{:<14} {:>9} {:>8} {:>8} {:>10} {:>13} {:>13} {:>12}",
        "job", "baseline", "wait", "swap", "swap/best", "first task ms", "warm first ms", "swap held us"
    );
    for job in jobs {
        let cache = folder.path().join("cache");
        let cold = |tier| {
            let _ = fs::remove_dir_all(&cache);
            run(&job, tier, &cache)
        };
        let baseline = cold("baseline").wall_ns as f64 / 1e9;
        let (mut wait, mut swap, mut first, mut held) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            wait.push(cold("optimized").wall_ns as f64 / 1e9);
            let report = cold("auto");
            swap.push(report.wall_ns as f64 / 1e9);
            first.push(report.first_task_ns.unwrap_or_default() as f64 / 1e6);
            held = held.max(report.ranks.iter().flat_map(|r| &r.swaps).map(|s| s.held_ns).max().unwrap_or(0));
        }
        let warm = run(&job, "auto", &cache);
        assert_eq!(warm.totals().baseline_tasks, 0, "a warm cache gives the optimized tier from the first task");
        let (wait, swap) = (median(wait), median(swap));
        println!(
            "{:<14} {baseline:>9.2} {wait:>8.2} {swap:>8.2} {:>10.3} {:>13.1} {:>13.1} {:>12.1}",
            job.file_stem().unwrap().to_string_lossy(),
            swap / wait.min(baseline),
            median(first),
            warm.first_task_ns.unwrap_or_default() as f64 / 1e6,
            held as f64 / 1e3
        );
    }
}
