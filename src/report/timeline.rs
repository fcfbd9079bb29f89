//! The timeline of workers, read from a trace.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A call of a kernel on a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelCall {
    /// In nanoseconds since the start of the run, as in the trace.
    pub at_ns: f64,
    pub ns: f64,
    pub optimized: bool,
}

/// The kernel calls and swaps of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerTimeline {
    pub calls: Vec<KernelCall>,
    pub swaps_ns: Vec<f64>,
}

/// The workers, by the number of their rank at the start of the run and by track.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline(pub BTreeMap<u64, BTreeMap<u64, WorkerTimeline>>);

/// The fields of a trace event that are used here.
#[derive(Deserialize)]
struct TraceEvent {
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
    args: Option<EventArguments>,
}

#[derive(Deserialize)]
struct EventArguments {
    name: Option<String>,
    #[serde(default)]
    read_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    trace_events: Vec<TraceEvent>,
}

impl Timeline {
    /// Reads the file that `exuvia run --trace` wrote.
    pub fn read(text: &[u8]) -> serde_json::Result<Timeline> {
        let events = serde_json::from_slice::<File>(text)?.trace_events;
        let mut timeline = Timeline::default();
        for event in &events {
            let name = event.args.as_ref().and_then(|args| args.name.as_deref()).unwrap_or_default();
            if event.name == "thread_name" && name.starts_with("worker") {
                timeline.0.entry(event.pid - 1).or_default().insert(event.tid, WorkerTimeline::default());
            }
        }
        for event in &events {
            let workers = event.pid.checked_sub(1).and_then(|rank| timeline.0.get_mut(&rank));
            let Some(worker) = workers.and_then(|workers| workers.get_mut(&event.tid)) else { continue };
            let (at_ns, ns) = (event.ts * 1e3, event.dur * 1e3);
            match (event.ph.as_str(), event.cat.as_str(), event.name.as_str()) {
                ("X", "kernel", tier) => worker.calls.push(KernelCall { at_ns, ns, optimized: tier == "optimized" }),
                ("i", _, "swap") => worker.swaps_ns.push(at_ns),
                _ => {}
            }
        }
        Ok(timeline)
    }
}

/// The times of reads and writes of the slowest rank, read from a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileTimes {
    pub read_ns: u64,
    pub write_ns: u64,
}

impl FileTimes {
    /// Reads the file that `exuvia run --trace` wrote.
    pub fn read(text: &[u8]) -> serde_json::Result<FileTimes> {
        // For each rank, the sum of reads and of writes, and the end of the last span, which contains nested ones.
        let mut ranks: BTreeMap<u64, [(f64, f64); 2]> = BTreeMap::new();
        for event in serde_json::from_slice::<File>(text)?.trace_events {
            let read_bytes = event.args.as_ref().map_or(0, |args| args.read_bytes);
            let writes = match (event.ph.as_str(), event.cat.as_str(), event.name.as_str()) {
                ("X", "io", "read" | "inputs") if read_bytes > 0 => false,
                ("X", "io", "write") | ("X", "run", "publish") => true,
                _ => continue,
            };
            let (sum_us, until_us) = &mut ranks.entry(event.pid).or_default()[usize::from(writes)];
            if event.ts >= *until_us {
                (*sum_us, *until_us) = (*sum_us + event.dur, event.ts + event.dur);
            }
        }
        let longest = |of: usize| ranks.values().map(|times| times[of].0 * 1e3).fold(0.0, f64::max) as u64;
        Ok(FileTimes { read_ns: longest(0), write_ns: longest(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::Args;
    use super::*;
    use crate::report::trace::{RankTrace, Span, Trace};

    #[test]
    fn the_timeline_of_workers_is_read_from_a_trace() {
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
        let workers: Vec<&WorkerTimeline> = timeline.0[&2].values().collect();
        let calls = vec![KernelCall { at_ns: 110.0, ns: 20.0, optimized: true }];
        assert_eq!(workers, [&WorkerTimeline { calls, swaps_ns: vec![105.0] }]);
        assert!(Timeline::read(b"{}").is_err());
    }

    #[test]
    fn the_slowest_rank_counts() {
        let part = |rank, spans: &[(u64, u64, &str, &str, u64)]| {
            let mut part = RankTrace::new(rank, "node", 0);
            for &(at_ns, ns, name, category, read_bytes) in spans {
                let args = Args { read_bytes: Some(read_bytes), ..Args::default() };
                part.span(0, Span { at_ns, ns, event: 0 }, (name, category), Some(&args));
            }
            part.into_bytes()
        };
        let mut trace = Trace::default();
        // A read is nested in the span of its inputs; inputs from another rank were not read here.
        trace.push(part(0, &[(0, 100, "inputs", "io", 8), (10, 50, "read", "io", 8), (200, 30, "read", "io", 8)]));
        trace
            .push(part(1, &[(0, 500, "inputs", "io", 0), (500, 40, "write", "io", 0), (700, 60, "publish", "run", 0)]));
        let mut text = Vec::new();
        trace.write("job", &mut text).unwrap();
        assert_eq!(FileTimes::read(&text).unwrap(), FileTimes { read_ns: 130, write_ns: 100 });
    }
}
