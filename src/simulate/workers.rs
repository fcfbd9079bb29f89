//! The tasks of workers, and the ends of tasks that matter to other ranks.
//!
//! Where workers have cores of their own, most ends of tasks matter only to their own rank, which starts the next task.
//! They are not events: a rank catches up with them at its next event, and no later than at the first end that may
//! matter to others. With many ranks this saves a cache miss for each task.

use crate::sched::{CostClass, Event, Scheduler, Span};
use crate::simulate::event::SimEvent;
use crate::simulate::rank_state::SimWorker;
use crate::simulate::simulator::Simulator;

const BASELINE: CostClass = CostClass(0);
const OPTIMIZED: CostClass = CostClass(1);

impl Simulator<'_> {
    /// The cost class of the code that a rank has.
    pub fn class(&self, rank: u32) -> CostClass {
        if self.ranks[rank as usize].optimized { OPTIMIZED } else { BASELINE }
    }

    /// Starts a task on a worker; returns the time that it takes on a core of its own.
    pub fn start(&mut self, rank: u32, worker: u32, span: Span) -> u64 {
        let optimized = self.ranks[rank as usize].optimized;
        self.ranks[rank as usize].workers[worker as usize] =
            SimWorker { span, started_ns: self.now_ns, optimized, ends_ns: None };
        let (stage, _) = self.place(rank);
        let runs = self.runs[self.ranks[rank as usize].run].times;
        self.times[stage].tasks += runs;
        self.times[stage].baseline_tasks += if optimized { 0 } else { runs };
        self.work(rank).task_ns(rank, span, optimized)
    }

    /// Sets the time at which a worker's task ends, on a core of its own.
    pub fn set_task_end(&mut self, rank: u32, worker: u32, ns: u64) {
        let state = &mut self.ranks[rank as usize];
        state.workers[worker as usize].ends_ns = Some(ns);
        state.update_first_end();
    }

    /// A worker has finished its task.
    pub fn on_task_finished(&mut self, rank: u32, worker: u32) {
        let state = &mut self.ranks[rank as usize];
        let SimWorker { span, started_ns, optimized, .. } = state.workers[worker as usize];
        state.workers[worker as usize].ends_ns = None;
        state.update_first_end();
        let elapsed_ns = self.now_ns - started_ns;
        let class = if optimized { OPTIMIZED } else { BASELINE };
        self.notify_scheduler(rank, Event::Finished { span, elapsed_ns, class });
        self.notify_scheduler(rank, Event::Idle { worker: worker as usize, class });
    }

    /// Processes the ends of all tasks of a rank up to now.
    pub fn catch_up(&mut self, rank: u32) {
        let now_ns = self.now_ns;
        while let Some(ends_ns) = self.ranks[rank as usize].ends_ns.filter(|ends_ns| *ends_ns <= now_ns) {
            let first = self.ranks[rank as usize].workers.iter().position(|worker| worker.ends_ns == Some(ends_ns));
            let Some(worker) = first else { break };
            self.now_ns = ends_ns;
            self.count_event(rank);
            self.on_task_finished(rank, worker as u32);
        }
        self.now_ns = now_ns;
    }

    /// Schedules an event at which the rank catches up before the end of a task matters to others.
    pub fn watch(&mut self, rank: u32) {
        let state = &self.ranks[rank as usize];
        let Some(first_ns) = state.ends_ns.filter(|first_ns| *first_ns < state.watched_ns) else { return };
        let due_ns = self.due_ns(rank, first_ns);
        if due_ns < self.ranks[rank as usize].watched_ns {
            self.ranks[rank as usize].watched_ns = due_ns;
            self.at(due_ns, rank, SimEvent::TasksEnded);
        }
    }

    /// The earliest time at which the end of a task may matter to others, if the first task ends at `first_ns`.
    fn due_ns(&self, rank: u32, first_ns: u64) -> u64 {
        let state = &self.ranks[rank as usize];
        let Some(next) = state.scheduler.as_ref().and_then(Scheduler::quiet_run) else { return first_ns };
        // The block ends with the last of its slices. Those that are not started take at least this long with all
        // workers; each task loses a part of a nanosecond to rounding.
        let rest_ns = self.work(rank).task_ns(rank, next, state.optimized) / u64::from(self.threads);
        let block_ns = first_ns + rest_ns.saturating_sub(next.len);
        let of_others = |worker: &&SimWorker| (worker.span.owner, worker.span.block) != (next.owner, next.block);
        let others_ns = state.workers.iter().filter(of_others).filter_map(|worker| worker.ends_ns).min();
        others_ns.map_or(block_ns, |ns| ns.min(block_ns))
    }
}
