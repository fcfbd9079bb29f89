//! `exuvia check`: tests whether the kernels of a job conform to the kernel interface, on samples of the job's data.
//!
//! Each stage runs on samples of its data, on both tiers, cut in many ways, in tiles that end or begin at inaccessible
//! pages, with outputs that hold different patterns before. A result that depends on any of these is a finding, with
//! its first element. The inputs of a stage that other stages produce are computed by running these on the needed part
//! only.
//!
//! Refuses to do: proving anything. Errors that no sample shows are not found. It uses `engine`, `job`, `plan`, `store`
//! and
//! `tensor`, and of `exec` how partial results are merged. Invariant: time and memory are bounded by its options, but
//! for one call of a kernel, which the limits of its stage bound.

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
pub use finding::{Finding, FindingKind, value};
use watch::CallWatch;

/// The interval in which the main thread checks the time of a call.
const POLL: Duration = Duration::from_millis(20);

/// The limits and the environment of a check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The time for all stages.
    pub time: Duration,
    /// The most bytes of the split operands of a sample.
    pub sample_bytes: u64,
    /// The memory for tensors between stages.
    pub memory_bytes: u64,
    pub cache: Option<Cache>,
    /// The program that compiles in a helper process.
    pub helper: Option<PathBuf>,
    pub compile_limits: CompileLimits,
    /// Whether to check optimized code too.
    pub optimizes: bool,
}

/// The result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    pub schema: u32,
    pub job: String,
    pub stages: Vec<StageCheck>,
    pub findings: Vec<Finding>,
}

/// The check of one stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageCheck {
    pub stage: String,
    pub kernel: String,
    pub export: String,
    /// The hash of the module.
    pub module_hash: String,
    /// The numbers of samples, of cuts of the samples and of kernel calls.
    pub samples: u64,
    pub cuts: u64,
    pub tasks: u64,
    pub tiers: Vec<&'static str>,
    /// Parts that could not be checked.
    pub notes: Vec<String>,
    /// Whether the stage was checked wholly and without findings.
    pub passed: bool,
}

/// An error that prevents a check.
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
    #[error("cannot compute '{tensor}': {reason}")]
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

    /// The fastest code.
    fn best(&self) -> &Code {
        self.optimized.as_ref().unwrap_or(&self.baseline)
    }
}

/// A job under check, planned for one rank.
struct CheckContext {
    job: Job,
    plan: Plan,
    engine: Engine,
    kernels: Vec<Compiled>,
    options: CheckOptions,
    watch: Arc<CallWatch>,
}

impl CheckContext {
    fn new(job: Job, options: CheckOptions, watch: Arc<CallWatch>) -> Result<CheckContext, CheckError> {
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
        Ok(CheckContext { job, plan, engine, kernels, options, watch })
    }
}

/// Compiles the baseline code, in the helper process if that may take long.
fn baseline(engine: &Engine, kernel: &Kernel, options: &CheckOptions) -> Result<Code, EngineError> {
    match &options.helper {
        Some(helper) if kernel.start_is_risky() => {
            engine.load_start(kernel, &artifact(engine, kernel, Tier::Baseline, helper, options)?)
        }
        _ => engine.start_code(kernel),
    }
}

/// Compiles the optimized code of a kernel, or returns why there is none.
fn optimized(engine: &Engine, kernel: &Kernel, options: &CheckOptions) -> Result<Code, String> {
    let helper = options.helper.as_ref().filter(|_| options.optimizes).ok_or("optimization is disabled")?;
    let artifact = artifact(engine, kernel, Tier::Optimized, helper, options);
    artifact.and_then(|artifact| engine.load_artifact(kernel, &artifact)).map_err(|error| error.to_string())
}

/// Returns the code of a kernel from the cache or from the helper process, which has limits.
fn artifact(
    engine: &Engine,
    kernel: &Kernel,
    tier: Tier,
    helper: &Path,
    options: &CheckOptions,
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
pub fn check(job: Job, options: CheckOptions) -> Result<CheckReport, CheckError> {
    watched(job.name.clone(), move |watch| {
        let bench = CheckContext::new(job, options, watch.clone())?;
        stage::check_all(&bench);
        Ok(watch.report())
    })?
    .map_or_else(Ok, Ok)
}

/// Runs `work` on its own thread and returns its result. If a kernel call exceeds its time limit, returns the report so
/// far with the call as a finding.
fn watched<T: Send + 'static>(
    job: String,
    work: impl FnOnce(&Arc<CallWatch>) -> Result<T, CheckError> + Send + 'static,
) -> Result<Result<T, CheckReport>, CheckError> {
    let watch = Arc::new(CallWatch::new(CheckReport { schema: 1, job, stages: Vec::new(), findings: Vec::new() }));
    let (send, receive) = channel();
    let its = watch.clone();
    std::thread::spawn(move || send.send(work(&its)));
    loop {
        match receive.recv_timeout(POLL) {
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
