//! Four real ranks, one of them at a quarter of the others' speed: `cargo bench --bench slow_rank`.
//!
//! Ranks are slowed by stopping and continuing their processes. In each period every rank has one window to run in, and
//! windows are placed so that no more processes run at a time than there are cores: on two cores, each of three ranks
//! runs 40 % of the time and the slow one 10 %. The ideal is the time of all kernels, as one undisturbed rank on a core
//! of its own takes it, over the sum of these shares. A stopped rank answers nobody, so that messages wait for
//! milliseconds: worse than a rank that is slow in truth. What stopping costs by itself, and whatever else runs on the
//! machine, shows in a control: one rank alone that runs 40 % of the time, over its own ideal.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

mod lab;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use exuvia::report::Report;
use exuvia::store::{OutputSpec, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};
use lab::{Lab, in_stages, median};
use rustix::process::{Pid, Signal, kill_process};

const ROUNDS: usize = 3;
const RANKS: usize = 4;
const SLOW: usize = 1;
const ROWS: u64 = 4000;
const PERIOD_US: u64 = 4000;
type Window = (u64, u64);
/// The control's.
const ALONE: [Window; 1] = [(0, 4)];
/// Where each rank's window begins in the period, and how long it is, in parts of 10.
const WINDOWS: [Window; RANKS] = [(0, 4), (4, 1), (0, 4), (5, 4)];

/// The unbalanced job with more rows and steps, for some seconds of work.
fn job(folder: &Path) -> std::path::PathBuf {
    let mut staging = Staging::begin(&folder.join("in.h5")).unwrap();
    let spec = |name: &str, count| OutputSpec {
        dataset: name.into(),
        dtype: Dtype::F64,
        shape: Shape::new([count]).unwrap(),
        chunk: None,
        deflate: None,
    };
    let layouts = staging.create(&[spec("im", ROWS), spec("re", 520)]).unwrap();
    for (layout, (count, from, to)) in layouts.iter().zip([(ROWS, -0.1, 2.2), (520, -2.0, 0.6)]) {
        let at = |i| from + (to - from) * i as f64 / (count - 1) as f64;
        let bytes: Vec<u8> = (0..count).flat_map(|i| f64::to_le_bytes(at(i))).collect();
        let whole = Region { offset: vec![0], extent: vec![count] };
        Writer::open(layout).unwrap().write(&whole, &bytes).unwrap();
    }
    staging.publish().unwrap();
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

/// The processes of the ranks, by rank, once all are there.
fn ranks_of(launcher: &mut Child, ranks: usize) -> Vec<Pid> {
    loop {
        assert!(launcher.try_wait().unwrap().is_none(), "the run ended before all its ranks were there");
        let mut found = vec![None; ranks];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let (Ok(stat), Ok(environ)) =
                (fs::read_to_string(entry.path().join("stat")), fs::read(entry.path().join("environ")))
            else {
                continue;
            };
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            let rank = environ.split(|byte| *byte == 0).find_map(|variable| {
                std::str::from_utf8(variable).ok()?.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse::<usize>().ok()
            });
            if let (Some(rank), true) = (rank.filter(|rank| *rank < ranks), parent == Some(launcher.id())) {
                found[rank] = Pid::from_raw(pid);
            }
        }
        if let Some(all) = found.into_iter().collect::<Option<Vec<Pid>>>() {
            return all;
        }
        sleep(Duration::from_millis(1));
    }
}

/// Lets each rank run in its window only, until the run ends.
fn drive(launcher: &mut Child, ranks: &[Pid], windows: &[Window]) {
    let started = Instant::now();
    let mut running = vec![true; ranks.len()];
    let mut looked = 0;
    loop {
        let at = started.elapsed().as_micros() as u64;
        for (rank, (start, length)) in windows.iter().enumerate() {
            let inside = (start * PERIOD_US / 10..(start + length) * PERIOD_US / 10).contains(&(at % PERIOD_US));
            if inside != running[rank] {
                running[rank] = inside;
                // Gone, if the run has ended.
                let _ = kill_process(ranks[rank], if inside { Signal::CONT } else { Signal::STOP });
            }
        }
        if at / PERIOD_US > looked {
            looked = at / PERIOD_US;
            if launcher.try_wait().unwrap().is_some() {
                return;
            }
        }
        sleep(Duration::from_micros(50));
    }
}

fn slowed(lab: &Lab, job: &Path, windows: &[Window], more: &[&str]) -> Report {
    let report = lab.path("slow.json");
    let mut command = Command::new("mpirun");
    command
        .args(["--oversubscribe", "--bind-to", "none", "-n", &windows.len().to_string(), lab::EXUVIA, "run"])
        .arg(job);
    command.args(["--threads", "1", "--cache-dir"]).arg(lab.path("cache")).arg("--report").arg(&report).args(more);
    let mut launcher = command.stdout(Stdio::null()).spawn().unwrap();
    let ranks = ranks_of(&mut launcher, windows.len());
    drive(&mut launcher, &ranks, windows);
    assert!(launcher.wait().unwrap().success());
    serde_json::from_slice(&fs::read(report).unwrap()).unwrap()
}

fn main() {
    let lab = Lab::new();
    let job = job(lab.folder.path());
    let alone = |tier: &str| {
        let report = lab.path("alone.json");
        let mut command = Command::new(lab::EXUVIA);
        command.arg("run").arg(&job).args(["--threads", "1", "--tier", tier, "--cache-dir"]).arg(lab.path("cache"));
        assert!(command.arg("--report").arg(&report).stdout(Stdio::null()).status().unwrap().success());
        let report: Report = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        report.totals().optimized_ns as f64
    };
    alone("optimized");
    let shares = WINDOWS.iter().map(|(_, length)| *length as f64 / 10.0).sum::<f64>();
    let [mut kernels, mut stealing, mut fixed, mut control] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        kernels.push(alone("auto"));
        stealing.push(in_stages(&slowed(&lab, &job, &WINDOWS, &[])));
        fixed.push(in_stages(&slowed(&lab, &job, &WINDOWS, &["--no-steal"])));
        control.push(in_stages(&slowed(&lab, &job, &ALONE, &[])));
    }
    let kernels = median(kernels);
    let ideal = kernels / shares;
    println!(
        "{RANKS} ranks on {} cores, rank {SLOW} at a quarter of the others' speed; medians of {ROUNDS}",
        lab.cores
    );
    println!("ideal {:.3} s: the kernels' time over {shares:.1} cores", ideal / 1e9);
    for (name, times) in [("stealing", stealing), ("static", fixed)] {
        let time = median(times);
        println!("{name:<10} {:.3} s, {:.1} % of the ideal", time / 1e9, 100.0 * ideal / time);
    }
    let (ideal, time) = (kernels / 0.4, median(control));
    println!("control    {:.3} s, {:.1} % of its own ideal", time / 1e9, 100.0 * ideal / time);
}
