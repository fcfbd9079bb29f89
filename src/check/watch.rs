//! The state that the thread that calls kernels shares with the one that monitors it.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::check::error::CheckError;
use crate::check::report::{CheckReport, Finding};

/// The interval in which the main thread checks the time of a call.
const POLL: Duration = Duration::from_millis(20);

/// The report so far and the current call.
#[derive(Debug)]
pub(super) struct CallWatch {
    report: Mutex<CheckReport>,
    current: Mutex<Option<CurrentCall>>,
}

/// The current call.
#[derive(Clone, Debug)]
struct CurrentCall {
    started: Instant,
    limit: Duration,
    /// The finding if the call does not return.
    finding: Finding,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CallWatch {
    pub fn new(report: CheckReport) -> CallWatch {
        CallWatch { report: Mutex::new(report), current: Mutex::default() }
    }

    /// The report so far.
    pub fn report(&self) -> CheckReport {
        lock(&self.report).clone()
    }

    pub fn write(&self, change: impl FnOnce(&mut CheckReport)) {
        change(&mut lock(&self.report));
    }

    pub fn count_task(&self, stage: usize) {
        self.write(|report| report.stages.get_mut(stage).into_iter().for_each(|stage| stage.tasks += 1));
    }

    /// Makes a call, which becomes `finding` if it takes longer than `limit`.
    pub fn call<T>(&self, limit: Duration, finding: impl FnOnce() -> Finding, call: impl FnOnce() -> T) -> T {
        *lock(&self.current) = Some(CurrentCall { started: Instant::now(), limit, finding: finding() });
        let result = call();
        *lock(&self.current) = None;
        result
    }

    /// Returns the report with the current call, if it exceeds its limit.
    pub fn overdue(&self) -> Option<CheckReport> {
        let current = lock(&self.current).clone();
        let late = current.filter(|current| current.started.elapsed() > current.limit)?;
        let mut report = self.report();
        report.findings.push(late.finding);
        Some(report)
    }
}

/// Runs `work` on its own thread and returns its result. If a kernel call exceeds its time limit, returns the report so
/// far with the call as a finding.
pub(super) fn watched<T: Send + 'static>(
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
