//! What the workers of a stage and the main thread share: blocks in memory, the scheduler, the code that is current, and what each
//! does for the other. Neither ever waits for the other's work under a lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::engine::{Access, Code, Engine, Kernel, OperandSpec, StartFunction, Tier};
use crate::exec::reduce::chain::MergeRequest;
use crate::exec::reduce::fold::{Fold, Merger};
use crate::exec::stage::incremental_save::TileOutputs;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::Tracer;
use crate::exec::transfer::broadcast::BroadcastInput;
use crate::exec::transfer::piece::BlockInput;
use crate::exec::worker::instances::Instances;
use crate::exec::worker::{FromRun, FromWorker};
use crate::fabric::Rank;
use crate::plan::{Plan, Reduce, Role, StagePlan, Tile};
use crate::sched::{Action, CostClass, CostTable, Event, Scheduler, Span, StealCounts};

/// Owner, number and first slice of a block in memory, or of a stolen piece of one.
pub(in crate::exec) type BlockKey = (Rank, u64, u64);

/// A block in memory, or a stolen piece of another rank's.
#[derive(Debug)]
pub(in crate::exec) struct BlockData {
    /// The whole block: slices are counted in it.
    pub tile: Tile,
    /// What of it the inputs and outputs are of.
    pub cover: Tile,
    /// By operand.
    pub inputs: Vec<BlockInput>,
    pub outputs: Mutex<BlockOutputs>,
    /// By group, how many of its first leaves earlier runs have summed; empty if none is.
    pub summed: Vec<u64>,
}

impl BlockData {
    /// Whether there is nothing to do for this slice.
    pub fn is_summed(&self, plan: &StagePlan, slice: u64) -> bool {
        let leaves = plan.reduce.map_or(1, |reduce| reduce.leaves);
        self.summed.get((slice / leaves) as usize).is_some_and(|summed| slice % leaves < *summed)
    }
}

/// What the tasks of a block have made so far.
#[derive(Debug)]
pub(in crate::exec) enum BlockOutputs {
    Tiles(TileOutputs),
    /// Partial results of each group, merged in the order of its leaves.
    Groups(Reduce, Vec<Fold>),
    /// Partial results of each slice from this one on, for their owner to combine.
    Slices(u64, Vec<Vec<Vec<u8>>>),
}

impl BlockOutputs {
    /// Of a block of this rank's.
    pub fn own(plan: &StagePlan, tile: &Tile) -> BlockOutputs {
        match plan.reduce {
            None => BlockOutputs::tiles(plan, tile),
            Some(reduce) => {
                let groups = plan.slices(tile) / reduce.leaves;
                BlockOutputs::Groups(reduce, (0..groups).map(|_| Fold::default()).collect())
            }
        }
    }

    /// Zeros for what a map makes of `cover`.
    pub fn tiles(plan: &StagePlan, cover: &Tile) -> BlockOutputs {
        let bytes =
            |index| vec![0; plan.region(index, cover).elements() as usize * plan.operands[index].dtype.size_bytes()];
        BlockOutputs::Tiles(TileOutputs::new(plan.outputs().map(bytes).collect()))
    }
}

/// What a worker has a kernel do, for the watch over time limits and for messages.
#[derive(Clone, Debug)]
pub(in crate::exec) struct Current {
    pub started: Instant,
    pub call: Call,
    pub tier: Tier,
    /// In the kernel that merges.
    pub merges: bool,
}

/// The function of a module that runs.
#[derive(Clone, Debug)]
pub(in crate::exec) enum Call {
    /// As its instance is made.
    Start(StartFunction),
    Task(Tile),
}

/// What the workers of a stage and the main thread are given, beside the scheduler and the first code.
#[derive(Debug)]
pub(in crate::exec) struct Setup {
    pub plan: Arc<Plan>,
    pub stage_index: usize,
    pub engine: Engine,
    pub kernel: Kernel,
    /// The one that merges partial results, if one does.
    pub merge_kernel: Option<Kernel>,
    pub memory_limit_bytes: u64,
    /// Shared operands, by operand.
    pub whole: Vec<Option<BroadcastInput>>,
    pub swap_before_task: Option<u64>,
    pub process_start: Instant,
    pub to_main: Sender<FromRun>,
    pub tracer: Tracer,
    /// Of the stage.
    pub run: u64,
}

/// Everything that they share.
#[derive(Debug)]
pub(in crate::exec) struct Shared {
    pub setup: Setup,
    pub operands: Vec<OperandSpec>,
    /// Of a stage that reduces.
    pub merger: Option<Merger>,
    /// By worker, what the last run of the stage left.
    pub instances: Vec<Mutex<Option<Instances>>>,
    pub blocks: Mutex<BTreeMap<BlockKey, Arc<BlockData>>>,
    pub current: Vec<Mutex<Option<Current>>>,
    pub counts: [AtomicU64; 3],
    /// Whether any of them has been given something to compute.
    begun: AtomicBool,
    /// The code that the stage begins with.
    pub start: Code,
    board: Mutex<TaskQueue>,
    /// Signalled when the board changes.
    changed: Condvar,
}

/// What the workers and the main thread hand to each other under one lock.
#[derive(Debug)]
struct TaskQueue {
    scheduler: Scheduler,
    /// The next span of each worker.
    next: Vec<Option<Span>>,
    /// What the main thread has to have merged; whoever is free takes the first.
    merges: VecDeque<Box<MergeRequest>>,
    code: Code,
    ended: bool,
}

