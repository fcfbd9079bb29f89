//! Runs four real ranks, one of them at a quarter of another's speed: `cargo bench --bench slow_rank`.
//!
//! Two ranks share each of two cores. On one core, one rank has a nice value higher by 6, which gives it a quarter of
//! its neighbour's time (1 to 3.9 by Linux's weights). That rank is really slow, but it answers at once. The cores are
//! never idle while there is work, so the ideal is the time that four equal ranks take. The time of all kernels over
//! two cores bounds both.
//!
//! An iterated job follows, with short iterations and an exchange between them. Its rows differ in cost by a factor of
//! 30, or a rank is slow.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

mod lab;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use exuvia::report::Report;
use exuvia::store::{OutputSpec, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};
use lab::{Lab, in_stages, median};

const ROUNDS: usize = 5;
const ROWS: u64 = 4000;
const COLUMNS: u64 = 100;
const ITERATIONS: u64 = 20;
/// The core of each rank, and its nice value where one rank is slow.
const RANKS: [(&str, &str); 4] = [("0", "0"), ("0", "6"), ("1", "0"), ("1", "0")];

/// Writes the unbalanced job with more rows and steps, for some seconds of work.
fn job(folder: &Path) -> std::path::PathBuf {
    let points = |count: u64, from: f64, to: f64| {
        let at = move |i| from + (to - from) * i as f64 / (count - 1) as f64;
        (0..count).flat_map(|i| f64::to_le_bytes(at(i))).collect::<Vec<u8>>()
    };
    let (im, re) = (points(ROWS, -0.1, 2.2), points(520, -2.0, 0.6));
    write(&folder.join("in.h5"), &[("im", Dtype::F64, &[ROWS], im), ("re", Dtype::F64, &[520], re)]);
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/unbalanced.wasm");
    let text = format!(
        "[tensors.im]\nfile = \"in.h5\"\ndataset = \"im\"\n[tensors.re]\nfile = \"in.h5\"\ndataset = \"re\"\n\
         [tensors.limit]\nvalue = 3000\ndtype = \"u32\"\n\
         [tensors.steps]\ncreate = \"out.h5\"\ndataset = \"steps\"\ndtype = \"u32\"\n\
         [[stages]]\nname = \"mandelbrot\"\nkernel = \"{}\"\ncompute = \"im[y], re[x], limit[] -> steps[y,x]\"\n",
        kernel.display()
    );
    fs::write(folder.join("large.toml"), text).unwrap();
    folder.join("large.toml")
}

/// Writes a job of reaction and diffusion in which `steps` gives the steps of each row.
fn iterated(folder: &Path, name: &str, steps: impl Fn(u64) -> u32) -> std::path::PathBuf {
    let u = (0..ROWS * COLUMNS).flat_map(|i| ((i * 7919 % 1009) as f64 / 1009.0).to_le_bytes()).collect();
    let steps = (0..ROWS).flat_map(|y| steps(y).to_le_bytes()).collect();
    let file = format!("{name}.h5");
    write(&folder.join(&file), &[("u", Dtype::F64, &[ROWS, COLUMNS], u), ("steps", Dtype::U32, &[ROWS], steps)]);
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/reaction.wasm");
    let text = format!(
        "[tensors.u]\nfile = \"{file}\"\ndataset = \"u\"\n[tensors.steps]\nfile = \"{file}\"\ndataset = \"steps\"\n\
         [tensors.v]\ncreate = \"out.h5\"\ndataset = \"v\"\ndtype = \"f64\"\n\
         [[stages]]\nname = \"react\"\nkernel = \"{}\"\nexport = \"react\"\n\
         compute = \"u[y~1,x~1], steps[y] -> v[y,x]\"\nboundary = \"clamp\"\n\
         [iterate]\ncount = {ITERATIONS}\nexchange = [[\"u\", \"v\"]]\n",
        kernel.display()
    );
    let job = folder.join(format!("{name}.toml"));
    fs::write(&job, text).unwrap();
    job
}

fn write(file: &Path, datasets: &[(&str, Dtype, &[u64], Vec<u8>)]) {
    let mut staging = Staging::begin(file, "input").unwrap();
    for (name, dtype, extents, bytes) in datasets {
        let shape = Shape::new(extents.to_vec()).unwrap();
        let spec =
            OutputSpec { dataset: (*name).into(), dtype: *dtype, shape: shape.clone(), chunk: None, deflate: None };
        let layout = staging.create(&[spec]).unwrap().remove(0);
        Writer::open(&layout).unwrap().write(&Region::whole(&shape), bytes).unwrap();
    }
    staging.publish().unwrap();
}

fn run(lab: &Lab, job: &Path, slow: bool, more: &[&str]) -> Report {
    let report = lab.path("slow.json");
    let mut command = lab::mpirun();
    for (number, (core, nice)) in RANKS.iter().enumerate() {
        let nice = if slow { nice } else { "0" };
        command.args(if number == 0 { &[][..] } else { &[":"] });
        command.args(["-n", "1", "taskset", "-c", core, "nice", "-n", nice, lab::EXUVIA, "run"]).arg(job);
        command.args(["--threads", "1", "--cache-dir"]).arg(lab.path("cache")).arg("--report").arg(&report).args(more);
    }
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    serde_json::from_slice(&fs::read(report).unwrap()).unwrap()
}

fn main() {
    let lab = Lab::new();
    let job = job(lab.folder.path());
    let uneven = iterated(lab.folder.path(), "uneven", |y| if y < ROWS / 5 { 300 } else { 10 });
    let even = iterated(lab.folder.path(), "even", |_| 70);
    for job in [&job, &even] {
        let mut command = Command::new(lab::EXUVIA);
        command.arg("run").arg(job).args(["--tier", "optimized", "--cache-dir"]).arg(lab.path("cache"));
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
    }
    let [mut equal, mut stealing, mut fixed, mut share] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        equal.push(in_stages(&run(&lab, &job, false, &[])));
        let report = run(&lab, &job, true, &[]);
        let tasks =
            |rank: usize| report.ranks[rank].stages.iter().map(|stage| stage.counts.processed_bytes).sum::<u64>();
        share.push(tasks(1) as f64 / tasks(0) as f64);
        stealing.push(in_stages(&report));
        fixed.push(in_stages(&run(&lab, &job, true, &["--no-steal"])));
    }
    println!("4 ranks on {} cores; medians of {ROUNDS}", lab.cores.min(2));
    let ideal = median(equal);
    println!("four equal ranks, stealing   {:.3} s", ideal / 1e9);
    for (name, times) in [("one slow, stealing", stealing), ("one slow, static", fixed)] {
        let time = median(times);
        println!(
            "{name:<28} {:.3} s, {:.1} % of what the same cores give equal ranks",
            time / 1e9,
            100.0 * ideal / time
        );
    }
    println!("bytes that the slow rank computed, over its neighbour's: {:.2}", median(share));
    println!("{ITERATIONS} iterations with an exchange; medians of {ROUNDS}");
    for (name, job, slow) in
        [("rows differ by 30", &uneven, false), ("one slow", &even, true), ("all alike", &even, false)]
    {
        let [mut stealing, mut fixed, mut steals] = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            let report = run(&lab, job, slow, &[]);
            steals.push(report.totals().steals as f64);
            stealing.push(in_stages(&report));
            fixed.push(in_stages(&run(&lab, job, slow, &["--no-steal"])));
        }
        let [stealing, fixed] = [stealing, fixed].map(|times| median(times) / 1e9);
        println!("{name:<20} stealing {stealing:.3} s, static {fixed:.3} s; {} steals", median(steals));
    }
}
