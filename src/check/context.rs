//! The job under check with its compiled kernels.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::check::error::CheckError;
use crate::check::watch::CallWatch;
use crate::engine::{
    BackgroundCompile, Cache, Code, CompileJob, CompileLimits, Cpu, Engine, EngineError, Kernel, Pipeline, Tier,
};
use crate::exec;
use crate::job::Job;
use crate::plan::{Machine, Plan, plan};
use crate::topology;

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

/// A kernel and its code.
#[derive(Debug)]
pub(super) struct Compiled {
    pub kernel: Kernel,
    pub merge: Option<Kernel>,
    pub baseline: Code,
    pub optimized: Result<Code, String>,
}

impl Compiled {
    pub fn codes(&self) -> Vec<&Code> {
        [&self.baseline].into_iter().chain(&self.optimized).collect()
    }

    /// The fastest code.
    pub fn best(&self) -> &Code {
        self.optimized.as_ref().unwrap_or(&self.baseline)
    }
}

/// A job under check, planned for one rank.
pub(super) struct CheckContext {
    pub job: Job,
    pub plan: Plan,
    pub engine: Engine,
    pub kernels: Vec<Compiled>,
    pub options: CheckOptions,
    pub watch: Arc<CallWatch>,
}

impl CheckContext {
    pub fn new(job: Job, options: CheckOptions, watch: Arc<CallWatch>) -> Result<CheckContext, CheckError> {
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
