//! Traces: the activity of all threads of all ranks, in the JSON format of Chrome's trace viewer, which Perfetto opens
//! too.
//!
//! A rank is a process in the trace, and each of its threads is a track. Every rank writes its own part, and the file
//! is the concatenation of all parts. A transfer is an arrow between two ranks. Both give it the same name without
//! communication, since each counts the transfers of the same bytes in their order.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};

use serde::{Serialize, Serializer};

use crate::report::traffic::Reason;

/// The drawn length of an instant, if there is room.
const MOMENT_NS: u64 = 1000;
/// The typical size of an event as text.
const EVENT_BYTES: usize = 160;
/// The size of a number in a part.
const NUMBER: usize = size_of::<u64>();
/// The range of thread numbers for the tracks of a rank.
const TRACKS: u64 = 10_000;

/// An interval, in nanoseconds since the first process of the run started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub at_ns: u64,
    pub ns: u64,
    /// The number of its event.
    pub event: usize,
}

/// Sorts the spans of a track and truncates each at the end of the span that it begins in, since viewers support nested
/// spans only. A span of length zero gets a visible length.
pub fn nest(spans: &mut [Span]) {
    spans.sort_by_key(|span| (span.at_ns, std::cmp::Reverse(span.ns)));
    let mut open: Vec<u64> = Vec::new();
    for at in 0..spans.len() {
        let next_ns = spans.get(at + 1).map_or(u64::MAX, |next| next.at_ns);
        let span = &mut spans[at];
        open.retain(|end_ns| *end_ns > span.at_ns);
        if span.ns == 0 {
            span.ns = MOMENT_NS.min(next_ns - span.at_ns);
        }
        if let Some(end_ns) = open.last() {
            span.ns = span.ns.min(end_ns - span.at_ns);
        }
        span.ns = span.ns.max(1);
        open.push(span.at_ns + span.ns);
    }
}

/// A transfer of bytes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transfer {
    pub from: u32,
    pub to: u32,
    pub reason: Reason,
    pub bytes: u64,
}

/// One rank's part of a trace.
#[derive(Debug)]
pub struct RankTrace {
    rank: u32,
    /// The number of dropped events, followed by the events, each after a comma.
    text: Vec<u8>,
    /// The number of transfers so far, by equal properties.
    alike: BTreeMap<Transfer, u64>,
    dropped: u64,
}

/// The arguments of an event; unset ones are left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Args<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile: Option<String>,
    /// The number of consecutive spans that are merged into this one; `tile` is that of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slices: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_tasks: Option<u64>,
    /// The number of missing events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
}

/// An event in the format of Chrome's trace viewer.
#[derive(Serialize)]
struct Entry<'a> {
    ph: &'static str,
    pid: u64,
    tid: u64,
    /// In microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cat: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hexadecimal")]
    id: Option<u64>,
    /// Binds the end of an arrow to the enclosing span.
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<&'static str>,
    /// The scope of an instant: its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<&'a Args<'a>>,
}

fn hexadecimal<S: Serializer>(id: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:#x}", id.unwrap_or_default()))
}

impl RankTrace {
    /// Creates the part of a rank, with capacity for about `events` events.
    pub fn new(rank: u32, hostname: &str, events: usize) -> RankTrace {
        let mut text = Vec::with_capacity(events * EVENT_BYTES);
        text.extend_from_slice(&[0; NUMBER]);
        let mut trace = RankTrace { rank, text, alike: BTreeMap::new(), dropped: 0 };
        let name = format!("rank {rank} on {hostname}");
        trace.describe(0, "process_name", &Args { name: Some(&name), ..Args::default() });
        trace.describe(0, "process_sort_index", &Args { sort_index: Some(u64::from(rank)), ..Args::default() });
        trace
    }

    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Names a track. Tracks are shown in the order of their numbers.
    pub fn track(&mut self, track: usize, name: &str) {
        self.describe(track, "thread_name", &Args { name: Some(name), ..Args::default() });
        self.describe(track, "thread_sort_index", &Args { sort_index: Some(track as u64), ..Args::default() });
    }

    /// Adds a span. The spans of a track must be in the order of [`nest`].
    pub fn span(&mut self, track: usize, span: Span, (name, category): (&str, &str), args: Option<&Args<'_>>) {
        let dur = Some(microseconds(span.ns));
        self.push(&Entry { dur, cat: category, ..self.entry("X", track, span.at_ns, name, args) });
    }

    /// Adds an instant event.
    pub fn instant(&mut self, track: usize, at_ns: u64, name: &str, args: Option<&Args<'_>>) {
        self.push(&Entry { s: Some("t"), ..self.entry("i", track, at_ns, name, args) });
    }

    /// Adds this rank's end of the arrow of a transfer, in the latest span of the track, which begins at `at_ns`.
    pub fn transfer(&mut self, track: usize, at_ns: u64, transfer: Transfer) {
        let alike = self.alike.entry(transfer).or_default();
        let mut hasher = DefaultHasher::new();
        (transfer, *alike).hash(&mut hasher);
        *alike += 1;
        let (ph, bp) = if transfer.from == self.rank { ("s", None) } else { ("f", Some("e")) };
        let (id, name) = (Some(hasher.finish()), transfer.reason.name());
        self.push(&Entry { id, bp, cat: "transfer", ..self.entry(ph, track, at_ns, name, None) });
    }

    /// Notes that `events` later events of a track, from `at_ns` on, are missing.
    pub fn dropped(&mut self, track: usize, at_ns: u64, events: u64) {
        self.dropped += events;
        let name = format!("trace is full: {events} later events are missing");
        self.instant(track, at_ns, &name, Some(&Args { missing: Some(events), ..Args::default() }));
    }

