//! A run of one stage on one rank, as its main thread sees it. The main loop serves the stages of a wave in turn.

mod blocks;
mod events;
mod incremental_save;

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::Tier;
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{RUNS, RunTag};
use crate::exec::dataset::inputs::{InputSources, Inputs};
use crate::exec::dataset::outputs::Outputs;
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::progress::StageProgress;
use crate::exec::recovery::staging::Stagings;
use crate::exec::reduce::chain::Reduction;
use crate::exec::reduce::fold::Merger;
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::context::Context;
use crate::exec::stage::deferred::DeferredAction;
use crate::exec::stage::steal_transfer::{Stealing, costs, team};
use crate::exec::stage::sum_recorder::SumRecorder;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::message::WorkerReport;
use crate::exec::worker::setup::StageSetup;
use crate::exec::worker::shared_state::SharedState;
use crate::exec::worker::worker_loop::run_worker;
use crate::fabric::Rank;
use crate::job::Stage;
use crate::live::StageShare;
use crate::plan::{StagePlan, Tile};
use crate::report::{Counts, StageReport, Swap};
use crate::sched::Scheduler;

/// A stage's part in the report, and what only the first stage tells.
pub(in crate::exec) struct StageOutcome {
    pub started: Instant,
    pub report: StageReport,
    pub swaps: Vec<Swap>,
    pub first_task: Option<Instant>,
}

pub(in crate::exec) struct StageRun<'a> {
    /// This rank, as its scheduler knows it: 0 where it is alone.
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
    /// What is put off until its inputs have come.
    held: Vec<DeferredAction>,
    /// When the scheduler wants to be woken.
    wake_at_ns: Option<u64>,
    /// Whether every rank's blocks are computed; always, where ranks do not steal and need not know.
    over: bool,
    report: StageReport,
    blocks_done: u64,
    /// Counted when somebody asks.
    bytes: OnceCell<u64>,
    run: u64,
    /// Whether no rank goes on before all have done their part.
    together: bool,
    /// Whether this rank's blocks are computed.
    complete: bool,
    /// Whether rank 0 knows that this rank has done its part.
    told: bool,
    /// Whether the workers have been given optimized code.
    optimized: bool,
    ranks_done: u32,
    last_save: Instant,
    /// When the stage began, in time and in CPU time; none once it is judged.
    to_judge: Option<(Instant, Duration)>,
    started: Instant,
    /// Whether nothing of it is left to do, here or, as far as it matters, elsewhere.
    done: bool,
    /// Whether its workers were told to leave.
    released: bool,
    /// Reports of workers who have left: for them there was nothing to do any more.
    left: Vec<WorkerReport>,
}

