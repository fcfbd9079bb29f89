//! Real jobs in a real Slurm. A test runs itself again in a cluster of its own (`tests/slurm/cluster`), where it is on the
//! head node and submits to the others. On a machine that has another Slurm nothing is run, and that is said.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

use std::any::type_name_of_val;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use exuvia::cli::kernel_build;
use exuvia::fabric;
use exuvia::report::Report;
use exuvia::store::{OutputSpec, Reader, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};
use serde_json::Value;

const EXUVIA: &str = env!("CARGO_BIN_EXE_exuvia");
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster");
const INSIDE: &str = "EXUVIA_TEST_INSIDE";
/// The cluster's exit status where the machine has another Slurm.
const REFUSED: i32 = 77;

/// How long anything may take before the test gives up; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

const ROWS: u64 = 203;
const COLUMNS: u64 = 40;

/// Runs `test`, a closure in the body of a test, on the head node of a cluster.
fn in_cluster(nodes: u32, test: impl FnOnce(&Desk)) {
    if std::env::var_os(INSIDE).is_some() {
        return test(&Desk::new());
    }
    let path = type_name_of_val(&test);
    let name = path.split("::").nth(1).unwrap();
    let mut cluster = Command::new(CLUSTER);
    cluster.args(["-n", &nodes.to_string(), "-c", "4", "--"]).arg(std::env::current_exe().unwrap());
    let output = cluster.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null()).output().unwrap();
    if output.status.code() == Some(REFUSED) {
        println!("not run: {}", text(&output));
        return;
    }
    let ran = output.status.success() && text(&output).contains("1 passed");
    assert!(ran, "{name} in a cluster ({}):\n{}", output.status, text(&output));
}

/// A folder that all nodes see, with a job in it.
struct Desk {
    folder: PathBuf,
}

