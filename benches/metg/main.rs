//! METG(50 %): the shortest tasks for which half of the time is still work. `cargo bench --bench metg`.
//!
//! This sweep is our own, in the manner of Task Bench (Slaughter et al., "Task Bench: A Parameterized Benchmark for
//! Evaluating Parallel Runtime Performance", SC20), whose code is not used. A pattern is an iterated job. In every
//! iteration each rank has one task, its half of a tensor of 64 f64. The task needs elements of the previous iteration
//! according to the pattern, and then computes for the time that an inline constant gives. Exuvia and a handwritten
//! program in plain MPI (`by_hand.rs`) run shorter and shorter tasks, one system after the other. Efficiency is the
//! work per second, divided by the maximum of the same system in that sweep. METG(50 %) is the least wall time of an
//! iteration at which the efficiency is 50 %, interpolated between two runs on a logarithmic scale. Both systems must
//! compute the same bits.
//!
//! All ranks are processes of their own, started with `mpirun`. Those of Exuvia have one worker each.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

mod by_hand;
#[path = "../../tests/launch/mod.rs"]
mod launch;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use exuvia::cli::kernel_build;
use exuvia::report::Report;
use exuvia::store::Reader;
use exuvia::tensor::{Region, Shape};

const RANKS: u32 = 2;
/// The number of elements of the tensor.
const POINTS: usize = 64;
const ROUNDS: usize = 5;
/// The intended computing times of a task in nanoseconds. The first gives the peak.
const EXUVIA_SWEEP: [u64; 7] = [4_000_000, 250_000, 100_000, 50_000, 25_000, 12_000, 6_000];
const BY_HAND_SWEEP: [u64; 8] = [4_000_000, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250];
/// The time after which no sweep begins. A busy machine completes fewer sweeps.
const DEADLINE: Duration = Duration::from_secs(180);
/// The approximate duration of every run, where a task takes its computing time and [`GUESSED_OVERHEAD_NS`].
const RUN_NS: u64 = 60_000_000;
/// The assumed overhead of a task, added to its computing time.
const GUESSED_OVERHEAD_NS: u64 = 20_000;

/// The kernels of all patterns. `busy` is the work: the logistic map, whose every bit depends on all bits before.
const KERNELS: &str = r#"#include "exuvia.h"
static void busy(double *w, uint32_t points, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        for (uint32_t x = 0; x < points; x++) w[x] = 3.9 * w[x] * (1.0 - w[x]);
}
#define PATTERN(name, mean) \
EXUVIA_EXPORT(name) int32_t name(const exuvia_view *v, uint32_t count) \
{ \
    if (count != 3) return 1; \
    const double *u = exuvia_data(&v[0]); \
    const uint32_t length = *(const uint32_t *)exuvia_data(&v[1]), points = (uint32_t)v[0].shape[0]; \
    double *w = exuvia_data(&v[2]), sum = 0; \
    const uint32_t first = (uint32_t)v[2].origin[0]; \
    if (v[0].extent[0] == points) for (uint32_t i = 0; i < points; i++) sum += u[i]; \
    for (int32_t x = 0; x < (int32_t)v[2].extent[0]; x++) w[x] = mean; \
    busy(w, v[2].extent[0], length); \
    return 0; \
}
#define AT(k) u[(first + x + k * points / 5) % points]
PATTERN(stencil_1d, (u[x - 1] + u[x] + u[x + 1]) / 3.0)
PATTERN(nearest, (u[x - 2] + u[x - 1] + u[x] + u[x + 1] + u[x + 2]) / 5.0)
PATTERN(spread, (AT(0) + AT(1) + AT(2) + AT(3) + AT(4)) / 5.0)
PATTERN(all_to_all, (sum / points + u[first + x]) / 2.0)
"#;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pattern {
    Stencil1d,
    Nearest,
    Spread,
    AllToAll,
}

impl Pattern {
    const ALL: [Pattern; 4] = [Pattern::Stencil1d, Pattern::Nearest, Pattern::Spread, Pattern::AllToAll];

    fn name(self) -> &'static str {
        match self {
            Pattern::Stencil1d => "stencil_1d",
            Pattern::Nearest => "nearest",
            Pattern::Spread => "spread",
            Pattern::AllToAll => "all_to_all",
        }
    }

    /// Returns the number of elements needed on each side of a task's own; `None` means the whole tensor.
    fn radius(self) -> Option<usize> {
        match self {
            Pattern::Stencil1d => Some(1),
            Pattern::Nearest => Some(2),
            Pattern::Spread | Pattern::AllToAll => None,
        }
    }

    /// Returns the stage as job text. Index notation has no distances, so the spread pattern reads the whole tensor.
    fn stage(self) -> String {
        let name = self.name();
        let compute = match self.radius() {
            Some(radius) => format!("compute = \"u[x~{radius}], length[] -> v[x]\"\nboundary = \"periodic\"\n"),
            None => format!("compute = \"u[s], length[] -> v[x]\"\nsizes = {{ x = {POINTS} }}\n"),
        };
        format!("[[stages]]\nname = \"{name}\"\nkernel = \"patterns.wasm\"\nexport = \"{name}\"\n{compute}")
    }
}