    /// Returns the bytes for [`Trace::push`].
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.text;
        bytes[..NUMBER].copy_from_slice(&self.dropped.to_le_bytes());
        bytes
    }

    fn describe(&mut self, track: usize, what: &str, args: &Args<'_>) {
        self.push(&self.entry("M", track, 0, what, Some(args)));
    }

    fn entry<'a>(
        &self,
        ph: &'static str,
        track: usize,
        at_ns: u64,
        name: &'a str,
        args: Option<&'a Args<'a>>,
    ) -> Entry<'a> {
        // In Perfetto, the thread with the number of its process is the main one, and process 0 is the idle process.
        let pid = u64::from(self.rank) + 1;
        let tid = if track == 0 { pid } else { pid * TRACKS + track as u64 };
        let ts = microseconds(at_ns);
        Entry { ph, pid, tid, ts, dur: None, name, cat: "", id: None, bp: None, s: None, args }
    }

    fn push(&mut self, entry: &Entry<'_>) {
        self.text.extend_from_slice(b",\n");
        serde_json::to_writer(&mut self.text, entry).expect("numbers and names can be serialized");
    }
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// The trace of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The parts from [`RankTrace::into_bytes`].
    parts: Vec<Vec<u8>>,
    /// The number of events that did not fit.
    pub dropped: u64,
}

impl Trace {
    /// Adds the part of a rank.
    pub fn push(&mut self, part: Vec<u8>) {
        if let Some(dropped) = part.first_chunk::<NUMBER>() {
            self.dropped += u64::from_le_bytes(*dropped);
            self.parts.push(part);
        }
    }

    /// Writes the trace in the format of Perfetto.
    pub fn write(&self, job: &str, out: &mut impl Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct About<'a> {
            job: &'a str,
            dropped_events: u64,
        }
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
        serde_json::to_writer(&mut *out, &About { job, dropped_events: self.dropped })?;
        out.write_all(b",\"traceEvents\":[")?;
        for (number, part) in self.parts.iter().enumerate() {
            // The first event has no comma.
            let begin = if number == 0 { NUMBER + 1 } else { NUMBER };
            out.write_all(part.get(begin..).unwrap_or_default())?;
        }
        out.write_all(b"\n]}\n")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn nested(spans: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut spans: Vec<Span> = spans.iter().map(|&(at_ns, ns)| Span { at_ns, ns, event: 0 }).collect();
        nest(&mut spans);
        spans.into_iter().map(|span| (span.at_ns, span.ns)).collect()
    }

    #[test]
    fn spans_are_nested() {
        assert_eq!(nested(&[(30, 5), (0, 100), (10, 50), (20, 10)]), [(0, 100), (10, 50), (20, 10), (30, 5)]);
        // The second span begins in the first and ends after it.
        assert_eq!(nested(&[(0, 10), (8, 10), (17, 9)]), [(0, 10), (8, 2), (17, 9)]);
        assert_eq!(nested(&[(0, 10), (0, 10)]), [(0, 10), (0, 10)]);
    }

    #[test]
    fn instants_get_a_length_if_there_is_room() {
        assert_eq!(nested(&[(0, 0)]), [(0, MOMENT_NS)]);
        assert_eq!(nested(&[(0, 0), (7, 0), (7, 3)]), [(0, 7), (7, 3), (7, 3)]);
        assert_eq!(nested(&[(0, 50), (40, 0), (60, 0)]), [(0, 50), (40, 10), (60, MOMENT_NS)]);
    }

    #[test]
    fn both_ranks_give_a_transfer_the_same_name() {
        let id = |rank: u32, transfers: &[Transfer]| -> Vec<(String, String)> {
            let mut part = RankTrace::new(rank, "node", 0);
            transfers.iter().for_each(|transfer| part.transfer(0, 5, *transfer));
            let mut trace = Trace::default();
            trace.push(part.into_bytes());
            let mut bytes = Vec::new();
            trace.write("job", &mut bytes).unwrap();
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            let events = read["traceEvents"].as_array().unwrap().iter().filter(|event| event["id"].is_string());
            events.map(|event| (event["ph"].to_string(), event["id"].to_string())).collect()
        };
        let small = Transfer { from: 0, to: 1, reason: Reason::Halo, bytes: 8 };
        let large = Transfer { bytes: 16, ..small };
        let (sent, received) = (id(0, &[small, large, small]), id(1, &[large, small, small]));
        assert!(sent.iter().all(|(ph, _)| ph == "\"s\"") && received.iter().all(|(ph, _)| ph == "\"f\""));
        let ids = |ends: &[(String, String)], at: [usize; 3]| at.map(|at| ends[at].1.clone());
        assert_eq!(ids(&sent, [0, 1, 2]), ids(&received, [1, 0, 2]));
        assert_ne!(sent[0].1, sent[2].1);
    }

    #[test]
    fn missing_events_are_reported() {
        let mut trace = Trace::default();
        for rank in 0..2 {
            let mut part = RankTrace::new(rank, "node", 0);
            part.dropped(1, 1500, 3);
            trace.push(part.into_bytes());
        }
        let mut bytes = Vec::new();
        trace.write("job", &mut bytes).unwrap();
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read["otherData"], json!({ "job": "job", "dropped_events": 6 }));
        let instants = read["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "i");
        assert_eq!(instants.map(|event| event["ts"].as_f64()).collect::<Vec<_>>(), [Some(1.5); 2]);
    }
}