impl Desk {
    fn new() -> Desk {
        let desk = Desk { folder: Path::new(&std::env::var_os("HOME").unwrap()).join("a desk") };
        fs::create_dir(&desk.folder).unwrap();
        desk.input("in", [ROWS, COLUMNS]);
        let softmax = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kernels/softmax.c");
        kernel_build::build(&softmax, &desk.path("softmax.wasm"), &[]).unwrap();
        desk.wat("endless", "(loop (br 0)) (i32.const 0)");
        desk.job("job", "softmax");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn input(&self, name: &str, extents: [u64; 2]) {
        let shape = Shape::new(extents).unwrap();
        let bytes: Vec<u8> =
            (0..shape.elements()).flat_map(|i| (((i * 37 % 101) as f32 - 50.0) / 9.0).to_le_bytes()).collect();
        let spec =
            OutputSpec { dataset: "x".into(), dtype: Dtype::F32, shape: shape.clone(), chunk: None, deflate: None };
        let mut staging = Staging::begin(&self.path(&format!("{name}.h5")), "input").unwrap();
        let layout = staging.create(&[spec]).unwrap().remove(0);
        Writer::open(&layout).unwrap().write(&Region::whole(&shape), &bytes).unwrap();
        staging.publish().unwrap();
    }

    /// A kernel of the given body.
    fn wat(&self, name: &str, body: &str) {
        let text = format!("(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) {body}))");
        fs::write(self.path(&format!("{name}.wasm")), wat::parse_str(text).unwrap()).unwrap();
    }

    /// Writes NAME.toml, which makes NAME.h5 of in.h5 with this kernel.
    fn job(&self, name: &str, kernel: &str) {
        self.job_from(name, kernel, "in");
    }

    fn job_from(&self, name: &str, kernel: &str, input: &str) {
        let text = format!(
            "[tensors.a]\nfile = \"{input}.h5\"\ndataset = \"x\"\n\
             [tensors.x]\ncreate = \"{name}.h5\"\ndataset = \"x\"\ndtype = \"f32\"\n\
             [[stages]]\nkernel = \"{kernel}.wasm\"\ncompute = \"a[n,d] -> x[n,d]\"\nlimits = {{ time = \"1h\" }}\n"
        );
        fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    fn has_output(&self, name: &str) -> bool {
        self.path(&format!("{name}.h5")).exists()
    }

    /// The bytes that NAME.toml made; they are gone then.
    fn take_output(&self, name: &str) -> Vec<u8> {
        let file = self.path(&format!("{name}.h5"));
        let mut bytes = Vec::new();
        let whole = Region { offset: vec![0, 0], extent: vec![ROWS, COLUMNS] };
        Reader::open(&file, "x").unwrap().read(&whole, &mut bytes).unwrap();
        fs::remove_file(file).unwrap();
        bytes
    }

    /// What one rank makes of NAME.toml without Slurm.
    fn expected(&self, name: &str) -> Vec<u8> {
        let job = format!("{name}.toml");
        self.exuvia(&["run", &job]);
        self.take_output(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let bin = Path::new(EXUVIA).parent().unwrap().display();
        command.env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()));
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null()).output().unwrap()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?} ({}): {}", output.status, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn exuvia(&self, arguments: &[&str]) -> String {
        self.run(EXUVIA, arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.exuvia(&[arguments, &["--output", "json"]].concat())).unwrap()
    }

    /// Submits a job and returns its id.
    fn submit(&self, arguments: &[&str]) -> String {
        self.json(&[&["submit"], arguments].concat())["record"]["id"].as_str().unwrap().to_owned()
    }

    /// Submits a script of slurm/, changed for this machine's MPI.
    fn submit_script(&self, name: &str, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("slurm").join(name);
        let mut script = fs::read_to_string(script).unwrap();
        if !fabric::library().starts_with("Open MPI") {
            script = script.replace("--mpi=pmix", "--mpi=pmi2").replace("mpirun --bind-to none", "mpiexec.mpich");
        }
        fs::write(self.path(name), script).unwrap();
        let (options, rest): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|argument| argument.starts_with("--"));
        self.run("sbatch", &[&["--parsable"], &options[..], &[name], &rest[..]].concat()).trim().to_owned()
    }

    /// Slurm's word for where a job, or all tasks of an array, stand.
    fn state(&self, id: &str) -> String {
        let states = self.run("squeue", &["--noheader", "--states=all", "--array", "--jobs", id, "--format=%T"]);
        let mut states: Vec<&str> = states.lines().collect();
        states.dedup();
        states.join(" ")
    }

    fn wait_for(&self, id: &str, state: &str) {
        let seen = || {
            let now = self.state(id);
            (now == state).then_some(()).ok_or(now)
        };
        if let Err(now) = patiently(seen) {
            let logs = self.run("sh", &["-c", "tail -n 50 *.log exuvia-runs/*.log /run/log/slurmctld 2>&1 || true"]);
            panic!("job {id} is {now} and not {state}: {logs}");
        }
    }

    /// Waits until the ranks of a job compute: NAME.h5 is begun then, under another name.
    fn wait_for_work(&self, id: &str, name: &str) {
        self.wait_for(id, "RUNNING");
        let begun = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&format!(".{name}.h5"));
        patiently(|| fs::read_dir(&self.folder).unwrap().flatten().any(begun).then_some(()).ok_or("idle")).unwrap();
    }

    /// Starts a job again that was put back into the queue: Slurm itself would wait for two minutes. It counts in seconds, and
    /// takes credentials of the second in which the job was put back for those that it revoked.
    fn start_again(&self, id: &str) {
        let update = ["update", &format!("JobId={id}"), "StartTime=now+2"];
        patiently(|| {
            let output = self.command("scontrol", &update);
            (self.state(id) == "PENDING" && output.status.success()).then_some(()).ok_or_else(|| text(&output))
        })
        .unwrap();
    }

    fn report(&self, id: &str) -> Report {
        let report = self.path(&format!("exuvia-runs/job-{id}.report.json"));
        serde_json::from_slice(&fs::read(report).unwrap()).unwrap()
    }
}