/// Returns the tensor before the first iteration. Its values lie between 0 and 1, as the logistic map requires.
fn start() -> Vec<f64> {
    (0..POINTS).map(|i| (i * 37 % 101 + 1) as f64 / 103.0).collect()
}

/// One run: the length of its tasks and the number of iterations.
#[derive(Clone, Copy, Debug)]
struct Point {
    length: u64,
    iterations: u64,
}

/// The result of a run: the wall time of an iteration, and a hash of the last iteration.
#[derive(Clone, Debug)]
struct Sample {
    length: u64,
    ns: f64,
    hash: String,
}

fn points(sweep: &[u64], ns_per_step: f64) -> Vec<Point> {
    let point = |ns: &u64| Point {
        length: (*ns as f64 / ns_per_step).max(1.0) as u64,
        iterations: RUN_NS / (ns + GUESSED_OVERHEAD_NS),
    };
    sweep.iter().map(point).collect()
}

/// Measures the time that one step of every element of a task takes on this machine.
fn calibrate() -> f64 {
    let mut own = start()[..POINTS / RANKS as usize].to_vec();
    let (length, mut best) = (100_000, f64::INFINITY);
    for _ in 0..20 {
        let started = Instant::now();
        by_hand::busy(std::hint::black_box(&mut own), length);
        best = best.min(started.elapsed().as_nanos() as f64 / length as f64);
    }
    best
}

fn check(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn exuvia(folder: &Path, pattern: Pattern, point: Point) -> Sample {
    let values: Vec<String> = start().iter().map(f64::to_string).collect();
    let mut text = format!("[tensors.u]\nvalues = [{}]\ndtype = \"f64\"\n", values.join(", "));
    write!(text, "[tensors.length]\nvalue = {}\ndtype = \"u32\"\n", point.length).unwrap();
    text += "[tensors.v]\ncreate = \"out.h5\"\ndataset = \"v\"\ndtype = \"f64\"\n";
    text += &pattern.stage();
    write!(text, "[iterate]\ncount = {}\nexchange = [[\"u\", \"v\"]]\n", point.iterations).unwrap();
    let (job, record) = (folder.join("job.toml"), folder.join("report.json"));
    fs::write(&job, text).unwrap();
    let mut command = launch::ranks(RANKS, Path::new(env!("CARGO_BIN_EXE_exuvia")));
    command.arg("run").arg(&job).args(["--threads", "1", "--tier", "optimized", "--cache-dir"]);
    check({
        command.arg(folder.join("cache")).arg("--report").arg(&record);
        command
    });
    let report: Report = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let mut bytes = Vec::new();
    let whole = Region::whole(&Shape::new([POINTS as u64]).unwrap());
    Reader::open(&folder.join("out.h5"), "v").unwrap().read(&whole, &mut bytes).unwrap();
    Sample {
        length: point.length,
        ns: report.stages[0].wall_ns as f64 / point.iterations as f64,
        hash: blake3::hash(&bytes).to_string(),
    }
}

fn by_hand(pattern: Pattern, points: &[Point]) -> Vec<Sample> {
    let mut command = launch::ranks(RANKS, &std::env::current_exe().unwrap());
    command.arg(by_hand::ARGUMENT).arg(pattern.name());
    command.args(points.iter().map(|point| format!("{}:{}", point.length, point.iterations)));
    let sample = |line: &str| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap().to_owned();
        Sample { length: word().parse().unwrap(), ns: word().parse().unwrap(), hash: word() }
    };
    check(command).lines().map(sample).collect()
}

/// Returns the least time of an iteration, in microseconds, at which a system reaches half of its maximum efficiency.
fn metg_us(samples: &[Sample]) -> f64 {
    let speed = |sample: &Sample| sample.length as f64 / sample.ns;
    let peak = samples.iter().map(speed).fold(0.0, f64::max);
    let efficiency = |sample: &Sample| speed(sample) / peak;
    // The search begins with the shortest tasks.
    let mut below: Option<&Sample> = None;
    for sample in samples.iter().rev() {
        if efficiency(sample) >= 0.5 {
            let Some(below) = below else { return sample.ns / 1e3 };
            let part = (0.5 - efficiency(below)) / (efficiency(sample) - efficiency(below));
            return (below.ns.ln() * (1.0 - part) + sample.ns.ln() * part).exp() / 1e3;
        }
        below = Some(sample);
    }
    unreachable!("the peak is at 100 %")
}

