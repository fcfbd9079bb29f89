//! Compiling in a process of its own: compilers may abort the process they run in, or take hours and all memory for a small
//! module, and then only the helper is gone. The system holds it to limits of CPU time and memory.
//!
//! Protocol: the request is one line of JSON on the helper's standard input, followed by the module; the artifact goes
//! into the cache and comes back on standard output, an error on standard error with a non-zero status. Standard input
//! stays open as a lifeline: the helper dies when it closes, unless a byte on it says that it shall finish for later runs;
//! then it is one of a few that are known (`leftover`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::artifact::{Artifact, ArtifactFingerprint};
use crate::encode::encode;
use crate::engine::artifact::Pipeline;
use crate::engine::cache::Cache;
use crate::engine::code::{Engine, optimize, start_artifact};
use crate::engine::error::EngineError;
use crate::engine::kernel::Kernel;
use crate::engine::orphans;
use crate::engine::orphans::HelperSlot;
use crate::engine::pipeline::Cpu;
use crate::engine::tier::Tier;

/// The hidden command-line verb that runs [`compile_helper_main`].
pub const HELPER_VERB: &str = "compile-kernel";
/// Of a helper that nobody waits for any more: the least important there is.
const IDLE_NICENESS: i32 = 19;
const LAST_WORDS_BYTES: usize = 2_000;
/// More code than this is not loaded.
const ARTIFACT_BYTES: u64 = 1 << 30;
/// How often a helper that nobody waits for looks whether it may go on.
const GLANCE: Duration = Duration::from_secs(1);
/// After this time it ends all the same.
const LEFT_ALONE_MOST: Duration = Duration::from_secs(1_800);
/// CPU time that LLVM takes for a byte of code, more or less (measured: 30,000 to 60,000).
pub const OPTIMIZING_NS_PER_BYTE: u64 = 55_000;
/// A module may take so many times as long as one of its size should.
const SLOW: u64 = 10;
/// A helper may be there for so many times the CPU time that it may take: without memory, threads may wait for one another
/// for ever.
const IDLE: u32 = 4;
/// With less memory than this the helper does not get as far as its compiler.
const LEAST_MEMORY_BYTES: u64 = 32 << 20;

/// What one compile may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompileLimits {
    /// CPU time of all its threads; larger modules get more.
    pub time: Duration,
    pub memory_bytes: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        CompileLimits { time: Duration::from_secs(60), memory_bytes: 4 << 30 }
    }
}

impl CompileLimits {
    fn cpu_seconds(&self, kernel: &Kernel) -> u64 {
        let by_size = Duration::from_nanos(kernel.code_bytes() * OPTIMIZING_NS_PER_BYTE * SLOW);
        (self.time + by_size).as_secs_f64().ceil().max(1.0) as u64
    }
}

#[derive(Serialize, Deserialize)]
struct CompileRequest {
    name: String,
    export: String,
    tier: Tier,
    cpu: Cpu,
    pipeline: Pipeline,
    threads: usize,
    cpu_seconds: u64,
    memory_bytes: u64,
    /// Directory of the cache that keeps the artifact.
    cache: Option<PathBuf>,
    module_bytes: usize,
}

/// A compile under way. Dropping it ends the helper.
#[derive(Debug)]
pub struct BackgroundCompile {
    child: Helper,
    name: String,
    program: PathBuf,
    /// Identity of what it makes.
    key: String,
    limits: String,
    /// When it is ended, and since when it stands still.
    until: Instant,
    paused: Option<Instant>,
    /// The artifact, if it is one, and last words.
    result: Receiver<(Option<Vec<u8>>, String)>,
    /// Keeps standard input open; a message lets the helper live on.
    lifeline: Sender<()>,
    writer: JoinHandle<()>,
    cache: Option<Cache>,
}