/// Asks again and again; the last answer, if none was the right one in time.
fn patiently<T, E: Debug>(mut ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match ask() {
            Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(100)),
            answer => return answer,
        }
    }
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn a_job_runs_on_two_nodes_however_it_is_launched() {
    in_cluster(2, |desk| {
        let expected = desk.expected("job");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--ntasks-per-node", "2"]);
        let log = desk.exuvia(&["logs", "-f", "job"]);
        assert!(log.contains("4 on 2 node(s)"), "{log}");
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected, "submitted");
        let report = desk.report(&id);
        let hosts: Vec<&str> = report.ranks.iter().map(|rank| rank.hostname.as_str()).collect();
        assert_eq!(hosts, ["n1", "n1", "n2", "n2"]);
        for script in ["run.sbatch", "mpirun.sbatch"] {
            let id = desk.submit_script(script, &["job.toml"]);
            desk.wait_for(&id, "COMPLETED");
            let log = fs::read_to_string(desk.path(&format!("exuvia-{id}.log"))).unwrap();
            assert!(log.contains("4 on 2 node(s)"), "{script}: {log}");
            assert!(desk.take_output("job") == expected, "{script}");
        }
    });
}

#[test]
fn threads_are_those_that_slurm_granted() {
    in_cluster(1, |desk| {
        // The cluster binds nobody, so that the CPUs that a rank may run on are those of the machine.
        let cpus = std::thread::available_parallelism().unwrap().get().min(3);
        for (asked, threads) in [(1, 1), (3, cpus)] {
            let id = desk.submit(&["job.toml", "--cpus-per-task", &asked.to_string()]);
            desk.wait_for(&id, "COMPLETED");
            assert_eq!(desk.report(&id).environment.threads_per_rank as usize, threads, "{asked}");
        }
    });
}

#[test]
fn a_job_that_cannot_run_is_not_submitted() {
    in_cluster(1, |desk| {
        let refused = |arguments: &[&str], code: i32, why: &str| {
            let output = desk.command(EXUVIA, &[&["submit"], arguments].concat());
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
            assert!(text(&output).contains(why), "{arguments:?}: {}", text(&output));
        };
        refused(&["job.toml", "--mem", "100K"], 2, "the budget is 80.0 KiB");
        refused(&["job.toml", "--", "--tire", "auto"], 2, "--tier");
        refused(&["job.toml", "--array", "0-3"], 2, "%a");
        desk.job("none", "none");
        refused(&["none.toml"], 1, "none.wasm");
        desk.job_from("late", "softmax", "none");
        refused(&["late.toml"], 1, "none.h5");
        assert_eq!(desk.run("squeue", &["--noheader", "--states=all"]), "");
        // What Slurm itself refuses.
        refused(&["job.toml", "--nodes", "1", "--mem", "1T"], 1, "Memory specification can not be satisfied");
        assert_eq!(desk.exuvia(&["status"]), "nothing was submitted in this folder\n");
        // The budget that Slurm sets holds where nobody checked: each row needs 1.6 MB.
        desk.input("rows", [2, 400_000]);
        desk.job_from("wide", "softmax", "rows");
        let wide = fs::read_to_string(desk.path("wide.toml")).unwrap().replace("x[n,d]", "x[n]");
        fs::write(desk.path("wide.toml"), wide).unwrap();
        let id = desk.run("sbatch", &["--parsable", "--mem=1M", "--output=wide.log", "--wrap=exuvia run wide.toml"]);
        desk.wait_for(id.trim(), "FAILED");
        assert_eq!(desk.json(&["status", id.trim()])["jobs"][0]["exit_code"], 2);
        let log = fs::read_to_string(desk.path("wide.log")).unwrap();
        assert!(log.contains("the budget is 819.2 KiB"), "{log}");
    });
}

