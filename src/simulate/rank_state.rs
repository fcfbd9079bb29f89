//! The state of one simulated rank.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::sched::{Message, Scheduler, Span};
use crate::simulate::cpu_sharing::Thread;
use crate::simulate::event::TensorMessage;

/// The part of a run that a rank is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The main thread begins the run.
    Start,
    /// The rank waits for its inputs, or computes.
    Stage,
    /// The rank waits until all ranks have finished the stage.
    Barrier,
    /// The rank waits for the scalar that decides whether the iterations continue.
    Decision,
    /// The rank has finished its last run.
    Over,
}

/// A job of a rank's main thread, which does one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) enum MainThreadJob {
    /// The work that each run of a stage needs, whatever its size.
    BeginRun,
    /// Brings a block of this rank into memory.
    Fetch { block: u64 },
    /// Brings stolen work into memory.
    Take { span: Span },
    /// Writes the outputs of a block.
    Write { block: u64 },
    /// Leaves a barrier.
    LeaveBarrier,
}

/// A worker, and the task that it computes or computed last.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimWorker {
    pub span: Span,
    pub started_ns: u64,
    pub optimized: bool,
    /// When the task ends, if it runs on a core of its own.
    pub ends_ns: Option<u64>,
}

impl SimWorker {
    pub const IDLE: SimWorker = SimWorker {
        span: Span { owner: 0, block: 0, start: 0, len: 0 },
        started_ns: 0,
        optimized: true,
        ends_ns: None,
    };
}

pub(super) struct SimRank {
    /// Number of the current run.
    pub run: usize,
    pub phase: Phase,
    pub scheduler: Option<Scheduler>,
    /// The rank's own blocks are computed.
    pub complete: bool,
    /// The rank knows that the stage is over on all ranks.
    pub over: bool,
    /// The rank has done its part of the reduction.
    pub reduced: bool,
    /// Input messages of this run that have arrived.
    pub inputs: u32,
    /// Broadcasts of this run that have arrived, one bit each.
    pub broadcasts: u64,
    /// Partial results of this run that have arrived, by level.
    pub partials: Vec<u32>,
    /// The level of the reduction that the rank has reached.
    pub level: usize,
    /// Tensor messages of later runs, with the number of the run.
    pub early_tensors: Vec<(usize, TensorMessage)>,
    /// Scheduler messages of later runs, with the number of the run and the sender.
    pub early_messages: Vec<(usize, u32, Message)>,
    pub main_thread_jobs: VecDeque<MainThreadJob>,
    pub workers: SmallVec<[SimWorker; 1]>,
    /// When the rank entered the current run.
    pub entered_ns: u64,
    /// The rank has optimized code.
    pub optimized: bool,
    /// When the first of the tasks ends that run on cores of their own.
    pub ends_ns: Option<u64>,
    /// When the rank next catches up with the ends of its tasks.
    pub watched_ns: u64,
    /// The poll that keeps a shared core busy.
    pub poll: Option<Thread>,
}

impl SimRank {
    /// A rank before its first run.
    pub fn new(threads: u32, optimized: bool) -> SimRank {
        SimRank {
            run: 0,
            phase: Phase::Start,
            scheduler: None,
            complete: false,
            over: false,
            reduced: false,
            inputs: 0,
            broadcasts: 0,
            partials: Vec::new(),
            level: 0,
            early_tensors: Vec::new(),
            early_messages: Vec::new(),
            main_thread_jobs: VecDeque::new(),
            workers: smallvec::smallvec![SimWorker::IDLE; threads as usize],
            entered_ns: 0,
            optimized,
            ends_ns: None,
            watched_ns: u64::MAX,
            poll: None,
        }
    }

    /// Reads the state that the next event needs; see `Simulator::prefetch_ranks`. The result means nothing.
    pub fn prefetch(&self) -> u64 {
        let scheduler = self.scheduler.as_ref().map_or(0, Scheduler::prefetch);
        let early = self.early_tensors.len() ^ self.early_messages.len();
        let lengths = self.main_thread_jobs.len() ^ self.workers.len() ^ early;
        scheduler ^ lengths as u64 ^ self.run as u64 ^ self.entered_ns ^ self.watched_ns ^ u64::from(self.inputs)
    }

    /// Updates the time at which the first task ends.
    pub fn update_first_end(&mut self) {
        self.ends_ns = self.workers.iter().filter_map(|worker| worker.ends_ns).min();
    }
}
