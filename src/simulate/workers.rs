//! What workers compute, and when others have to know that it is done.
//!
//! Where workers have cores of their own, the end of most tasks matters to nobody but their rank, which starts the next.
//! Such ends are no events: a rank catches up with them when something else happens to it, and no later than at the first
//! end that may matter to others. That saves the simulation of many ranks a visit to memory that no cache holds for each.

use crate::sched::{CostClass, Event, Scheduler, Span};
use crate::simulate::simulator::{Rank, SimEvent, Simulator};

const BASELINE: CostClass = CostClass(0);
const OPTIMIZED: CostClass = CostClass(1);

/// A worker, and the task that it computes or computed last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Worker {
    span: Span,
    started_ns: u64,
    optimized: bool,
    /// Until when, on a core of its own.
    ends_ns: Option<u64>,
}

impl Worker {
    pub const IDLE: Worker =
        Worker { span: Span { owner: 0, block: 0, start: 0, len: 0 }, started_ns: 0, optimized: true, ends_ns: None };
}

impl Rank {
    fn note_first_end(&mut self) {
        self.ends_ns = self.workers.iter().filter_map(|worker| worker.ends_ns).min();
    }
}

impl Simulator<'_> {
    /// The class of the code that a rank has.
    pub fn class(&self, rank: u32) -> CostClass {
        if self.ranks[rank as usize].optimized { OPTIMIZED } else { BASELINE }
    }

    /// A worker begins with a task; its time is counted elsewhere where cores are shared.
    pub fn start(&mut self, rank: u32, worker: u32, span: Span) -> u64 {
        let optimized = self.ranks[rank as usize].optimized;
        self.ranks[rank as usize].workers[worker as usize] =
            Worker { span, started_ns: self.now_ns, optimized, ends_ns: None };
        let (stage, _) = self.place(rank);
        let runs = self.runs[self.ranks[rank as usize].run].times;
        self.times[stage].tasks += runs;
        self.times[stage].baseline_tasks += if optimized { 0 } else { runs };
        self.work(rank).task_ns(rank, span, optimized)
    }

    /// Its task ends at this time, on a core of its own.
    pub fn ends_at(&mut self, rank: u32, worker: u32, ns: u64) {
        let state = &mut self.ranks[rank as usize];
        state.workers[worker as usize].ends_ns = Some(ns);
        state.note_first_end();
    }

    pub fn finished(&mut self, rank: u32, worker: u32) {
        let state = &mut self.ranks[rank as usize];
        let Worker { span, started_ns, optimized, .. } = state.workers[worker as usize];
        state.workers[worker as usize].ends_ns = None;
        state.note_first_end();
        let elapsed_ns = self.now_ns - started_ns;
        let class = if optimized { OPTIMIZED } else { BASELINE };
        self.tell(rank, Event::Finished { span, elapsed_ns, class });
        self.tell(rank, Event::Idle { worker: worker as usize, class });
    }

    /// Lets all tasks of a rank end that have ended by now.
    pub fn catch_up(&mut self, rank: u32) {
        let now_ns = self.now_ns;
        while let Some(ends_ns) = self.ranks[rank as usize].ends_ns.filter(|ends_ns| *ends_ns <= now_ns) {
            let first = self.ranks[rank as usize].workers.iter().position(|worker| worker.ends_ns == Some(ends_ns));
            let Some(worker) = first else { break };
            self.now_ns = ends_ns;
            self.count_event(rank);
            self.finished(rank, worker as u32);
        }
        self.now_ns = now_ns;
    }

    /// Sees to it that the rank catches up before one of its tasks ends in a way that matters to others.
    pub fn watch(&mut self, rank: u32) {
        let state = &self.ranks[rank as usize];
        let Some(first_ns) = state.ends_ns.filter(|first_ns| *first_ns < state.watched_ns) else { return };
        let due_ns = self.due_ns(rank, first_ns);
        if due_ns < self.ranks[rank as usize].watched_ns {
            self.ranks[rank as usize].watched_ns = due_ns;
            self.at(due_ns, rank, SimEvent::Ends);
        }
    }

    /// When the first task of a rank may end in such a way, at the earliest, if the first of all ends at `first_ns`.
    fn due_ns(&self, rank: u32, first_ns: u64) -> u64 {
        let state = &self.ranks[rank as usize];
        let Some(next) = state.scheduler.as_ref().and_then(Scheduler::quiet_run) else { return first_ns };
        // The block ends with the last of its slices, and those that nobody has started take at least so long, with all
        // workers at them; each task loses a part of a nanosecond to rounding.
        let rest_ns = self.work(rank).task_ns(rank, next, state.optimized) / u64::from(self.threads);
        let block_ns = first_ns + rest_ns.saturating_sub(next.len);
        let of_others = |worker: &&Worker| (worker.span.owner, worker.span.block) != (next.owner, next.block);
        let others_ns = state.workers.iter().filter(of_others).filter_map(|worker| worker.ends_ns).min();
        others_ns.map_or(block_ns, |ns| ns.min(block_ns))
    }
}
