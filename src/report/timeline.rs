//! What workers did when, read back from a trace.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A call of a kernel on a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// In nanoseconds since the run began, as in the trace.
    pub at_ns: f64,
    pub ns: f64,
    pub optimized: bool,
}

/// What a worker did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worker {
    pub calls: Vec<Call>,
    pub swaps_ns: Vec<f64>,
}

/// The workers of every rank, by what it was when the run was started, and by number of their track.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline(pub BTreeMap<u64, BTreeMap<u64, Worker>>);

/// The parts of an event that matter here.
#[derive(Deserialize)]
struct Event {
    ph: String,
    pid: u64,
    tid: u64,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    cat: String,
    args: Option<Arguments>,
}

#[derive(Deserialize)]
struct Arguments {
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    trace_events: Vec<Event>,
}

impl Timeline {
    /// Reads the file that `exuvia run --trace` wrote.
    pub fn read(text: &[u8]) -> serde_json::Result<Timeline> {
        let events = serde_json::from_slice::<File>(text)?.trace_events;
        let mut timeline = Timeline::default();
        for event in &events {
            let name = event.args.as_ref().and_then(|args| args.name.as_deref()).unwrap_or_default();
            if event.name == "thread_name" && name.starts_with("worker") {
                timeline.0.entry(event.pid - 1).or_default().insert(event.tid, Worker::default());
            }
        }
        for event in &events {
            let workers = event.pid.checked_sub(1).and_then(|rank| timeline.0.get_mut(&rank));
            let Some(worker) = workers.and_then(|workers| workers.get_mut(&event.tid)) else { continue };
            let (at_ns, ns) = (event.ts * 1e3, event.dur * 1e3);
            match (event.ph.as_str(), event.cat.as_str(), event.name.as_str()) {
                ("X", "kernel", tier) => worker.calls.push(Call { at_ns, ns, optimized: tier == "optimized" }),
                ("i", _, "swap") => worker.swaps_ns.push(at_ns),
                _ => {}
            }
        }
        Ok(timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RankTrace, Span, Trace};
    use super::*;

    #[test]
    fn what_a_trace_says_of_workers_is_read_back() {
        let mut part = RankTrace::new(2, "node", 0);
        part.track(0, "main thread");
        part.track(1, "worker 0");
        let span = |at_ns, ns| Span { at_ns, ns, event: 0 };
        part.span(0, span(0, 50), ("read", "io"), None);
        part.span(1, span(100, 40), ("stage", "task"), None);
        part.span(1, span(110, 20), ("optimized", "kernel"), None);
        part.span(1, span(131, 5), ("merge", "task"), None);
        part.span(1, span(150, 10), ("merge", "task"), None);
        part.instant(1, 105, "swap", None);
        let mut trace = Trace::default();
        trace.push(part.into_bytes());
        let mut text = Vec::new();
        trace.write("job", &mut text).unwrap();
        let timeline = Timeline::read(&text).unwrap();
        let workers: Vec<&Worker> = timeline.0[&2].values().collect();
        let calls = vec![Call { at_ns: 110.0, ns: 20.0, optimized: true }];
        assert_eq!(workers, [&Worker { calls, swaps_ns: vec![105.0] }]);
        assert!(Timeline::read(b"{}").is_err());
    }
}
