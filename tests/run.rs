//! Whole runs of the program: under mpirun, on every tier, with the swap at every task, and with ranks that receive
//! signals.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::launch::open_mpi;
use crate::lab::rows::{COLUMNS, ROWS, WRITE_ZEROS, assert_no_output, rows_job, rows_lab, take_result, wat};
use crate::lab::slow::{interrupt_until_it_ends, is_in_kernel, pids, signal};
use crate::lab::{EXUVIA, Lab, root, text};
use exuvia::engine::{BackgroundCompile, CompileJob, CompileLimits, Cpu, Engine, Kernel, Pipeline, Tier};
use exuvia::exec::{Options, TierPolicy};
use exuvia::report::Report;
use exuvia::sched::Granularity;

#[test]
fn ranks_threads_and_tiers_change_no_bit() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    let mut expected = None;
    for ranks in [1, 2, 3, 4, 7] {
        for (threads, tier) in [("1", "auto"), ("2", "baseline"), ("1", "optimized")] {
            let output = lab.output(ranks, &["--threads", threads, "--tier", tier]);
            assert!(output.status.success(), "{ranks} ranks, {tier}: {}", text(&output));
            let result = take_result(&lab);
            let expected = expected.get_or_insert_with(|| result.clone());
            assert!(*expected == result, "{ranks} ranks, {threads} threads, {tier}");
        }
    }
}

#[test]
fn a_swap_before_any_task_changes_no_bit() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    let options = |tier, swap_before_task| Options {
        threads: Some(1),
        tier,
        cache_dir: Some(lab.path("cache")),
        granularity: Granularity::Fixed(16),
        swap_before_task,
        ..Options::default()
    };
    let baseline = lab.run_here(&options(TierPolicy::Baseline, None));
    let expected = take_result(&lab);
    let tasks = baseline.stages[0].counts.tasks();
    assert!(tasks >= 10, "{tasks} tasks");
    lab.run_here(&options(TierPolicy::Optimized, None));
    assert!(take_result(&lab) == expected, "optimized only");
    for swap in 0..tasks {
        let report = lab.run_here(&options(TierPolicy::Auto, Some(swap)));
        assert!(take_result(&lab) == expected, "swap before task {swap}");
        let counts = &report.stages[0].counts;
        assert_eq!((counts.baseline_tasks, counts.optimized_tasks), (swap, tasks - swap));
    }
}