/// What a worker has to do.
pub(in crate::exec) enum Work {
    Span(Span),
    Merge(Box<MergeRequest>),
}

impl Shared {
    /// With one worker for each of `instances`, which are what the last run of the stage left.
    pub fn new(setup: Setup, scheduler: Scheduler, code: Code, instances: Vec<Option<Instances>>) -> Shared {
        let stage = &setup.plan.stages[setup.stage_index];
        let operands = stage.operands.iter().enumerate().map(|(index, operand)| OperandSpec {
            max_bytes: stage.operand_max_bytes(index),
            access: match (&setup.whole[index], operand.role) {
                (Some(_), _) => Access::Shared,
                (None, Role::Input) => Access::In,
                (None, Role::Output) => Access::Out,
            },
        });
        let workers = instances.len();
        Shared {
            operands: operands.collect(),
            merger: Merger::new(stage),
            instances: instances.into_iter().map(Mutex::new).collect(),
            blocks: Mutex::default(),
            current: (0..workers).map(|_| Mutex::default()).collect(),
            counts: Default::default(),
            begun: AtomicBool::new(false),
            start: code.clone(),
            board: Mutex::new(TaskQueue {
                scheduler,
                next: vec![None; workers],
                merges: VecDeque::new(),
                code,
                ended: false,
            }),
            changed: Condvar::new(),
            setup,
        }
    }

    pub fn stage(&self) -> &StagePlan {
        &self.setup.plan.stages[self.setup.stage_index]
    }

    /// The block in memory that `span` is of. Pieces of a block do not overlap.
    pub fn block(&self, span: Span) -> Option<Arc<BlockData>> {
        let (owner, number) = (span.owner, span.block);
        let blocks = lock(&self.blocks);
        blocks.range((owner, number, 0)..=(owner, number, span.start)).next_back().map(|(_, block)| block.clone())
    }

    /// Hands an event to the scheduler and its actions to whom they concern.
    pub fn event(&self, event: Event) {
        let mut board = lock(&self.board);
        let actions = board.scheduler.on(self.now_ns(), event);
        self.dispatch(&mut board, actions, None);
    }

    /// Whether a worker is at its first task or past it.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    pub fn now_ns(&self) -> u64 {
        self.setup.process_start.elapsed().as_nanos() as u64
    }

    /// Lets the scheduler begin.
    pub fn begin(&self) {
        let mut board = lock(&self.board);
        let actions = board.scheduler.begin(self.now_ns());
        self.dispatch(&mut board, actions, None);
    }

    /// `caller` is the worker that this thread is, if it is one: it need not be woken.
    fn dispatch(&self, board: &mut TaskQueue, actions: Vec<Action>, caller: Option<usize>) {
        for action in actions {
            match action {
                Action::Start { worker, span } => {
                    board.next[worker] = Some(span);
                    self.begun.store(true, Ordering::Relaxed);
                    if caller != Some(worker) {
                        self.changed.notify_all();
                    }
                }
                // The main thread is gone only when the run has failed.
                action => drop(self.setup.to_main.send((self.setup.run, FromWorker::Do(action)))),
            }
        }
    }

    /// Makes new code current for every worker's next task.
    pub fn adopt(&self, code: Code) {
        lock(&self.board).code = code;
        self.changed.notify_all();
    }

    /// What the scheduler has measured, for the next run of the stage.
    pub fn take_costs(&self) -> CostTable {
        lock(&self.board).scheduler.take_costs()
    }

    /// How long the own blocks would have taken this rank alone.
    pub fn load_ns(&self) -> u64 {
        lock(&self.board).scheduler.load_ns()
    }

    /// Hands partial results to the workers, who send them back merged.
    pub fn hand(&self, handed: Box<MergeRequest>) {
        lock(&self.board).merges.push_back(handed);
        self.changed.notify_all();
    }

    /// Whether workers may leave: none of them will get anything any more. Where kernels merge, the main thread may have
    /// something for them to the end.
    pub fn is_spent(&self) -> bool {
        self.setup.merge_kernel.is_none() && lock(&self.board).scheduler.is_spent()
    }

    pub fn steal_counts(&self) -> StealCounts {
        lock(&self.board).scheduler.steal_counts()
    }

    /// Lets the workers go.
    pub fn end(&self) {
        lock(&self.board).ended = true;
        self.changed.notify_all();
    }

    /// Waits for what this worker has to do next and the code to do it with; `None` when there will be nothing: the stage is
    /// over, or others are at the last of its slices. Merging goes first, since other ranks may wait for it. `idle` tells the
    /// scheduler that the worker waits for a span, on code of this class; it knows that already after a merge.
    pub fn next(&self, worker: usize, idle: Option<CostClass>, done: u64) -> Option<(Work, Code)> {
        let mut board = lock(&self.board);
        if let Some(class) = idle {
            let actions = board.scheduler.on(self.now_ns(), Event::Idle { worker, class });
            self.dispatch(&mut board, actions, Some(worker));
        }
        loop {
            if board.ended {
                return None;
            }
            if board.next[worker].is_none() && self.setup.merge_kernel.is_none() && board.scheduler.is_spent() {
                return None;
            }
            let forced = self.setup.swap_before_task.is_some_and(|task| done >= task);
            if !forced || board.code.tier() == Tier::Optimized {
                let merge = board.merges.pop_front().map(Work::Merge);
                if let Some(work) = merge.or_else(|| board.next[worker].take().map(Work::Span)) {
                    return Some((work, board.code.clone()));
                }
            }
            board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