/// Describes several sweeps of a system. Returns the text, the METG, and the time of an iteration of the shortest
/// tasks, both in microseconds. Both use the medians of each run over the sweeps, since other programs may disturb any
/// run.
fn tell(sweeps: &[Vec<Sample>]) -> (String, f64, f64) {
    let median = |run: usize| {
        let mut ns: Vec<f64> = sweeps.iter().map(|sweep| sweep[run].ns).collect();
        ns.sort_by(f64::total_cmp);
        Sample { ns: ns[ns.len() / 2], ..sweeps[0][run].clone() }
    };
    let medians: Vec<Sample> = (0..sweeps[0].len()).map(median).collect();
    let metg = metg_us(&medians);
    let each = || sweeps.iter().map(|sweep| metg_us(sweep));
    let (least, most) = (each().fold(f64::INFINITY, f64::min), each().fold(0.0, f64::max));
    (format!("{metg:.1} [{least:.1} .. {most:.1}]"), metg, medians[medians.len() - 1].ns / 1e3)
}

fn build(folder: &Path) -> PathBuf {
    let (source, kernels) = (folder.join("patterns.c"), folder.join("patterns.wasm"));
    fs::write(&source, KERNELS).unwrap();
    kernel_build::build(&source, &kernels, &[]).unwrap();
    kernels
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == by_hand::ARGUMENT) {
        return by_hand::run(&arguments[at + 1..]);
    }
    let folder = tempfile::tempdir().unwrap();
    build(folder.path());
    let ns_per_step = calibrate();
    let (of_exuvia, of_hand) = (points(&EXUVIA_SWEEP, ns_per_step), points(&BY_HAND_SWEEP, ns_per_step));
    let cores = available_parallelism().map_or(1, usize::from);
    println!("METG(50 %), our own sweep in the manner of Task Bench (Slaughter et al., SC20)");
    println!(
        "{RANKS} ranks, 1 worker each, on {cores} core(s), {}; one task of {} points per rank and iteration",
        exuvia::fabric::library(),
        POINTS / RANKS as usize
    );
    if cores < RANKS as usize {
        println!("there are MORE RANKS THAN CORES: these figures tell how the ranks share cores, and little else");
    }
    // Other programs take time from both systems, and more from Exuvia, whose workers run at a lower priority.
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    if load >= 0.5 {
        println!("OTHER PROGRAMS ARE RUNNING (load average {load}): they make all figures larger");
    }
    println!("spread and all_to_all: every task reads the whole tensor of the iteration before (by hand: allgather)");
    let mut by_pattern = [const { (Vec::new(), Vec::new()) }; Pattern::ALL.len()];
    let started = Instant::now();
    for _ in 0..ROUNDS {
        for (pattern, found) in Pattern::ALL.into_iter().zip(&mut by_pattern) {
            if started.elapsed() > DEADLINE && !found.0.is_empty() {
                continue;
            }
            let ours: Vec<Sample> = of_exuvia.iter().map(|point| exuvia(folder.path(), pattern, *point)).collect();
            let theirs = by_hand(pattern, &of_hand);
            assert_eq!(ours[0].hash, theirs[0].hash, "{pattern:?} by hand gives the same bits");
            found.0.push(ours);
            found.1.push(theirs);
        }
    }
    println!("us; of the medians of all sweeps, in brackets the sweep with the least and the one with the most;");
    println!("floor: an iteration of the shortest tasks\n");
    println!(
        "{:<11} {:>6} {:>24} {:>7} {:>24} {:>7} {:>7}",
        "pattern", "sweeps", "Exuvia METG", "floor", "plain MPI METG", "floor", "ratio"
    );
    let mut worst: f64 = 0.0;
    for (pattern, (ours, theirs)) in Pattern::ALL.into_iter().zip(by_pattern) {
        let ((our_text, our_metg, our_floor), (their_text, their_metg, their_floor)) = (tell(&ours), tell(&theirs));
        println!(
            "{:<11} {:>6} {our_text:>24} {our_floor:>7.1} {their_text:>24} {their_floor:>7.1} {:>7.1}",
            pattern.name(),
            ours.len(),
            our_metg / their_metg
        );
        worst = worst.max(our_metg);
    }
    println!(
        "\ntarget: METG(50 %) of Exuvia <= 100 us in every pattern: {}",
        if worst <= 100.0 { "met" } else { "MISSED" }
    );
}
