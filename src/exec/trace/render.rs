//! Renders the recorded events of a rank as its part of the trace.

use std::sync::Mutex;
use std::time::Instant;

use crate::exec::sync::lock;
use crate::exec::trace::recorder::{Incarnation, MAIN, TraceEventKind, Track};
use crate::fabric::Rank;
use crate::report::{Args, RankTrace, Span, Transfer, nest};

/// The tracks of a rank: one for its main thread, one for each worker, one for the iterations, and those of the stages.
struct Rendering<'a, F> {
    incarnation: &'a Incarnation,
    /// Whether transfers have arrows. If an incarnation ended with a failed rank, some of them have one end only.
    arrows: bool,
    trace: &'a mut RankTrace,
    since_start: F,
}

/// Returns the encoded part of this rank, for rank 0.
pub(in crate::exec) fn render(
    incarnations: &[Incarnation],
    mut trace: RankTrace,
    since_start: impl Fn(Instant) -> u64,
) -> Vec<u8> {
    let threads = incarnations.iter().map(|incarnation| incarnation.tracks.len()).max().unwrap_or(0);
    let (iterations, stages) = (threads, threads + 1);
    // The stages of a wave run at the same time, each on a track of its own. By track, the end of its last stage:
    let mut lanes: Vec<u64> = Vec::new();
    for (number, incarnation) in incarnations.iter().enumerate() {
        let arrows = number + 1 == incarnations.len();
        let mut rendering = Rendering { incarnation, arrows, trace: &mut trace, since_start: &since_start };
        for (number, track) in incarnation.tracks.iter().enumerate() {
            rendering.track(number, track, iterations, stages, &mut lanes);
        }
    }
    trace.track(MAIN, "main thread");
    (MAIN + 1..threads).for_each(|worker| trace.track(worker, &format!("worker {}", worker - 1)));
    trace.track(iterations, "iterations");
    (0..lanes.len()).for_each(|lane| trace.track(stages + lane, "stages"));
    trace.into_bytes()
}

impl<F: Fn(Instant) -> u64> Rendering<'_, F> {
    fn track(&mut self, number: usize, track: &Mutex<Track>, iterations: usize, stages: usize, lanes: &mut Vec<u64>) {
        let track = lock(track);
        let mut spans = Vec::with_capacity(track.events.len());
        for (index, event) in track.events.iter().enumerate() {
            let span = Span { at_ns: (self.since_start)(event.at), ns: event.ns, event: index };
            match event.kind {
                TraceEventKind::Stage(stage) => {
                    let free = lanes.iter().position(|end_ns| *end_ns <= span.at_ns).unwrap_or(lanes.len());
                    lanes.resize(lanes.len().max(free + 1), 0);
                    lanes[free] = span.at_ns + span.ns;
                    self.trace.span(stages + free, span, (&self.incarnation.plan.stages[stage].name, "stage"), None);
                }
                TraceEventKind::Iteration(iteration) => {
                    let name = format!("iteration {iteration}");
                    self.trace.span(iterations, span, (&name, "iteration"), None);
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

    fn event(&mut self, number: usize, span: Span, track: &Track) {
        let event = &track.events[span.event];
        let Rendering { incarnation: Incarnation { plan, initial_ranks, .. }, trace, .. } = self;
        let of_stage = |stage: usize| {
            let tile = track.tile(event).map(|tile| plan.stages[stage].tile_name(&tile));
            let times = (event.times > 1).then_some(event.times);
            Args { stage: Some(&plan.stages[stage].name), tile, times, ..Args::default() }
        };
        let initial_rank = |rank: Rank| initial_ranks.get(rank as usize).copied().unwrap_or(rank);
        match event.kind {
            TraceEventKind::Part(name) => trace.span(number, span, (name, "run"), None),
            TraceEventKind::Stage(_) | TraceEventKind::Iteration(_) => {}
            TraceEventKind::Inputs { stage, read_bytes } => {
                let args = Args { read_bytes: Some(read_bytes), ..of_stage(stage) };
                trace.span(number, span, ("inputs", "io"), Some(&args));
            }
            TraceEventKind::Read { stage, bytes, read_bytes } => {
                let args = Args { bytes: Some(bytes), read_bytes: Some(read_bytes), ..of_stage(stage) };
                trace.span(number, span, ("read", "io"), Some(&args));
            }
            TraceEventKind::Write { stage, written_bytes } => {
                let args = Args { written_bytes: Some(written_bytes), ..of_stage(stage) };
                trace.span(number, span, ("write", "io"), Some(&args));
            }
            TraceEventKind::Task { stage, tier, slices, kernel_after_ns, kernel_ns, .. } => {
                let tier = tier.name();
                let args = Args { stage: None, tier: Some(tier), slices: Some(slices), ..of_stage(stage) };
                trace.span(number, span, (&plan.stages[stage].name, "task"), Some(&args));
                // The kernel span of joined tasks is as long as all their calls together.
                let after_ns = kernel_after_ns.min(span.ns - 1);
                let kernel = Span { at_ns: span.at_ns + after_ns, ns: kernel_ns.clamp(1, span.ns - after_ns), ..span };
                trace.span(number, kernel, (tier, "kernel"), None);
            }
            TraceEventKind::Merge { stage, .. } => trace.span(number, span, ("merge", "task"), Some(&of_stage(stage))),
            TraceEventKind::Swap { stage, worker, held_ns, after_tasks } => {
                let (worker, held_ns, after_tasks) = (Some(worker as u64), Some(held_ns), Some(after_tasks));
                let args = Args { worker, held_ns, after_tasks, ..of_stage(stage) };
                trace.instant(number, span.at_ns, "swap", Some(&args));
            }
            TraceEventKind::Died { rank } => {
                trace.instant(number, span.at_ns, &format!("rank {rank} died"), None);
            }
            TraceEventKind::Code { stage } => {
                trace.instant(number, span.at_ns, "optimized code", Some(&of_stage(stage)))
            }
            TraceEventKind::Steal { stage, owner, block, slices } => {
                let owner = Some(initial_rank(owner));
                let args = Args { owner, block: Some(block), slices: Some(slices), ..of_stage(stage) };
                trace.instant(number, span.at_ns, "steal", Some(&args));
            }
            TraceEventKind::Sent { to, reason, bytes } => {
                let to = initial_rank(to);
                let args = Args { to: Some(to), reason: Some(reason.name()), bytes: Some(bytes), ..Args::default() };
                let transfer = Transfer { from: trace.rank(), to, reason, bytes };
                self.transfer(number, span, "send", &args, transfer);
            }
            TraceEventKind::Received { from, reason, bytes } => {
                let from = initial_rank(from);
                let args =
                    Args { from: Some(from), reason: Some(reason.name()), bytes: Some(bytes), ..Args::default() };
                let transfer = Transfer { from, to: trace.rank(), reason, bytes };
                self.transfer(number, span, "receive", &args, transfer);
            }
        }
    }
    /// Adds one end of a transfer, and its arrow.
    fn transfer(&mut self, number: usize, span: Span, name: &str, args: &Args<'_>, transfer: Transfer) {
        let at_ns = span.at_ns;
        self.trace.span(number, span, (name, "transfer"), Some(args));
        if self.arrows {
            self.trace.transfer(number, at_ns, transfer);
        }
    }
}
