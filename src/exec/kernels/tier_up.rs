//! Tier-up: optimized code comes from the cache, or the lowest rank of each CPU class compiles it. It is sent down a
//! tree of the ranks of that class.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::engine::{
    BackgroundCompile, Cache, Code, CompileJob, CompileLimits, Engine, EngineError, Kernel, OPTIMIZING_NS_PER_BYTE,
    Tier, optimize,
};
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{Tag, TaggedMessage};
use crate::exec::error::RunError;
use crate::exec::options::TierPolicy;
use crate::fabric::{Backoff, Payload, Rank};
use crate::report::KernelReport;

/// A compilation pays if the remaining work takes longer by this factor; optimized code is 3 to 20 times faster.
const WORTH: f64 = 1.3;

/// The kernels of a job, and their code on this rank.
#[derive(Debug)]
pub(in crate::exec) struct TierUp {
    engine: Engine,
    policy: TierPolicy,
    cache: Option<Cache>,
    helper: Option<PathBuf>,
    limits: CompileLimits,
    threads: usize,
    /// Ranks of this rank's CPU class, ascending; the first compiles.
    class: Vec<Rank>,
    position: usize,
    kernels: Vec<State>,
    waiting: VecDeque<usize>,
    running: Option<(usize, Compile)>,
    paused: Vec<(usize, Box<BackgroundCompile>)>,
}

#[derive(Debug)]
struct State {
    kernel: Kernel,
    start: Option<Code>,
    optimized: Option<Code>,
    /// The bytes of the optimized code, for ranks that need them after the run has shrunk.
    artifact: Option<Payload>,
    /// The reason why there is no optimized code.
    failed: Option<String>,
    report: KernelReport,
}

#[derive(Debug)]
enum Compile {
    Helper(Box<BackgroundCompile>),
    Thread(Receiver<Result<Vec<u8>, EngineError>>),
}

impl Compile {
    fn poll(&mut self) -> Option<Result<Vec<u8>, EngineError>> {
        match self {
            Compile::Helper(helper) => helper.poll(),
            Compile::Thread(result) => result.try_recv().ok(),
        }
    }
}

/// The parameters of a [`TierUp`].
#[derive(Debug)]
pub(in crate::exec) struct TierSetup {
    pub engine: Engine,
    pub policy: TierPolicy,
    pub cache: Option<Cache>,
    pub helper: Option<PathBuf>,
    pub limits: CompileLimits,
    pub threads: usize,
    pub class: Vec<Rank>,
}

