//! Collects the trace of a run from all ranks.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::{Incarnation, LEAST, Tracer};
use crate::exec::trace::render::render;
use crate::fabric::Rank;
use crate::plan::Plan;
use crate::report::{RankTrace, Trace};
use crate::topology::Topology;

/// The number of events that all threads of a run share; viewers open no more in good time.
const EVENTS: usize = 1 << 20;
/// The most events of one thread: 16 MB of memory, as far as it is used.
const MOST: usize = 1 << 17;

/// The clocks of a rank.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Clock {
    /// The time of day at which the node's monotonic clock started.
    epoch_ns: i64,
    /// The start of the rank's process on the node's monotonic clock.
    started_ns: i64,
}

/// The three clocks of this process, read at the same time.
struct Now {
    instant: Instant,
    monotonic_ns: i64,
    epoch_ns: i64,
}

/// Starts to record this rank and its workers, as a new incarnation of the run.
pub(super) fn start(comm: &mut Communicator, incarnations: &mut Vec<Incarnation>, plan: &Arc<Plan>, workers: usize) {
    let longest =
        |earlier: &Incarnation| earlier.tracks.iter().map(|track| lock(track).events.len()).max().unwrap_or(0);
    let used: usize = incarnations.iter().map(longest).sum();
    let room = (EVENTS / (comm.size() as usize * (workers + 1))).min(MOST).saturating_sub(used).max(LEAST);
    comm.tracer = Tracer::new(workers, room);
    if let Some(tracks) = comm.tracer.tracks() {
        incarnations.push(Incarnation { tracks, plan: plan.clone(), initial_ranks: comm.initial_ranks().to_vec() });
    }
}

/// Returns the trace of all ranks on rank 0, if events were recorded. The job is done by then, so an error is only
/// logged. Collective.
pub(super) fn collect(
    comm: &mut Communicator,
    incarnations: Vec<Incarnation>,
    topology: &Topology,
    process_start: Instant,
) -> Option<Trace> {
    comm.tracer = Tracer::default();
    if incarnations.is_empty() {
        return None;
    }
    let collected = gather(comm, &incarnations, topology, process_start);
    collected.inspect_err(|error| tracing::warn!("collecting the trace: {error}")).ok().flatten()
}

fn gather(
    comm: &mut Communicator,
    incarnations: &[Incarnation],
    topology: &Topology,
    process_start: Instant,
) -> Result<Option<Trace>, RunError> {
    let now = Now::read();
    let started_ns = now.monotonic_ns - now.instant.duration_since(process_start).as_nanos() as i64;
    let all = comm.allgather(encode(&Clock { epoch_ns: now.epoch_ns, started_ns })?)?;
    let wrong = |rank| RunError::Protocol { rank, what: "its clock" };
    let read = |(rank, bytes): (Rank, &Vec<u8>)| serde_json::from_slice(bytes).map_err(|_| wrong(rank));
    let clocks: Vec<Clock> = (0..).zip(&all).map(read).collect::<Result<_, _>>()?;
    // Ranks of a node share one clock.
    let epoch = |rank: Rank| {
        let first = topology.ranks_on_node(rank).first().copied().unwrap_or(rank);
        clocks[first as usize].epoch_ns
    };
    let start = (0..comm.size()).map(|rank| epoch(rank) + clocks[rank as usize].started_ns).min().unwrap_or(0);
    let origin_ns = start - epoch(comm.rank());
    let since_start = |at: Instant| {
        let ns = now.monotonic_ns - now.instant.saturating_duration_since(at).as_nanos() as i64 - origin_ns;
        u64::try_from(ns).unwrap_or(0)
    };
    let initial_rank = comm.initial_ranks()[comm.rank() as usize];
    let tracks = incarnations.iter().flat_map(|incarnation| incarnation.tracks.iter());
    // The event of a task contains that of its kernel.
    let events = tracks.map(|track| 2 * lock(track).events.len()).sum();
    let trace = RankTrace::new(initial_rank, &topology.host(comm.rank()).hostname, events);
    let parts = comm.gather(render(incarnations, trace, since_start))?;
    Ok(parts.map(|parts| {
        let mut trace = Trace::default();
        parts.into_iter().for_each(|part| trace.push(part));
        trace
    }))
}

impl Now {
    /// Reads the clocks several times, and returns the quickest reading: something else may run in between.
    fn read() -> Now {
        use rustix::time::{ClockId, clock_gettime};
        let ns = |clock| {
            let time = clock_gettime(clock);
            time.tv_sec as i64 * 1_000_000_000 + time.tv_nsec as i64
        };
        let take = |_| {
            let (monotonic_ns, instant, day_ns) = (ns(ClockId::Monotonic), Instant::now(), ns(ClockId::Realtime));
            let took = ns(ClockId::Monotonic) - monotonic_ns;
            (took, Now { instant, monotonic_ns, epoch_ns: day_ns - monotonic_ns })
        };
        let quickest = (0..8).map(take).min_by_key(|(took, _)| *took).map(|(_, now)| now);
        quickest.unwrap_or(Now { instant: Instant::now(), monotonic_ns: 0, epoch_ns: 0 })
    }
}