#[test]
fn an_array_runs_a_job_for_each_task() {
    in_cluster(2, |desk| {
        for task in 0..5 {
            desk.job(&format!("part-{task}"), "softmax");
        }
        let expected = desk.expected("part-0");
        let id = desk.submit(&["part-%a.toml", "--array", "0-4%3"]);
        desk.wait_for(&id, "COMPLETED");
        for task in 0..5 {
            assert!(desk.take_output(&format!("part-{task}")) == expected, "task {task}");
        }
        let jobs = &desk.json(&["status", "part"])["jobs"];
        let ids: Vec<&str> = jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4].map(|task| format!("{id}_{task}")));
        let logs = desk.exuvia(&["logs", "part"]);
        assert!(logs.contains(&format!("==> {id}_4 <==")), "{logs}");
        assert!(desk.exuvia(&["logs", &format!("{id}_2")]).contains("part-2.h5"));

        let id = desk.submit_script("array.sbatch", &["--array=1-2", "part-"]);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.has_output("part-1") && desk.has_output("part-2"));
    });
}

#[test]
fn jobs_wait_for_those_that_they_depend_on() {
    in_cluster(2, |desk| {
        desk.job_from("second", "softmax", "job");
        desk.job_from("third", "softmax", "second");
        desk.wat("trap", "unreachable");
        desk.job("wrong", "trap");
        let first = desk.submit(&["job.toml", "--nodes", "2", "--sbatch=--hold"]);
        let second = desk.submit(&["second.toml", "--dependency", &format!("afterok:{first}")]);
        let third = desk.submit(&["third.toml", "--dependency", &format!("afterok:{second}")]);
        let wrong = desk.submit(&["wrong.toml", "--dependency", &format!("afterok:{first}")]);
        let never = desk.submit(&[
            "job.toml",
            "--job-name",
            "never",
            "--dependency",
            &format!("afterok:{wrong}"),
            "--sbatch=--kill-on-invalid-dep=yes",
        ]);
        desk.run("scontrol", &["release", &first]);
        desk.wait_for(&third, "COMPLETED");
        assert_eq!((desk.state(&first), desk.state(&second)), ("COMPLETED".to_owned(), "COMPLETED".to_owned()));
        assert!(desk.has_output("third"));
        desk.wait_for(&wrong, "FAILED");
        assert_eq!(desk.json(&["status", "wrong"])["jobs"][0]["exit_code"], 1);
        desk.wait_for(&never, "CANCELLED");
    });
}

#[test]
fn a_job_is_ended_by_the_time_limit_and_another_goes_on() {
    in_cluster(2, |desk| {
        let text = "[tensors]\na = { file = \"in.h5\", dataset = \"x\" }\n\
                    y = { create = \"job.h5\", dataset = \"y\", dtype = \"f32\" }\n\
                    x = { create = \"job.h5\", dataset = \"x\", dtype = \"f32\" }\n\
                    [[stages]]\nname = \"one\"\nkernel = \"softmax.wasm\"\ncompute = \"a[n,d] -> y[n,d]\"\n\
                    [[stages]]\nname = \"two\"\nkernel = \"late.wasm\"\ncompute = \"y[n,d] -> x[n,d]\"\n\
                    limits = { time = \"1h\" }\n";
        fs::write(desk.path("job.toml"), text).unwrap();
        fs::copy(desk.path("softmax.wasm"), desk.path("late.wasm")).unwrap();
        let expected = desk.expected("job");
        fs::copy(desk.path("endless.wasm"), desk.path("late.wasm")).unwrap();
        // Slurm counts in minutes.
        let id = desk.submit_script("run.sbatch", &["--time=1", "job.toml"]);
        desk.wait_for(&id, "TIMEOUT");
        let log = fs::read_to_string(desk.path(&format!("exuvia-{id}.log"))).unwrap();
        assert!(log.contains("DUE TO TIME LIMIT") && log.contains("interrupted by SIGTERM"), "{log}");
        assert_eq!(log.matches("error: interrupted").count(), 1, "{log}");
        assert!(!desk.has_output("job"));
        // The first stage was finished.
        fs::copy(desk.path("softmax.wasm"), desk.path("late.wasm")).unwrap();
        let id = desk.submit(&["job.toml", "--nodes", "1", "--ntasks-per-node", "3"]);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        let report = desk.report(&id);
        assert_eq!(report.resumed_bytes, ROWS * COLUMNS * 4);
        assert_eq!(report.stages[0].counts.tasks(), 0);
    });
}

