//! Compilation and loading of code: the engine, its two compilers and their artifacts.
#![expect(unsafe_code, reason = "loading machine code that this program made")]

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use wasmer::sys::{CompilerConfig, EngineBuilder};
use wasmer_compiler_llvm::{LLVM, LLVMOptLevel};
use wasmer_compiler_singlepass::Singlepass;

use super::artifact::{Artifact, ArtifactFingerprint, Pipeline};
use super::pipeline::FullPipeline;
use crate::engine::error::EngineError;
use crate::engine::kernel::Kernel;
use crate::engine::module_rewrite::{HostState, rewrite};
use crate::engine::pipeline::Cpu;
use crate::engine::tier::Tier;

/// Compiled code of one kernel, shared by all workers of a rank. Cheap to clone.
#[derive(Clone)]
pub struct Code(Arc<CompiledCode>);

struct CompiledCode {
    tier: Tier,
    compiler: &'static str,
    start_reason: Option<String>,
    compile_ns: u64,
    module: wasmer::Module,
    state: HostState,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({} by {})", self.0.tier.name(), self.0.compiler)
    }
}

impl Code {
    pub fn tier(&self) -> Tier {
        self.0.tier
    }

    /// `singlepass`, `llvm -O0` or `llvm`.
    pub fn compiler(&self) -> &'static str {
        self.0.compiler
    }

    /// Why the baseline code does not come from Singlepass, if it does not.
    pub fn start_reason(&self) -> Option<&str> {
        self.0.start_reason.as_deref()
    }

    /// The time of the compile, in whichever process it ran.
    pub fn compile_ns(&self) -> u64 {
        self.0.compile_ns
    }

    pub(super) fn module(&self) -> &wasmer::Module {
        &self.0.module
    }

    pub(super) fn state(&self) -> &HostState {
        &self.0.state
    }
}

/// Compiles baseline code and holds all code of a rank. Its code lives as long as it does. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    run: wasmer::Engine,
    cpu: Cpu,
    pipeline: Pipeline,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({})", self.cpu.name)
    }
}

impl Engine {
    /// An engine whose optimized code is for `cpu`.
    pub fn new(cpu: Cpu, pipeline: Pipeline) -> Engine {
        Engine { run: EngineBuilder::new(singlepass()).engine().into(), cpu, pipeline }
    }

    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    pub fn pipeline(&self) -> Pipeline {
        self.pipeline
    }

    pub(super) fn run(&self) -> &wasmer::Engine {
        &self.run
    }

    /// The fingerprint that code of `kernel` must have to be loadable here.
    pub fn fingerprint(&self, kernel: &Kernel, tier: Tier) -> ArtifactFingerprint {
        ArtifactFingerprint::new(kernel, tier, &self.cpu, self.pipeline)
    }

    /// Compiles baseline code in this process: by Singlepass, or by LLVM without optimization where Singlepass cannot.
    /// If [`Kernel::start_is_risky`], compile it in a separate process instead ([`start_artifact`]).
    pub fn start_code(&self, kernel: &Kernel) -> Result<Code, EngineError> {
        if kernel.baseline_obstacle().is_some() {
            return self.load_start(kernel, &start_artifact(kernel, &self.cpu, self.pipeline)?);
        }
        let started = Instant::now();
        let rewritten = rewritten(kernel)?;
        let compiler = "singlepass";
        let module = wasmer::Module::new(&self.run, &rewritten.baseline).map_err(compile_error(kernel, compiler))?;
        let compile_ns = started.elapsed().as_nanos() as u64;
        let (tier, state) = (Tier::Baseline, rewritten.state);
        Ok(Code(Arc::new(CompiledCode { tier, compiler, start_reason: None, compile_ns, module, state })))
    }

    /// Loads baseline code from an artifact, with the checks of [`Engine::load_artifact`].
    pub fn load_start(&self, kernel: &Kernel, bytes: &[u8]) -> Result<Code, EngineError> {
        let obstacle = kernel.baseline_obstacle();
        let compiler = if obstacle.is_some() { "llvm -O0" } else { "singlepass" };
        let reason = obstacle.map(|obstacle| format!("Singlepass cannot compile {obstacle}"));
        self.load_tier(kernel, Tier::Baseline, compiler, reason, bytes)
    }

    /// Loads optimized code from an artifact, after checking that it is exactly what this engine would have made.
    pub fn load_artifact(&self, kernel: &Kernel, bytes: &[u8]) -> Result<Code, EngineError> {
        self.load_tier(kernel, Tier::Optimized, "llvm", None, bytes)
    }

