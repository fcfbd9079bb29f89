//! Whole runs of the program: under mpirun, on every tier, with the swap at every task, and with everything that can go
//! wrong.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod launch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use exuvia::cli::kernel_build;
use exuvia::engine::{BackgroundCompile, Cpu, Engine, Kernel, Pipeline, Tier};
use exuvia::exec::{self, Options, Signal, TierPolicy};
use exuvia::fabric;
use exuvia::report::Report;
use exuvia::sched::Granularity;
use exuvia::store::{OutputSpec, Reader, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};

const EXUVIA: &str = env!("CARGO_BIN_EXE_exuvia");
const ROWS: u64 = 203;
const COLUMNS: u64 = 40;

/// A folder with input data and built kernels.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { folder: tempfile::tempdir().unwrap() };
        lab.input(Shape::new([ROWS, COLUMNS]).unwrap());
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        kernel_build::build(&root.join("examples/kernels/softmax.c"), &lab.path("softmax.wasm"), &[]).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file `in.h5` with a dataset `x` of this shape.
    fn input(&self, shape: Shape) {
        let numbers = 0..shape.elements();
        let bytes: Vec<u8> = numbers.flat_map(|i| (((i * 37 % 101) as f32 - 50.0) / 9.0).to_le_bytes()).collect();
        let whole = Region::whole(&shape);
        let spec = OutputSpec { dataset: "x".into(), dtype: Dtype::F32, shape, chunk: None, deflate: None };
        let mut staging = Staging::begin(&self.path("in.h5"), "input").unwrap();
        let layout = staging.create(&[spec]).unwrap().remove(0);
        Writer::open(&layout).unwrap().write(&whole, &bytes).unwrap();
        staging.publish().unwrap();
    }

    /// A kernel of the given body.
    fn wat(&self, name: &str, body: &str) {
        let text =
            format!("(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) {body} (i32.const 0)))");
        fs::write(self.path(name), wat::parse_str(text).unwrap()).unwrap();
    }

    /// A job that runs `kernel` over the rows, in two stages with a compressed dataset between them.
    fn job(&self, kernel: &str, limits: &str) -> PathBuf {
        let text = format!(
            "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
             [tensors.p]\ncreate = \"out.h5\"\ndataset = \"p\"\ndtype = \"f32\"\nchunk = [16, 40]\ndeflate = 1\n\
             [tensors.q]\ncreate = \"out.h5\"\ndataset = \"q\"\ndtype = \"f32\"\n\
             [[stages]]\nname = \"one\"\nkernel = \"{kernel}\"\ncompute = \"x[n,d] -> p[n,d]\"\n{limits}\n\
             [[stages]]\nname = \"two\"\nkernel = \"{kernel}\"\ncompute = \"p[n,e] -> q[n,e]\"\n{limits}\n"
        );
        let job = self.path("job.toml");
        fs::write(&job, text).unwrap();
        job
    }

    fn result(&self) -> Vec<u8> {
        let (mut p, mut q) = (Vec::new(), Vec::new());
        let whole = Region { offset: vec![0, 0], extent: vec![ROWS, COLUMNS] };
        Reader::open(&self.path("out.h5"), "p").unwrap().read(&whole, &mut p).unwrap();
        Reader::open(&self.path("out.h5"), "q").unwrap().read(&whole, &mut q).unwrap();
        fs::remove_file(self.path("out.h5")).unwrap();
        p.append(&mut q);
        p
    }

    /// Nothing that could be taken for a result, and nothing left lying about.
    fn assert_no_output(&self) {
        let names = fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let is_output = |name: &String| ["out.h5", "scratch", ".exuvia"].iter().any(|part| name.contains(part));
        let outputs: Vec<String> = names.filter(is_output).collect();
        assert!(outputs.is_empty(), "{outputs:?}");
    }

    fn command(&self, ranks: u32, arguments: &[&str]) -> Command {
        let mut command = if ranks == 1 { Command::new(EXUVIA) } else { launch::ranks(ranks, EXUVIA.as_ref()) };
        command.args(["run"]).args(arguments).arg(self.path("job.toml"));
        command.env("EXUVIA_CACHE_DIR", self.path("cache")).stdin(Stdio::null());
        command
    }

    fn run(&self, ranks: u32, arguments: &[&str]) -> Output {
        self.command(ranks, arguments).output().unwrap()
    }

    /// Runs in this process and returns the report.
    fn run_here(&self, job: &Path, options: &Options) -> Report {
        exec::run(fabric::solo(), job, options, Signal::default()).unwrap_or_else(|f| panic!("{f:?}")).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ranks_threads_and_tiers_change_no_bit() {
    let lab = Lab::new();
    lab.job("softmax.wasm", "");
    let mut expected = None;
    for ranks in [1, 2, 3, 4, 7] {
        for (threads, tier) in [("1", "auto"), ("2", "baseline"), ("1", "optimized")] {
            let output = lab.run(ranks, &["--threads", threads, "--tier", tier]);
            assert!(output.status.success(), "{ranks} ranks, {tier}: {}", stderr(&output));
            let result = lab.result();
            let expected = expected.get_or_insert_with(|| result.clone());
            assert!(*expected == result, "{ranks} ranks, {threads} threads, {tier}");
        }
    }
}

#[test]
fn a_swap_before_any_task_changes_no_bit() {
    let lab = Lab::new();
    let job = lab.job("softmax.wasm", "");
    let options = |tier, swap_before_task| Options {
        threads: Some(1),
        tier,
        cache_dir: Some(lab.path("cache")),
        granularity: Granularity::Fixed(16),
        swap_before_task,
        ..Options::default()
    };
    let baseline = lab.run_here(&job, &options(TierPolicy::Baseline, None));
    let expected = lab.result();
    let tasks = baseline.stages[0].counts.tasks();
    assert!(tasks >= 10, "{tasks} tasks");
    lab.run_here(&job, &options(TierPolicy::Optimized, None));
    assert!(lab.result() == expected, "optimized only");
    for swap in 0..tasks {
        let report = lab.run_here(&job, &options(TierPolicy::Auto, Some(swap)));
        assert!(lab.result() == expected, "swap before task {swap}");
        let counts = &report.stages[0].counts;
        assert_eq!((counts.baseline_tasks, counts.optimized_tasks), (swap, tasks - swap));
    }
}

#[test]
fn one_compile_serves_all_ranks_and_the_cache_serves_the_next_run() {
    let lab = Lab::new();
    lab.job("softmax.wasm", "");
    let report = |name: &str| -> Report {
        let file = lab.path(name);
        let output = lab.run(4, &["--tier", "optimized", "--report", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", stderr(&output));
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

/// Runs what must fail, on several ranks, and checks what the user is told.
fn refuses(lab: &Lab, code: i32, arguments: &[&str], messages: &[&str]) {
    for ranks in [1, 3, 7] {
        let started = Instant::now();
        let output = lab.run(ranks, arguments);
        let text = stderr(&output);
        // MPICH's launcher kills the others when the first rank fails, and may report that.
        let status = output.status.code();
        assert!(status == Some(code) || (ranks > 1 && !launch::open_mpi() && status == Some(9)), "{status:?}: {text}");
        for message in messages {
            assert!(text.contains(message), "{ranks} ranks: no '{message}' in: {text}");
        }
        assert_eq!(text.matches("error: ").count(), 1, "printed once: {text}");
        assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
        lab.assert_no_output();
    }
}

#[test]
fn wrong_jobs_and_files_are_refused_with_a_way_out() {
    let lab = Lab::new();
    let job = lab.job("softmax.wasm", "");
    let good = fs::read_to_string(&job).unwrap();
    let with = |from: &str, to: &str| fs::write(&job, good.replacen(from, to, 1)).unwrap();
    with("dataset = \"x\"", "datset = \"x\"");
    refuses(&lab, 2, &[], &["datset", "dataset"]);
    with("file = \"in.h5\"", "file = \"inn.h5\"");
    refuses(&lab, 1, &[], &["no file", "inn.h5", "did you mean 'in.h5'?"]);
    with("dataset = \"x\"", "dataset = \"y\"");
    refuses(&lab, 1, &[], &["no dataset 'y'"]);
    with("softmax.wasm", "sofmax.wasm");
    refuses(&lab, 1, &[], &["sofmax.wasm", "stage 'one'"]);
    with("dtype = \"f32\"", "dtype = \"f64\"");
    refuses(&lab, 1, &[], &["status 1", "one@n="]);
    with("[[stages]]", "[[stages]]\nexport = \"nothing\"");
    refuses(&lab, 1, &[], &["exports no function 'nothing'", "softmax"]);
    fs::write(&job, &good).unwrap();
    refuses(&lab, 2, &["--memory", "10KiB"], &["10"]);
    let module = fs::read(lab.path("softmax.wasm")).unwrap();
    fs::write(lab.path("softmax.wasm"), &module[..module.len() / 2]).unwrap();
    refuses(&lab, 1, &[], &["softmax.wasm", "no valid kernel module"]);
    fs::write(lab.path("softmax.wasm"), &module).unwrap();
    let data = fs::read(lab.path("in.h5")).unwrap();
    fs::write(lab.path("in.h5"), &data[..data.len() - 1000]).unwrap();
    refuses(&lab, 1, &[], &["in.h5 is truncated"]);
}

#[test]
fn kernels_that_break_the_rules_are_stopped_and_named() {
    let lab = Lab::new();
    let kernel = |body: &str, limits: &str, messages: &[&str]| {
        lab.wat("bad.wasm", body);
        lab.job("bad.wasm", limits);
        for tier in ["baseline", "optimized"] {
            let mut wanted = vec!["one@n=", "bad.wasm", tier];
            wanted.extend(messages);
            refuses(&lab, 1, &["--tier", tier], &wanted);
        }
    };
    kernel("unreachable", "", &["trapped", "unreachable"]);
    kernel("(return (i32.const 42))", "", &["status 42"]);
    kernel("(loop (br 0))", "limits = { time = \"300ms\" }", &["300ms", "was stopped"]);
    kernel(
        "(if (i32.lt_s (memory.grow (i32.const 60000)) (i32.const 0)) (then (return (i32.const 9))))",
        "limits = { memory = \"8MiB\" }",
        &["limit is 8388608", "status 9"],
    );
    kernel(
        "(i32.store (i32.add (i32.load offset=208 (local.get 0)) (i32.mul (i32.load offset=224 (local.get 0)) \
         (i32.const 160))) (i32.const 1))",
        "",
        &["wrote outside operand 1"],
    );
    kernel("(i32.store (i32.const -4) (i32.const 1))", "", &["memory it was not given"]);
}

#[test]
fn kernels_that_cannot_merge_are_stopped_and_named() {
    let lab = Lab::new();
    // Enough for some partial results on each rank.
    lab.input(Shape::new([20_000, COLUMNS]).unwrap());
    let job = |body: &str, stage: &str| {
        let wat = format!(
            "(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) (i32.const 0))
             (func (export \"m\") (param i32 i32) (result i32) {body} (i32.const 0))
             (func (export \"odd\") (param i32)))"
        );
        fs::write(lab.path("k.wasm"), wat::parse_str(wat).unwrap()).unwrap();
        let text = format!(
            "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
             [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f16\"\n\
             [[stages]]\nname = \"one\"\nkernel = \"k.wasm\"\nexport = \"k\"\ncompute = \"x[n,d] -> y[d]\"\n{stage}\n"
        );
        fs::write(lab.path("job.toml"), text).unwrap();
    };
    let merge = |body: &str, limits: &str, messages: &[&str]| {
        job(body, &format!("combine = {{ export = \"m\" }}\n{limits}"));
        for tier in ["baseline", "optimized"] {
            let code = format!("kernel 'k.wasm' (merge, {tier})");
            refuses(&lab, 1, &["--tier", tier], &[&["one@d=", code.as_str()], messages].concat());
        }
    };
    merge("unreachable", "", &["trapped", "unreachable"]);
    merge("(return (i32.const 7))", "", &["status 7"]);
    merge("(loop (br 0))", "limits = { time = \"300ms\" }", &["300ms", "was stopped"]);
    // Behind the bytes of the sum, the view after those that are merged into it.
    let beyond = "(i32.store (i32.add (i32.load offset=208 (local.get 0)) (i32.mul (i32.load offset=224 (local.get 0)) \
                  (i32.const 2))) (i32.const 1))";
    merge(beyond, "", &["wrote outside operand 1"]);
    let refused = |combine: &str, code: i32, messages: &[&str]| {
        job("", combine);
        refuses(&lab, code, &[], messages);
    };
    let exports = ["k.wasm", "stage 'one'", "takes (i32, i32) and returns i32", "its kernels are: k, m"];
    refused("combine = { export = \"mm\" }", 1, &[&["no function 'mm'"], &exports[..]].concat());
    refused("combine = { export = \"odd\" }", 1, &[&["no function 'odd'"], &exports[..]].concat());
    refused(
        "combine = { exprt = \"m\" }",
        2,
        &["unknown key 'exprt'", "combine of stage 'one'", "did you mean 'export'?"],
    );
    refused("combine = { kernel = \"m\" }", 2, &["unknown key 'kernel'", "known keys: export"]);
    refused("combine = {}", 2, &["combine of stage 'one' has no 'export'"]);
    refused("combine = \"m\"", 2, &["'m' is none of them", "sum", "{ export = \"...\" }"]);
}

/// Starts a run whose kernel never ends and gives the pids of its ranks once it computes.
fn endless(lab: &Lab, ranks: u32) -> (std::process::Child, Vec<u32>) {
    lab.wat("endless.wasm", "(loop (br 0))");
    lab.job("endless.wasm", "limits = { time = \"60s\" }");
    let child = lab.command(ranks, &["--tier", "baseline", "--threads", "1"]);
    let mut child = { child }.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let folder = lab.folder.path().to_str().unwrap().to_owned();
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            if command.starts_with(EXUVIA) && command.contains(&folder) {
                pids.extend(entry.file_name().to_str().unwrap().parse::<u32>());
            }
        }
        let computing =
            fs::read_dir(&folder).unwrap().flatten().any(|e| e.file_name().to_string_lossy().contains(".part"));
        if pids.len() == ranks as usize && computing {
            // Beyond the creation of outputs the kernel is reached at once.
            std::thread::sleep(Duration::from_millis(500));
            return (child, pids);
        }
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "the run did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let lab = Lab::new();
    for (name, text) in [("-INT", "SIGINT"), ("-TERM", "SIGTERM"), ("-USR1", "SIGUSR1")] {
        let (child, pids) = endless(&lab, 1);
        let started = Instant::now();
        signal(pids[0], name);
        let output = child.wait_with_output().unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        assert_eq!(output.status.code(), Some(75));
        assert!(stderr(&output).contains(&format!("interrupted by {text}")), "{}", stderr(&output));
        lab.assert_no_output();
    }
}

#[test]
fn a_killed_rank_ends_the_others_and_is_named() {
    let lab = Lab::new();
    let (child, pids) = endless(&lab, 3);
    let started = Instant::now();
    signal(*pids.iter().max().unwrap(), "-KILL");
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(!output.status.success());
    let (text, killed) = (stderr(&output), pids.iter().max().unwrap());
    assert!(pids.iter().all(|pid| !exuvia::topology::process_alive(*pid)), "every rank has ended");
    if launch::open_mpi() {
        assert!(text.contains(&format!("(process {killed} on")) || text.contains(&format!("PID {killed}")), "{text}");
        lab.assert_no_output();
    } else {
        // MPICH's launcher kills the other ranks before they can say a word or tidy up (the next run does), and says why.
        assert!(String::from_utf8_lossy(&output.stdout).contains("Killed (signal 9)"));
        assert!(!lab.path("out.h5").exists());
    }
}

#[test]
fn the_digits_are_what_numpy_finds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lab = Lab::new();
    kernel_build::build(&root.join("examples/kernels/knn.c"), &lab.path("knn.wasm"), &[]).unwrap();
    kernel_build::build(&root.join("examples/kernels/enlarge.c"), &lab.path("enlarge.wasm"), &[]).unwrap();
    let job = fs::read_to_string(root.join("jobs/digits.toml")).unwrap();
    let job = job.replace("../data/", &format!("{}/data/", root.display()));
    let job = job.replace("../target/out/digits.h5", "out.h5").replace("../target/kernels/", "");
    fs::write(lab.path("job.toml"), job).unwrap();
    let output = lab.run(4, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut oracle = Command::new(std::env::var("EXUVIA_PYTHON").as_deref().unwrap_or("/usr/bin/python3"));
    let output = oracle
        .args(["tests/oracle.py", "digits"])
        .arg(lab.path("out.h5"))
        .arg("81")
        .current_dir(root)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("0 differ from numpy"), "{text}{}", stderr(&output));
}

#[test]
fn another_engine_gives_the_same_bits() {
    let lab = Lab::new();
    let job = lab.job("softmax.wasm", "");
    let options = Options { tier: TierPolicy::Baseline, cache_dir: Some(lab.path("cache")), ..Options::default() };
    lab.run_here(&job, &options);
    let result = lab.result();
    let mut input = Vec::new();
    let whole = Region { offset: vec![0, 0], extent: vec![ROWS, COLUMNS] };
    Reader::open(&lab.path("in.h5"), "x").unwrap().read(&whole, &mut input).unwrap();
    fs::write(lab.path("x.bin"), input).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_engine.mjs");
    let mut node = Command::new("node");
    node.arg(script).arg(lab.path("softmax.wasm")).args(["softmax", "3", &ROWS.to_string(), &COLUMNS.to_string()]);
    let output = node.arg(lab.path("x.bin")).arg(lab.path("y.bin")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let other = fs::read(lab.path("y.bin")).unwrap();
    assert!(other == result[..other.len()] && other.len() == (ROWS * COLUMNS * 4) as usize);
}

#[test]
fn code_that_comes_too_late_for_a_job_is_there_for_the_next() {
    let lab = Lab::new();
    lab.job("softmax.wasm", "");
    let cache = lab.path("cache");
    let cache_dir = cache.to_str().unwrap();
    let report = lab.path("report.json");
    let arguments = ["--cache-dir", cache_dir, "--report", report.to_str().unwrap()];
    let output = lab.run(2, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_dir(&cache).unwrap().flatten().all(|e| e.path().extension().is_none_or(|e| e != "artifact")) {
        assert!(Instant::now() < deadline, "no artifact came");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = lab.run(2, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let record: Report = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(record.totals().baseline_tasks, 0);
}

#[test]
fn a_paused_compile_goes_on_when_it_is_resumed() {
    let lab = Lab::new();
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let kernel = Kernel::load(&lab.path("softmax.wasm"), None).unwrap();
    let mut compile = BackgroundCompile::start(EXUVIA.as_ref(), &engine, &kernel, 1, None).unwrap();
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

#[test]
fn a_kernel_in_rust_runs_on_both_tiers() {
    let lab = Lab::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    kernel_build::build(&root.join("examples/kernels/axpb.rs"), &lab.path("axpb.wasm"), &[]).unwrap();
    let x: Vec<f64> = (0..1000).map(|i| f64::from(i) / 7.0).collect();
    let text = format!(
        "[tensors.a]\nvalue = 2.5\ndtype = \"f64\"\n[tensors.b]\nvalue = -0.1\ndtype = \"f64\"\n\
         [tensors.x]\nvalues = {x:?}\ndtype = \"f64\"\n\
         [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f64\"\n\
         [[stages]]\nkernel = \"axpb.wasm\"\ncompute = \"a[], x[n], b[] -> y[n]\"\n"
    );
    fs::write(lab.path("job.toml"), text).unwrap();
    let want: Vec<u8> = x.iter().flat_map(|x| (2.5 * x - 0.1).to_le_bytes()).collect();
    for tier in ["baseline", "optimized"] {
        let output = lab.run(2, &["--tier", tier]);
        assert!(output.status.success(), "{}", stderr(&output));
        let mut y = Vec::new();
        Reader::open(&lab.path("out.h5"), "y")
            .unwrap()
            .read(&Region { offset: vec![0], extent: vec![1000] }, &mut y)
            .unwrap();
        assert!(y == want, "on the {tier} tier");
    }
}

#[test]
fn a_kernel_written_by_hand_runs_with_constants_of_the_job() {
    let lab = Lab::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    kernel_build::build(&root.join("examples/kernels/scale.wat"), &lab.path("scale.wasm"), &[]).unwrap();
    let text = "[tensors.a]\nvalue = 2.5\ndtype = \"f64\"\n[tensors.x]\nvalues = [1, -2, 3.5]\ndtype = \"f64\"\n\
                [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f64\"\n\
                [[stages]]\nkernel = \"scale.wasm\"\ncompute = \"a[], x[n] -> y[n]\"\n";
    fs::write(lab.path("job.toml"), text).unwrap();
    for ranks in [1, 2] {
        let output = lab.run(ranks, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let mut y = Vec::new();
        let whole = Region { offset: vec![0], extent: vec![3] };
        Reader::open(&lab.path("out.h5"), "y").unwrap().read(&whole, &mut y).unwrap();
        assert_eq!(y, [2.5f64, -5.0, 8.75].map(f64::to_ne_bytes).concat());
    }
}

#[test]
fn a_kernel_of_whole_rows_computes_any_columns_and_refuses_pieces_of_rows() {
    let lab = Lab::new();
    // Chunks of 7 columns cut the rows; one chunk of everything leaves them whole.
    let softmax = |compute: &str, chunk: &str| {
        let text = format!(
            "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
             [tensors.p]\ncreate = \"out.h5\"\ndataset = \"p\"\ndtype = \"f32\"\nchunk = {chunk}\n\
             [[stages]]\nkernel = \"softmax.wasm\"\ncompute = {compute}\n"
        );
        fs::write(lab.path("job.toml"), text).unwrap();
        let output = lab.run(2, &[]);
        let mut p = Vec::new();
        if output.status.success() {
            let reader = Reader::open(&lab.path("out.h5"), "p").unwrap();
            reader.read(&Region::whole(&reader.info().shape), &mut p).unwrap();
        }
        (output.status.code(), p, stderr(&output))
    };
    let columns = "\"x[n,d] -> p[n,c]\"\nsizes = { c = 40 }";
    let (whole, cut) = (softmax(columns, "[203, 40]"), softmax(columns, "[16, 7]"));
    assert!(whole.0 == Some(0) && cut.0 == Some(0), "{}{}", whole.2, cut.2);
    assert!(whole.1 == cut.1 && whole.1.len() == (ROWS * COLUMNS * 4) as usize);
    let sum: f32 = whole.1[..160].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).sum();
    assert!((sum - 1.0).abs() < 1e-6, "the first row adds up to {sum}");
    let (code, _, message) = softmax("\"x[n,d] -> p[n,d]\"", "[16, 7]");
    assert!(code == Some(1) && message.contains("status 2"), "{message}");
}

#[test]
fn a_full_disk_is_told_before_anything_is_computed() {
    let lab = Lab::new();
    lab.job("softmax.wasm", "");
    // A file system of its own, too small for the output.
    let folder = lab.folder.path().display();
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {folder}/small && sed -i 's,create = \"out.h5\",create = \"small/out.h5\",' \
         {folder}/job.toml && {EXUVIA} run {folder}/job.toml; code=$?; ls -A {folder}/small; exit $code"
    );
    fs::create_dir(lab.path("small")).unwrap();
    let big = fs::read_to_string(lab.path("job.toml")).unwrap();
    fs::write(lab.path("job.toml"), big.replace("dtype = \"f32\"\n[[stages]]", "dtype = \"f64\"\n[[stages]]")).unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    let output = unshare.env("EXUVIA_CACHE_DIR", lab.path("cache")).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no space left") && text.contains("out.h5"), "{text}");
    assert!(output.stdout.is_empty(), "nothing is left: {}", String::from_utf8_lossy(&output.stdout));
}

/// Its kernel, its job and its commands, taken from the text.
#[test]
fn what_the_readme_says_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("README.md")).unwrap();
    let block = |with: &str| {
        let mut blocks = vec![String::new()];
        for line in text.lines() {
            match line.strip_prefix("    ") {
                Some(code) => *blocks.last_mut().unwrap() += &format!("{code}\n"),
                // A block goes on after an empty line, and ends at text.
                None if line.is_empty() => *blocks.last_mut().unwrap() += "\n",
                None => blocks.push(String::new()),
            }
        }
        blocks.into_iter().find(|block| block.contains(with)).unwrap_or_else(|| panic!("no code with {with}"))
    };
    let lab = Lab::new();
    lab.input(Shape::new([ROWS * COLUMNS]).unwrap());
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
        let output = command.env("PATH", &path).current_dir(lab.folder.path()).output().unwrap();
        assert!(output.status.success(), "{line}: {}", stderr(&output));
    }
    let read = |file: &str, dataset: &str| {
        let reader = Reader::open(&lab.path(file), dataset).unwrap();
        let mut bytes = Vec::new();
        reader.read(&Region::whole(&reader.info().shape), &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let (x, y) = (read("in.h5", "x"), read("out.h5", "y"));
    assert!(x.len() as u64 == ROWS * COLUMNS && x.iter().map(|x| 2.0 * x).eq(y));
}

#[test]
fn every_job_of_the_repository_plans() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = Command::new(std::env::var("EXUVIA_PYTHON").as_deref().unwrap_or("/usr/bin/python3"));
    assert!(inputs.arg(root.join("scripts/make-inputs")).arg(root.join("target/data")).status().unwrap().success());
    for entry in fs::read_dir(root.join("jobs")).unwrap() {
        let job = entry.unwrap().path();
        for ranks in ["1", "2", "3", "7"] {
            let output = Command::new(EXUVIA).args(["plan", "--ranks", ranks, "--output", "json"]).arg(&job).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}: {}", job.display(), stderr(&output));
            let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(plan["schema"], 1);
            assert_eq!(plan["plan"]["machine"]["ranks"].to_string(), ranks);
        }
    }
}
