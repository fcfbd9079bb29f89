//! The jobs of `jobs/` in a folder of their own, for the tests that run them.

pub mod hosts;
#[path = "../launch/mod.rs"]
pub mod launch;
pub mod rows;
pub mod slow;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use exuvia::cli::kernel_build;
use exuvia::exec::{self, ExitCode, Options, Signal};
use exuvia::fabric;
use exuvia::report::Report;
use exuvia::store::{OutputSpec, Reader, Staging, Writer};
use exuvia::tensor::{Dtype, Region, Shape};

pub const EXUVIA: &str = env!("CARGO_BIN_EXE_exuvia");

/// A folder with the input data, the kernels and the jobs of `jobs/`, changed to use this folder.
pub struct Lab {
    folder: tempfile::TempDir,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn python(script: &str) -> Command {
    let mut command = Command::new(std::env::var("EXUVIA_PYTHON").as_deref().unwrap_or("/usr/bin/python3"));
    command.arg(root().join(script));
    command
}

/// Runs lines of Python in the lab's folder, with h5py and numpy (`np`), and returns their output.
pub fn python_says(lab: &Lab, lines: &str) -> String {
    let mut command = Command::new(std::env::var("EXUVIA_PYTHON").as_deref().unwrap_or("/usr/bin/python3"));
    let script = format!("import h5py, os, sys, numpy as np\n{lines}");
    let output = command.args(["-c", &script]).current_dir(lab.path("")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

impl Lab {
    /// Creates a lab with the kernels of these sources.
    pub fn new(kernels: &[&str]) -> Lab {
        let lab = Lab::bare(kernels);
        let made = python("scripts/make-inputs").arg(lab.path("data")).output().unwrap();
        assert!(made.status.success(), "{}", text(&made));
        lab
    }

    /// Creates a lab without input data.
    pub fn bare(kernels: &[&str]) -> Lab {
        let lab = Lab { folder: tempfile::tempdir().unwrap() };
        kernels.iter().for_each(|kernel| lab.kernel(&format!("{kernel}.c")));
        lab
    }

    /// Builds a kernel of `examples/kernels`.
    pub fn kernel(&self, source: &str) {
        let module = self.path(source).with_extension("wasm");
        kernel_build::build(&root().join("examples/kernels").join(source), &module, &[]).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the manifest of an unfinished run, or a path that does not exist if there is none.
    pub fn manifest(&self) -> PathBuf {
        let is_manifest = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "exuvia");
        let mut paths = fs::read_dir(self.path("")).unwrap().map(|entry| entry.unwrap().path());
        paths.find(is_manifest).unwrap_or_else(|| self.path("no manifest"))
    }

    /// Writes the job of this name, changed by `edit`.
    pub fn job(&self, name: &str, edit: impl Fn(String) -> String) -> PathBuf {
        let job = fs::read_to_string(root().join(format!("jobs/{name}.toml"))).unwrap();
        let job =
            job.replace("../target/kernels/", "").replace("../target/data/", "data/").replace("../target/out/", "");
        let job = job.replace("../data/", &format!("{}/data/", root().display()));
        fs::write(self.path("job.toml"), edit(job)).unwrap();
        self.path("job.toml")
    }

    /// Writes dataset `x` of `in.h5`.
    pub fn dataset(&self, dtype: Dtype, extents: &[u64], bytes: Vec<u8>) {
        self.dataset_of("in.h5", dtype, extents, bytes);
    }

    /// Writes dataset `x` of a file of this name.
    pub fn dataset_of(&self, file: &str, dtype: Dtype, extents: &[u64], bytes: Vec<u8>) {
        let shape = Shape::new(extents.to_vec()).unwrap();
        let spec = OutputSpec { dataset: "x".into(), dtype, shape: shape.clone(), chunk: None, deflate: None };
        let mut staging = Staging::begin(&self.path(file), "input").unwrap();
        let layout = staging.create(&[spec]).unwrap().remove(0);
        Writer::open(&layout).unwrap().write(&Region::whole(&shape), &bytes).unwrap();
        staging.publish().unwrap();
    }

    pub fn run(&self, ranks: u32, arguments: &[&str]) -> Report {
        self.run_with(ranks, arguments, &[])
    }

    /// Runs the job in this process.
    pub fn run_here(&self, options: &Options) -> Report {
        let result = exec::run(fabric::solo(), &self.path("job.toml"), options, Signal::default(), |_| ExitCode::Done);
        result.unwrap_or_else(|failure| panic!("{failure:?}")).unwrap()
    }

    /// Runs the job and returns its output, whether it succeeds or fails.
    pub fn output(&self, ranks: u32, arguments: &[&str]) -> Output {
        self.command(ranks, arguments).output().unwrap()
    }

    /// Returns the command that runs the job.
    pub fn command(&self, ranks: u32, arguments: &[&str]) -> Command {
        let mut command = if ranks == 1 { Command::new(EXUVIA) } else { launch::ranks(ranks, EXUVIA.as_ref()) };
        command.arg("run").args(arguments).arg(self.path("job.toml")).env("EXUVIA_CACHE_DIR", self.path("cache"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs the job with these environment variables.
    pub fn run_with(&self, ranks: u32, arguments: &[&str], environment: &[(&str, &Path)]) -> Report {
        let mut command = self.command(ranks, arguments);
        command.arg("--report").arg(self.path("report.json")).envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{ranks} ranks, {arguments:?}: {}", text(&output));
        serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap()
    }

    /// Returns the bytes of a dataset.
    pub fn read(&self, file: &str, dataset: &str) -> Vec<u8> {
        let reader = Reader::open(&self.path(file), dataset).unwrap();
        let mut bytes = Vec::new();
        reader.read(&Region::whole(&reader.info().shape), &mut bytes).unwrap();
        bytes
    }

    /// Returns the bytes of all outputs of a run.
    pub fn results(&self, report: &Report) -> Vec<(String, Vec<u8>)> {
        report.outputs.iter().map(|output| (output.dataset.clone(), self.read(&output.file, &output.dataset))).collect()
    }

    /// Runs a job in many ways and asserts that all give the bits of one rank on baseline code, and that numpy finds
    /// the same.
    pub fn agrees(&self, name: &str) -> Report {
        self.job(name, |job| job);
        let first = self.run(1, &["--tier", "baseline", "--threads", "2"]);
        let expected = self.results(&first);
        let mut oracle = python("tests/oracle_stages.py");
        let output = oracle.arg(name).arg(self.path("data")).arg(self.path(&format!("{name}.h5"))).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        for (ranks, threads, tier) in [(2, "2", "auto"), (3, "1", "baseline"), (4, "1", "optimized"), (7, "1", "auto")]
        {
            let report = self.run(ranks, &["--tier", tier, "--threads", threads]);
            assert_eq!(report.ranks[0].iterations, first.ranks[0].iterations);
            for ((dataset, bytes), (_, expected)) in self.results(&report).iter().zip(&expected) {
                assert!(bytes == expected, "{name}: {dataset} differs on {ranks} ranks, {threads} threads, {tier}");
            }
        }
        first
    }
}