impl BackgroundCompile {
    /// Starts `program compile-kernel` on `kernel`, for code of `tier`, with at most `threads` threads. The artifact is kept
    /// in `cache`.
    pub fn start(
        program: &Path,
        engine: &Engine,
        (kernel, tier): (&Kernel, Tier),
        threads: usize,
        limits: CompileLimits,
        cache: Option<&Cache>,
    ) -> Result<Self, EngineError> {
        let failed = failure(kernel.name(), program);
        let request = CompileRequest {
            name: kernel.name().to_owned(),
            export: kernel.export().to_owned(),
            tier,
            cpu: engine.cpu().clone(),
            pipeline: engine.pipeline(),
            threads: threads.max(1),
            cpu_seconds: limits.cpu_seconds(kernel),
            memory_bytes: limits.memory_bytes.max(LEAST_MEMORY_BYTES),
            cache: cache.map(|cache| cache.directory().to_owned()),
            module_bytes: kernel.bytes().len(),
        };
        let limits = format!(
            "{} s of CPU time and {} of memory (EXUVIA_COMPILE_TIME, EXUVIA_COMPILE_MEMORY)",
            request.cpu_seconds,
            bytesize::ByteSize(request.memory_bytes)
        );
        let until = Instant::now() + Duration::from_secs(request.cpu_seconds) * IDLE;
        let mut input = encode(&request).map_err(|error| failed(error.to_string()))?;
        let mut command = Command::new(program);
        command.arg(HELPER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(format!("it cannot be started: {e}")))?;
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("no pipes".to_owned()));
        };
        input.push(b'\n');
        input.extend_from_slice(kernel.bytes());
        let (sender, result) = channel();
        let words = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            let start = text.len().saturating_sub(LAST_WORDS_BYTES);
            String::from_utf8_lossy(&text[start..]).trim().to_owned()
        });
        let (lifeline, held) = channel();
        let writer = thread::spawn(move || {
            // A helper that died early closes its end; its last words say more than the broken pipe.
            let _ = stdin.write_all(&input);
            if held.recv().is_ok() {
                let _ = stdin.write_all(b"\n");
            }
        });
        thread::spawn(move || {
            let mut artifact = Vec::new();
            let read = stdout.by_ref().take(ARTIFACT_BYTES).read_to_end(&mut artifact);
            // Whoever writes more is told so by the pipe.
            drop(stdout);
            let words = words.join().unwrap_or_default();
            let whole = read.is_ok() && Artifact::parse(&artifact).is_ok();
            if whole && !words.is_empty() {
                tracing::warn!("{words}");
            }
            let _ = sender.send((whole.then_some(artifact), words));
        });
        let (name, program, cache) = (kernel.name().to_owned(), program.to_owned(), cache.cloned());
        let key = engine.fingerprint(kernel, tier).key();
        let (child, paused) = (Helper(child), None);
        Ok(BackgroundCompile { child, name, program, key, limits, until, paused, result, lifeline, writer, cache })
    }

    /// Stops the helper, until it is resumed or left alone: the workers need its CPU time more.
    pub fn pause(&mut self) {
        self.child.signal(Signal::STOP);
        self.paused = self.paused.or(Some(Instant::now()));
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        self.child.signal(Signal::CONT);
        self.until += self.paused.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Lets the helper finish for the cache, though nobody waits for it here. Returns its process id; `None` where there
    /// is no cache, or where enough others or one for the same go on already, and
    /// nothing goes on.
    pub fn leave(mut self) -> Option<u32> {
        if !orphans::has_room(self.cache.as_ref()?, &self.key) {
            return None;
        }
        self.resume();
        self.lifeline.send(()).ok()?;
        self.writer.join().ok()?;
        let id = self.child.0.id();
        // What is dropped is killed.
        std::mem::forget(self.child);
        Some(id)
    }

    /// The artifact or the failure, once; `None` while the compile runs.
    pub fn poll(&mut self) -> Option<Result<Vec<u8>, EngineError>> {
        if self.paused.is_none() && Instant::now() > self.until {
            // What comes then is its last words.
            self.child.signal(Signal::KILL);
        }
        let (artifact, words) = self.result.try_recv().ok()?;
        let status = self.child.0.wait();
        Some(artifact.ok_or_else(|| {
            let message = self.how_it_ended(status.ok(), &words);
            failure(&self.name, &self.program)(message)
        }))
    }

    fn how_it_ended(&self, status: Option<ExitStatus>, words: &str) -> String {
        let said = if words.is_empty() { String::new() } else { format!(": {words}") };
        match status.and_then(|status| status.signal()) {
            Some(signal) if signal == Signal::XCPU.as_raw() || signal == Signal::KILL.as_raw() => {
                format!("it took more than it may, {}, and was ended{said}", self.limits)
            }
            Some(signal) => format!("it crashed (signal {signal}; it may take {}){said}", self.limits),
            None if words.is_empty() => "it ended without a word".to_owned(),
            None => words.to_owned(),
        }
    }
}

/// The helper process; dropping it ends it.
#[derive(Debug)]
struct Helper(Child);

impl Helper {
    /// To a helper that is gone, nothing happens: it has not been waited for, so its id is still its own.
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.0), signal);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn failure(name: &str, helper: &Path) -> impl Fn(String) -> EngineError + use<> {
    let (name, helper): (String, PathBuf) = (name.to_owned(), helper.to_owned());
    move |message| EngineError::Helper { name: name.clone(), helper: helper.clone(), message }
}

/// The helper's side: one request, one artifact.
pub fn compile_helper_main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nobody waits for the answer any more.
static LEFT_ALONE: AtomicBool = AtomicBool::new(false);

