//! Compilation in a helper process: a compiler may abort its process, or take hours and all memory for a small module;
//! then only the helper is lost. The system enforces its limits of CPU time and memory.
//!
//! Protocol: the request is one line of JSON on the helper's standard input, followed by the module; the artifact goes
//! into the cache and comes back on standard output, an error on standard error with a non-zero status. Standard input
//! stays open as a lifeline: the helper dies when it closes, unless a byte on it says that it shall finish for later
//! runs; then it is one of a few orphaned helpers (`orphans.rs`).

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::artifact::Artifact;
use super::cache::Cache;
use super::code::Engine;
use super::compile_helper::{CompileRequest, OPTIMIZING_NS_PER_BYTE};
use super::error::EngineError;
use super::kernel::Kernel;
use super::orphans;
use super::tier::Tier;
use crate::encode::encode;

/// The hidden command-line verb that runs [`compile_helper_main`](crate::engine::compile_helper::compile_helper_main).
pub const HELPER_VERB: &str = "compile-kernel";
const LAST_WORDS_BYTES: usize = 2_000;
/// More code than this is not loaded.
const ARTIFACT_BYTES: u64 = 1 << 30;
/// A compile may take this many times the expected time of a module of its size.
const SLOW: u64 = 10;
/// A helper may live for this many times its CPU time limit: when memory is exhausted, its threads may wait for one
/// another forever.
const IDLE: u32 = 4;
/// The least memory with which a helper reaches its compiler.
const LEAST_MEMORY_BYTES: u64 = 32 << 20;

/// Limits of one compile.
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

/// What a helper is to compile, and within which bounds.
#[derive(Clone, Copy, Debug)]
pub struct CompileJob<'a> {
    pub kernel: &'a Kernel,
    pub tier: Tier,
    /// At most this many threads.
    pub threads: usize,
    pub limits: CompileLimits,
    /// The cache that keeps the artifact.
    pub cache: Option<&'a Cache>,
}

impl CompileJob<'_> {
    fn request(&self, engine: &Engine) -> CompileRequest {
        CompileRequest {
            name: self.kernel.name().to_owned(),
            export: self.kernel.export().to_owned(),
            tier: self.tier,
            cpu: engine.cpu().clone(),
            pipeline: engine.pipeline(),
            threads: self.threads.max(1),
            cpu_seconds: self.limits.cpu_seconds(self.kernel),
            memory_bytes: self.limits.memory_bytes.max(LEAST_MEMORY_BYTES),
            cache: self.cache.map(|cache| cache.directory().to_owned()),
            module_bytes: self.kernel.bytes().len(),
        }
    }
}

/// A compile under way. Dropping it ends the helper.
#[derive(Debug)]
pub struct BackgroundCompile {
    child: Helper,
    name: String,
    program: PathBuf,
    /// Key of the artifact in the cache.
    key: String,
    limits: String,
    /// The deadline, and since when the helper is paused.
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
    /// Starts `program compile-kernel` for `job`.
    pub fn start(program: &Path, engine: &Engine, job: CompileJob<'_>) -> Result<Self, EngineError> {
        let CompileJob { kernel, tier, cache, .. } = job;
        let failed = failure(kernel.name(), program);
        let request = job.request(engine);
        let limits = format!(
            "{} s of CPU time and {} of memory (EXUVIA_COMPILE_TIME, EXUVIA_COMPILE_MEMORY)",
            request.cpu_seconds,
            bytesize::ByteSize(request.memory_bytes)
        );
        let until = Instant::now() + Duration::from_secs(request.cpu_seconds) * IDLE;
        let mut input = encode(&request).map_err(|error| failed(error.to_string()))?;
        input.push(b'\n');
        input.extend_from_slice(kernel.bytes());
        let mut command = Command::new(program);
        command.arg(HELPER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(format!("it cannot be started: {e}")))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("no pipes".to_owned()));
        };
        let (lifeline, held) = channel();
        let writer = thread::spawn(move || {
            // A helper that fails early closes its end; its last words say more than the broken pipe.
            let _ = stdin.write_all(&input);
            if held.recv().is_ok() {
                let _ = stdin.write_all(b"\n");
            }
        });
        Ok(BackgroundCompile {
            child: Helper(child),
            name: kernel.name().to_owned(),
            program: program.to_owned(),
            key: engine.fingerprint(kernel, tier).key(),
            limits,
            until,
            paused: None,
            result: collect_output(stdout, stderr),
            lifeline,
            writer,
            cache: cache.cloned(),
        })
    }

    /// Pauses the helper until it is resumed or left: the workers need its CPU time.
    pub fn pause(&mut self) {
        self.child.signal(Signal::STOP);
        self.paused = self.paused.or(Some(Instant::now()));
    }

    /// Resumes the helper.
    pub fn resume(&mut self) {
        self.child.signal(Signal::CONT);
        self.until += self.paused.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Leaves the helper to finish for the cache, as an orphan. Returns its process id. Returns `None` and ends the
    /// helper if there is no cache, if another orphan compiles the same module, or if there are enough orphans.
    pub fn leave(mut self) -> Option<u32> {
        if !orphans::has_room(self.cache.as_ref()?, &self.key) {
            return None;
        }
        self.resume();
        self.lifeline.send(()).ok()?;
        self.writer.join().ok()?;
        let id = self.child.0.id();
        // Dropping it would kill the helper.
        std::mem::forget(self.child);
        Some(id)
    }

    /// The artifact or the failure, once; `None` while the compile runs.
    pub fn poll(&mut self) -> Option<Result<Vec<u8>, EngineError>> {
        if self.paused.is_none() && Instant::now() > self.until {
            // Its last words arrive after that.
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
            None if words.is_empty() => "it ended without a message".to_owned(),
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

/// Reads the helper's output on threads of their own: the artifact, if it is one, and the last words.
fn collect_output(mut stdout: ChildStdout, mut stderr: ChildStderr) -> Receiver<(Option<Vec<u8>>, String)> {
    let (sender, result) = channel();
    let words = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        let start = text.len().saturating_sub(LAST_WORDS_BYTES);
        String::from_utf8_lossy(&text[start..]).trim().to_owned()
    });
    thread::spawn(move || {
        let mut artifact = Vec::new();
        let read = stdout.by_ref().take(ARTIFACT_BYTES).read_to_end(&mut artifact);
        // A helper that writes more gets a broken pipe.
        drop(stdout);
        let words = words.join().unwrap_or_default();
        let whole = read.is_ok() && Artifact::parse(&artifact).is_ok();
        if whole && !words.is_empty() {
            tracing::warn!("{words}");
        }
        let _ = sender.send((whole.then_some(artifact), words));
    });
    result
}
