//! What a run records of itself for `--trace`: each thread into a list of its own that has its room from the beginning, short ones
//! of a kind in a row together. Words are made of it when the run is over (`tracks`). Without `--trace` nothing is recorded.
//!
//! A run that goes on without ranks that died begins a new life: with other numbers of ranks, another plan and lists of its own.

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

/// What takes no longer is one event with more of the same that follows it. Where tasks are so short, events of their own would cost
/// more than a trace may.
const SHORT: Duration = Duration::from_micros(100);
/// Between two of one event.
const PAUSE: Duration = Duration::from_micros(5);
/// One event, at most: more than that is not lost to sight.
const TOGETHER: Duration = Duration::from_millis(1);

/// The list of the main thread; those of the workers follow.
pub(in crate::exec) const MAIN: usize = 0;

/// Something that a thread did or that happened to it.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) enum TraceEventKind {
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
    /// In this run of the stage. The kernel was called so long after the task began.
    Task {
        stage: usize,
        run: u64,
        tier: Tier,
        slices: u64,
        kernel_after_ns: u64,
        kernel_ns: u64,
    },
    /// Merging partial results, in this run of the stage.
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
    /// A rank died, called what it was at the start.
    Died {
        rank: Rank,
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
pub(in crate::exec) struct Event {
    pub at: Instant,
    /// 0 for what takes no time.
    pub ns: u64,
    /// How often it was done, one time after the other; numbers are sums then.
    pub times: u32,
    /// Of the first time: where the offset and the extent of its tile begin in the numbers of the track, and how many axes it has.
    tile: Option<(u32, u32)>,
    pub what: TraceEventKind,
}

#[derive(Debug)]
pub(in crate::exec) struct Track {
    pub events: Vec<Event>,
    numbers: Vec<u64>,
    /// Since when there was no room, and for how many events. None is recorded after that, so that those of both ends of
    /// transfers can be counted.
    pub dropped: Option<(Instant, u64)>,
}

/// What is recorded from the beginning of a run, or from when it began again without ranks that died.
#[derive(Debug)]
pub(in crate::exec) struct Incarnation {
    pub tracks: Arc<Vec<Mutex<Track>>>,
    pub plan: Arc<Plan>,
    /// What its ranks were at the start.
    pub members: Vec<Rank>,
}

/// A rank's record; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(in crate::exec) struct Tracer(Option<Arc<Vec<Mutex<Track>>>>);

impl TraceEventKind {
    /// Adds what was done next, if it is more of the same. What touches a file, moves between ranks or takes no time stays an
    /// event of its own: each of these is of interest by itself.
    fn add(&mut self, next: &TraceEventKind) -> bool {
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
    /// Adds what the thread did next, if it is more of the same, as short and right behind it.
    fn add(&mut self, at: Instant, ns: u64, what: &TraceEventKind) -> bool {
        let end = self.at + Duration::from_nanos(self.ns);
        let (pause, new) = (at.checked_duration_since(end), Duration::from_nanos(ns));
        let short = self.ns <= SHORT.as_nanos() as u64 || self.times > 1;
        let fits = pause.is_some_and(|pause| pause <= PAUSE) && at + new <= self.at + TOGETHER;
        if !(short && new <= SHORT && fits && self.what.add(what)) {
            return false;
        }
        self.ns = (at + new - self.at).as_nanos() as u64;
        self.times += 1;
        true
    }
}

impl Tracer {
    /// For a main thread with this many workers, each of which has room for as many events.
    pub fn new(workers: usize, room: usize) -> Tracer {
        // Pages that are never written take no memory. Tiles have two axes, for the most part.
        let track =
            |_| Track { events: Vec::with_capacity(room), numbers: Vec::with_capacity(4 * room), dropped: None };
        Tracer(Some(Arc::new((0..=workers).map(track).map(Mutex::new).collect())))
    }

    /// The tracks of all threads, if anything is recorded.
    pub fn tracks(&self) -> Option<Arc<Vec<Mutex<Track>>>> {
        self.0.clone()
    }

    /// Now, if anything is recorded.
    pub fn begin(&self) -> Option<Instant> {
        self.0.as_ref().map(|_| Instant::now())
    }

    /// Records what this thread has done since [`Tracer::begin`].
    pub fn end(&self, begun: Option<Instant>, what: impl FnOnce() -> TraceEventKind) {
        if let (Some(tracks), Some(at)) = (&self.0, begun) {
            record(tracks, at, at.elapsed().as_nanos() as u64, None, what());
        }
    }

    /// Records what this thread has done with `tile` since then.
    pub fn end_tile(&self, begun: Option<Instant>, tile: &Tile, what: impl FnOnce() -> TraceEventKind) {
        if let (Some(tracks), Some(at)) = (&self.0, begun) {
            record(tracks, at, at.elapsed().as_nanos() as u64, Some(tile), what());
        }
    }

    /// Records what a worker has done with `tile` since `at`, in so long.
    pub fn task(&self, at: Instant, ns: u64, tile: &Tile, what: impl FnOnce() -> TraceEventKind) {
        if let Some(tracks) = &self.0 {
            record(tracks, at, ns, Some(tile), what());
        }
    }

    /// Records what has just happened.
    pub fn mark(&self, what: impl FnOnce() -> TraceEventKind) {
        if let Some(tracks) = &self.0 {
            record(tracks, Instant::now(), 0, None, what());
        }
    }
}

/// Workers are the threads of a pool, each rank's own.
fn record(tracks: &[Mutex<Track>], at: Instant, ns: u64, tile: Option<&Tile>, what: TraceEventKind) {
    let track = rayon::current_thread_index().map_or(MAIN, |index| index + 1);
    let Some(track) = tracks.get(track) else { return };
    let mut track = lock(track);
    let Track { events, numbers, dropped } = &mut *track;
    if dropped.is_none() && events.last_mut().is_some_and(|last| last.add(at, ns, &what)) {
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
    events.push(Event { at, ns, times: 1, tile, what });
}

impl Track {
    /// That of an event, or of the first of what it is.
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

    /// What a thread did, each so many microseconds after the last and so long: as often, and as long in microseconds, as it is
    /// recorded.
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
    fn a_full_track_counts_what_it_leaves_out_and_moves_nothing() {
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
    fn short_ones_in_a_row_are_one_event_with_their_sums() {
        let (tracer, begun) = (Tracer::new(0, LEAST), Instant::now());
        let tracks = tracer.0.unwrap();
        for number in 0..12 {
            let at = begun + Duration::from_micros(20 * number);
            record(&tracks, at, 16_000, Some(&tile(number)), task(1, Tier::Optimized));
        }
        let track = lock(&tracks[MAIN]);
        let [event] = &track.events[..] else { panic!("{:?}", track.events) };
        assert_eq!((event.at, event.ns, event.times, track.tile(event)), (begun, 236_000, 12, Some(tile(0))));
        let TraceEventKind::Task { slices: 36, kernel_after_ns: 1000, kernel_ns: 60_000, .. } = event.what else {
            panic!("{event:?}")
        };
        for what in [READ, WRITE, MERGE] {
            assert_eq!(recorded(&[(0, 10, what), (5, 90, what), (0, 100, what)]), [(3, 205)], "{what:?}");
        }
    }

    #[test]
    fn what_is_long_or_comes_later_is_an_event_of_its_own() {
        let task = task(1, Tier::Optimized);
        assert_eq!(recorded(&[(0, 10, task), (6, 10, task), (5, 10, task)]), [(1, 10), (2, 25)]);
        assert_eq!(recorded(&[(0, 101, task), (1, 10, task), (1, 101, task)]), [(1, 101), (1, 10), (1, 101)]);
        // Together no longer than that.
        assert_eq!(recorded(&[(0, 100, task); 25]), [(10, 1000), (10, 1000), (5, 500)]);
    }

    #[test]
    fn what_is_not_the_same_is_an_event_of_its_own() {
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
        // Merging is within the task that it belongs to, which is recorded when it is over.
        let tracer = Tracer::new(0, LEAST);
        let (tracks, at) = (tracer.0.unwrap(), Instant::now() + Duration::from_micros(10));
        record(&tracks, at, 1000, None, MERGE);
        record(&tracks, at - Duration::from_micros(5), 7000, None, MERGE);
        assert_eq!(lock(&tracks[MAIN]).events.len(), 2);
    }

    #[test]
    fn nothing_is_recorded_unless_it_is_asked_for() {
        let tracer = Tracer::default();
        assert!(tracer.begin().is_none());
        tracer.mark(|| unreachable!("nobody wants to know"));
        tracer.end(Some(Instant::now()), || unreachable!("nobody wants to know"));
    }
}