fn answer() -> Result<(), String> {
    let mut input = BufReader::new(std::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line).map_err(|e| e.to_string())?;
    let request: CompileRequest = serde_json::from_str(&line).map_err(|e| e.to_string())?;
    let mut module = vec![0; request.module_bytes];
    input.read_exact(&mut module).map_err(|e| e.to_string())?;
    bound(&request);
    let kernel = Kernel::from_bytes(&request.name, &module, Some(&request.export)).map_err(|e| e.to_string())?;
    let fingerprint = ArtifactFingerprint::new(&kernel, request.tier, &request.cpu, request.pipeline);
    // Without a cache that can be used, the job can use the artifact all the same.
    let cache =
        request.cache.as_deref().map(Cache::reopen).and_then(|cache| cache.inspect_err(|e| eprintln!("{e}")).ok());
    let (known, left_by) = (cache.clone(), (fingerprint.key(), request.name));
    thread::spawn(move || heed(input, known.as_ref(), left_by));
    // wasmer compiles the functions of a module on rayon's global pool.
    rayon::ThreadPoolBuilder::new().num_threads(request.threads).build_global().map_err(|e| e.to_string())?;
    let others = cache.as_ref().and_then(|cache| await_leftover(cache, &kernel, &fingerprint));
    let artifact = match (others, request.tier) {
        (Some(artifact), _) => artifact,
        (None, Tier::Baseline) => start_artifact(&kernel, &request.cpu, request.pipeline).map_err(|e| e.to_string())?,
        (None, Tier::Optimized) => optimize(&kernel, &request.cpu, request.pipeline).map_err(|e| e.to_string())?,
    };
    if let Some(cache) = &cache
        && let Err(error) = cache.put(&artifact)
    {
        eprintln!("{error}");
    }
    if LEFT_ALONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    std::io::stdout().write_all(&artifact).map_err(|e| e.to_string())
}

/// Limits this process as it was asked to; lower limits stay.
fn bound(request: &CompileRequest) {
    let lower = |resource, limit: u64| {
        let maximum = getrlimit(resource).maximum;
        let limit = Some(maximum.map_or(limit, |maximum| maximum.min(limit)));
        // To set a lower limit is always allowed.
        let _ = setrlimit(resource, Rlimit { current: limit, maximum: limit });
    };
    lower(Resource::Data, request.memory_bytes);
    lower(Resource::Core, 0);
    let (seconds, maximum) = (request.cpu_seconds, getrlimit(Resource::Cpu).maximum);
    // A signal says which limit it was, before the one that nobody can catch.
    let within = |limit: u64| Some(maximum.map_or(limit, |maximum| maximum.min(limit)));
    let _ = setrlimit(Resource::Cpu, Rlimit { current: within(seconds), maximum: within(seconds + 5) });
}

/// Lets another helper finish that is at the same module for nobody in particular, for as long as this one would need, and
/// takes its place after that, since it has the lowest priority.
fn await_leftover(cache: &Cache, kernel: &Kernel, wanted: &ArtifactFingerprint) -> Option<Vec<u8>> {
    let patience = Duration::from_nanos(kernel.code_bytes() * OPTIMIZING_NS_PER_BYTE).max(GLANCE);
    let (started, key) = (Instant::now(), wanted.key());
    let at_it = || orphans::list(cache).into_iter().find(|left| left.key == key);
    let mut left = at_it()?;
    while started.elapsed() < patience {
        thread::sleep(Duration::from_millis(20));
        match at_it() {
            Some(still) => left = still,
            None => return cache.get(wanted),
        }
    }
    left.dismiss();
    None
}

/// Ends this process when the lifeline does, unless a message on it came first.
fn heed(mut lifeline: impl Read, cache: Option<&Cache>, (key, name): (String, String)) {
    // Sent even to a process that is stopped. Of this thread, which takes it back.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if lifeline.read_exact(&mut [0]).is_err() {
        // Whoever wanted the artifact is gone.
        end();
    }
    let Some(slot) = cache.and_then(|cache| HelperSlot::take(cache, &key, &name)) else { end() };
    LEFT_ALONE.store(true, Ordering::Relaxed);
    let _ = rustix::process::set_parent_process_death_signal(None);
    // On Linux a priority is a thread's own.
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let _ = rustix::process::setpriority_process(Pid::from_raw(thread), IDLE_NICENESS);
    }
    let since = Instant::now();
    while slot.is_mine() && since.elapsed() < LEFT_ALONE_MOST {
        thread::sleep(GLANCE);
    }
    end()
}

/// Compilers may be at work on other threads, so there is no orderly exit.
fn end() -> ! {
    loop {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    }
}
