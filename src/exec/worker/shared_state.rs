//! What the workers of a stage and the main thread share: blocks in memory, the scheduler and the current code. No
//! thread waits for another one's work while it holds a lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crossbeam_channel::Sender;

use crate::engine::{Code, Tier};
use crate::exec::reduce::chain::MergeRequest;
use crate::exec::sync::lock;
use crate::exec::worker::block::{BlockData, BlockKey};
use crate::exec::worker::instances::Instances;
use crate::exec::worker::message::{FromRun, FromWorker};
use crate::exec::worker::setup::{CallSlot, StageSetup};
use crate::plan::StagePlan;
use crate::sched::{Action, CostClass, CostTable, Event, Scheduler, Span, StealCounts};

/// The state that the workers of a stage and the main thread share.
#[derive(Debug)]
pub(in crate::exec) struct SharedState {
    pub setup: StageSetup,
    /// By worker, the kernel instances that the last run of the stage left.
    pub instances: Vec<Mutex<Option<Instances>>>,
    pub blocks: Mutex<BTreeMap<BlockKey, Arc<BlockData>>>,
    /// By worker, the kernel call that it is in.
    pub current: Vec<CallSlot>,
    pub progress: ProgressCounts,
    /// Whether a worker has been given something to compute.
    begun: AtomicBool,
    to_main: Sender<FromRun>,
    queue: Mutex<TaskQueue>,
    /// Signalled when the queue changes.
    changed: Condvar,
}

/// Work of this rank's workers so far, for progress reports.
#[derive(Debug, Default)]
pub(in crate::exec) struct ProgressCounts {
    pub baseline_tasks: AtomicU64,
    pub optimized_tasks: AtomicU64,
    pub processed_bytes: AtomicU64,
}

impl ProgressCounts {
    /// Counts a task.
    pub fn add(&self, tier: Tier, processed_bytes: u64) {
        let tasks = match tier {
            Tier::Baseline => &self.baseline_tasks,
            Tier::Optimized => &self.optimized_tasks,
        };
        tasks.fetch_add(1, Ordering::Relaxed);
        self.processed_bytes.fetch_add(processed_bytes, Ordering::Relaxed);
    }
}

/// The work that waits for workers, and the code to do it with.
#[derive(Debug)]
struct TaskQueue {
    scheduler: Scheduler,
    /// The next span of each worker.
    next: Vec<Option<Span>>,
    /// Partial results that any worker may merge.
    merges: VecDeque<Box<MergeRequest>>,
    code: Code,
    ended: bool,
}

/// A worker's next job.
pub(in crate::exec) enum Assignment {
    Span(Span),
    Merge(Box<MergeRequest>),
}

impl SharedState {
    /// Makes the state of a stage with one worker for each of `instances`, which the last run of the stage left.
    pub fn new(
        setup: StageSetup,
        scheduler: Scheduler,
        instances: Vec<Option<Instances>>,
        to_main: Sender<FromRun>,
    ) -> SharedState {
        let (workers, code) = (instances.len(), setup.first_code.clone());
        let next = vec![None; workers];
        SharedState {
            instances: instances.into_iter().map(Mutex::new).collect(),
            blocks: Mutex::default(),
            current: (0..workers).map(|_| Mutex::default()).collect(),
            progress: ProgressCounts::default(),
            begun: AtomicBool::new(false),
            to_main,
            queue: Mutex::new(TaskQueue { scheduler, next, merges: VecDeque::new(), code, ended: false }),
            changed: Condvar::new(),
            setup,
        }
    }

    pub fn stage(&self) -> &StagePlan {
        self.setup.stage()
    }

    /// Sends a message to the main thread. The main thread is gone only when the run has failed.
    pub fn send_to_main(&self, message: FromWorker) {
        let _ = self.to_main.send((self.setup.run, message));
    }

    /// Returns the block in memory that `span` belongs to. Spans of a block do not overlap.
    pub fn block(&self, span: Span) -> Option<Arc<BlockData>> {
        let blocks = lock(&self.blocks);
        blocks
            .range(BlockKey::whole(span.owner, span.block)..=BlockKey::of_span(span))
            .next_back()
            .map(|(_, block)| block.clone())
    }

