//! The helper process that compiles one kernel: its side of the protocol in `background_compile.rs`.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::artifact::{ArtifactFingerprint, Pipeline};
use super::cache::Cache;
use super::code::{optimize, start_artifact};
use super::kernel::Kernel;
use super::orphans::{self, HelperSlot};
use super::pipeline::Cpu;
use super::tier::Tier;

/// Niceness of an orphaned helper: the lowest priority.
const IDLE_NICENESS: i32 = 19;
/// How often an orphaned helper checks whether it may continue.
const ORPHAN_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long an orphaned helper may run.
const ORPHAN_LIFETIME: Duration = Duration::from_secs(1_800);
/// CPU time that LLVM takes for a byte of code, roughly (measured: 30,000 to 60,000).
pub const OPTIMIZING_NS_PER_BYTE: u64 = 55_000;

/// The first line on the helper's standard input; the module follows.
#[derive(Serialize, Deserialize)]
pub(super) struct CompileRequest {
    pub name: String,
    pub export: String,
    pub tier: Tier,
    pub cpu: Cpu,
    pub pipeline: Pipeline,
    pub threads: usize,
    pub cpu_seconds: u64,
    pub memory_bytes: u64,
    /// Directory of the cache that keeps the artifact.
    pub cache: Option<PathBuf>,
    pub module_bytes: usize,
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

/// Whether no process waits for the artifact any more.
static IS_ORPHAN: AtomicBool = AtomicBool::new(false);

fn answer() -> Result<(), String> {
    let mut input = BufReader::new(std::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line).map_err(|e| e.to_string())?;
    let request: CompileRequest = serde_json::from_str(&line).map_err(|e| e.to_string())?;
    let mut module = vec![0; request.module_bytes];
    input.read_exact(&mut module).map_err(|e| e.to_string())?;
    apply_limits(&request);
    let kernel = Kernel::from_bytes(&request.name, &module, Some(&request.export)).map_err(|e| e.to_string())?;
    let fingerprint = ArtifactFingerprint::new(&kernel, request.tier, &request.cpu, request.pipeline);
    // The job can use the artifact even if the cache cannot keep it.
    let cache =
        request.cache.as_deref().map(Cache::reopen).and_then(|cache| cache.inspect_err(|e| eprintln!("{e}")).ok());
    let (known, key) = (cache.clone(), fingerprint.key());
    let name = request.name.clone();
    thread::spawn(move || watch_lifeline(input, known.as_ref(), &key, &name));
    // wasmer compiles the functions of a module on rayon's global pool.
    rayon::ThreadPoolBuilder::new().num_threads(request.threads).build_global().map_err(|e| e.to_string())?;
    let others = cache.as_ref().and_then(|cache| await_orphan(cache, &kernel, &fingerprint));
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
    if IS_ORPHAN.load(Ordering::Relaxed) {
        return Ok(());
    }
    std::io::stdout().write_all(&artifact).map_err(|e| e.to_string())
}

/// Applies the requested limits to this process; lower limits stay.
fn apply_limits(request: &CompileRequest) {
    let lower = |resource, limit: u64| {
        let maximum = getrlimit(resource).maximum;
        let limit = Some(maximum.map_or(limit, |maximum| maximum.min(limit)));
        // Lowering a limit is always allowed.
        let _ = setrlimit(resource, Rlimit { current: limit, maximum: limit });
    };
    lower(Resource::Data, request.memory_bytes);
    lower(Resource::Core, 0);
    let (seconds, maximum) = (request.cpu_seconds, getrlimit(Resource::Cpu).maximum);
    // The soft limit sends a signal that names the limit; the hard limit kills without one.
    let within = |limit: u64| Some(maximum.map_or(limit, |maximum| maximum.min(limit)));
    let _ = setrlimit(Resource::Cpu, Rlimit { current: within(seconds), maximum: within(seconds + 5) });
}

/// Waits for an orphaned helper that compiles the same module, for as long as this one would need. Dismisses it after
/// that, since it has the lowest priority.
fn await_orphan(cache: &Cache, kernel: &Kernel, wanted: &ArtifactFingerprint) -> Option<Vec<u8>> {
    let patience = Duration::from_nanos(kernel.code_bytes() * OPTIMIZING_NS_PER_BYTE).max(ORPHAN_POLL_INTERVAL);
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

/// Ends this process when the lifeline closes, unless a message on it comes first: then the helper is an orphan.
fn watch_lifeline(mut lifeline: impl Read, cache: Option<&Cache>, key: &str, name: &str) {
    // The signal reaches even a stopped process. It is set, and taken back, by the same thread.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if lifeline.read_exact(&mut [0]).is_err() {
        // The process that wanted the artifact is gone.
        end();
    }
    let Some(slot) = cache.and_then(|cache| HelperSlot::take(cache, key, name)) else { end() };
    IS_ORPHAN.store(true, Ordering::Relaxed);
    let _ = rustix::process::set_parent_process_death_signal(None);
    // On Linux a priority belongs to a thread.
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let _ = rustix::process::setpriority_process(Pid::from_raw(thread), IDLE_NICENESS);
    }
    let since = Instant::now();
    while slot.is_mine() && since.elapsed() < ORPHAN_LIFETIME {
        thread::sleep(ORPHAN_POLL_INTERVAL);
    }
    end()
}

/// Kills this process: compilers may be at work on other threads, so there is no orderly exit.
fn end() -> ! {
    loop {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    }
}
