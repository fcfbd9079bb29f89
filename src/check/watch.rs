//! What the thread that calls kernels and the one that watches it share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Report;
use crate::check::finding::Finding;

/// The report as it grows, and the call under way.
#[derive(Debug)]
pub(super) struct Watch {
    report: Mutex<Report>,
    current: Mutex<Option<Current>>,
}

/// A call that has begun.
#[derive(Clone, Debug)]
struct Current {
    started: Instant,
    limit: Duration,
    /// What it is if it does not end.
    finding: Finding,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    pub fn new(report: Report) -> Watch {
        Watch { report: Mutex::new(report), current: Mutex::default() }
    }

    /// The report so far.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    pub fn write(&self, change: impl FnOnce(&mut Report)) {
        change(&mut lock(&self.report));
    }

    pub fn count_task(&self, stage: usize) {
        self.write(|report| report.stages.get_mut(stage).into_iter().for_each(|stage| stage.tasks += 1));
    }

    /// Makes a call, of which `finding` is told if it takes longer than `limit`.
    pub fn call<T>(&self, limit: Duration, finding: impl FnOnce() -> Finding, call: impl FnOnce() -> T) -> T {
        *lock(&self.current) = Some(Current { started: Instant::now(), limit, finding: finding() });
        let result = call();
        *lock(&self.current) = None;
        result
    }

    /// The report with the call that takes too long, if one does.
    pub fn overdue(&self) -> Option<Report> {
        let current = lock(&self.current).clone();
        let late = current.filter(|current| current.started.elapsed() > current.limit)?;
        let mut report = self.report();
        report.findings.push(late.finding);
        Some(report)
    }
}