    /// Hands an event to the scheduler, and its actions to the workers and the main thread.
    pub fn event(&self, event: Event) {
        let mut queue = lock(&self.queue);
        let actions = queue.scheduler.on(self.now_ns(), event);
        self.dispatch(&mut queue, actions, None);
    }

    /// Whether a worker has begun its first task.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    pub fn now_ns(&self) -> u64 {
        self.setup.process_start.elapsed().as_nanos() as u64
    }

    /// Starts the scheduler.
    pub fn begin(&self) {
        let mut queue = lock(&self.queue);
        let actions = queue.scheduler.begin(self.now_ns());
        self.dispatch(&mut queue, actions, None);
    }

    /// Carries out actions of the scheduler. `caller` is the worker that calls this, if one does: it need not be woken.
    fn dispatch(&self, queue: &mut TaskQueue, actions: Vec<Action>, caller: Option<usize>) {
        for action in actions {
            match action {
                Action::Start { worker, span } => {
                    queue.next[worker] = Some(span);
                    self.begun.store(true, Ordering::Relaxed);
                    if caller != Some(worker) {
                        self.changed.notify_all();
                    }
                }
                action => self.send_to_main(FromWorker::Do(action)),
            }
        }
    }

    /// Makes new code current for the next task of each worker.
    pub fn adopt(&self, code: Code) {
        lock(&self.queue).code = code;
        self.changed.notify_all();
    }

    /// Takes the costs that the scheduler has measured, for the next run of the stage.
    pub fn take_costs(&self) -> CostTable {
        lock(&self.queue).scheduler.take_costs()
    }

    /// Returns how long this rank alone would have taken for its own blocks.
    pub fn load_ns(&self) -> u64 {
        lock(&self.queue).scheduler.load_ns()
    }

    /// Hands partial results to the workers, which send them back merged.
    pub fn hand_out(&self, request: Box<MergeRequest>) {
        lock(&self.queue).merges.push_back(request);
        self.changed.notify_all();
    }

    /// Whether workers may leave, because none of them will get another span. Where kernels merge, the main thread may
    /// hand out merges until the stage ends.
    pub fn is_spent(&self) -> bool {
        self.setup.merge_kernel.is_none() && lock(&self.queue).scheduler.is_spent()
    }

    pub fn steal_counts(&self) -> StealCounts {
        lock(&self.queue).scheduler.steal_counts()
    }

    /// Tells the workers to leave.
    pub fn end(&self) {
        lock(&self.queue).ended = true;
        self.changed.notify_all();
    }

    /// Waits for this worker's next job, and returns it with the code to do it with. Returns `None` when there will be
    /// no further job: the stage is over, or other workers compute the last of its slices. Merges go first, since other
    /// ranks may wait for them. `idle` tells the scheduler that the worker waits for a span, on code of this class;
    /// after a merge the scheduler knows that already. `done` is the number of tasks that the worker has completed.
    pub fn next(&self, worker: usize, idle: Option<CostClass>, done: u64) -> Option<(Assignment, Code)> {
        let mut queue = lock(&self.queue);
        if let Some(class) = idle {
            let actions = queue.scheduler.on(self.now_ns(), Event::Idle { worker, class });
            self.dispatch(&mut queue, actions, Some(worker));
        }
        loop {
            if queue.ended {
                return None;
            }
            if queue.next[worker].is_none() && self.setup.merge_kernel.is_none() && queue.scheduler.is_spent() {
                return None;
            }
            let forced = self.setup.swap_before_task.is_some_and(|task| done >= task);
            if !forced || queue.code.tier() == Tier::Optimized {
                let merge = queue.merges.pop_front().map(Assignment::Merge);
                if let Some(assignment) = merge.or_else(|| queue.next[worker].take().map(Assignment::Span)) {
                    return Some((assignment, queue.code.clone()));
                }
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
