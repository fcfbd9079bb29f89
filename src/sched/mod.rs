//! The run-time scheduler of one rank as a state machine: [`Scheduler::on`] takes an event and returns actions.
//!
//! It decides which blocks to fetch, which slices of them each worker computes next, and when a block is ready to
//! be written. A *slice* is the smallest piece of a block that a task can take (extent 1 along the block's task
//! axis); a task is a run of slices, sized so that it takes about [`TARGET_TASK_NS`] on the code that runs it.
//!
//! Refuses to do: clocks, threads, I/O, randomness. Times are measured by the driver and handed in.
//! Invariant: every slice of every block is started exactly once, and a block is written once, after all its slices.

mod cost;

pub use cost::{CostClass, CostTable};

use std::collections::{BTreeMap, VecDeque};

/// What a task should take. Long enough that handing it out costs nothing (microseconds), short enough that a
/// worker adopts new code, answers and balances without delay.
pub const TARGET_TASK_NS: u64 = 5_000_000;

/// A run of slices of one block: what one task computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub block: u64,
    pub start: u64,
    pub len: u64,
}

/// How many slices a task takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// As many as take [`TARGET_TASK_NS`] by the measured cost of the running code.
    Adaptive,
    /// Always this many (tests and benchmarks sweep it).
    Fixed(u64),
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The inputs of a block are in memory; it has this many slices.
    Fetched { block: u64, slices: u64 },
    /// A worker has nothing to do, and will run code of this class next.
    Idle { worker: usize, class: CostClass },
    /// A worker finished a task, in this time on code of this class. It is not idle before it says so.
    Finished { span: Span, elapsed_ns: u64, class: CostClass },
    /// A block has reached its output and its memory is free again.
    Written { block: u64 },
}

/// What the driver has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Bring the inputs of this block into memory, then report [`Event::Fetched`].
    Fetch { block: u64 },
    /// Let this worker compute this span.
    Start { worker: usize, span: Span },
    /// All slices of this block are computed: write its outputs, then report [`Event::Written`].
    Write { block: u64 },
    /// Every block of this rank is written. Said once.
    Complete,
}

/// Progress of a block in memory.
#[derive(Debug)]
struct Block {
    slices: u64,
    started: u64,
    finished: u64,
}

/// The scheduler of one stage on one rank.
#[derive(Debug)]
pub struct Scheduler {
    block_count: u64,
    in_flight_limit: u64,
    granularity: Granularity,
    next_fetch: u64,
    written: u64,
    complete_said: bool,
    /// Blocks in memory, by number.
    blocks: BTreeMap<u64, Block>,
    /// Blocks with slices not yet started, oldest first.
    ready: VecDeque<u64>,
    /// Idle workers with the class of their code, longest idle first.
    idle: VecDeque<(usize, CostClass)>,
    worker_count: u64,
    costs: CostTable,
}

impl Scheduler {
    /// A scheduler for `block_count` blocks of which at most `in_flight_limit` are in memory at a time.
    pub fn new(block_count: u64, in_flight_limit: u64, worker_count: usize, granularity: Granularity) -> Self {
        Scheduler {
            block_count,
            in_flight_limit: in_flight_limit.max(1),
            granularity,
            next_fetch: 0,
            written: 0,
            complete_said: false,
            blocks: BTreeMap::new(),
            ready: VecDeque::new(),
            idle: VecDeque::new(),
            worker_count: worker_count.max(1) as u64,
            costs: CostTable::default(),
        }
    }

    /// The first actions: fetches up to the limit, or completion when there is nothing to do.
    pub fn begin(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.fetch_more(&mut actions);
        self.check_complete(&mut actions);
        actions
    }

    /// Takes note of an event and says what follows from it.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Fetched { block, slices } => {
                let known = self.blocks.insert(block, Block { slices, started: 0, finished: 0 });
                assert!(known.is_none(), "block {block} fetched twice");
                if slices == 0 {
                    actions.push(Action::Write { block });
                } else {
                    self.ready.push_back(block);
                    self.start_idle(&mut actions);
                }
            }
            Event::Idle { worker, class } => {
                self.idle.push_back((worker, class));
                self.start_idle(&mut actions);
            }
            Event::Finished { span, elapsed_ns, class } => {
                self.costs.record(class, span.len, elapsed_ns);
                let Some(block) = self.blocks.get_mut(&span.block) else {
                    panic!("finished a span of block {} which is not in memory", span.block)
                };
                block.finished += span.len;
                assert!(block.finished <= block.started, "a span of block {} finished twice", span.block);
                if block.finished == block.slices {
                    actions.push(Action::Write { block: span.block });
                }
            }
            Event::Written { block } => {
                assert!(self.blocks.remove(&block).is_some(), "block {block} written twice");
                self.written += 1;
                self.fetch_more(&mut actions);
                self.check_complete(&mut actions);
            }
        }
        actions
    }

    fn fetch_more(&mut self, actions: &mut Vec<Action>) {
        while self.next_fetch < self.block_count && self.next_fetch - self.written < self.in_flight_limit {
            actions.push(Action::Fetch { block: self.next_fetch });
            self.next_fetch += 1;
        }
    }

    fn check_complete(&mut self, actions: &mut Vec<Action>) {
        if self.written == self.block_count && !self.complete_said {
            self.complete_said = true;
            actions.push(Action::Complete);
        }
    }

    fn start_idle(&mut self, actions: &mut Vec<Action>) {
        while let (Some(&number), Some(&(worker, class))) = (self.ready.front(), self.idle.front()) {
            let wanted = self.slices_for(class);
            let Some(block) = self.blocks.get_mut(&number) else { panic!("ready block {number} is not in memory") };
            let len = wanted.min(block.slices - block.started);
            let span = Span { block: number, start: block.started, len };
            block.started += len;
            if block.started == block.slices {
                self.ready.pop_front();
            }
            self.idle.pop_front();
            actions.push(Action::Start { worker, span });
        }
    }

    /// Slices of the next task on code of `class`; at least 1.
    fn slices_for(&self, class: CostClass) -> u64 {
        let Granularity::Adaptive = self.granularity else {
            let Granularity::Fixed(slices) = self.granularity else { unreachable!() };
            return slices.max(1);
        };
        let wanted = self.costs.slices_in(class, TARGET_TASK_NS);
        if self.next_fetch < self.block_count {
            return wanted;
        }
        // The end is in sight: shrink tasks so that the workers finish together.
        let left: u64 = self.ready.iter().filter_map(|b| self.blocks.get(b)).map(|b| b.slices - b.started).sum();
        wanted.min(left.div_ceil(2 * self.worker_count)).max(1)
    }
}

#[cfg(test)]
mod tests;