#[test]
fn a_cancelled_job_ends_and_leaves_no_output() {
    in_cluster(2, |desk| {
        desk.job("job", "endless");
        let id = desk.submit(&["job.toml", "--nodes", "2"]);
        let waiting = desk.submit(&["job.toml", "--job-name", "waiting", "--sbatch=--hold"]);
        desk.wait_for_work(&id, "job");
        // From the head node, which has none of its processes.
        let ranks = patiently(|| {
            let output = desk.command(EXUVIA, &["top", &id, "--output", "json"]);
            let ranks = serde_json::from_slice::<Value>(&output.stdout).ok().map(|top| top["runs"][0]["ranks"].clone());
            ranks.filter(|ranks| ranks[1].is_object()).ok_or_else(|| text(&output))
        });
        let ranks = ranks.unwrap();
        assert_eq!([&ranks[0]["hostname"], &ranks[1]["hostname"]], ["n1", "n2"]);
        assert!(desk.exuvia(&["top", "--once", "job"]).contains(&format!("job (Slurm {id}): 2 ranks on 2 nodes")));
        assert_eq!(desk.exuvia(&["cancel", "job"]), format!("cancelled {id}\n"));
        desk.wait_for(&id, "CANCELLED");
        assert!(!desk.has_output("job"));
        let gone = || {
            let output = desk.command(EXUVIA, &["top", "job"]);
            (output.status.code() == Some(2)).then_some(()).ok_or_else(|| text(&output))
        };
        patiently(gone).unwrap();
        assert_eq!(desk.state(&waiting), "PENDING");
        assert_eq!(desk.exuvia(&["cancel", &waiting]), format!("cancelled {waiting}\n"));
        let again = desk.command(EXUVIA, &["cancel", &waiting]);
        assert_eq!(again.status.code(), Some(1), "{}", text(&again));
        assert_eq!(desk.command(EXUVIA, &["cancel", "nobody"]).status.code(), Some(2));
        assert!(desk.exuvia(&["status"]).contains("CANCELLED"));
        let none = desk.command(EXUVIA, &["logs", "-f", "waiting"]);
        assert!(none.status.code() == Some(1) && text(&none).contains("has no log: CANCELLED"), "{}", text(&none));
    });
}

#[test]
fn a_requeued_job_runs_again() {
    in_cluster(2, |desk| {
        let expected = desk.expected("job");
        desk.job("job", "endless");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--requeue"]);
        desk.wait_for_work(&id, "job");
        desk.run("scontrol", &["requeue", &id]);
        desk.job("job", "softmax");
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        // One log of both.
        let log = desk.exuvia(&["logs", &id]);
        assert!(log.contains("interrupted by SIGTERM") && log.contains("2 on 2 node(s)"), "{log}");
    });
}

#[test]
fn a_job_that_others_go_before_runs_after_them() {
    in_cluster(2, |desk| {
        let expected = desk.expected("job");
        desk.job("job", "endless");
        desk.job("urgent", "softmax");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--ntasks-per-node", "4", "--requeue"]);
        desk.wait_for_work(&id, "job");
        let urgent = desk.submit(&["urgent.toml", "--nodes", "2", "--ntasks-per-node", "4", "--partition", "high"]);
        desk.wait_for(&urgent, "COMPLETED");
        desk.job("job", "softmax");
        assert!(desk.take_output("urgent") == expected && !desk.has_output("job"));
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
    });
}

