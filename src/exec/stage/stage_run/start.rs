//! The start of a stage: its inputs, outputs and blocks, then its workers.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::{Code, Tier};
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::RUNS;
use crate::exec::dataset::inputs::{InputSources, Inputs, StageRunId};
use crate::exec::dataset::outputs::Outputs;
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::recovery::completed::CompletedTiles;
use crate::exec::recovery::staging::Stagings;
use crate::exec::reduce::chain::Reduction;
use crate::exec::reduce::fold::Merger;
use crate::exec::stage::carry_over::CarryOver;
use crate::exec::stage::context::Context;
use crate::exec::stage::stage_run::{StageRun, cpu_time};
use crate::exec::stage::steal_transfer::{Stealing, costs, team};
use crate::exec::stage::sum_recorder::SumRecorder;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::setup::StageSetup;
use crate::exec::worker::shared_state::SharedState;
use crate::exec::worker::worker_loop::run_worker;
use crate::plan::{StagePlan, Tile};
use crate::report::StageReport;
use crate::sched::Scheduler;

/// A stage whose inputs, outputs and blocks are known, before it has workers.
struct PreparedStage<'a> {
    context: &'a Context<'a>,
    id: StageRunId,
    started: Instant,
    first_code: Code,
    outputs: Outputs,
    inputs: Inputs<'a>,
    report: StageReport,
    completed: CompletedTiles,
    tiles: Arc<Vec<Tile>>,
    reduction: Option<Reduction>,
    records_sums: bool,
}

impl<'a> StageRun<'a> {
    /// Begins a stage. Ranks send their inputs to one another, and do not wait for all of them: when this returns,
    /// workers compute the blocks whose inputs are here. Collective.
    pub fn begin(
        comm: &mut Communicator,
        tiers: &mut TierUp,
        context: &'a Context<'a>,
        stage_index: usize,
        data: &mut CarryOver,
        stagings: &mut Stagings,
    ) -> Result<StageRun<'a>, RunError> {
        let mut prepared = PreparedStage::prepare(comm, tiers, context, stage_index, data, stagings)?;
        prepared.wait_if_all_blocks_do(comm)?;
        let mut this = prepared.into_run(comm, tiers, data);
        for worker in 0..context.threads {
            let shared = this.shared.clone();
            context.pool.spawn(move || run_worker(&shared, worker));
        }
        this.shared.begin();
        this.take_up_sums(comm, stagings)?;
        Ok(this)
    }
}

