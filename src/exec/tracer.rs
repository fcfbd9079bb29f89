//! What a run records of itself for `--trace`: each thread into a list of its own, which is made into a part of the trace when
//! the run is over. Without `--trace` nothing is recorded.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::RunError;
use super::link::Link;
use super::worker::lock;
use crate::engine::Tier;
use crate::fabric::Rank;
use crate::plan::{Plan, Tile};
use crate::report::{Moved, RankTrace, Reason, Span, Trace, Transfer, nest};
use crate::tensor::Region;
use crate::topology::Topology;

/// Events of a whole run, which its threads share; viewers take no more in good time.
const EVENTS: usize = 1 << 20;
/// Of one thread. 16 MB of memory, as far as it is used.
const MOST: usize = 1 << 17;
const LEAST: usize = 1 << 8;

/// Tracks of a rank: its main thread's, one for each worker, one for the iterations, and as many as it takes for stages.
const MAIN: usize = 0;

/// Something that a thread did or that happened to it.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// A part of a run that has a name of its own.
    Part(&'static str),
    Iteration(u64),
    /// A run of a stage.
    Stage(usize),
    /// Looking for a stage's inputs, of which this came from files.
    Inputs {
        stage: usize,
        read_bytes: u64,
    },
    /// Bringing a block into memory.
    Read {
        stage: usize,
        bytes: u64,
        read_bytes: u64,
    },
    /// Writing the outputs of a tile.
    Write {
        stage: usize,
        written_bytes: u64,
    },
    /// The kernel ran within the task.
    Task {
        stage: usize,
        tier: Tier,
        slices: u64,
        kernel_at: Instant,
        kernel_ns: u64,
    },
    /// Merging partial results.
    Merge {
        stage: usize,
    },
    Swap {
        stage: usize,
        worker: usize,
        held_ns: u64,
        after_tasks: u64,
    },
    /// Optimized code has come.
    Code {
        stage: usize,
    },
    /// A part of a block of another rank has come.
    Steal {
        stage: usize,
        owner: Rank,
        block: u64,
        slices: u64,
    },
    Sent {
        to: Rank,
        reason: Reason,
        bytes: u64,
    },
    Received {
        from: Rank,
        reason: Reason,
        bytes: u64,
    },
}

#[derive(Debug)]
struct Event {
    at: Instant,
    /// 0 for what takes no time.
    ns: u64,
    /// Where the offset and the extent of its tile begin in the numbers of the track, and how many axes it has.
    tile: Option<(u32, u32)>,
    what: What,
}

#[derive(Debug)]
struct Track {
    events: Vec<Event>,
    numbers: Vec<u64>,
    /// Since when there was no room, and for how many events. None is recorded after that, so that those of both ends of
    /// transfers can be counted.
    dropped: Option<(Instant, u64)>,
}

/// A rank's record; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracer(Option<Arc<Vec<Mutex<Track>>>>);

/// How a rank tells the time.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Clock {
    /// Of the node: the time of day when its clock began.
    epoch_ns: i64,
    /// Of the rank's process.
    started_ns: i64,
}

impl Tracer {
    /// For one of `ranks` and its main thread with this many workers.
    pub fn new(ranks: u32, workers: usize) -> Tracer {
        let room = (EVENTS / (ranks as usize * (workers + 1))).clamp(LEAST, MOST);
        // Pages that are never written take no memory.
        let track = |_| Track { events: Vec::with_capacity(room), numbers: Vec::new(), dropped: None };
        Tracer(Some(Arc::new((0..=workers).map(track).map(Mutex::new).collect())))
    }

    /// Now, if anything is recorded.
    pub fn begin(&self) -> Option<Instant> {
        self.0.as_ref().map(|_| Instant::now())
    }

    /// Records what this thread has done since [`Tracer::begin`].
    pub fn end(&self, begun: Option<Instant>, what: impl FnOnce() -> What) {
        if let (Some(tracks), Some(at)) = (&self.0, begun) {
            record(tracks, at, at.elapsed().as_nanos() as u64, None, what());
        }
    }