    fn load_tier(
        &self,
        kernel: &Kernel,
        tier: Tier,
        compiler: &'static str,
        start_reason: Option<String>,
        bytes: &[u8],
    ) -> Result<Code, EngineError> {
        let refused = |message| EngineError::Artifact { name: kernel.name().to_owned(), message };
        let artifact = Artifact::parse(bytes).map_err(refused)?;
        artifact.check(kernel.name(), &self.fingerprint(kernel, tier))?;
        let (module, state) = (self.load(kernel, artifact.code)?, rewritten(kernel)?.state);
        let compile_ns = artifact.compile_ns;
        Ok(Code(Arc::new(CompiledCode { tier, compiler, start_reason, compile_ns, module, state })))
    }

    fn load(&self, kernel: &Kernel, serialized: &[u8]) -> Result<wasmer::Module, EngineError> {
        // SAFETY: the bytes are wasmer's own, made by this version of this program: either just now in this process, or
        // under a checksum and fingerprint that were compared above.
        unsafe { wasmer::Module::deserialize(&self.run, serialized.to_vec()) }
            .map_err(|e| EngineError::Artifact { name: kernel.name().to_owned(), message: e.to_string() })
    }
}

/// Compiles a kernel with LLVM in this process and returns the artifact. Takes up to seconds per 100 kB of module.
pub fn optimize(kernel: &Kernel, cpu: &Cpu, pipeline: Pipeline) -> Result<Vec<u8>, EngineError> {
    let started = Instant::now();
    let mut llvm = LLVM::new();
    let full = Arc::new(FullPipeline::new((pipeline == Pipeline::Full).then(|| cpu.clone())));
    llvm.callbacks(Some(full.clone()));
    let code = compile(kernel, EngineBuilder::new(llvm), "llvm", &rewritten(kernel)?.optimizable)?;
    if pipeline == Pipeline::Full
        && let Some(message) = full.error().or_else(|| (full.optimized() == 0).then(|| "no function".to_owned()))
    {
        let message = format!("the optimizing pipeline did not run: {message}");
        return Err(EngineError::Compile { name: kernel.name().to_owned(), compiler: "llvm", message });
    }
    let compile_ns = started.elapsed().as_nanos() as u64;
    to_artifact(kernel, Tier::Optimized, cpu, pipeline, compile_ns, &code)
}

/// Compiles the baseline code of a kernel in this process and returns the artifact.
pub fn start_artifact(kernel: &Kernel, cpu: &Cpu, pipeline: Pipeline) -> Result<Vec<u8>, EngineError> {
    let (started, rewritten) = (Instant::now(), rewritten(kernel)?);
    let code = match kernel.baseline_obstacle() {
        None => compile(kernel, EngineBuilder::new(singlepass()), "singlepass", &rewritten.baseline)?,
        Some(_) => {
            let mut llvm = LLVM::new();
            llvm.opt_level(LLVMOptLevel::None).callbacks(Some(Arc::new(FullPipeline::new(None))));
            compile(kernel, EngineBuilder::new(llvm), "llvm -O0", &rewritten.optimizable)?
        }
    };
    let compile_ns = started.elapsed().as_nanos() as u64;
    to_artifact(kernel, Tier::Baseline, cpu, pipeline, compile_ns, &code)
}

fn to_artifact(
    kernel: &Kernel,
    tier: Tier,
    cpu: &Cpu,
    pipeline: Pipeline,
    compile_ns: u64,
    code: &[u8],
) -> Result<Vec<u8>, EngineError> {
    let fingerprint = ArtifactFingerprint::new(kernel, tier, cpu, pipeline);
    let bytes = Artifact { fingerprint, compile_ns, code }.to_bytes();
    bytes.map_err(|error| EngineError::Artifact { name: kernel.name().to_owned(), message: error.to_string() })
}

fn singlepass() -> Singlepass {
    let mut singlepass = Singlepass::new();
    CompilerConfig::canonicalize_nans(&mut singlepass, true);
    singlepass
}

/// Compiles on a separate engine, since a compile locks its engine.
fn compile(
    kernel: &Kernel,
    builder: EngineBuilder,
    compiler: &'static str,
    module: &[u8],
) -> Result<Vec<u8>, EngineError> {
    let engine: wasmer::Engine = builder.engine().into();
    let module = wasmer::Module::new(&engine, module).map_err(compile_error(kernel, compiler))?;
    let failed = |e: wasmer::SerializeError| EngineError::Compile {
        name: kernel.name().to_owned(),
        compiler,
        message: e.to_string(),
    };
    Ok(module.serialize().map_err(failed)?.to_vec())
}

fn rewritten(kernel: &Kernel) -> Result<crate::engine::module_rewrite::Rewritten, EngineError> {
    rewrite(kernel.bytes()).map_err(|e| EngineError::Invalid {
        name: kernel.name().to_owned(),
        message: e.to_string(),
        place: "as it is rewritten".to_owned(),
    })
}

fn compile_error(kernel: &Kernel, compiler: &'static str) -> impl Fn(wasmer::CompileError) -> EngineError {
    let name = kernel.name().to_owned();
    move |e| EngineError::Compile { name: name.clone(), compiler, message: e.to_string() }
}
