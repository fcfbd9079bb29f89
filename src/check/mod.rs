//! `exuvia check`: whether the kernels of a job keep to the interface, tried out on samples of the job's data.
//!
//! Each stage runs on boxes of its data, on both tiers, cut in many odd ways, in tiles that border on closed pages at one end
//! or the other, with outputs that hold one pattern or another before. What depends on any of that is a finding, with the first
//! element that does. Stages that read what others make get it by running those on what is needed, no more.
//!
//! Refuses to do: proving anything. What no sample shows is not found. It uses `engine`, `job`, `plan`, `store` and
//! `tensor`, and of `exec` how partial results are merged. Invariant: time and memory are bounded by its options, but for one
//! call of a kernel, which the limits of its stage bound.

mod call;
mod caller;
mod cut;
mod finding;
mod locate;
mod stage;
mod tensors;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde::Serialize;

use crate::engine::{
    BackgroundCompile, Cache, Code, CompileJob, CompileLimits, Cpu, Engine, EngineError, Kernel, Pipeline, Tier,
};
use crate::exec;
use crate::job::Job;
use crate::plan::{Machine, Plan, PlanError, plan};
use crate::store::StoreError;
use crate::topology;

pub use call::{Computed, compute};
pub use finding::{Finding, Kind, value};
use watch::Watch;

/// How often the main thread looks whether a call takes too long.
const LOOK: Duration = Duration::from_millis(20);

/// What a check may take, and what it works with.
#[derive(Clone, Debug)]
pub struct Options {
    /// For all stages together; each has a share.
    pub time: Duration,
    /// Split operands of a sample, at most.
    pub sample_bytes: u64,
    /// What is kept of tensors that stages make for others.
    pub memory_bytes: u64,
    pub cache: Option<Cache>,
    /// The program that compiles what takes long.
    pub helper: Option<PathBuf>,
    pub compile_limits: CompileLimits,
    /// Whether optimized code is wanted too.
    pub optimizes: bool,
}

/// What was found, and what was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub job: String,
    pub stages: Vec<StageReport>,
    pub findings: Vec<Finding>,
}

/// What was looked at of one stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageReport {
    pub stage: String,
    pub kernel: String,
    pub export: String,
    /// Identity of the module.
    pub module_hash: String,
    /// Boxes of its data, the ways in which they were cut, and calls of its kernel.
    pub samples: u64,
    pub cuts: u64,
    pub tasks: u64,
    pub tiers: Vec<&'static str>,
    /// What could not be looked at.
    pub notes: Vec<String>,
    /// Whether all that was to be looked at was, and nothing was found.
    pub passed: bool,
}

/// Why a job cannot be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("kernel '{kernel}' of stage '{stage}'")]
    Engine { kernel: String, stage: String, source: Box<EngineError> },
    #[error("{task} failed: {message}")]
    Task { task: String, message: String },
    #[error("'{tensor}' cannot be computed: {reason}")]
    Missing { tensor: String, reason: String },
    #[error("the thread that calls the kernels ended unexpectedly")]
    Panicked,
}

/// A kernel and its code.
#[derive(Debug)]
struct Compiled {
    kernel: Kernel,
    merge: Option<Kernel>,
    baseline: Code,
    optimized: Result<Code, String>,
}

impl Compiled {
    fn codes(&self) -> Vec<&Code> {
        [&self.baseline].into_iter().chain(&self.optimized).collect()
    }

    /// What computes fastest.
    fn best(&self) -> &Code {
        self.optimized.as_ref().unwrap_or(&self.baseline)
    }
}

/// A job that is checked, planned for one rank.
struct Bench {
    job: Job,
    plan: Plan,
    engine: Engine,
    kernels: Vec<Compiled>,
    options: Options,
    watch: Arc<Watch>,
}