    /// Records what this thread has done with `tile` since then.
    pub fn end_tile(&self, begun: Option<Instant>, tile: &Tile, what: impl FnOnce() -> What) {
        if let (Some(tracks), Some(at)) = (&self.0, begun) {
            record(tracks, at, at.elapsed().as_nanos() as u64, Some(tile), what());
        }
    }

    /// Records what has just happened.
    pub fn mark(&self, what: impl FnOnce() -> What) {
        if let Some(tracks) = &self.0 {
            record(tracks, Instant::now(), 0, None, what());
        }
    }

    /// Gathers the parts of all ranks on rank 0. Collective.
    fn gather(
        self,
        link: &mut Link,
        topology: &Topology,
        plan: &Plan,
        process_start: Instant,
    ) -> Result<Option<Trace>, RunError> {
        let Some(tracks) = &self.0 else { return Ok(None) };
        let (now, now_ns, epoch_ns) = clocks();
        let started_ns = now_ns - now.duration_since(process_start).as_nanos() as i64;
        let clock = Clock { epoch_ns, started_ns };
        let all = link.allgather(serde_json::to_vec(&clock).unwrap_or_default())?;
        let wrong = |rank| RunError::Protocol { rank, what: "its clock" };
        let read = |(rank, bytes): (Rank, &Vec<u8>)| serde_json::from_slice(bytes).map_err(|_| wrong(rank));
        let clocks: Vec<Clock> = (0..).zip(&all).map(read).collect::<Result<_, _>>()?;
        // Ranks of a node have one clock.
        let epoch = |rank: Rank| {
            let first = topology.ranks_on_node(rank).first().copied().unwrap_or(rank);
            clocks[first as usize].epoch_ns
        };
        let start = (0..link.size()).map(|rank| epoch(rank) + clocks[rank as usize].started_ns).min().unwrap_or(0);
        let origin_ns = start - epoch(link.rank());
        let since_start = |at: Instant| {
            let ns = now_ns - now.saturating_duration_since(at).as_nanos() as i64 - origin_ns;
            u64::try_from(ns).unwrap_or(0)
        };
        let trace = RankTrace::new(link.rank(), &topology.host(link.rank()).hostname);
        let part = Rendering { rank: link.rank(), plan, trace, since_start }.render(tracks);
        let parts = link.gather(part)?;
        Ok(parts.map(|parts| {
            let mut trace = Trace::default();
            parts.into_iter().for_each(|part| trace.push(part));
            trace
        }))
    }
}

impl Link {
    /// Counts bytes of a tensor that are here now and that `from`, which may be this rank, had.
    pub fn received(&self, moved: &mut Moved, reason: Reason, from: Rank, bytes: u64) {
        moved.count(reason, self.distance(from), bytes);
        if from != self.rank() {
            self.tracer.mark(|| What::Received { from, reason, bytes });
        }
    }

    /// Records that bytes of a tensor have been sent since then. Their receiver says that they are [`Link::received`].
    pub fn sent(&self, begun: Option<Instant>, to: Rank, reason: Reason, bytes: u64) {
        self.tracer.end(begun, || What::Sent { to, reason, bytes });
    }

    /// What all ranks have recorded, if they have. The job is done: if this fails, no result is the worse for it. Collective.
    pub fn gather_trace(&mut self, topology: &Topology, plan: &Plan, process_start: Instant) -> Option<Trace> {
        let gathered = std::mem::take(&mut self.tracer).gather(self, topology, plan, process_start);
        gathered.inspect_err(|error| tracing::warn!("gathering the trace: {error}")).ok().flatten()
    }
}

