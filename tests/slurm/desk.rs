//! A test's place in a cluster of its own: on the head node, with a folder that all nodes see.

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

use crate::lab::hosts::test_name;

pub const EXUVIA: &str = env!("CARGO_BIN_EXE_exuvia");
pub const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster");
const INSIDE: &str = "EXUVIA_TEST_INSIDE";
/// The cluster's exit status on a machine that has another Slurm.
pub const REFUSED: i32 = 77;

/// The time after which the test gives up on anything. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

pub const ROWS: u64 = 203;
pub const COLUMNS: u64 = 40;

/// Runs `test`, a closure in the body of a test, on the head node of a cluster.
pub fn in_cluster(nodes: u32, test: impl FnOnce(&Desk)) {
    if std::env::var_os(INSIDE).is_some() {
        return test(&Desk::new());
    }
    let name = test_name(&test);
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
pub struct Desk {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn input(&self, name: &str, extents: [u64; 2]) {
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

    /// Writes a kernel of the given body.
    pub fn wat(&self, name: &str, body: &str) {
        let text = format!("(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) {body}))");
        fs::write(self.path(&format!("{name}.wasm")), wat::parse_str(text).unwrap()).unwrap();
    }

    /// Writes NAME.toml, which makes NAME.h5 from in.h5 with this kernel.
    pub fn job(&self, name: &str, kernel: &str) {
        self.job_from(name, kernel, "in");
    }

    pub fn job_from(&self, name: &str, kernel: &str, input: &str) {
        let text = format!(
            "[tensors.a]\nfile = \"{input}.h5\"\ndataset = \"x\"\n\
             [tensors.x]\ncreate = \"{name}.h5\"\ndataset = \"x\"\ndtype = \"f32\"\n\
             [[stages]]\nkernel = \"{kernel}.wasm\"\ncompute = \"a[n,d] -> x[n,d]\"\nlimits = {{ time = \"1h\" }}\n"
        );
        fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    /// Writes a job of two stages, whose second stage does not end before [`Desk::mend`]. Returns the output after
    /// that.
    pub fn unfinished(&self) -> Vec<u8> {
        let text = "[tensors]\na = { file = \"in.h5\", dataset = \"x\" }\n\
                    y = { create = \"job.h5\", dataset = \"y\", dtype = \"f32\" }\n\
                    x = { create = \"job.h5\", dataset = \"x\", dtype = \"f32\" }\n\
                    [[stages]]\nname = \"one\"\nkernel = \"softmax.wasm\"\ncompute = \"a[n,d] -> y[n,d]\"\n\
                    [[stages]]\nname = \"two\"\nkernel = \"late.wasm\"\ncompute = \"y[n,d] -> x[n,d]\"\n\
                    limits = { time = \"1h\" }\n";
        fs::write(self.path("job.toml"), text).unwrap();
        self.mend();
        let expected = self.expected("job");
        fs::copy(self.path("endless.wasm"), self.path("late.wasm")).unwrap();
        expected
    }

    pub fn mend(&self) {
        fs::copy(self.path("softmax.wasm"), self.path("late.wasm")).unwrap();
    }

    pub fn has_output(&self, name: &str) -> bool {
        self.path(&format!("{name}.h5")).exists()
    }

    /// Returns the bytes that NAME.toml made, and removes the file.
    pub fn take_output(&self, name: &str) -> Vec<u8> {
        let file = self.path(&format!("{name}.h5"));
        let mut bytes = Vec::new();
        let whole = Region { offset: vec![0, 0], extent: vec![ROWS, COLUMNS] };
        Reader::open(&file, "x").unwrap().read(&whole, &mut bytes).unwrap();
        fs::remove_file(file).unwrap();
        bytes
    }

    /// Returns the output of NAME.toml on one rank without Slurm.
    pub fn expected(&self, name: &str) -> Vec<u8> {
        let job = format!("{name}.toml");
        self.exuvia(&["run", &job]);
        self.take_output(name)
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let bin = Path::new(EXUVIA).parent().unwrap().display();
        command.env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()));
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null()).output().unwrap()
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?} ({}): {}", output.status, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn exuvia(&self, arguments: &[&str]) -> String {
        self.run(EXUVIA, arguments)
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.exuvia(&[arguments, &["--output", "json"]].concat())).unwrap()
    }

    /// Submits a job and returns its id.
    pub fn submit(&self, arguments: &[&str]) -> String {
        self.json(&[&["submit"], arguments].concat())["record"]["id"].as_str().unwrap().to_owned()
    }

    /// Submits a script of slurm/, changed for this machine's MPI.
    pub fn submit_script(&self, name: &str, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("slurm").join(name);
        let mut script = fs::read_to_string(script).unwrap();
        if !fabric::library().starts_with("Open MPI") {
            script = script.replace("--mpi=pmix", "--mpi=pmi2").replace("mpirun --bind-to none", "mpiexec.mpich");
        }
        fs::write(self.path(name), script).unwrap();
        let (options, rest): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|argument| argument.starts_with("--"));
        self.run("sbatch", &[&["--parsable"], &options[..], &[name], &rest[..]].concat()).trim().to_owned()
    }

    /// Returns Slurm's state of a job, or of all tasks of an array.
    pub fn state(&self, id: &str) -> String {
        let states = self.run("squeue", &["--noheader", "--states=all", "--array", "--jobs", id, "--format=%T"]);
        let mut states: Vec<&str> = states.lines().collect();
        states.dedup();
        states.join(" ")
    }

    pub fn wait_for(&self, id: &str, state: &str) {
        let seen = || {
            let now = self.state(id);
            (now == state).then_some(()).ok_or(now)
        };
        if let Err(now) = patiently(seen) {
            panic!("job {id} is {now} and not {state}: {}", self.logs());
        }
    }

    /// Returns all available logs about a job in a wrong state.
    fn logs(&self) -> String {
        let show = "ps axf -o pid,stat,wchan:20,args; ls -la; tail -n 50 *.log exuvia-runs/*.log /run/log/slurmctld 2>&1 || true";
        self.run("sh", &["-c", show])
    }

    /// Waits until the ranks of a job compute: NAME.h5 then exists under another name.
    pub fn wait_for_work(&self, id: &str, name: &str) {
        self.wait_for(id, "RUNNING");
        let begun = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&format!(".{name}.h5"));
        if patiently(|| fs::read_dir(&self.folder).unwrap().flatten().any(begun).then_some(()).ok_or(())).is_err() {
            panic!("job {id} does not begin with {name}.h5: {}", self.logs());
        }
    }

    /// Restarts a job that was put back into the queue. Slurm itself would wait for two minutes, with good reason. The
    /// daemons of the job's old steps may outlive the script by seconds, and end new processes of the same name. Slurm
    /// also takes a grant in the same second as the requeue for the old, revoked grant.
    pub fn start_again(&self, id: &str) {
        patiently(|| daemons(id).is_empty().then_some(()).ok_or_else(|| daemons(id))).unwrap();
        let update = ["update", &format!("JobId={id}"), "StartTime=now+2", "TimeLimit=10"];
        patiently(|| {
            let output = self.command("scontrol", &update);
            (self.state(id) == "PENDING" && output.status.success()).then_some(()).ok_or_else(|| text(&output))
        })
        .unwrap();
    }

    pub fn report(&self, id: &str) -> Report {
        let report = self.path(&format!("exuvia-runs/job-{id}.report.json"));
        serde_json::from_slice(&fs::read(report).unwrap()).unwrap()
    }
}

/// Returns the daemons that Slurm runs on the nodes for a job. This process sees them.
fn daemons(id: &str) -> Vec<String> {
    let command_line = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
    let lines = fs::read_dir("/proc").unwrap().flatten().map(command_line);
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines.filter(|line| line.starts_with(&format!("slurmstepd: [{id}."))).collect()
}

/// Asks repeatedly until the answer is right. Returns the last answer if the time runs out.
pub fn patiently<T, E: Debug>(mut ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match ask() {
            Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(100)),
            answer => return answer,
        }
    }
}

pub fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}
