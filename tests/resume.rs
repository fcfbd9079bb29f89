//! Completed work outlives its run: after any end, the next run continues from there on any number of ranks, repeats
//! none of it, and leaves the same bits.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::slow::{
    COLUMNS, ROWS, assert_tidy, chance, expected, input, kills, pids, record_bytes, signal, slow_job, slow_lab,
};
use crate::lab::{Lab, text};
use exuvia::manifest::Records;
use exuvia::report::Report;
use exuvia::tensor::Dtype;
use serde_json::Value;

/// The time after which a test gives up on anything. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A run in progress. Its folder identifies its ranks.
struct Started {
    child: Child,
    /// The bytes of records before the run.
    before: u64,
}

fn start(lab: &Lab, ranks: u32, arguments: &[&str]) -> Started {
    start_by(lab, lab.command(ranks, arguments))
}

fn start_by(lab: &Lab, mut command: Command) -> Started {
    let before = record_bytes(lab);
    Started { child: command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap(), before }
}

impl Started {
    /// Waits until the run has recorded completed work. Returns false if the run ended first.
    fn await_record(&mut self, lab: &Lab) -> bool {
        let until = Instant::now() + PATIENCE;
        while record_bytes(lab) == self.before {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < until, "nothing is finished");
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Kills the ranks of the run. Returns false if it had succeeded first.
    fn kill(mut self, lab: &Lab, name: &str) -> bool {
        signal(&pids(lab), name);
        let ended_well = self.child.wait().unwrap().success();
        while !pids(lab).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        !ended_well
    }

    /// Asks the run to end, and returns the time that this takes.
    fn ask(mut self, lab: &Lab, what: &str) -> Duration {
        let asked = Instant::now();
        signal(&[self.child.id()], "-TERM");
        let status = self.child.wait().unwrap();
        // The run may be over, or so young that the signal ends it.
        assert!([Some(75), Some(0), None].contains(&status.code()), "{what}: {status}");
        let took = asked.elapsed();
        assert!(pids(lab).is_empty(), "{what}");
        took
    }
}

/// Asserts that no two records of completed work cover the same row of a stage: no run has repeated another's work.
fn assert_once(lab: &Lab, what: &str) {
    if !lab.manifest().exists() {
        return;
    }
    let records: Records<Value> = Records::read(&lab.manifest()).unwrap();
    let mut rows = BTreeSet::new();
    for record in &records.records {
        let number = |name: &str| record["tile"][name][0].as_u64().unwrap();
        for row in number("offset")..number("offset") + number("extent") {
            assert!(rows.insert((record["stage"].as_str().unwrap(), row)), "{what}: row {row} twice");
        }
    }
}

/// Returns the number of rows that the stages of a run computed: a row has 16 elements of 8 bytes of each operand.
fn rows_computed(report: &Report) -> u64 {
    report.totals().processed_bytes / (2 * 8 * COLUMNS)
}

fn rows_resumed(report: &Report) -> u64 {
    report.resumed_bytes / (8 * COLUMNS)
}

#[test]
fn whatever_ends_runs_when_the_next_goes_on_and_does_nothing_twice() {
    let lab = slow_lab(100_000);
    let ranks = [2, 1, 3, 4];
    let (mut went_on, mut took) = (0, Vec::new());
    for seed in 0..kills(4) {
        // Each run is ended a few times, on other numbers of ranks.
        for attempt in 0..3 {
            let draw = chance(seed * 8 + attempt);
            let (ranks, is_asked) = (ranks[(draw % 4) as usize], (seed + attempt) % 2 == 1);
            let what = format!("seed {seed}, attempt {attempt}: {ranks} ranks, asked: {is_asked}");
            let mut command = lab.command(if is_asked { 1 } else { ranks }, &["--threads", "1", "--tier", "baseline"]);
            if is_asked {
                command.args(["--ranks", &ranks.to_string()]);
            }
            let mut run = start_by(&lab, command);
            // Runs end at work, or at any time, and the last of them as soon as it has recorded something.
            let is_early = (draw / 4).is_multiple_of(4) && attempt < 2;
            if is_early || (run.await_record(&lab) && attempt < 2) {
                std::thread::sleep(Duration::from_millis(draw / 16 % 400));
            }
            if is_asked {
                took.push(run.ask(&lab, &what));
            } else {
                run.kill(&lab, "-KILL");
            }
            assert_once(&lab, &what);
        }
        let noted = record_bytes(&lab) > 0;
        let report = lab.run(ranks[(chance(seed) % 4) as usize], &["--threads", "1"]);
        assert_eq!(rows_computed(&report) + rows_resumed(&report), 3 * ROWS, "seed {seed}: all rows once");
        assert!(lab.results(&report) == expected(1.0), "seed {seed}");
        assert_eq!(rows_resumed(&report) > 0, noted, "seed {seed}: what was finished");
        went_on += u64::from(rows_resumed(&report) > 0);
        assert_tidy(&lab);
        fs::remove_file(lab.path("out.h5")).unwrap();
        fs::remove_file(lab.path("other.h5")).unwrap();
    }
    assert!(went_on > 0);
    took.sort();
    println!("{} times from SIGTERM to the end: {took:?}", took.len());
}

#[test]
fn a_run_that_is_asked_to_end_finishes_what_it_is_at() {
    // A stage in one block per rank would take 10 s.
    let lab = slow_lab(2_000_000);
    for (name, ranks) in [("-TERM", 1), ("-USR1", 2), ("-INT", 3)] {
        let mut run = start(&lab, ranks, &["--threads", "1", "--tier", "baseline"]);
        assert!(run.await_record(&lab));
        let noted = record_bytes(&lab);
        // The signal goes to one rank alone.
        signal(&pids(&lab)[..1], name);
        let output = run.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(75), "{said}");
        let records: Records<Value> = Records::read(&lab.manifest()).unwrap();
        let rows: u64 = records.records.iter().map(|record| record["tile"]["extent"][0].as_u64().unwrap()).sum();
        assert!(rows < ROWS, "it went on after its task: {rows} rows");
        assert!(said.contains("interrupted by SIG") && said.contains("is kept: run the same command again"), "{said}");
        assert!(record_bytes(&lab) > noted, "what was begun is finished");
        assert!(!lab.path("out.h5").exists());
    }
    slow_job(&lab, 10);
    let output = lab.command(2, &[]).output().unwrap();
    // The number of steps is part of the stages' computation.
    assert!(text(&output).contains("stage 'one' is computed again: the job has changed"), "{}", text(&output));
    assert_tidy(&lab);
}