impl TierUp {
    /// Starts, or starts again with the `kept` state of a run that has shrunk: sends artifacts that are in memory or in
    /// the cache at once, and queues the others for compilation. Collective.
    pub fn start<'a>(
        comm: &mut Communicator,
        setup: TierSetup,
        kernels: Vec<Kernel>,
        kept: &'a mut Option<TierUp>,
    ) -> Result<&'a mut TierUp, RunError> {
        let class = setup.class.clone();
        let tiers = kept.get_or_insert_with(|| TierUp::new(setup, kernels));
        tiers.position = class.iter().position(|rank| *rank == comm.rank()).unwrap_or(0);
        tiers.class = class;
        if tiers.policy == TierPolicy::Baseline {
            return Ok(tiers);
        }
        let mut hits = vec![0u8; tiers.kernels.len()];
        if tiers.position == 0 {
            for (index, hit) in hits.iter_mut().enumerate() {
                *hit = u8::from(tiers.send_or_queue(comm, index)?);
            }
        }
        // Ranks that will get code from the cache wait for it, so that their first task runs on it.
        let all = comm.allgather(hits)?;
        let leader = tiers.class.first().copied().unwrap_or(0);
        for (index, hit) in all[leader as usize].clone().into_iter().enumerate() {
            if hit == 1 {
                tiers.wait_for(comm, index)?;
            }
        }
        tiers.poll(comm)?;
        Ok(tiers)
    }

    /// Sends the optimized code of a kernel to the ranks of this CPU class, or queues the kernel for compilation.
    /// Returns whether the code is sent now.
    fn send_or_queue(&mut self, comm: &mut Communicator, index: usize) -> Result<bool, RunError> {
        let state = &self.kernels[index];
        if let Some(message) = state.failed.clone() {
            self.pass_on(comm, index, 0, message.as_bytes())?;
            return Ok(false);
        }
        if let Some(artifact) = state.artifact.clone() {
            self.pass_on(comm, index, 1, &artifact)?;
            return Ok(true);
        }
        if let Some(artifact) = self.cached(index, Tier::Optimized) {
            self.kernels[index].report.cache_hit = true;
            self.adopt(comm, index, artifact)?;
            return Ok(true);
        }
        let running = self.running.iter().map(|(running, _)| *running);
        let mut pending =
            running.chain(self.paused.iter().map(|(paused, _)| *paused)).chain(self.waiting.iter().copied());
        if !pending.any(|other| other == index) {
            self.waiting.push_back(index);
        }
        Ok(false)
    }

    fn cached(&self, index: usize, tier: Tier) -> Option<Vec<u8>> {
        let wanted = self.engine.fingerprint(&self.kernels[index].kernel, tier);
        self.cache.as_ref().and_then(|cache| cache.get(&wanted))
    }

    fn new(setup: TierSetup, kernels: Vec<Kernel>) -> TierUp {
        let state = |kernel: Kernel| {
            let report = KernelReport {
                kernel: kernel.name().to_owned(),
                module_hash: kernel.hash().to_owned(),
                module_bytes: kernel.bytes().len() as u64,
                ..KernelReport::default()
            };
            State { kernel, start: None, optimized: None, artifact: None, failed: None, report }
        };
        let TierSetup { engine, policy, cache, helper, limits, threads, class } = setup;
        TierUp {
            engine,
            policy,
            cache,
            helper,
            limits,
            threads,
            class,
            position: 0,
            kernels: kernels.into_iter().map(state).collect(),
            waiting: VecDeque::new(),
            running: None,
            paused: Vec::new(),
        }
    }

    pub fn kernel(&self, index: usize) -> &Kernel {
        &self.kernels[index].kernel
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the code to start a stage with: the best available code, or baseline code if `baseline` is set.
    pub fn code(
        &mut self,
        comm: &mut Communicator,
        index: usize,
        stage: &str,
        baseline: bool,
    ) -> Result<Code, RunError> {
        self.resume(index);
        if self.policy == TierPolicy::Optimized {
            self.wait_for(comm, index)?;
        }
        if let Some(code) = self.best(index, baseline) {
            return Ok(code);
        }
        if let Some(code) = &self.kernels[index].start {
            return Ok(code.clone());
        }
        let kernel = self.kernels[index].kernel.clone();
        let failed = |source| {
            let (kernel, stage) = (kernel.name().to_owned(), stage.to_owned());
            RunError::Engine { kernel, stage, source: Box::new(source) }
        };
        let code = match self.helper.clone().filter(|_| kernel.start_is_risky()) {
            None => self.engine.start_code(&kernel).map_err(failed)?,
            Some(helper) => {
                let artifact = match self.cached(index, Tier::Baseline) {
                    Some(artifact) => artifact,
                    None => match self.compile_start(comm, index, &helper, baseline)? {
                        Some(compiled) => compiled.map_err(failed)?,
                        // Better code has arrived meanwhile.
                        None => return self.code(comm, index, stage, baseline),
                    },
                };
                self.engine.load_start(&kernel, &artifact).map_err(failed)?
            }
        };
        let state = &mut self.kernels[index];
        state.report.start_compiler = code.compiler().to_owned();
        state.report.start_reason = code.start_reason().map(str::to_owned);
        state.report.start_compile_ns = code.compile_ns();
        state.start = Some(code.clone());
        Ok(code)
    }

    /// Returns optimized code to start a stage with, if it has arrived and may be used.
    fn best(&mut self, index: usize, baseline: bool) -> Option<Code> {
        let state = &mut self.kernels[index];
        let code = state.optimized.clone().filter(|_| !baseline)?;
        if state.report.start_compiler.is_empty() {
            state.report.start_compiler = code.compiler().to_owned();
        }
        Some(code)
    }

    /// Starts a helper that compiles the code to start with. Waits for it, or until better code arrives. Signals and
    /// failures of other ranks end the wait and the helper.
    fn compile_start(
        &mut self,
        comm: &mut Communicator,
        index: usize,
        helper: &Path,
        baseline: bool,
    ) -> Result<Option<Result<Vec<u8>, EngineError>>, RunError> {
        let kernel = self.kernels[index].kernel.clone();
        let (threads, limits, cache) = (self.threads, self.limits, self.cache.as_ref());
        let job = CompileJob { kernel: &kernel, tier: Tier::Baseline, threads, limits, cache };
        let mut compile = match BackgroundCompile::start(helper, &self.engine, job) {
            Ok(compile) => compile,
            Err(error) => return Ok(Some(Err(error))),
        };
        let mut backoff = Backoff::default();
        loop {
            if let Some(result) = compile.poll() {
                return Ok(Some(result));
            }
            while let Some(message) = comm.poll(|tag| tag == Tag::Artifact)? {
                self.receive(comm, &message)?;
            }
            self.poll(comm)?;
            if self.best(index, baseline).is_some() {
                return Ok(None);
            }
            backoff.wait();
        }
    }

    /// The optimized code of a kernel, if it has arrived.
    pub fn optimized(&self, index: usize) -> Option<&Code> {
        self.kernels[index].optimized.as_ref()
    }

    /// Pauses the compilation of a kernel if it costs more than it can save: `left` is the CPU time that this rank
    /// still needs on baseline code.
    pub fn reconsider_compile(&mut self, index: usize, left: Duration) {
        let cost = Duration::from_nanos(self.kernels[index].kernel.code_bytes() * OPTIMIZING_NS_PER_BYTE);
        if left.mul_f64(self.class.len() as f64) > cost.mul_f64(WORTH) {
            return;
        }
        match self.running.take() {
            Some((running, Compile::Helper(mut helper))) if running == index => {
                helper.pause();
                self.paused.push((index, helper));
                let hint =
                    format!("stayed on baseline code: optimizing takes about {cost:.1?}, more than it would save");
                self.kernels[index].report.hints.push(hint);
            }
            other => self.running = other,
        }
    }

    /// Resumes a paused compilation: a stage that starts decides again.
    fn resume(&mut self, index: usize) {
        if self.running.is_none()
            && let Some(position) = self.paused.iter().position(|(paused, _)| *paused == index)
        {
            let (_, mut helper) = self.paused.swap_remove(position);
            helper.resume();
            self.running = Some((index, Compile::Helper(helper)));
        }
    }

    fn wait_for(&mut self, comm: &mut Communicator, index: usize) -> Result<(), RunError> {
        let mut backoff = Backoff::default();
        while self.kernels[index].optimized.is_none() {
            if let Some(message) = &self.kernels[index].failed {
                let name = self.kernels[index].kernel.name().to_owned();
                let source = EngineError::Compile { name, compiler: "llvm", message: message.clone() };
                return Err(RunError::NoOptimizedCode { source: Box::new(source) });
            }
            while let Some(message) = comm.poll(|tag| tag == Tag::Artifact)? {
                self.receive(comm, &message)?;
            }
            self.poll(comm)?;
            backoff.wait();
        }
        Ok(())
    }

    /// Advances compilations. The main loop calls it often.
    pub fn poll(&mut self, comm: &mut Communicator) -> Result<(), RunError> {
        if let Some((index, compile)) = &mut self.running {
            let index = *index;
            match compile.poll() {
                None => return Ok(()),
                Some(Ok(artifact)) => {
                    self.running = None;
                    self.kernels[index].report.optimizing_compiles += 1;
                    self.adopt(comm, index, artifact)?;
                }
                Some(Err(error)) => {
                    self.running = None;
                    self.fail(comm, index, error.to_string())?;
                }
            }
        }
        while self.running.is_none()
            && let Some(index) = self.waiting.pop_front()
        {
            match self.begin(index) {
                Ok(compile) => self.running = Some((index, compile)),
                Err(error) => self.fail(comm, index, error.to_string())?,
            }
        }
        Ok(())
    }

    fn begin(&self, index: usize) -> Result<Compile, EngineError> {
        let kernel = self.kernels[index].kernel.clone();
        match &self.helper {
            Some(helper) => {
                let (threads, limits, cache) = (self.threads, self.limits, self.cache.as_ref());
                let job = CompileJob { kernel: &kernel, tier: Tier::Optimized, threads, limits, cache };
                let started = BackgroundCompile::start(helper, &self.engine, job)?;
                Ok(Compile::Helper(Box::new(started)))
            }
            None => {
                let (sender, receiver) = channel();
                let (cpu, pipeline) = (self.engine.cpu().clone(), self.engine.pipeline());
                let cache = self.cache.clone();
                std::thread::spawn(move || {
                    let result = optimize(&kernel, &cpu, pipeline);
                    if let (Ok(artifact), Some(cache)) = (&result, cache)
                        && let Err(error) = cache.put(artifact)
                    {
                        tracing::warn!("{error}");
                    }
                    sender.send(result)
                });
                Ok(Compile::Thread(receiver))
            }
        }
    }

    /// Handles an artifact, or the news that there is none, from the parent in the tree.
    pub fn receive(&mut self, comm: &mut Communicator, message: &TaggedMessage) -> Result<(), RunError> {
        let wrong = || RunError::Protocol { rank: message.source, what: "an artifact" };
        let (index, rest) = message.bytes.split_first_chunk::<4>().ok_or_else(wrong)?;
        let index = u32::from_le_bytes(*index) as usize;
        let (&whole, rest) = rest.split_first().ok_or_else(wrong)?;
        if index >= self.kernels.len() {
            return Err(wrong());
        }
        match whole {
            1 => self.adopt(comm, index, rest.to_vec()),
            _ => self.fail(comm, index, String::from_utf8_lossy(rest).into_owned()),
        }
    }

    fn adopt(&mut self, comm: &mut Communicator, index: usize, artifact: Vec<u8>) -> Result<(), RunError> {
        self.pass_on(comm, index, 1, &artifact)?;
        let state = &mut self.kernels[index];
        if state.optimized.is_some() {
            return Ok(());
        }
        match self.engine.load_artifact(&state.kernel, &artifact) {
            Ok(code) => {
                state.report.artifact_bytes = Some(artifact.len() as u64);
                state.report.optimize_ns = Some(code.compile_ns());
                state.optimized = Some(code);
                state.artifact = Some(artifact.into());
            }
            Err(error) => self.record_failure(index, error.to_string()),
        }
        Ok(())
    }

    fn fail(&mut self, comm: &mut Communicator, index: usize, message: String) -> Result<(), RunError> {
        self.pass_on(comm, index, 0, message.as_bytes())?;
        self.record_failure(index, message);
        Ok(())
    }

    /// Records that a kernel has no optimized code. The job continues without it, and the report says why.
    fn record_failure(&mut self, index: usize, message: String) {
        let state = &mut self.kernels[index];
        if self.position == 0 {
            state.report.hints.push(format!("stayed on baseline code: {message}"));
        }
        state.failed = Some(message);
    }

    fn pass_on(&self, comm: &mut Communicator, index: usize, whole: u8, bytes: &[u8]) -> Result<(), RunError> {
        let children = [2 * self.position + 1, 2 * self.position + 2];
        let mut message = (index as u32).to_le_bytes().to_vec();
        message.push(whole);
        message.extend_from_slice(bytes);
        let message = Payload::from(message);
        for child in children.into_iter().filter_map(|position| self.class.get(position)) {
            comm.send(*child, Tag::Artifact, message.clone())?;
        }
        Ok(())
    }

    /// Leaves unfinished compilations to their helpers once the last stage is over: later runs use their code.
    pub fn finish(&mut self) {
        let running = self.running.take().and_then(|(index, compile)| match compile {
            Compile::Helper(helper) => Some((index, helper)),
            Compile::Thread(_) => None,
        });
        for (index, helper) in self.paused.drain(..).chain(running) {
            if let Some(process) = helper.leave() {
                let hint = format!("process {process} continues to optimize it for later runs");
                self.kernels[index].report.hints.push(hint);
            }
        }
    }

    /// The report of the kernels on this rank.
    pub fn reports(&self) -> Vec<KernelReport> {
        self.kernels.iter().map(|state| state.report.clone()).collect()
    }

    /// The longest sleep of the main loop: compiled code does not wait longer.
    pub const PATIENCE: Duration = Duration::from_micros(500);
}
