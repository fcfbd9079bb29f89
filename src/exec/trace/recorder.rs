//! Recording of events for `--trace`. Each thread has a track with a fixed capacity, and joins short events of one
//! kind. The events are rendered when the run is over. Without `--trace` nothing is recorded.
//!
//! A run that has shrunk starts a new incarnation, with other rank numbers, another plan and tracks of its own.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::engine::Tier;
use crate::exec::sync::lock;
use crate::fabric::Rank;
use crate::plan::{Plan, Tile};
use crate::report::Reason;
use crate::tensor::Region;

/// The least room for the events of one thread.
pub(in crate::exec) const LEAST: usize = 1 << 8;

/// The longest event that is joined with the next one of its kind. Single events of such short tasks would make tracing
/// too expensive.
const SHORT: Duration = Duration::from_micros(100);
/// The longest pause within a joined event.
const PAUSE: Duration = Duration::from_micros(5);
/// The longest joined event: anything longer stays visible.
const TOGETHER: Duration = Duration::from_millis(1);

/// The track of the main thread; those of the workers follow.
pub(in crate::exec) const MAIN: usize = 0;

/// The kind of an event of a thread, with its figures.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) enum TraceEventKind {
    /// A named part of a run.
    Part(&'static str),
    Iteration(u64),
    /// A run of a stage.
    Stage(usize),
    /// Gathering the inputs of a stage; `read_bytes` came from files.
    Inputs {
        stage: usize,
        read_bytes: u64,
    },
    /// Reading a block into memory.
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
    /// A task in run `run` of the stage. Its kernel was called `kernel_after_ns` after its start.
    Task {
        stage: usize,
        run: u64,
        tier: Tier,
        slices: u64,
        kernel_after_ns: u64,
        kernel_ns: u64,
    },
    /// Merging partial results in run `run` of the stage.
    Merge {
        stage: usize,
        run: u64,
    },
    Swap {
        stage: usize,
        worker: usize,
        held_ns: u64,
        after_tasks: u64,
    },
    /// The failure of a rank, by its number at the start of the run.
    Died {
        rank: Rank,
    },
    /// The arrival of optimized code.
    Code {
        stage: usize,
    },
    /// The arrival of stolen work.
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
pub(in crate::exec) struct Event {
    pub at: Instant,
    /// The duration; 0 for an instant.
    pub ns: u64,
    /// The number of joined events. Figures are their sums.
    pub times: u32,
    /// The tile of the first joined event: its position in the numbers of the track, and its number of axes.
    tile: Option<(u32, u32)>,
    pub kind: TraceEventKind,
}

#[derive(Debug)]
pub(in crate::exec) struct Track {
    pub events: Vec<Event>,
    numbers: Vec<u64>,
    /// The time at which the track was full, and the number of events since. No event is recorded after that time, so
    /// that events at both ends of transfers can be matched.
    pub dropped: Option<(Instant, u64)>,
}

/// The events since the start of a run, or since it last shrank.
#[derive(Debug)]
pub(in crate::exec) struct Incarnation {
    pub tracks: Arc<Vec<Mutex<Track>>>,
    pub plan: Arc<Plan>,
    /// By rank, the number that it had at the start of the run.
    pub initial_ranks: Vec<Rank>,
}

/// Records the events of a rank. Clones share one record.
#[derive(Clone, Debug, Default)]
pub(in crate::exec) struct Tracer(Option<Arc<Vec<Mutex<Track>>>>);

impl TraceEventKind {
    /// Joins the next event, if it is of the same kind. Events that access a file, move data between ranks or take no
    /// time are never joined: each of these is of interest by itself.
    fn join(&mut self, next: &TraceEventKind) -> bool {
        match (self, next) {
            (
                TraceEventKind::Task { run, tier, slices, kernel_ns, .. },
                TraceEventKind::Task { run: next_run, tier: next_tier, slices: more, kernel_ns: more_ns, .. },
            ) if run == next_run && tier == next_tier => {
                *slices += more;
                *kernel_ns += more_ns;
                true
            }
            (
                TraceEventKind::Read { stage, bytes, read_bytes: 0 },
                TraceEventKind::Read { stage: next, bytes: more, read_bytes: 0 },
            ) if stage == next => {
                *bytes += more;
                true
            }
            (
                TraceEventKind::Write { stage, written_bytes: 0 },
                TraceEventKind::Write { stage: next, written_bytes: 0 },
            ) => stage == next,
            (TraceEventKind::Merge { run, .. }, TraceEventKind::Merge { run: next, .. }) => run == next,
            _ => false,
        }
    }
}

impl Event {
    /// Joins the thread's next event, if it is of the same kind, short, and starts right after this one.
    fn join(&mut self, at: Instant, ns: u64, kind: &TraceEventKind) -> bool {
        let end = self.at + Duration::from_nanos(self.ns);
        let (pause, new) = (at.checked_duration_since(end), Duration::from_nanos(ns));
        let short = self.ns <= SHORT.as_nanos() as u64 || self.times > 1;
        let fits = pause.is_some_and(|pause| pause <= PAUSE) && at + new <= self.at + TOGETHER;
        if !(short && new <= SHORT && fits && self.kind.join(kind)) {
            return false;
        }
        self.ns = (at + new - self.at).as_nanos() as u64;
        self.times += 1;
        true
    }
}

impl Tracer {
    /// Returns a recorder for a main thread and `workers`, each with room for `room` events.
    pub fn new(workers: usize, room: usize) -> Tracer {
        // Pages that are never written take no memory. Most tiles have two axes.
        let track =
            |_| Track { events: Vec::with_capacity(room), numbers: Vec::with_capacity(4 * room), dropped: None };
        Tracer(Some(Arc::new((0..=workers).map(track).map(Mutex::new).collect())))
    }

    /// The tracks of all threads, if anything is recorded.
    pub fn tracks(&self) -> Option<Arc<Vec<Mutex<Track>>>> {
        self.0.clone()
    }

    /// Returns the current time, if anything is recorded.
    pub fn begin(&self) -> Option<Instant> {
        self.0.as_ref().map(|_| Instant::now())
    }

    /// Records an event of this thread that started at [`Tracer::begin`].
    pub fn end(&self, started: Option<Instant>, kind: impl FnOnce() -> TraceEventKind) {
        if let (Some(tracks), Some(at)) = (&self.0, started) {
            record(tracks, at, at.elapsed().as_nanos() as u64, None, kind());
        }
    }

    /// Records an event of this thread about `tile` that started at [`Tracer::begin`].
    pub fn end_tile(&self, started: Option<Instant>, tile: &Tile, kind: impl FnOnce() -> TraceEventKind) {
        if let (Some(tracks), Some(at)) = (&self.0, started) {
            record(tracks, at, at.elapsed().as_nanos() as u64, Some(tile), kind());
        }
    }

    /// Records an event of this thread about `tile` that started at `at` and took `ns`.
    pub fn task(&self, at: Instant, ns: u64, tile: &Tile, kind: impl FnOnce() -> TraceEventKind) {
        if let Some(tracks) = &self.0 {
            record(tracks, at, ns, Some(tile), kind());
        }
    }

    /// Records an instant.
    pub fn mark(&self, kind: impl FnOnce() -> TraceEventKind) {
        if let Some(tracks) = &self.0 {
            record(tracks, Instant::now(), 0, None, kind());
        }
    }
}

/// Adds an event to the track of this thread. Workers are the threads of the rank's own pool.
fn record(tracks: &[Mutex<Track>], at: Instant, ns: u64, tile: Option<&Tile>, kind: TraceEventKind) {
    let track = rayon::current_thread_index().map_or(MAIN, |index| index + 1);
    let Some(track) = tracks.get(track) else { return };
    let mut track = lock(track);
    let Track { events, numbers, dropped } = &mut *track;
    if dropped.is_none() && events.last_mut().is_some_and(|last| last.join(at, ns, &kind)) {
        return;
    }
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
    events.push(Event { at, ns, times: 1, tile, kind });
}

impl Track {
    /// Returns the tile of an event, or of the first of joined events.
    pub fn tile(&self, event: &Event) -> Option<Tile> {
        let (begin, axes) = event.tile.map(|(begin, axes)| (begin as usize, axes as usize))?;
        let (offset, extent) = self.numbers.get(begin..begin + 2 * axes)?.split_at(axes);
        Some(Tile(Region { offset: offset.to_vec(), extent: extent.to_vec() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(at: u64) -> Tile {
        Tile(Region { offset: vec![at, 2], extent: vec![3, 4] })
    }

    fn task(run: u64, tier: Tier) -> TraceEventKind {
        TraceEventKind::Task { stage: 0, run, tier, slices: 3, kernel_after_ns: 1000, kernel_ns: 5000 }
    }

    const READ: TraceEventKind = TraceEventKind::Read { stage: 0, bytes: 8, read_bytes: 0 };
    const FROM_FILE: TraceEventKind = TraceEventKind::Read { stage: 0, bytes: 8, read_bytes: 8 };
    const WRITE: TraceEventKind = TraceEventKind::Write { stage: 0, written_bytes: 0 };
    const MERGE: TraceEventKind = TraceEventKind::Merge { stage: 0, run: 1 };
    const SWAP: TraceEventKind = TraceEventKind::Swap { stage: 0, worker: 0, held_ns: 10, after_tasks: 1 };

    /// Records events, each given by its pause before, its duration (both in microseconds) and its kind. Returns the
    /// number of joined events and the duration of each recorded event.
    fn recorded(done: &[(u64, u64, TraceEventKind)]) -> Vec<(u32, u64)> {
        let (tracer, mut at) = (Tracer::new(0, LEAST), Instant::now());
        let tracks = tracer.0.unwrap();
        for (number, (pause_us, us, what)) in (0..).zip(done) {
            at += Duration::from_micros(*pause_us);
            record(&tracks, at, us * 1000, Some(&tile(number)), *what);
            at += Duration::from_micros(*us);
        }
        let track = lock(&tracks[MAIN]);
        track.events.iter().map(|event| (event.times, event.ns / 1000)).collect()
    }

    #[test]
    fn a_full_track_counts_dropped_events_and_does_not_grow() {
        let tracer = Tracer::new(0, LEAST);
        for _ in 0..LEAST + 5 {
            tracer.end_tile(tracer.begin(), &tile(1), || FROM_FILE);
        }
        let tracks = tracer.0.unwrap();
        let track = lock(&tracks[MAIN]);
        assert_eq!((track.events.len(), track.events.capacity()), (LEAST, LEAST));
        assert_eq!(track.dropped.unwrap().1, 5);
        assert_eq!(track.tile(&track.events[LEAST - 1]), Some(tile(1)));
    }

    #[test]
    fn short_events_in_a_row_are_joined_with_their_sums() {
        let (tracer, begun) = (Tracer::new(0, LEAST), Instant::now());
        let tracks = tracer.0.unwrap();
        for number in 0..12 {
            let at = begun + Duration::from_micros(20 * number);
            record(&tracks, at, 16_000, Some(&tile(number)), task(1, Tier::Optimized));
        }
        let track = lock(&tracks[MAIN]);
        let [event] = &track.events[..] else { panic!("{:?}", track.events) };
        assert_eq!((event.at, event.ns, event.times, track.tile(event)), (begun, 236_000, 12, Some(tile(0))));
        let TraceEventKind::Task { slices: 36, kernel_after_ns: 1000, kernel_ns: 60_000, .. } = event.kind else {
            panic!("{event:?}")
        };
        for what in [READ, WRITE, MERGE] {
            assert_eq!(recorded(&[(0, 10, what), (5, 90, what), (0, 100, what)]), [(3, 205)], "{what:?}");
        }
    }

    #[test]
    fn long_and_late_events_are_not_joined() {
        let task = task(1, Tier::Optimized);
        assert_eq!(recorded(&[(0, 10, task), (6, 10, task), (5, 10, task)]), [(1, 10), (2, 25)]);
        assert_eq!(recorded(&[(0, 101, task), (1, 10, task), (1, 101, task)]), [(1, 101), (1, 10), (1, 101)]);
        // A joined event has a longest duration.
        assert_eq!(recorded(&[(0, 100, task); 25]), [(10, 1000), (10, 1000), (5, 500)]);
    }

    #[test]
    fn events_of_different_kinds_are_not_joined() {
        let task = |run, tier| (0, 10, task(run, tier));
        let [first, second] = [task(1, Tier::Baseline), task(1, Tier::Optimized)];
        assert_eq!(recorded(&[first, second]), [(1, 10); 2]);
        assert_eq!(recorded(&[first, task(2, Tier::Baseline)]), [(1, 10); 2]);
        assert_eq!(recorded(&[first, first, (0, 0, SWAP), second, second]), [(2, 20), (1, 0), (2, 20)]);
        assert_eq!(recorded(&[(0, 10, FROM_FILE), (0, 10, FROM_FILE), (0, 10, READ), (0, 10, WRITE)]), [(1, 10); 4]);
        let of_another = TraceEventKind::Read { stage: 1, bytes: 8, read_bytes: 0 };
        assert_eq!(recorded(&[(0, 10, READ), (0, 10, of_another)]), [(1, 10); 2]);
        assert_eq!(recorded(&[(0, 0, TraceEventKind::Code { stage: 0 }); 2]), [(1, 0); 2]);
        let sent = TraceEventKind::Sent { to: 1, reason: Reason::Halo, bytes: 8 };
        assert_eq!(recorded(&[(0, 5, sent), (0, 5, sent)]), [(1, 5); 2]);
        // A merge is within its task, which is recorded when it ends.
        let tracer = Tracer::new(0, LEAST);
        let (tracks, at) = (tracer.0.unwrap(), Instant::now() + Duration::from_micros(10));
        record(&tracks, at, 1000, None, MERGE);
        record(&tracks, at - Duration::from_micros(5), 7000, None, MERGE);
        assert_eq!(lock(&tracks[MAIN]).events.len(), 2);
    }

    #[test]
    fn nothing_is_recorded_by_default() {
        let tracer = Tracer::default();
        assert!(tracer.begin().is_none());
        tracer.mark(|| unreachable!("nothing is recorded"));
        tracer.end(Some(Instant::now()), || unreachable!("nothing is recorded"));
    }
}
