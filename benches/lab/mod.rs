//! Shared parts of the benchmarks over real jobs: they build kernels, run jobs under mpirun, and call the simulator.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]
#![allow(dead_code, reason = "every benchmark uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use exuvia::cli::kernel_build;
use exuvia::report::Report;
use serde_json::Value;

pub const EXUVIA: &str = env!("CARGO_BIN_EXE_exuvia");

/// All jobs with inputs of their own. The flag says whether iterations or products tie their tasks to places.
pub const JOBS: [(&str, bool); 9] = [
    ("heat2d", true),
    ("heat3d", true),
    ("matmul", true),
    ("kmeans", true),
    ("pca", true),
    ("transpose", false),
    ("histogram", false),
    ("softmax-regression", true),
    ("unbalanced", false),
];

/// The machine parameters that no report contains, for a machine of about two cores with files in memory. One set
/// serves all jobs and ranks. A thousand yields and checks for messages take about 1.5 us each on cores that other
/// processes use too; main threads check every 0.5 ms. `message_ns` is rough: with 3 us instead, iterated jobs on 8 and
/// 16 ranks were predicted to be faster than they are.
pub const MACHINE: &str = "task_ns = 1500\nfile_latency_ns = 20000\nmemory_ns_per_byte = 0.05\nnode_latency_ns = 5000\n\
                           message_ns = 10000\npoll_ns = 1500000\nanswer_ns = 500000\n";

/// A folder for caches and reports that holds the jobs' inputs and kernels.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub cores: usize,
}

impl Lab {
    pub fn new() -> Lab {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for kernel in [
            "heat",
            "matmul",
            "kmeans",
            "pca",
            "transpose",
            "histogram",
            "softmax_regression",
            "unbalanced",
            "reaction",
        ] {
            let target = root.join(format!("target/kernels/{kernel}.wasm"));
            kernel_build::build(&root.join(format!("examples/kernels/{kernel}.c")), &target, &[]).unwrap();
        }
        if !root.join("target/data/unbalanced.h5").exists() {
            let made = Command::new(root.join("scripts/make-inputs")).arg(root.join("target/data")).status().unwrap();
            assert!(made.success(), "scripts/make-inputs failed");
        }
        let lab =
            Lab { folder: tempfile::tempdir().unwrap(), cores: std::thread::available_parallelism().unwrap().get() };
        fs::write(lab.path("machine.toml"), format!("cores_per_node = {}\n{MACHINE}", lab.cores)).unwrap();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the file of a job: one of this repository, or one that [`Lab::variant`] wrote.
    pub fn job(name: &str) -> PathBuf {
        match Path::new(name).is_absolute() {
            true => name.into(),
            false => Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("jobs/{name}.toml")),
        }
    }

    /// Writes a job of this repository with `from` replaced by `to`. The name of the new job is a path.
    pub fn variant(&self, name: &str, from: &str, to: &str) -> String {
        let text = fs::read_to_string(Lab::job(name)).unwrap();
        assert!(text.contains(from), "no '{from}' in {name}");
        let target = format!("\"{}/target/", env!("CARGO_MANIFEST_DIR"));
        let file = self.path(&format!("{name}-variant.toml"));
        fs::write(&file, text.replace(from, to).replace("\"../target/", &target)).unwrap();
        file.display().to_string()
    }

    /// Writes a job of this repository on inputs so large that it takes about a second or longer. Its name is a path.
    pub fn large(&self, name: &str) -> String {
        let root = env!("CARGO_MANIFEST_DIR");
        let inputs = format!("{root}/target/data/large");
        if !Path::new(&inputs).join("multigrid.h5").exists() {
            let mut command = Command::new(format!("{root}/scripts/make-inputs"));
            assert!(command.args([&inputs, "--large"]).status().unwrap().success(), "scripts/make-inputs failed");
        }
        let text = fs::read_to_string(Lab::job(name)).unwrap();
        let text = text.replace("\"../target/data/", &format!("\"{inputs}/"));
        let text = text.replace("../data/digits.h5", &format!("{inputs}/softmax-regression.h5"));
        let text = text.replace("\"../target/out/", &format!("\"{}/", self.folder.path().display()));
        let file = self.path(&format!("{name}.toml"));
        fs::write(&file, text.replace("\"../target/", &format!("\"{root}/target/"))).unwrap();
        file.display().to_string()
    }

    /// Returns the command that runs a job and writes its report to `report`.
    pub fn command(&self, job: &str, ranks: u32, pinned: bool, more: &[&str], report: &Path) -> Command {
        let mut command = mpirun();
        command.args(["-n", &ranks.to_string()]);
        if pinned {
            command.args(["taskset", "-c", "0"]);
        }
        command.arg(EXUVIA).arg("run").arg(Lab::job(job)).args(["--threads", "1", "--cache-dir"]);
        command.arg(self.path("cache")).arg("--report").arg(report).args(more);
        command
    }

    /// Runs a job on `ranks` ranks, on all cores or on the first core alone.
    pub fn run(&self, job: &str, ranks: u32, pinned: bool, more: &[&str], report: &str) -> Report {
        let report = self.path(report);
        let output = self.command(job, ranks, pinned, more, &report).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&fs::read(report).unwrap()).unwrap()
    }

    pub fn simulate(&self, job: &str, arguments: &[String]) -> Value {
        let mut command = Command::new(EXUVIA);
        let output = command.arg("simulate").arg(Lab::job(job)).args(arguments).args(["--output", "json"]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Returns the command of Open MPI's launcher that accepts more ranks than cores, also in containers.
pub fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    command
}

/// Returns the time inside stages, which excludes the start of MPI and of the program.
pub fn in_stages(report: &Report) -> f64 {
    report.stages.iter().map(|stage| stage.wall_ns).sum::<u64>() as f64
}

pub fn simulated_in_stages(simulation: &Value) -> f64 {
    simulation["stages"].as_array().unwrap().iter().map(|stage| stage["makespan_ns"].as_f64().unwrap()).sum()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