#[test]
fn a_job_leaves_a_node_that_is_set_down() {
    in_cluster(3, |desk| {
        let expected = desk.expected("job");
        desk.job("job", "endless");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--requeue"]);
        desk.wait_for_work(&id, "job");
        desk.run("scontrol", &["update", "NodeName=n1", "State=DOWN", "Reason=test"]);
        desk.job("job", "softmax");
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        let hosts: Vec<String> = desk.report(&id).ranks.into_iter().map(|rank| rank.hostname).collect();
        assert_eq!(hosts, ["n2", "n3"]);
    });
}

#[test]
fn a_sweep_fills_the_nodes_of_its_allocation_and_goes_on_when_submitted_again() {
    in_cluster(2, |desk| {
        let submit = |repeat: &str| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/slurm/strong.sbatch");
            let options = ["--parsable", "--nodes=2", "--ntasks-per-node=2", script];
            desk.run("sbatch", &[&options[..], &["job.toml", "--repeat", repeat]].concat()).trim().to_owned()
        };
        let points = || -> Vec<Value> {
            let text = fs::read_to_string(desk.path("exuvia-bench/job-strong.jsonl")).unwrap_or_default();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        // As the time limit would, in the middle of it.
        let id = submit("1000");
        patiently(|| (points().len() > 3).then_some(()).ok_or_else(|| desk.state(&id))).unwrap();
        desk.run("scancel", &["--batch", "--signal=USR1", &id]);
        desk.wait_for(&id, "FAILED");
        let log = fs::read_to_string(desk.path(&format!("exuvia-{id}.log"))).unwrap();
        assert!(log.contains("note: interrupted; the same command goes on"), "{log}");
        let before = points();
        assert!(desk.path("exuvia-bench/job-strong.html").exists());

        let repeat = before.len() / 3 + 2;
        let id = submit(&repeat.to_string());
        desk.wait_for(&id, "COMPLETED");
        let after = points();
        assert_eq!((after.len(), &after[..before.len()]), (3 * repeat, &before[..]));
        for point in &after {
            assert!(point["launcher"].as_str().unwrap().starts_with("srun --mpi=pmi"), "{point}");
            // Two ranks fit on a node, four do not.
            let nodes = if point["ranks"] == 4 { 2 } else { 1 };
            assert_eq!(point["hosts"].as_array().unwrap().len(), nodes, "{point}");
        }
        assert!(!desk.has_output("job"));
    });
}

#[test]
fn the_cluster_ends_with_its_command_and_lets_another_slurm_alone() {
    let refused = Command::new(CLUSTER).args(["--", "true"]).env("SLURM_CONF", "/nowhere").output().unwrap();
    assert_eq!(refused.status.code(), Some(REFUSED), "{}", text(&refused));
    assert!(text(&refused).contains("SLURM_CONF=/nowhere"), "{}", text(&refused));
    if std::env::var_os("SLURM_CONF").is_some() {
        return;
    }

    // A job that would outlast the command, with a name that nothing else has.
    let sleep = format!("86400.{}", std::process::id());
    let script = format!("srun -N2 sleep {sleep} & until [ $(pgrep -cx sleep) = 2 ]; do sleep 0.1; done; exit 7");
    let output = Command::new(CLUSTER).args(["--", "bash", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    if output.status.code() == Some(REFUSED) {
        return;
    }
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    let command_line = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
    let left = fs::read_dir("/proc").unwrap().flatten().map(command_line);
    let left = left.filter(|line| line.split(|byte| *byte == 0).any(|word| word == sleep.as_bytes()));
    assert_eq!(left.count(), 0);
}