impl<'a> PreparedStage<'a> {
    fn prepare(
        comm: &mut Communicator,
        tiers: &mut TierUp,
        context: &'a Context<'a>,
        stage_index: usize,
        data: &mut CarryOver,
        stagings: &mut Stagings,
    ) -> Result<PreparedStage<'a>, RunError> {
        let started = Instant::now();
        let plan = &context.plan.stages[stage_index];
        let is_swap_forced = context.options.swap_before_task.is_some();
        // This comes before anything slow, so that the compiler can start while inputs are read.
        let first_code = tiers.code(comm, context.kernels[stage_index], &plan.name, is_swap_forced)?;
        let id = StageRunId { stage: stage_index, run: data.begin_run() };
        let mut outputs = Outputs::create(comm, context.job, plan, !data.deferred, id.run, &mut data.places, stagings)?;
        outputs.recover(comm, plan, stagings)?;
        let mut report = StageReport { stage: plan.name.clone(), ..StageReport::default() };
        let skips = stagings.manifest.skips(&plan.name);
        let begun = comm.tracer.begin();
        let sources = InputSources { places: &data.places, resident: &data.resident, cache: &mut data.input_cache };
        let inputs = match skips {
            true => Inputs::none(plan, id),
            false => Inputs::gather(comm, context.job, &context.plan, id, sources, &mut report.counts)?,
        };
        comm.tracer.end(begun, || TraceEventKind::Inputs { stage: stage_index, read_bytes: report.counts.read_bytes });
        let completed = stagings.manifest.completed(&plan.name);
        let blocks = || if skips { Vec::new() } else { completed.blocks_left(plan, comm.rank()) };
        let tiles = data.tiles.remove(&stage_index).unwrap_or_else(|| Arc::new(blocks()));
        if data.deferred {
            data.tiles.insert(stage_index, tiles.clone());
        }
        let is_finished = |cell: &Tile| completed.has(cell);
        let is_finished = (!completed.tiles().is_empty()).then_some(&is_finished as &dyn Fn(&Tile) -> bool);
        let reduction = if skips { None } else { Reduction::new(plan, comm.rank(), is_finished) };
        // The sums of an iteration are of no use for a later one.
        let records_sums = reduction.is_some() && !data.deferred;
        if records_sums && !outputs.has_datasets() {
            stagings.manifest.write_header();
        }
        Ok(PreparedStage {
            context,
            id,
            started,
            first_code,
            outputs,
            inputs,
            report,
            completed,
            tiles,
            reduction,
            records_sums,
        })
    }

    fn plan(&self) -> &'a StagePlan {
        &self.context.plan.stages[self.id.stage]
    }

    /// The number of blocks in memory at once.
    fn blocks_in_flight(&self) -> u64 {
        self.context.threads as u64 + 2
    }

    /// Waits for all inputs if every block waits for one: workers would wake up for nothing, and again when it is here.
    fn wait_if_all_blocks_do(&mut self, comm: &mut Communicator) -> Result<(), RunError> {
        let waits = |tile: &Tile| !self.inputs.missing(self.plan(), tile).is_empty();
        let are_few = self.tiles.len() as u64 <= self.blocks_in_flight();
        if are_few && !self.inputs.all_here() && self.tiles.iter().all(waits) {
            self.inputs.wait(comm, &mut self.report.counts)?;
        }
        Ok(())
    }

    fn scheduler(&self, comm: &Communicator, tiers: &TierUp, data: &mut CarryOver, steals: bool) -> Scheduler {
        let (plan, kernel) = (self.plan(), self.context.kernels[self.id.stage]);
        let (threads, granularity) = (self.context.threads, self.context.options.granularity);
        let scheduler = Scheduler::new(self.tiles.len() as u64, self.blocks_in_flight(), threads, granularity)
            .expecting(data.costs.expected((self.id.stage, plan), kernel, tiers.kernel(kernel)));
        match steals {
            true => scheduler.in_team(team(self.context.topology, comm.rank())).stealing(costs(plan, &self.inputs)),
            false => scheduler,
        }
    }

    fn setup(&mut self, comm: &Communicator, tiers: &TierUp) -> StageSetup {
        let (context, index) = (self.context, self.id.stage);
        let kernel = context.kernels[index];
        StageSetup {
            plan: context.plan.clone(),
            stage_index: index,
            run: self.id.run,
            engine: tiers.engine().clone(),
            kernel: tiers.kernel(kernel).clone(),
            merge_kernel: context.merges[index].clone(),
            merger: Merger::new(self.plan()),
            first_code: self.first_code.clone(),
            memory_limit_bytes: context.job.stages[index].limits.memory_bytes,
            broadcast: std::mem::take(&mut self.inputs.whole),
            swap_before_task: context.options.swap_before_task,
            process_start: context.process_start,
            tracer: comm.tracer.clone(),
        }
    }

    fn into_run(mut self, comm: &Communicator, tiers: &TierUp, data: &mut CarryOver) -> StageRun<'a> {
        let StageRunId { stage, run } = self.id;
        let steals = self.context.options.steal && comm.size() > 1 && (!data.deferred || data.balance.steals(stage));
        let scheduler = self.scheduler(comm, tiers, data, steals);
        let setup = self.setup(comm, tiers);
        let instances = data.instances.remove(&stage).unwrap_or_default().into_iter().map(Some);
        let instances = instances.chain(std::iter::repeat_with(|| None)).take(self.context.threads).collect();
        let optimized = self.first_code.tier() == Tier::Optimized;
        StageRun {
            owner: if steals { comm.rank() } else { 0 },
            context: self.context,
            stage_index: stage,
            shared: Arc::new(SharedState::new(setup, scheduler, instances, data.to_main.clone())),
            tiles: self.tiles,
            inputs: self.inputs,
            reduction: self.reduction,
            sums: if self.records_sums { SumRecorder::recording() } else { SumRecorder::default() },
            stealing: Stealing::new(self.completed),
            deferred: Vec::new(),
            wake_at_ns: None,
            all_complete: !steals,
            report: self.report,
            blocks_done: 0,
            bytes: OnceCell::new(),
            run,
            // Files are complete for all ranks at once; resident tensors are fetched when they are needed.
            synchronized: self.outputs.has_datasets() || run.is_multiple_of(RUNS / 2),
            outputs: self.outputs,
            complete: false,
            reported: false,
            optimized,
            ranks_done: 0,
            last_save: Instant::now(),
            // Nothing is being optimized for a stage that begins on optimized code.
            to_judge: (!optimized).then(|| (Instant::now(), cpu_time())),
            started: self.started,
            done: false,
            released: false,
            left: Vec::new(),
        }
    }
}
