//! A run of one stage on one rank, as its main thread sees it. The main loop serves the stages of a wave in turn.

mod blocks;
mod events;
mod incremental_save;
mod start;

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::RunTag;
use crate::exec::dataset::inputs::Inputs;
use crate::exec::dataset::outputs::Outputs;
use crate::exec::error::RunError;
use crate::exec::progress::StageProgress;
use crate::exec::recovery::staging::Stagings;
use crate::exec::reduce::chain::Reduction;
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::context::Context;
use crate::exec::stage::deferred::DeferredAction;
use crate::exec::stage::steal_transfer::{Stealing, costs};
use crate::exec::stage::sum_recorder::SumRecorder;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::message::WorkerReport;
use crate::exec::worker::shared_state::SharedState;
use crate::fabric::Rank;
use crate::job::Stage;
use crate::live::StageShare;
use crate::plan::{StagePlan, Tile};
use crate::report::{Counts, StageReport, Swap};

/// A stage's part of the report, and the time of its first task.
pub(in crate::exec) struct StageOutcome {
    pub started: Instant,
    pub report: StageReport,
    pub swaps: Vec<Swap>,
    pub first_task: Option<Instant>,
}

/// A run of a stage on this rank.
pub(in crate::exec) struct StageRun<'a> {
    /// This rank, as its scheduler knows it: 0 where ranks do not steal.
    owner: Rank,
    context: &'a Context<'a>,
    stage_index: usize,
    shared: Arc<SharedState>,
    tiles: Arc<Vec<Tile>>,
    inputs: Inputs<'a>,
    outputs: Outputs,
    reduction: Option<Reduction>,
    sums: SumRecorder,
    stealing: Stealing,
    /// Actions that wait for inputs.
    deferred: Vec<DeferredAction>,
    /// When the scheduler wants to be woken.
    wake_at_ns: Option<u64>,
    /// Whether the blocks of all ranks are computed; true from the start where ranks do not steal.
    all_complete: bool,
    report: StageReport,
    blocks_done: u64,
    /// Bytes of the split operands of this rank's blocks, counted on the first use.
    bytes: OnceCell<u64>,
    run: u64,
    /// Whether no rank continues before all have done their part.
    synchronized: bool,
    /// Whether this rank's blocks are computed.
    complete: bool,
    /// Whether this rank has reported to rank 0 that its part is done.
    reported: bool,
    /// Whether the workers have been given optimized code.
    optimized: bool,
    ranks_done: u32,
    last_save: Instant,
    /// When the stage began, in time and in CPU time; none once its length has been estimated.
    to_judge: Option<(Instant, Duration)>,
    started: Instant,
    /// Whether this rank may continue with other stages.
    done: bool,
    /// Whether its workers were told to leave.
    released: bool,
    /// Reports of the workers that have left.
    left: Vec<WorkerReport>,
}

impl StageRun<'_> {
    pub fn stage(&self) -> &Stage {
        &self.context.job.stages[self.stage_index]
    }

    pub fn plan(&self) -> &StagePlan {
        &self.context.plan.stages[self.stage_index]
    }

    /// Whether this rank continues with other stages.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether this rank only waits for messages of other ranks.
    pub fn waits_for_ranks(&self) -> bool {
        self.done || ((self.complete || !self.deferred.is_empty()) && lock(&self.shared.blocks).is_empty())
    }

    /// Returns the bytes of the split operands of this rank's blocks.
    pub fn bytes(&self) -> u64 {
        let of_tile = |tile: &Tile| self.plan().split_operand_bytes(tile);
        *self.bytes.get_or_init(|| self.tiles.iter().map(of_tile).sum())
    }

    /// The progress of this stage on this rank.
    pub fn progress(&self) -> StageProgress {
        let progress = &self.shared.progress;
        let counts = Counts {
            baseline_tasks: progress.baseline_tasks.load(Ordering::Relaxed),
            optimized_tasks: progress.optimized_tasks.load(Ordering::Relaxed),
            processed_bytes: progress.processed_bytes.load(Ordering::Relaxed),
            stolen_slices: self.shared.steal_counts().slices_stolen,
            ..self.report.counts
        };
        let share = StageShare {
            index: self.stage_index,
            blocks_done: self.blocks_done,
            blocks: self.tiles.len() as u64,
            blocks_in_memory: lock(&self.shared.blocks).len() as u64,
            bytes: self.bytes(),
            optimized: self.optimized,
            baseline_tasks: counts.baseline_tasks,
            optimized_tasks: counts.optimized_tasks,
            processed_bytes: counts.processed_bytes,
        };
        StageProgress { share, counts, age: self.started.elapsed() }
    }

    /// The number of this run of the stage.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Whether messages with this tag of a run belong to this stage, which is not done yet.
    pub fn expects(&self, run: RunTag) -> bool {
        !self.done && RunTag::from(self.run) == run
    }

    /// Tells the workers to leave. Each reports when it does.
    pub fn release(&mut self) {
        self.released = true;
        self.shared.end();
    }

    pub fn has_workers(&self) -> bool {
        self.left.len() < self.shared.current.len()
    }

    /// Hands over what later stages need, once the workers have left. Collective.
    pub fn finish(
        &mut self,
        comm: &mut Communicator,
        data: &mut CarryOver,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let (stage_index, context, shared) = (self.stage_index, self.context, self.shared.clone());
        let plan = &context.plan.stages[stage_index];
        if self.synchronized {
            comm.barrier()?;
            stagings.settle()?;
        }
        self.outputs.keep(stage_index, !stagings.manifest.skips(&plan.name), &mut data.resident);
        if data.deferred {
            let bytes = costs(plan, &self.inputs).fetched_block_bytes * self.tiles.len() as u64;
            data.balance.note(stage_index, shared.load_ns(), bytes);
        }
        data.costs.note(stage_index, context.kernels[stage_index], shared.take_costs());
        comm.tracer.end(Some(self.started), || TraceEventKind::Stage(stage_index));
        // A forced swap starts each run of a stage on baseline code.
        if plan.keeps && context.options.swap_before_task.is_none() {
            let kept = self.left.iter_mut().filter_map(|worker| worker.instances.take());
            data.instances.entry(stage_index).or_default().extend(kept);
        }
        Ok(())
    }

    /// Returns the work of this rank in the stage, once the workers have left. An error may have cut it short.
    pub fn outcome(self) -> StageOutcome {
        let (mut report, steals) = (self.report, self.shared.steal_counts());
        report.counts.steals = steals.grants;
        report.counts.stolen_slices = steals.slices_stolen;
        let mut outcome = StageOutcome { started: self.started, report, swaps: Vec::new(), first_task: None };
        for worker in self.left {
            outcome.report.counts.add(&worker.counts);
            outcome.swaps.extend(worker.swaps);
            outcome.first_task = [outcome.first_task, worker.first_task].into_iter().flatten().min();
        }
        outcome
    }
}

/// Returns the CPU time of this process, most of which its workers use.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