#[test]
fn only_what_depends_on_a_change_is_computed_again() {
    let lab = slow_lab(10);
    let fails = || {
        // Stage two fails at the first row of stage one's output.
        let output = lab.command(2, &["--threads", "1"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    };
    let kernel = fs::read(lab.path("slow.wasm")).unwrap();
    let job = fs::read_to_string(lab.path("job.toml")).unwrap();
    let with_bad = job.replacen(
        "slow.wasm\"\nexport = \"slow\"\ncompute = \"y",
        "bad.wasm\"\nexport = \"slow\"\ncompute = \"y",
        1,
    );
    fs::write(lab.path("job.toml"), &with_bad).unwrap();
    let bad = "(module (memory 1) (func (export \"slow\") (param i32 i32) (result i32) (i32.const 9)))";
    fs::write(lab.path("bad.wasm"), wat::parse_str(bad).unwrap()).unwrap();
    let said = fails();
    assert!(said.contains("status 9") && said.contains("completed work is kept"), "{said}");
    // After the kernel is repaired, the first stage is not computed again.
    fs::write(lab.path("bad.wasm"), &kernel).unwrap();
    let output = lab.command(2, &["--threads", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("resuming an earlier run"), "{}", text(&output));
    // The report shows the same: stage one has no tasks.
    fs::write(lab.path("bad.wasm"), wat::parse_str(bad).unwrap()).unwrap();
    fails();
    fs::write(lab.path("bad.wasm"), &kernel).unwrap();
    let report = lab.run(3, &["--threads", "1"]);
    assert_eq!(report.stages.iter().map(|stage| stage.counts.tasks() > 0).collect::<Vec<_>>(), [false, true, true]);
    assert!(lab.results(&report) == expected(1.0));
    // Another input requires all work again, and the user is told.
    fs::write(lab.path("bad.wasm"), wat::parse_str(bad).unwrap()).unwrap();
    fails();
    input(&lab, 5.0);
    fs::write(lab.path("bad.wasm"), &kernel).unwrap();
    let output = lab.command(1, &["--threads", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("stage 'one' is computed again: its input 'x' has changed"), "{}", text(&output));
    let report = lab.run(1, &["--threads", "1"]);
    assert!(report.resumed_bytes == 0 && lab.results(&report) == expected(5.0));
    // `--fresh` computes everything again.
    fs::write(lab.path("bad.wasm"), wat::parse_str(bad).unwrap()).unwrap();
    fails();
    fs::write(lab.path("bad.wasm"), &kernel).unwrap();
    assert_eq!(lab.run(2, &["--fresh"]).resumed_bytes, 0);
    assert_tidy(&lab);
}

#[test]
fn damaged_parts_are_computed_again() {
    let lab = slow_lab(100_000);
    // The files hold all of stage one and a part of stage two.
    let leave = || {
        let mut run = start(&lab, 2, &["--threads", "1", "--tier", "baseline"]);
        let until = Instant::now() + PATIENCE;
        while !logs(&lab).iter().any(|log| fs::read_to_string(log).is_ok_and(|text| text.contains("\"two\""))) {
            assert!(Instant::now() < until && run.child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(run.kill(&lab, "-KILL"));
    };
    let flip = |file: PathBuf, at: usize| {
        let mut bytes = fs::read(&file).unwrap();
        bytes[at] ^= 4;
        fs::write(&file, bytes).unwrap();
    };
    let part = || {
        let names = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().path());
        { names }.find(|path| path.to_string_lossy().contains(".out.h5.exuvia")).unwrap()
    };
    let finishes = |what: &str| {
        let output =
            lab.command(3, &["--threads", "1", "--report", lab.path("r.json").to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{what}: {}", text(&output));
        let report: Report = serde_json::from_slice(&fs::read(lab.path("r.json")).unwrap()).unwrap();
        assert!(lab.results(&report) == expected(1.0), "{what}");
        assert_eq!(rows_computed(&report) + rows_resumed(&report), 3 * ROWS, "{what}");
        assert_tidy(&lab);
        text(&output)
    };
    leave();
    // The damage is in the middle of stage one's output.
    let length = fs::metadata(part()).unwrap().len() as usize;
    flip(part(), length / 2);
    assert!(finishes("a flipped bit in an output").contains("are damaged and will be computed again"));
    leave();
    fs::OpenOptions::new().write(true).open(part()).unwrap().set_len(length as u64 / 2).unwrap();
    finishes("half an output");
    leave();
    let log = logs(&lab).remove(0);
    let last = fs::metadata(&log).unwrap().len() as usize - 20;
    flip(log, last);
    assert!(finishes("a flipped bit in a log").contains("damaged records of completed work"));
    leave();
    // The damaged rank is one whose log records stage two: stored data may wait for its record when the run is killed.
    let says_two = |log: &PathBuf| fs::read_to_string(log).unwrap().contains("\"two\"");
    flip(logs(&lab).into_iter().find(says_two).unwrap().with_extension("bin"), 30);
    assert!(finishes("a flipped bit in compressed chunks").contains("are damaged and will be computed again"));
    leave();
    fs::remove_file(part()).unwrap();
    assert!(finishes("no output").contains("is gone"));
    leave();
    lab.dataset_of("out.h5", Dtype::F64, &[1], vec![0; 8]);
    finishes("another output");
    assert_eq!(lab.read("out.h5", "x"), [0; 8], "what somebody else has put there stays");
    leave();
    fs::write(lab.manifest().join("header.json"), "{").unwrap();
    finishes("no header");
}

fn logs(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.manifest()).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "log") && fs::metadata(path).unwrap().len() > 0)
        .collect();
    logs.sort();
    logs
}

#[test]
fn iterations_go_on_from_a_checkpoint() {
    let lab = Lab::new(&["heat"]);
    lab.job("heat2d", |job| job.replace("count = 1000", "count = 1500").replace("< 0.1", "< 0.0001"));
    let whole = lab.run(1, &["--threads", "1"]);
    let expected = lab.results(&whole);
    let mut went_on = 0;
    for (seed, ranks) in [(1, [2, 3, 4]), (2, [3, 1, 2])] {
        for (attempt, ranks) in ranks.into_iter().enumerate() {
            let mut run = start(&lab, ranks, &["--threads", "1", "--checkpoint-every", "20ms"]);
            if run.await_record(&lab) && attempt < 2 {
                std::thread::sleep(Duration::from_millis(chance(seed + attempt as u64) % 200));
            }
            // The test kills ranks, and asks a run to end.
            run.kill(&lab, if attempt == 1 { "-TERM" } else { "-KILL" });
        }
        let noted = record_bytes(&lab) > 0;
        let report = lab.run(2, &["--threads", "1"]);
        assert_eq!(report.ranks[0].iterations, whole.ranks[0].iterations);
        assert!(lab.results(&report) == expected, "seed {seed}");
        assert_eq!(report.resumed_bytes > 0, noted, "seed {seed}");
        went_on += u64::from(noted);
        assert_tidy(&lab);
        fs::remove_file(lab.path("heat2d.h5")).unwrap();
    }
    assert!(went_on > 0);
}

#[test]
fn reductions_go_on_with_their_partial_results() {
    let lab = slow_lab(1);
    let job = |spin: u32| {
        let text = format!(
            "[tensors]\nx = {{ file = \"in.h5\", dataset = \"x\" }}\nspin = {{ value = {spin}, dtype = \"u32\" }}\n\
             s = {{ create = \"out.h5\", dataset = \"s\", dtype = \"f64\" }}\n\
             [[stages]]\nkernel = \"slow.wasm\"\nexport = \"slow_sum\"\ncompute = \"x[n,d], spin[] -> s[d]\"\ncombine = \"sum\"\n"
        );
        fs::write(lab.path("job.toml"), text).unwrap();
    };
    // These are the tasks and the sums of undisturbed runs.
    job(1);
    let ranks = [1, 2, 3, 4];
    let whole: Vec<Report> = ranks.iter().map(|ranks| lab.run(*ranks, &["--threads", "1"])).collect();
    let expected = lab.results(&whole[0]);
    fs::remove_file(lab.path("out.h5")).unwrap();
    job(1_000_000);
    for seed in 0..kills(2) {
        let draws = [0, 1].map(|attempt| chance(seed * 8 + attempt));
        let begin = |ranks: u32, draw: u64| {
            let mut run = start(&lab, ranks, &["--threads", "1", "--tier", "optimized"]);
            assert!(run.await_record(&lab), "seed {seed}");
            std::thread::sleep(Duration::from_millis(draw / 4 % 100));
            run
        };
        // One run is asked to end, and another is killed.
        let (run, noted) = (begin(1, draws[0]), record_bytes(&lab));
        assert!(run.kill(&lab, "-TERM") && record_bytes(&lab) > noted, "seed {seed}: what was begun is kept");
        assert!(begin(ranks[(draws[1] % 4) as usize], draws[1]).kill(&lab, "-KILL"), "seed {seed}");
        let at = (chance(seed) % 4) as usize;
        let report = lab.run(ranks[at], &["--threads", "1", "--tier", "optimized"]);
        let tasks = |report: &Report| report.totals().tasks();
        assert!(report.resumed_tasks > 0, "seed {seed}");
        assert_eq!(tasks(&report) + report.resumed_tasks, tasks(&whole[at]), "seed {seed}: all tasks once");
        assert!(lab.results(&report) == expected, "seed {seed}");
        assert_tidy(&lab);
        fs::remove_file(lab.path("out.h5")).unwrap();
    }
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_job_is_not_loaded() {
    let lab = Lab::new(&["heat"]);
    let job = |bound: &str| {
        lab.job("heat2d", |job| job.replace("count = 1000", "count = 1500").replace("< 0.1", &format!("< {bound}")));
    };
    let leave = || {
        let mut run = start(&lab, 2, &["--threads", "1", "--checkpoint-every", "20ms"]);
        while !["checkpoint.json", "inputs.json"].iter().all(|name| lab.manifest().join(name).exists()) {
            assert!(run.child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(run.kill(&lab, "-KILL"));
    };
    let says = |bound: &str, words: &str| {
        let output = lab.output(2, &["--threads", "1"]);
        assert!(output.status.success() && text(&output).contains(words), "{}", text(&output));
        let result = lab.read("heat2d.h5", "temperature");
        fs::remove_file(lab.path("heat2d.h5")).unwrap();
        job(bound);
        let report = lab.run(1, &["--threads", "1"]);
        assert!(report.resumed_bytes == 0 && lab.results(&report)[0].1 == result, "{words}");
        assert_tidy(&lab);
    };
    job("0.001");
    // The damage is in the part of either rank, in the first of two tensors.
    for eighth in [1, 3] {
        leave();
        for entry in fs::read_dir(lab.manifest()).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "h5") {
                let mut bytes = fs::read(&file).unwrap();
                let at = bytes.len() / 8 * eighth;
                bytes[at] ^= 1;
                fs::write(&file, bytes).unwrap();
            }
        }
        says("0.001", "ignored the damaged checkpoint");
    }
    leave();
    job("0.002");
    says("0.002", "the last checkpoint is ignored: the job or its inputs have changed since");
}

#[test]
fn two_runs_of_a_job_do_not_meet() {
    let lab = slow_lab(2_000_000);
    let mut run = start(&lab, 1, &["--threads", "1", "--tier", "baseline"]);
    assert!(run.await_record(&lab));
    for ranks in [1, 3] {
        let output = lab.command(ranks, &[]).output().unwrap();
        let said = text(&output);
        assert!(output.status.code() == Some(1) && said.matches("error: ").count() == 1, "{said}");
        assert!(said.contains("another run is writing the outputs of this job (process"), "{said}");
    }
    assert!(run.child.try_wait().unwrap().is_none(), "the first run goes on");
    assert!(run.kill(&lab, "-KILL"));
}
