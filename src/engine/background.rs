//! Optimizing in a process of its own: LLVM may abort the process it runs in, and then only the helper is gone.
//!
//! Protocol: the request is one line of JSON on the helper's standard input, followed by the module; the artifact comes
//! back on standard output, an error on standard error with a non-zero status.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde::{Deserialize, Serialize};

use super::{Cpu, Engine, EngineError, Kernel, Pipeline, optimize};

/// The hidden command-line verb that runs [`compile_helper_main`].
pub const HELPER_VERB: &str = "compile-kernel";
/// The helper yields to the workers that compute meanwhile.
const NICENESS: i32 = 5;
const LAST_WORDS_BYTES: usize = 2_000;

#[derive(Serialize, Deserialize)]
struct Request {
    name: String,
    export: String,
    cpu: Cpu,
    pipeline: Pipeline,
    threads: usize,
}

/// A compile under way. Dropping it ends the helper.
#[derive(Debug)]
pub struct BackgroundCompile {
    child: Child,
    result: Receiver<Result<Vec<u8>, EngineError>>,
}

impl BackgroundCompile {
    /// Starts `program compile-kernel` on `kernel`, with at most `threads` threads.
    pub fn start(program: &Path, engine: &Engine, kernel: &Kernel, threads: usize) -> Result<Self, EngineError> {
        let failed = failure(kernel.name(), program);
        let mut command = Command::new(program);
        command.arg(HELPER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(format!("it cannot be started: {e}")))?;
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("no pipes".to_owned()));
        };
        let request = Request {
            name: kernel.name().to_owned(),
            export: kernel.export().to_owned(),
            cpu: engine.cpu().clone(),
            pipeline: engine.pipeline(),
            threads: threads.max(1),
        };
        let mut input = serde_json::to_vec(&request).unwrap_or_default();
        input.push(b'\n');
        input.extend_from_slice(kernel.bytes());
        let (sender, result) = channel();
        let words = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            let start = text.len().saturating_sub(LAST_WORDS_BYTES);
            String::from_utf8_lossy(&text[start..]).trim().to_owned()
        });
        thread::spawn(move || {
            // A helper that died early closes its end; its last words say more than the broken pipe.
            let _ = stdin.write_all(&input);
            drop(stdin);
            let mut artifact = Vec::new();
            let read = stdout.read_to_end(&mut artifact);
            let words = words.join().unwrap_or_default();
            let whole = read.is_ok() && super::artifact::Artifact::parse(&artifact).is_ok();
            let words = if words.is_empty() { "it ended without a word".to_owned() } else { words };
            let _ = sender.send(if whole { Ok(artifact) } else { Err(failed(words)) });
        });
        Ok(BackgroundCompile { child, result })
    }

    /// The artifact or the failure, once; `None` while the compile runs.
    pub fn poll(&mut self) -> Option<Result<Vec<u8>, EngineError>> {
        let result = self.result.try_recv().ok()?;
        let _ = self.child.wait();
        Some(result)
    }
}

impl Drop for BackgroundCompile {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failure(name: &str, helper: &Path) -> impl Fn(String) -> EngineError + use<> {
    let (name, helper): (String, PathBuf) = (name.to_owned(), helper.to_owned());
    move |message| EngineError::Helper { name: name.clone(), helper: helper.clone(), message }
}

/// The helper's side: one request, one artifact.
pub fn compile_helper_main() -> ExitCode {
    let parent_died = rustix::process::Signal::KILL;
    let _ = rustix::process::set_parent_process_death_signal(Some(parent_died));
    let _ = rustix::process::nice(NICENESS);
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), String> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).map_err(|e| e.to_string())?;
    let line = input.iter().position(|byte| *byte == b'\n').ok_or("no request")?;
    let request: Request = serde_json::from_slice(&input[..line]).map_err(|e| e.to_string())?;
    // wasmer compiles the functions of a module on rayon's global pool.
    rayon::ThreadPoolBuilder::new().num_threads(request.threads).build_global().map_err(|e| e.to_string())?;
    let kernel =
        Kernel::from_bytes(&request.name, &input[line + 1..], Some(&request.export)).map_err(|e| e.to_string())?;
    let artifact = optimize(&kernel, &request.cpu, request.pipeline).map_err(|e| e.to_string())?;
    std::io::stdout().write_all(&artifact).map_err(|e| e.to_string())
}
