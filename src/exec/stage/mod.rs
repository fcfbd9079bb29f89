//! One stage on one rank: the main thread's side of it. Stages of a wave are looked after in turn (`wave`).

pub mod blocks;
pub mod carry_over;
pub mod events;
pub mod incremental_save;
pub mod main_loop;
pub mod steal_policy;
pub mod steal_transfer;

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::worker::{WorkerReport, work};
use crate::engine::{Kernel, Tier};
use crate::exec::comm::communicator::{Communicator, tag};
use crate::exec::dataset::inputs::{InputSources, Inputs};
use crate::exec::dataset::outputs::{Outputs, Stagings};
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::options::Options;
use crate::exec::recovery::partial_sums::SumRecorder;
use crate::exec::reduce::chain::Reduction;
use crate::exec::stage::blocks::{DeferredAction, costs, team};
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::steal_transfer::Stealing;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::shared_state::{Setup, Shared};
use crate::fabric::Rank;
use crate::job::{Job, Stage};
use crate::live::StageShare;
use crate::plan::{Plan, StagePlan, Tile};
use crate::report::{Counts, StageReport, Swap};
use crate::sched::Scheduler;
use crate::topology::Topology;

/// What stays the same over all stages of a run.
pub(super) struct Context<'a> {
    pub job: &'a Job,
    pub plan: Arc<Plan>,
    pub topology: &'a Topology,
    pub options: &'a Options,
    /// Has [`Context::threads`] for each stage of the widest wave.
    pub pool: &'a rayon::ThreadPool,
    /// Workers of a stage.
    pub threads: usize,
    pub process_start: Instant,
    /// Kernel of each stage, as [`TierUp`] numbers them.
    pub kernels: Vec<usize>,
    /// What merges the partial results of each stage, where that is a kernel.
    pub merges: Vec<Option<Kernel>>,
}

/// A stage's part in the report, and what only the first stage tells.
pub(super) struct StageOutcome {
    pub started: Instant,
    pub report: StageReport,
    pub swaps: Vec<Swap>,
    pub first_task: Option<Instant>,
}

pub(super) struct StageRun<'a> {
    /// This rank, as its scheduler knows it: 0 where it is alone.
    pub owner: Rank,
    pub context: &'a Context<'a>,
    pub stage_index: usize,
    pub shared: Arc<Shared>,
    pub tiles: Arc<Vec<Tile>>,
    pub inputs: Inputs<'a>,
    pub outputs: Outputs,
    pub reduction: Option<Reduction>,
    pub sums: SumRecorder,
    pub stealing: Stealing,
    /// What is put off until its inputs have come.
    pub held: Vec<DeferredAction>,
    /// When the scheduler wants to be woken.
    pub wake_at_ns: Option<u64>,
    /// Whether every rank's blocks are computed; always, where ranks do not steal and need not know.
    pub over: bool,
    pub report: StageReport,
    pub blocks_done: u64,
    /// Counted when somebody asks.
    bytes: OnceCell<u64>,
    pub run: u64,
    /// Whether no rank goes on before all have done their part.
    pub together: bool,
    /// Whether this rank's blocks are computed.
    pub complete: bool,
    /// Whether rank 0 knows that this rank has done its part.
    pub told: bool,
    /// Whether the workers have been given optimized code.
    pub optimized: bool,
    pub ranks_done: u32,
    pub last_save: Instant,
    /// When the stage began, in time and in CPU time; none once it is judged.
    pub to_judge: Option<(Instant, Duration)>,
    started: Instant,
    /// Whether nothing of it is left to do, here or, as far as it matters, elsewhere.
    pub done: bool,
    /// Whether its workers were told to leave.
    pub released: bool,
    /// Reports of workers who have left: for them there was nothing to do any more.
    pub left: Vec<WorkerReport>,
}

impl<'a> StageRun<'a> {
    /// Begins with a stage: on all ranks, which send their inputs to one another. Its workers are at work when this returns, on
    /// blocks that need nothing of what is still on its way. Collective.
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
        let together = outputs.has_datasets() || run.is_multiple_of(tag::RUNS / 2);
        let mut report = StageReport { stage: stage.name.clone(), ..StageReport::default() };
        let from = InputSources { places: &data.places, resident: &data.resident, kept: &mut data.kept };
        let this = (stage_index, run);
        let skips = stagings.manifest.skips(&plan.name);
        let begun = comm.tracer.begin();
        let mut inputs = match skips {
            true => Inputs::none(plan, this),
            false => Inputs::gather(comm, context.job, &context.plan, this, from, &mut report.counts)?,
        };
        comm.tracer.end(begun, || TraceEventKind::Inputs { stage: stage_index, read_bytes: report.counts.read_bytes });
        let done = stagings.manifest.done(&plan.name);
        let blocks = || if skips { Vec::new() } else { done.blocks_left(plan, comm.rank()) };
        let tiles = data.tiles.remove(&stage_index).unwrap_or_else(|| Arc::new(blocks()));
        if data.deferred {
            data.tiles.insert(stage_index, tiles.clone());
        }
        let reduction = if skips { None } else { Reduction::new(plan, comm.rank(), &done) };
        // Those of an iteration are soon another's.
        let keeps_sums = reduction.is_some() && !data.deferred;
        if keeps_sums && !outputs.has_datasets() {
            stagings.manifest.begin_noting();
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
        let setup = Setup {
            plan: context.plan.clone(),
            stage_index,
            engine: tiers.engine().clone(),
            kernel: tiers.kernel(kernel).clone(),
            merge_kernel: context.merges[stage_index].clone(),
            memory_limit_bytes: stage.limits.memory_bytes,
            whole: std::mem::take(&mut inputs.whole),
            swap_before_task: context.options.swap_before_task,
            process_start: context.process_start,
            to_main: data.to_main.clone(),
            tracer: comm.tracer.clone(),
            run,
        };
        let optimized = code.tier() == Tier::Optimized;
        let kept = data.instances.remove(&stage_index).unwrap_or_default().into_iter().map(Some);
        let instances = kept.chain(std::iter::repeat_with(|| None)).take(workers).collect();
        let shared = Arc::new(Shared::new(setup, scheduler, code, instances));
        let mut running = StageRun {
            owner: if steals { comm.rank() } else { 0 },
            context,
            stage_index,
            shared: shared.clone(),
            tiles,
            inputs,
            outputs,
            reduction,
            sums: if keeps_sums { SumRecorder::noting() } else { SumRecorder::default() },
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
            context.pool.spawn(move || work(&shared, worker));
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

    /// Since it began.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
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

    /// How far this rank is with it, and what has been done in it so far.
    pub fn share(&self) -> (StageShare, Counts) {
        let count = |index: usize| self.shared.counts[index].load(Ordering::Relaxed);
        let counts = Counts {
            baseline_tasks: count(Tier::Baseline as usize),
            optimized_tasks: count(Tier::Optimized as usize),
            processed_bytes: count(2),
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
        (share, counts)
    }

    pub fn index(&self) -> usize {
        self.stage_index
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
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