impl<'a> StageRun<'a> {
    /// Begins with a stage: on all ranks, which send their inputs to one another. Its workers are at work when this
    /// returns, on blocks that need nothing of what is still on its way. Collective.
    pub fn begin(
        comm: &mut Communicator,
        tiers: &mut TierUp,
        context: &'a Context<'a>,
        stage_index: usize,
        data: &mut CarryOver,
        stagings: &mut Stagings,
    ) -> Result<StageRun<'a>, RunError> {
        let started = Instant::now();
        let (stage, plan) = (&context.job.stages[stage_index], &context.plan.stages[stage_index]);
        let kernel = context.kernels[stage_index];
        // Before anything slow: whoever compiles can start while inputs are read.
        let code = tiers.code(comm, kernel, &stage.name, context.options.swap_before_task.is_some())?;
        let run = data.begin_run();
        let mut outputs = Outputs::create(comm, context.job, plan, !data.deferred, run, &mut data.places, stagings)?;
        outputs.recover(comm, plan, stagings)?;
        // What goes into files is complete for all ranks at once; what stays in memory is fetched when it is needed.
        let together = outputs.has_datasets() || run.is_multiple_of(RUNS / 2);
        let mut report = StageReport { stage: stage.name.clone(), ..StageReport::default() };
        let from = InputSources { places: &data.places, resident: &data.resident, cache: &mut data.input_cache };
        let this = (stage_index, run);
        let skips = stagings.manifest.skips(&plan.name);
        let begun = comm.tracer.begin();
        let mut inputs = match skips {
            true => Inputs::none(plan, this),
            false => Inputs::gather(comm, context.job, &context.plan, this, from, &mut report.counts)?,
        };
        comm.tracer.end(begun, || TraceEventKind::Inputs { stage: stage_index, read_bytes: report.counts.read_bytes });
        let done = stagings.manifest.completed(&plan.name);
        let blocks = || if skips { Vec::new() } else { done.blocks_left(plan, comm.rank()) };
        let tiles = data.tiles.remove(&stage_index).unwrap_or_else(|| Arc::new(blocks()));
        if data.deferred {
            data.tiles.insert(stage_index, tiles.clone());
        }
        let is_finished = |cell: &Tile| done.has(cell);
        let is_finished = (!done.tiles().is_empty()).then_some(&is_finished as &dyn Fn(&Tile) -> bool);
        let reduction = if skips { None } else { Reduction::new(plan, comm.rank(), is_finished) };
        // Those of an iteration are soon another's.
        let keeps_sums = reduction.is_some() && !data.deferred;
        if keeps_sums && !outputs.has_datasets() {
            stagings.manifest.write_header();
        }
        let workers = context.threads;
        let in_flight = workers as u64 + 2;
        // Where every block reads what is on its way, workers would wake up for nothing, and again when it is here.
        let waits = |tile: &Tile| !inputs.missing(plan, tile).is_empty();
        if tiles.len() as u64 <= in_flight && !inputs.all_here() && tiles.iter().all(waits) {
            inputs.wait(comm, &mut report.counts)?;
        }
        let mut scheduler = Scheduler::new(tiles.len() as u64, in_flight, workers, context.options.granularity)
            .expecting(data.costs.expected((stage_index, plan), kernel, tiers.kernel(kernel)));
        let steals = context.options.steal && comm.size() > 1 && (!data.deferred || data.balance.steals(stage_index));
        if steals {
            scheduler = scheduler.in_team(team(context.topology, comm.rank())).stealing(costs(plan, &inputs));
        }
        let optimized = code.tier() == Tier::Optimized;
        let setup = StageSetup {
            plan: context.plan.clone(),
            stage_index,
            engine: tiers.engine().clone(),
            kernel: tiers.kernel(kernel).clone(),
            merge_kernel: context.merges[stage_index].clone(),
            memory_limit_bytes: stage.limits.memory_bytes,
            merger: Merger::new(plan),
            first_code: code,
            broadcast: std::mem::take(&mut inputs.whole),
            swap_before_task: context.options.swap_before_task,
            process_start: context.process_start,
            tracer: comm.tracer.clone(),
            run,
        };
        let kept = data.instances.remove(&stage_index).unwrap_or_default().into_iter().map(Some);
        let instances = kept.chain(std::iter::repeat_with(|| None)).take(workers).collect();
        let shared = Arc::new(SharedState::new(setup, scheduler, instances, data.to_main.clone()));
        let mut running = StageRun {
            owner: if steals { comm.rank() } else { 0 },
            context,
            stage_index,
            shared: shared.clone(),
            tiles,
            inputs,
            outputs,
            reduction,
            sums: if keeps_sums { SumRecorder::recording() } else { SumRecorder::default() },
            stealing: Stealing::new(done),
            held: Vec::new(),
            wake_at_ns: None,
            over: !steals,
            report,
            blocks_done: 0,
            bytes: OnceCell::new(),
            run,
            together,
            complete: false,
            told: false,
            optimized,
            ranks_done: 0,
            last_save: Instant::now(),
            // Nothing is being optimized for a stage that begins on optimized code.
            to_judge: (!optimized).then(|| (Instant::now(), cpu_time())),
            started,
            done: false,
            released: false,
            left: Vec::new(),
        };
        for worker in 0..workers {
            let shared = shared.clone();
            context.pool.spawn(move || run_worker(&shared, worker));
        }
        shared.begin();
        running.take_up_sums(comm, stagings)?;
        Ok(running)
    }
}

impl StageRun<'_> {
    pub fn stage(&self) -> &Stage {
        &self.context.job.stages[self.stage_index]
    }

    pub fn plan(&self) -> &StagePlan {
        &self.context.plan.stages[self.stage_index]
    }

    /// Whether this rank goes on to other stages.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether nothing happens before another rank has said something.
    pub fn waits_for_ranks(&self) -> bool {
        self.done || ((self.complete || !self.held.is_empty()) && lock(&self.shared.blocks).is_empty())
    }

    /// Of split operands of this rank's blocks.
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

    /// Lets the workers go, who say so as they leave.
    pub fn release(&mut self) {
        self.released = true;
        self.shared.end();
    }

    pub fn has_workers(&self) -> bool {
        self.left.len() < self.shared.current.len()
    }

    /// Leaves everything as the stages after it need it. Its workers have left. Collective.
    pub fn finish(
        &mut self,
        comm: &mut Communicator,
        data: &mut CarryOver,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let (stage_index, context, shared) = (self.stage_index, self.context, self.shared.clone());
        let plan = &context.plan.stages[stage_index];
        if self.together {
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

    /// What was done in it, to its end or until something cut it short. Its workers have left.
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

/// CPU time of this process: of its workers, for the most part.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