/// Workers are the threads of a pool, each rank's own.
fn record(tracks: &[Mutex<Track>], at: Instant, ns: u64, tile: Option<&Tile>, what: What) {
    let track = rayon::current_thread_index().map_or(MAIN, |index| index + 1);
    let Some(track) = tracks.get(track) else { return };
    let mut track = lock(track);
    let Track { events, numbers, dropped } = &mut *track;
    if events.len() == events.capacity() || dropped.is_some() {
        dropped.get_or_insert((at, 0)).1 += 1;
        return;
    }
    let tile = tile.map(|Tile(Region { offset, extent })| {
        let begin = numbers.len() as u32;
        numbers.extend_from_slice(offset);
        numbers.extend_from_slice(extent);
        (begin, offset.len() as u32)
    });
    events.push(Event { at, ns, tile, what });
}

/// Now: for this process, since the clock of the node began, and the time of day when it did. Taken several times, since
/// something else may run in between.
fn clocks() -> (Instant, i64, i64) {
    use rustix::time::{ClockId, clock_gettime};
    let ns = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as i64 * 1_000_000_000 + time.tv_nsec as i64
    };
    let take = |_| {
        let (before, now, of_day) = (ns(ClockId::Monotonic), Instant::now(), ns(ClockId::Realtime));
        let took = ns(ClockId::Monotonic) - before;
        (took, (now, before, of_day - before))
    };
    let takes = (0..8).map(take).min_by_key(|(took, _)| *took);
    takes.map_or((Instant::now(), 0, 0), |(_, clocks)| clocks)
}

impl Track {
    fn tile(&self, event: &Event) -> Option<Tile> {
        let (begin, axes) = event.tile.map(|(begin, axes)| (begin as usize, axes as usize))?;
        let (offset, extent) = self.numbers.get(begin..begin + 2 * axes)?.split_at(axes);
        Some(Tile(Region { offset: offset.to_vec(), extent: extent.to_vec() }))
    }
}

/// What becomes the part of a rank.
struct Rendering<'a, F> {
    rank: Rank,
    plan: &'a Plan,
    trace: RankTrace,
    since_start: F,
}