impl Bench {
    fn new(job: Job, options: Options, watch: Arc<Watch>) -> Result<Bench, CheckError> {
        let layouts = exec::layouts(&job)?;
        let memory_bytes = topology::host().memory_bytes;
        let plan = plan(&job, &layouts, &Machine { ranks: 1, ranks_per_node: 1, threads: 1, memory_bytes })?;
        let engine = Engine::new(Cpu::host(), Pipeline::Full);
        let mut kernels = Vec::new();
        for stage in &job.stages {
            let failed = |source: EngineError| CheckError::Engine {
                kernel: stage.kernel.display().to_string(),
                stage: stage.name.clone(),
                source: Box::new(source),
            };
            let kernel = Kernel::load(&stage.kernel, stage.export.as_deref()).map_err(failed)?;
            let merge = stage.merge.as_deref().map(|export| kernel.sibling(export)).transpose().map_err(failed)?;
            let baseline = baseline(&engine, &kernel, &options).map_err(failed)?;
            let optimized = optimized(&engine, &kernel, &options);
            kernels.push(Compiled { kernel, merge, baseline, optimized });
        }
        Ok(Bench { job, plan, engine, kernels, options, watch })
    }
}

/// The code to start on, by the helper where compiling it may take long.
fn baseline(engine: &Engine, kernel: &Kernel, options: &Options) -> Result<Code, EngineError> {
    match &options.helper {
        Some(helper) if kernel.start_is_risky() => {
            engine.load_start(kernel, &artifact(engine, kernel, Tier::Baseline, helper, options)?)
        }
        _ => engine.start_code(kernel),
    }
}

/// Optimized code of a kernel; or why there is none.
fn optimized(engine: &Engine, kernel: &Kernel, options: &Options) -> Result<Code, String> {
    let helper = options.helper.as_ref().filter(|_| options.optimizes).ok_or("nothing compiles it")?;
    let artifact = artifact(engine, kernel, Tier::Optimized, helper, options);
    artifact.and_then(|artifact| engine.load_artifact(kernel, &artifact)).map_err(|error| error.to_string())
}

/// Code of a kernel, from the cache or from the helper, which is held to limits.
fn artifact(
    engine: &Engine,
    kernel: &Kernel,
    tier: Tier,
    helper: &Path,
    options: &Options,
) -> Result<Vec<u8>, EngineError> {
    let cache = options.cache.as_ref();
    if let Some(artifact) = cache.and_then(|cache| cache.get(&engine.fingerprint(kernel, tier))) {
        return Ok(artifact);
    }
    let job = CompileJob { kernel, tier, threads: 1, limits: options.compile_limits, cache };
    let mut compile = BackgroundCompile::start(helper, engine, job)?;
    loop {
        match compile.poll() {
            Some(result) => return result,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Checks the kernels of a job. A kernel that does not return is a finding too, and leaves its thread running.
pub fn check(job: Job, options: Options) -> Result<Report, CheckError> {
    watched(job.name.clone(), move |watch| {
        let bench = Bench::new(job, options, watch.clone())?;
        stage::check_all(&bench);
        Ok(watch.report())
    })?
    .map_or_else(Ok, Ok)
}

/// Runs `work` on a thread of its own and returns what it returns, or, where it calls a kernel for longer than that may take,
/// the report so far with that as a finding.
fn watched<T: Send + 'static>(
    job: String,
    work: impl FnOnce(&Arc<Watch>) -> Result<T, CheckError> + Send + 'static,
) -> Result<Result<T, Report>, CheckError> {
    let watch = Arc::new(Watch::new(Report { schema: 1, job, stages: Vec::new(), findings: Vec::new() }));
    let (send, receive) = channel();
    let its = watch.clone();
    std::thread::spawn(move || send.send(work(&its)));
    loop {
        match receive.recv_timeout(LOOK) {
            Ok(result) => return result.map(Ok),
            Err(RecvTimeoutError::Disconnected) => return Err(CheckError::Panicked),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(report) = watch.overdue() {
                    return Ok(Err(report));
                }
            }
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