#[test]
fn one_compile_serves_all_ranks_and_the_cache_serves_the_next_run() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    let report = |name: &str| -> Report {
        let file = lab.path(name);
        let output = lab.output(4, &["--tier", "optimized", "--report", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    let cold = report("cold.json");
    assert_eq!((cold.kernels[0].optimizing_compiles, cold.kernels[0].cache_hit), (1, false));
    assert_eq!((cold.environment.ranks, cold.totals().baseline_tasks), (4, 0));
    let warm = report("warm.json");
    assert_eq!((warm.kernels[0].optimizing_compiles, warm.kernels[0].cache_hit), (0, true));
    assert_eq!(warm.totals().baseline_tasks, 0);
    assert_eq!(warm.totals().read_bytes, ROWS * COLUMNS * 4, "the second stage finds its input in memory");
}

/// The time after which a test gives up on anything. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a run whose kernel never ends, and returns the pids of its ranks once it computes.
fn endless(lab: &Lab, ranks: u32) -> (Child, Vec<u32>) {
    wat(lab, "endless.wasm", "(loop (br 0))");
    rows_job(lab, "endless.wasm", "limits = { time = \"1h\" }");
    let mut command = lab.command(ranks, &["--tier", "baseline", "--threads", "1"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let pids = pids(lab);
        if pids.len() == ranks as usize && pids.iter().all(|pid| is_in_kernel(*pid)) {
            return (child, pids);
        }
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "the run did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let lab = rows_lab();
    for (name, signal_name) in [("-INT", "SIGINT"), ("-TERM", "SIGTERM"), ("-USR1", "SIGUSR1")] {
        let (child, pids) = endless(&lab, 1);
        let started = Instant::now();
        signal(&pids, name);
        let output = child.wait_with_output().unwrap();
        assert!(started.elapsed() < PATIENCE, "it waited for the kernel");
        assert_eq!(output.status.code(), Some(75));
        assert!(text(&output).contains(&format!("interrupted by {signal_name}")), "{}", text(&output));
        assert_no_output(&lab);
    }
}

#[test]
fn a_second_ctrl_c_ends_a_run_at_once() {
    let lab = rows_lab();
    let (mut child, pids) = endless(&lab, 1);
    // After the first interrupt the run waits for a task that never ends.
    assert_eq!(pids, [child.id()]);
    interrupt_until_it_ends(&mut child);
    assert_eq!(child.wait().unwrap().signal(), Some(2));
}

#[test]
fn a_killed_rank_ends_the_others_and_is_named() {
    let lab = rows_lab();
    let (child, pids) = endless(&lab, 3);
    let started = Instant::now();
    signal(&pids[2..], "-KILL");
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < PATIENCE, "it waited for the kernel");
    assert!(!output.status.success());
    let (said, killed) = (text(&output), pids[2]);
    assert!(pids.iter().all(|pid| !exuvia::topology::process_alive(*pid)), "every rank has ended");
    if open_mpi() {
        assert!(said.contains(&format!("(process {killed} on")) || said.contains(&format!("PID {killed}")), "{said}");
        assert_no_output(&lab);
    } else {
        // MPICH's launcher kills the other ranks before they can report or tidy up (the next run does), and says why.
        assert!(said.contains("Killed (signal 9)"));
        assert!(!lab.path("out.h5").exists());
    }
}

/// Returns a command with a launcher that never starts a rank and ignores requests to end, as the `mpirun` of the
/// present MPI.
fn hanging_launcher(lab: &Lab, start_limit: &str) -> Command {
    use std::os::unix::fs::PermissionsExt;
    let name = if open_mpi() { "mpirun.openmpi" } else { "mpiexec.mpich" };
    let script = "#!/bin/sh\ntrap '' TERM INT USR1\necho $$ > \"$0.pid\"\nexec sleep 600\n";
    fs::create_dir_all(lab.path("bin")).unwrap();
    let program = lab.path("bin").join(name);
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = lab.command(1, &["--ranks", "2", "--start-limit", start_limit]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(lab.path("bin")).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(path).unwrap()).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn launcher(lab: &Lab) -> u32 {
    let name = if open_mpi() { "mpirun.openmpi" } else { "mpiexec.mpich" };
    let until = Instant::now() + PATIENCE;
    loop {
        let pid = fs::read_to_string(lab.path("bin").join(format!("{name}.pid"))).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            return pid;
        }
        assert!(Instant::now() < until, "no launcher came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_launcher_that_starts_no_rank_is_ended() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    let output = hanging_launcher(&lab, "2s").output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("did not connect to each other within 2s (--start-limit)"), "{said}");
    assert!(!exuvia::topology::process_alive(launcher(&lab)), "it goes on");
    let mut few_files = Command::new("sh");
    let run = hanging_launcher(&lab, "2s");
    few_files.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    few_files.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = text(&few_files.output().unwrap());
    assert!(said.contains("open files 64 (ulimit -n) is too low for a launcher"), "{said}");
}

#[test]
fn a_signal_ends_a_launcher_that_does_not_heed_it() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    for name in ["-TERM", "-INT"] {
        let _ = fs::remove_file(lab.path("bin/mpirun.openmpi.pid"));
        let _ = fs::remove_file(lab.path("bin/mpiexec.mpich.pid"));
        let run = hanging_launcher(&lab, "10min").spawn().unwrap();
        let launcher = launcher(&lab);
        signal(&[run.id()], name);
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{}", text(&output));
        assert!(text(&output).contains("interrupted"), "{}", text(&output));
        assert!(!exuvia::topology::process_alive(launcher), "it goes on");
    }
}

#[test]
fn another_engine_gives_the_same_bits() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    let options = Options { tier: TierPolicy::Baseline, cache_dir: Some(lab.path("cache")), ..Options::default() };
    lab.run_here(&options);
    let result = take_result(&lab);
    fs::write(lab.path("x.bin"), lab.read("in.h5", "x")).unwrap();
    let script = root().join("tests/other_engine.mjs");
    let mut node = Command::new("node");
    node.arg(script).arg(lab.path("softmax.wasm")).args(["softmax", "3", &ROWS.to_string(), &COLUMNS.to_string()]);
    let output = node.arg(lab.path("x.bin")).arg(lab.path("y.bin")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let other = fs::read(lab.path("y.bin")).unwrap();
    assert!(other == result[..other.len()] && other.len() == (ROWS * COLUMNS * 4) as usize);
}

#[test]
fn code_that_comes_too_late_for_a_job_is_there_for_the_next() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    let cache = lab.path("cache");
    let cache_dir = cache.to_str().unwrap();
    let report = lab.path("report.json");
    let arguments = ["--cache-dir", cache_dir, "--report", report.to_str().unwrap()];
    let output = lab.output(2, &arguments);
    assert!(output.status.success(), "{}", text(&output));
    let deadline = Instant::now() + PATIENCE;
    while fs::read_dir(&cache).unwrap().flatten().all(|e| e.path().extension().is_none_or(|e| e != "artifact")) {
        assert!(Instant::now() < deadline, "no artifact came");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = lab.output(2, &arguments);
    assert!(output.status.success(), "{}", text(&output));
    let record: Report = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(record.totals().baseline_tasks, 0);
}

/// Builds a module that Singlepass compiles in a moment, and LLVM in half a minute. `seed` makes it unique, and so does
/// `more`.
fn slow_to_optimize(lab: &Lab, seed: u32, more: &str) {
    let step = "(local.set 2 (i32.xor (i32.mul (local.get 2) (i32.load offset=8 (local.get 2))) (local.get 1)))
                (if (i32.lt_u (local.get 2) (local.get 1)) (then (i32.store offset=16 (i32.const 64) (local.get 2))))";
    let body = format!("(if (i32.eq (local.get 0) (i32.const {seed})) (then {}))", step.repeat(8_000));
    let text = format!(
        "(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) (local i32) {body} {more} {WRITE_ZEROS}
         (i32.const 0)))"
    );
    fs::write(lab.path("long.wasm"), wat::parse_str(text).unwrap()).unwrap();
}

/// Processes that are stopped while this value lives, so that they do not end.
struct Stopped(Vec<u32>);

impl Stopped {
    fn stop(&mut self, pids: impl Iterator<Item = u32>) {
        self.0.extend(pids);
        signal(&self.0, "-STOP");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(&self.0, "-CONT");
    }
}

#[test]
fn compilers_that_nobody_waits_for_are_few_and_known_and_can_be_ended() {
    let lab = rows_lab();
    let cache_dir = lab.path("cache");
    rows_job(&lab, "long.wasm", "");
    let cache = || exuvia::engine::Cache::open(Some(&cache_dir)).unwrap();
    let left = || exuvia::engine::orphaned_helpers(&cache());
    let mut stopped = Stopped(Vec::new());
    let mut await_left = |count: usize| {
        let until = Instant::now() + PATIENCE;
        while left().len() != count {
            assert!(Instant::now() < until, "{:?}", left());
            std::thread::sleep(Duration::from_millis(20));
        }
        stopped.stop(left().iter().map(|helper| helper.process));
    };
    // Two runs of each module leave one process behind, except for the last module, for which there is no room.
    for (seed, count) in [(1, 1), (1, 1), (2, 2), (2, 2), (3, 2)] {
        slow_to_optimize(&lab, seed, "");
        let output = lab.output(1, &["--fresh"]);
        assert!(output.status.success(), "{}", text(&output));
        fs::remove_file(lab.path("out.h5")).unwrap();
        await_left(count);
    }
    let helpers = left();
    let doctor = Command::new(EXUVIA).args(["doctor", "--cache-dir"]).arg(&cache_dir).output().unwrap();
    for helper in &helpers {
        let told = format!("process {} still optimizes long.wasm for later runs", helper.process);
        assert!(text(&doctor).contains(&told), "{}", text(&doctor));
    }
    // The folder that they work for is gone, and so they end soon.
    fs::remove_dir_all(&cache_dir).unwrap();
    drop(stopped);
    let until = Instant::now() + PATIENCE;
    while helpers.iter().any(|helper| exuvia::topology::process_alive(helper.process)) {
        assert!(Instant::now() < until, "they go on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_compiler_that_runs_out_of_memory_is_one_error() {
    let lab = rows_lab();
    rows_job(&lab, "long.wasm", "");
    for (tier, more) in [("optimized", ""), ("baseline", "(v128.store (i32.const 0) (i32x4.splat (local.get 1)))")] {
        slow_to_optimize(&lab, 1, more);
        let output = lab.command(1, &["--tier", tier]).env("EXUVIA_COMPILE_MEMORY", "40MiB").output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for message in ["the compile helper", "failed on long.wasm: it crashed", "EXUVIA_COMPILE_MEMORY"] {
            assert!(said.contains(message), "no '{message}' in {said}");
        }
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
        assert_no_output(&lab);
    }
}

#[test]
fn a_paused_compile_goes_on_when_it_is_resumed() {
    let lab = rows_lab();
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let kernel = Kernel::load(&lab.path("softmax.wasm"), None).unwrap();
    let job = CompileJob {
        kernel: &kernel,
        tier: Tier::Optimized,
        threads: 1,
        limits: CompileLimits::default(),
        cache: None,
    };
    let mut compile = BackgroundCompile::start(EXUVIA.as_ref(), &engine, job).unwrap();
    compile.pause();
    std::thread::sleep(Duration::from_secs(1));
    assert!(compile.poll().is_none(), "it should stand still");
    compile.resume();
    let artifact = loop {
        match compile.poll() {
            Some(result) => break result.unwrap(),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(engine.load_artifact(&kernel, &artifact).unwrap().tier(), Tier::Optimized);
}