impl<F: Fn(Instant) -> u64> Rendering<'_, F> {
    fn render(mut self, tracks: &[Mutex<Track>]) -> Vec<u8> {
        // Stages of a wave run at the same time: each has a track of its own. They are recorded by the main thread.
        let (iterations, first) = (tracks.len(), tracks.len() + 1);
        let mut lanes: Vec<u64> = Vec::new();
        for (number, track) in tracks.iter().enumerate() {
            let track = lock(track);
            match number {
                MAIN => self.trace.track(number, "main thread"),
                worker => self.trace.track(number, &format!("worker {}", worker - 1)),
            }
            let mut spans = Vec::with_capacity(track.events.len());
            for (index, event) in track.events.iter().enumerate() {
                let span = Span { at_ns: (self.since_start)(event.at), ns: event.ns, event: index };
                match event.what {
                    What::Stage(stage) => {
                        let free = lanes.iter().position(|end_ns| *end_ns <= span.at_ns).unwrap_or(lanes.len());
                        lanes.resize(lanes.len().max(free + 1), 0);
                        lanes[free] = span.at_ns + span.ns;
                        self.trace.span(first + free, span, (&self.plan.stages[stage].name, "stage"), json!({}));
                    }
                    What::Iteration(iteration) => {
                        self.trace.span(iterations, span, (&format!("iteration {iteration}"), "iteration"), json!({}));
                    }
                    _ => spans.push(span),
                }
            }
            nest(&mut spans);
            for span in spans {
                self.event(number, span, &track);
            }
            if let Some((at, events)) = track.dropped {
                self.trace.dropped(number, (self.since_start)(at), events);
            }
        }
        self.trace.track(iterations, "iterations");
        (0..lanes.len()).for_each(|lane| self.trace.track(first + lane, "stages"));
        self.trace.into_bytes()
    }

    fn event(&mut self, number: usize, span: Span, track: &Track) {
        let event = &track.events[span.event];
        let Rendering { rank, plan, trace, since_start } = self;
        let stage_name = |stage: usize| plan.stages[stage].name.as_str();
        let tile_name = |stage: usize| track.tile(event).map(|tile| plan.stages[stage].tile_name(&tile));
        match event.what {
            What::Part(name) => trace.span(number, span, (name, "run"), json!({})),
            What::Stage(_) | What::Iteration(_) => {}
            What::Inputs { stage, read_bytes } => {
                let args = json!({ "stage": stage_name(stage), "read_bytes": read_bytes });
                trace.span(number, span, ("inputs", "io"), args);
            }
            What::Read { stage, bytes, read_bytes } => {
                let (stage, tile) = (stage_name(stage), tile_name(stage));
                let args = json!({ "stage": stage, "tile": tile, "bytes": bytes, "read_bytes": read_bytes });
                trace.span(number, span, ("read", "io"), args);
            }
            What::Write { stage, written_bytes } => {
                let args =
                    json!({ "stage": stage_name(stage), "tile": tile_name(stage), "written_bytes": written_bytes });
                trace.span(number, span, ("write", "io"), args);
            }
            What::Task { stage, tier, slices, kernel_at, kernel_ns } => {
                let tier = tier.name();
                let args = json!({ "tile": tile_name(stage), "tier": tier, "slices": slices });
                trace.span(number, span, (stage_name(stage), "task"), args);
                // The clock's last digit may be on either side.
                let end_ns = span.at_ns + span.ns;
                let at_ns = since_start(kernel_at).clamp(span.at_ns, end_ns - 1);
                let kernel = Span { at_ns, ns: kernel_ns.clamp(1, end_ns - at_ns), ..span };
                trace.span(number, kernel, (tier, "kernel"), json!({}));
            }
            What::Merge { stage } => {
                trace.span(
                    number,
                    span,
                    ("merge", "task"),
                    json!({ "stage": stage_name(stage), "tile": tile_name(stage) }),
                );
            }
            What::Swap { stage, worker, held_ns, after_tasks } => {
                let stage = stage_name(stage);
                let args = json!({ "stage": stage, "worker": worker, "held_ns": held_ns, "after_tasks": after_tasks });
                trace.instant(number, span.at_ns, "swap", args);
            }
            What::Code { stage } => {
                trace.instant(number, span.at_ns, "optimized code", json!({ "stage": stage_name(stage) }));
            }
            What::Steal { stage, owner, block, slices } => {
                let args = json!({ "stage": stage_name(stage), "owner": owner, "block": block, "slices": slices });
                trace.instant(number, span.at_ns, "steal", args);
            }
            What::Sent { to, reason, bytes } => {
                let args = json!({ "to": to, "reason": reason.name(), "bytes": bytes });
                trace.span(number, span, ("send", "transfer"), args);
                trace.transfer(number, span.at_ns, Transfer { from: *rank, to, reason, bytes });
            }
            What::Received { from, reason, bytes } => {
                let args = json!({ "from": from, "reason": reason.name(), "bytes": bytes });
                trace.span(number, span, ("receive", "transfer"), args);
                trace.transfer(number, span.at_ns, Transfer { from, to: *rank, reason, bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_track_counts_what_it_leaves_out_and_moves_nothing() {
        let tracer = Tracer::new(u32::MAX, 0);
        let tile = Tile(Region { offset: vec![1, 2], extent: vec![3, 4] });
        for _ in 0..LEAST + 5 {
            tracer.end_tile(tracer.begin(), &tile, || What::Merge { stage: 0 });
        }
        let tracks = tracer.0.unwrap();
        let track = lock(&tracks[MAIN]);
        assert_eq!((track.events.len(), track.events.capacity()), (LEAST, LEAST));
        assert_eq!(track.dropped.unwrap().1, 5);
        assert_eq!(track.tile(&track.events[LEAST - 1]), Some(tile));
    }

    #[test]
    fn nothing_is_recorded_unless_it_is_asked_for() {
        let tracer = Tracer::default();
        assert!(tracer.begin().is_none());
        tracer.mark(|| unreachable!("nobody wants to know"));
        tracer.end(Some(Instant::now()), || unreachable!("nobody wants to know"));
    }
}
