//! Rank failures neither end a run nor change its bits: the surviving ranks continue from the completed work.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::lab::launch::open_mpi;
use crate::lab::rows::{rows_job, rows_lab, wat};
use crate::lab::slow::{
    COLUMNS, ROWS, assert_tidy, chance, expected, interrupt_until_it_ends, is_in_kernel, kills, pids, record_bytes,
    signal, slow_job, slow_lab,
};
use crate::lab::{EXUVIA, Lab, text};
use exuvia::live;
use exuvia::report::{Death, Report};

/// A run on ranks that it starts itself.
struct Supervised {
    child: Child,
    ranks: u32,
}

fn start(lab: &Lab, ranks: u32, arguments: &[&str]) -> Supervised {
    Supervised { child: command(lab, ranks, arguments).spawn().unwrap(), ranks }
}

fn command(lab: &Lab, ranks: u32, arguments: &[&str]) -> Command {
    let mut command = Command::new(EXUVIA);
    command.args(["run", "--ranks", &ranks.to_string(), "--threads", "1", "--report"]).arg(lab.path("report.json"));
    command.args(arguments).arg(lab.path("job.toml")).env("EXUVIA_CACHE_DIR", lab.path("cache"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Supervised {
    /// Returns the live ranks, without the run's own process.
    fn pids(&self, lab: &Lab) -> Vec<u32> {
        let is_alive = |pid: &u32| *pid != self.child.id() && exuvia::topology::process_alive(*pid);
        pids(lab).into_iter().filter(is_alive).collect()
    }

    /// Waits until more than `bytes` of records are written. Returns false if the run ended first.
    fn await_record(&mut self, lab: &Lab, bytes: u64) -> bool {
        while record_bytes(lab) <= bytes {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Kills one of the ranks. Returns whether there was one.
    fn kill(&mut self, lab: &Lab, draw: u64) -> bool {
        let pids = self.pids(lab);
        let Some(victim) = pids.get(draw as usize % pids.len().max(1)) else { return false };
        signal(&[*victim], "-KILL");
        true
    }

    fn wait(self) -> Output {
        self.child.wait_with_output().unwrap()
    }
}

/// Returns the ranks in all notes such as "ranks 0, 2-3 (host) failed; continuing with 4 ranks".
fn failed_ranks(said: &str) -> BTreeSet<u32> {
    let notes = said.lines().filter_map(|line| line.split_once(" failed; continuing with ")).map(|(ranks, _)| ranks);
    let without_hosts = |note: &str| -> String { note.split('(').filter_map(|part| part.rsplit(')').next()).collect() };
    let words: Vec<String> = notes
        .map(without_hosts)
        .flat_map(|note| note.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let range = |word: &String| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    };
    words.iter().filter_map(range).flatten().collect()
}

/// Asserts that a run succeeded with the results of an undisturbed run. Returns the rank failures.
fn assert_done(lab: &Lab, output: &Output, expected: &[(String, Vec<u8>)], what: &str) -> Vec<Death> {
    assert_eq!(output.status.code(), Some(0), "{what}: {}", text(output));
    let report: Report = serde_json::from_slice(&fs::read(lab.path("report.json")).unwrap()).unwrap();
    assert!(lab.results(&report) == expected, "{what}");
    assert_tidy(lab);
    let said = text(output);
    // Work that the run completed before a failure does not count as an earlier run's.
    let started_once = !said.contains("restarting them");
    assert!(report.deaths.is_empty() || !started_once || report.resumed_bytes == 0, "{what}: {said}");
    for death in &report.deaths {
        assert!(failed_ranks(&said).contains(&death.rank), "{what}: {said}");
        assert!(said.contains(&format!("failed  rank {} on", death.rank)), "{what}: {said}");
    }
    for output in &report.outputs {
        let _ = fs::remove_file(&output.file);
    }
    report.deaths
}

#[test]
fn a_killed_rank_does_not_end_the_run_nor_change_its_bits() {
    let lab = slow_lab(200_000);
    let (mut all_killed, mut pauses_ns) = (0, Vec::new());
    for seed in 0..kills(4) {
        let ranks = 4 + (chance(seed) % 5) as u32;
        let mut run = start(&lab, ranks, if seed % 2 == 0 { &[] } else { &["--fresh"] });
        let mut killed = 0;
        // The first failure is rank 0's, later ones are those of any rank; the amount of records before each is random.
        for attempt in 0..1 + seed % 3 {
            let draw = chance(seed * 8 + attempt);
            if run.await_record(&lab, record_bytes(&lab) + draw % 4000) {
                killed += usize::from(run.kill(&lab, if attempt + seed == 0 { 0 } else { draw >> 16 }));
            }
        }
        let (pids, what) = (run.ranks, format!("seed {seed}, {ranks} ranks"));
        let output = run.wait();
        let (deaths, said) = (assert_done(&lab, &output, &expected(1.0), &what), text(&output));
        all_killed += killed;
        pauses_ns.extend(deaths.iter().filter_map(|death| Some(death.first_task_ns? - death.at_ns)));
        if open_mpi() {
            assert!(deaths.len() <= killed && killed < pids as usize, "{what}: {deaths:?}");
            // The run's own completed work counts, whatever of earlier runs does not.
            assert!(deaths.is_empty() || said.contains("are complete and are not computed again"), "{what}: {said}");
            // A process that is killed while it exits is not missed.
            assert!(seed > 0 || deaths.iter().any(|death| death.rank == 0), "{what}: {deaths:?}");
        }
    }
    pauses_ns.sort_unstable();
    println!("{all_killed} ranks killed; from agreeing on a death to the next task: {pauses_ns:?} ns");
}

#[test]
fn what_was_done_before_a_death_is_in_the_report() {
    if !open_mpi() {
        println!("only Open MPI lets ranks go on");
        return;
    }
    // Progress is published five times a second: the last quarter of the run takes several times as long.
    let lab = slow_lab(1_000_000);
    // These are the bytes of the rows of both tensors of the first stage.
    let all_bytes = 2 * 8 * ROWS * COLUMNS;
    let mut command = command(&lab, 2, &["--fresh", "--no-steal"]);
    command.env("XDG_STATE_HOME", lab.path("state"));
    let mut run = Supervised { child: command.spawn().unwrap(), ranks: 2 };
    let done_bytes = || {
        let runs = live::list(&lab.path("state/exuvia/live"));
        runs.iter()
            .flat_map(|run| &run.stages)
            .filter(|stage| stage.stage == "one")
            .map(|stage| stage.processed_bytes)
            .sum::<u64>()
    };
    while done_bytes() * 4 < all_bytes * 3 {
        assert!(run.child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(run.kill(&lab, 1));
    let deaths = assert_done(&lab, &run.wait(), &expected(1.0), "two ranks");
    let report: Report = serde_json::from_slice(&fs::read(lab.path("report.json")).unwrap()).unwrap();
    // The surviving rank has completed its own half, though a quarter of the whole remained when the other failed.
    let counted_bytes = report.stages[0].counts.processed_bytes;
    assert!(deaths.len() == 1 && counted_bytes * 5 > all_bytes * 2, "{counted_bytes} of {all_bytes} bytes, {deaths:?}");
}

#[test]
fn ranks_killed_as_they_start_are_started_again() {
    let lab = slow_lab(100);
    for seed in 0..kills(3) {
        let mut run = start(&lab, 4, &[]);
        while run.pids(&lab).is_empty() && run.child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(chance(seed) % 300));
        run.kill(&lab, chance(seed) >> 16);
        assert_done(&lab, &run.wait(), &expected(1.0), &format!("seed {seed}"));
    }
}

#[test]
fn iterations_survive_from_their_last_checkpoint() {
    let lab = Lab::new(&["heat"]);
    lab.job("heat2d", |job| job.replace("count = 1000", "count = 1500").replace("< 0.1", "< 0.0001"));
    let whole = lab.run(1, &["--threads", "1"]);
    let expected = lab.results(&whole);
    for seed in 0..kills(2) {
        let mut run = start(&lab, 4, &["--checkpoint-every", "20ms"]);
        if run.await_record(&lab, 0) {
            std::thread::sleep(Duration::from_millis(chance(seed) % 200));
            run.kill(&lab, chance(seed) >> 16);
        }
        assert_done(&lab, &run.wait(), &expected, &format!("seed {seed}"));
    }
}

#[test]
fn a_run_that_starts_its_ranks_ends_as_they_do() {
    let lab = slow_lab(2_000_000);
    let mut run = start(&lab, 3, &["--tier", "baseline"]);
    assert!(run.await_record(&lab, 0));
    // Only the supervisor gets the signal.
    signal(&[run.child.id()], "-TERM");
    let output = run.wait();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).starts_with("error: interrupted by SIGTERM\n"), "{}", text(&output));
    assert!(text(&output).ends_with("is kept: run the same command again to resume\n"), "{}", text(&output));
    slow_job(&lab, 10);
    let bad = "(module (memory 1) (func (export \"slow\") (param i32 i32) (result i32) (i32.const 9)))";
    fs::write(lab.path("slow.wasm"), wat::parse_str(bad).unwrap()).unwrap();
    let output = start(&lab, 3, &[]).wait();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(text(&output).matches("error: ").count(), 1, "{}", text(&output));
    fs::write(lab.path("job.toml"), "[").unwrap();
    assert_eq!(start(&lab, 2, &[]).wait().status.code(), Some(2));
}

#[test]
fn a_second_ctrl_c_ends_all_ranks_at_once() {
    let lab = rows_lab();
    wat(&lab, "endless.wasm", "(loop (br 0))");
    rows_job(&lab, "endless.wasm", "limits = { time = \"1h\" }");
    let mut run = start(&lab, 2, &["--tier", "baseline"]);
    let pids = loop {
        let pids = run.pids(&lab);
        if pids.len() == 2 && pids.iter().all(|pid| is_in_kernel(*pid)) {
            break pids;
        }
        assert!(run.child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    };
    // After the first interrupt the ranks wait for tasks that never end.
    interrupt_until_it_ends(&mut run.child);
    let output = run.wait();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    let why = "error: the run was interrupted before its ranks could report their progress\n";
    assert!(text(&output).contains(why), "{}", text(&output));
    assert!(pids.iter().all(|pid| !exuvia::topology::process_alive(*pid)));
}

/// Installs a launcher in place of the real one, and returns the PATH that finds it.
fn false_launcher(lab: &Lab, script: &str) -> OsString {
    let (folder, name) = (lab.path("bin"), if open_mpi() { "mpirun.openmpi" } else { "mpiexec.mpich" });
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), format!("#!/bin/sh\necho \"$@\" >> '{}'\n{script}\n", lab.path("starts").display()))
        .unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    let paths = std::env::var_os("PATH").unwrap();
    std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&paths))).unwrap()
}

fn starts(lab: &Lab) -> Vec<String> {
    fs::read_to_string(lab.path("starts")).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn ranks_that_are_lost_again_and_again_are_given_up() {
    let lab = Lab::bare(&[]);
    let path = false_launcher(&lab, "exit 1");
    let output = command(&lab, 3, &["--fresh"]).env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("error: the run ended 4 times because ranks failed"), "{}", text(&output));
    // The first start has cleared earlier work away, so later starts need no `--fresh`.
    let fresh: Vec<bool> = starts(&lab).iter().map(|start| start.contains("--fresh")).collect();
    assert_eq!(fresh, [true, false, false, false]);
}

#[test]
fn ranks_that_were_asked_to_end_are_not_started_again() {
    let lab = Lab::bare(&[]);
    let path = false_launcher(&lab, "exec sleep 60");
    let child = command(&lab, 3, &[]).env("PATH", path).spawn().unwrap();
    while starts(&lab).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&[child.id()], "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).starts_with("error: the run was interrupted before its ranks could"), "{}", text(&output));
    assert_eq!(starts(&lab).len(), 1);
}
