//! Optimizing in a process of its own: LLVM may abort the process it runs in, and then only the helper is gone.
//!
//! Protocol: the request is one line of JSON on the helper's standard input, followed by the module; the artifact goes
//! into the cache and comes back on standard output, an error on standard error with a non-zero status. Standard input
//! stays open as a lifeline: the helper dies when it closes, unless a byte on it says that it shall finish for later runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::{Cache, Cpu, Engine, EngineError, Kernel, Pipeline, optimize};
use crate::encode::encode;

/// The hidden command-line verb that runs [`compile_helper_main`].
pub const HELPER_VERB: &str = "compile-kernel";
/// Of a helper that nobody waits for any more: the least important there is.
const IDLE_NICENESS: i32 = 19;
const LAST_WORDS_BYTES: usize = 2_000;

#[derive(Serialize, Deserialize)]
struct Request {
    name: String,
    export: String,
    cpu: Cpu,
    pipeline: Pipeline,
    threads: usize,
    /// Directory of the cache that keeps the artifact.
    cache: Option<PathBuf>,
    module_bytes: usize,
}

/// A compile under way. Dropping it ends the helper.
#[derive(Debug)]
pub struct BackgroundCompile {
    child: Helper,
    result: Receiver<Result<Vec<u8>, EngineError>>,
    /// Keeps standard input open; a message lets the helper live on.
    lifeline: Sender<()>,
    writer: JoinHandle<()>,
    keeps: bool,
}

impl BackgroundCompile {
    /// Starts `program compile-kernel` on `kernel`, with at most `threads` threads. The artifact is kept in `cache`.
    pub fn start(
        program: &Path,
        engine: &Engine,
        kernel: &Kernel,
        threads: usize,
        cache: Option<&Cache>,
    ) -> Result<Self, EngineError> {
        let failed = failure(kernel.name(), program);
        let request = Request {
            name: kernel.name().to_owned(),
            export: kernel.export().to_owned(),
            cpu: engine.cpu().clone(),
            pipeline: engine.pipeline(),
            threads: threads.max(1),
            cache: cache.map(|cache| cache.directory().to_owned()),
            module_bytes: kernel.bytes().len(),
        };
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
            let read = stdout.read_to_end(&mut artifact);
            let words = words.join().unwrap_or_default();
            let whole = read.is_ok() && super::artifact::Artifact::parse(&artifact).is_ok();
            if whole && !words.is_empty() {
                tracing::warn!("{words}");
            }
            let words = if words.is_empty() { "it ended without a word".to_owned() } else { words };
            let _ = sender.send(if whole { Ok(artifact) } else { Err(failed(words)) });
        });
        Ok(BackgroundCompile { child: Helper(child), result, lifeline, writer, keeps: cache.is_some() })
    }

    /// Stops the helper, until it is resumed or left alone: the workers need its CPU time more.
    pub fn pause(&self) {
        self.child.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.child.signal(Signal::CONT);
    }

    /// Lets the helper finish for the cache, though nobody waits for it here. Returns its process id; `None` where there
    /// is no cache, and nothing goes on.
    pub fn leave(self) -> Option<u32> {
        if !self.keeps {
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
        let result = self.result.try_recv().ok()?;
        let _ = self.child.0.wait();
        Some(result)
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
    let request: Request = serde_json::from_str(&line).map_err(|e| e.to_string())?;
    let mut module = vec![0; request.module_bytes];
    input.read_exact(&mut module).map_err(|e| e.to_string())?;
    thread::spawn(move || heed(input));
    // wasmer compiles the functions of a module on rayon's global pool.
    rayon::ThreadPoolBuilder::new().num_threads(request.threads).build_global().map_err(|e| e.to_string())?;
    let kernel = Kernel::from_bytes(&request.name, &module, Some(&request.export)).map_err(|e| e.to_string())?;
    let artifact = optimize(&kernel, &request.cpu, request.pipeline).map_err(|e| e.to_string())?;
    if let Some(directory) = &request.cache
        && let Err(error) = Cache::reopen(directory).and_then(|cache| cache.put(&artifact))
    {
        // The job can use the artifact all the same.
        eprintln!("{error}");
    }
    if LEFT_ALONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    std::io::stdout().write_all(&artifact).map_err(|e| e.to_string())
}

/// Ends this process when the lifeline does, unless a message on it came first.
fn heed(mut lifeline: impl Read) {
    // Sent even to a process that is stopped. Of this thread, which takes it back.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if lifeline.read_exact(&mut [0]).is_err() {
        // Whoever wanted the artifact is gone. LLVM may be at work on other threads, so there is no orderly exit.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    }
    LEFT_ALONE.store(true, Ordering::Relaxed);
    let _ = rustix::process::set_parent_process_death_signal(None);
    // On Linux a priority is a thread's own.
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let _ = rustix::process::setpriority_process(Pid::from_raw(thread), IDLE_NICENESS);
    }
}
