//! One stage on one rank: the main thread's side of it. Stages of a wave are looked after in turn (`wave`).

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::blocks::{Held, costs, team};
use super::data::Data;
use super::inputs::{Inputs, Origins};
use super::link::{Link, tag};
use super::outputs::{Outputs, Stagings};
use super::parts::SAVE_INTERVAL;
use super::reduction::Reduction;
use super::shared::{Setup, Shared, lock};
use super::stamp::Stamp;
use super::stealing::Stealing;
use super::sums::SumKeeper;
use super::tiers::Tiers;
use super::tracer::What;
use super::worker::{FromWorker, WorkerReport, work};
use super::{Options, RunError, error};
use crate::engine::{Kernel, Tier};
use crate::fabric::{Message, Rank};
use crate::job::{Job, Stage};
use crate::live::StageShare;
use crate::plan::{Plan, StagePlan, Tile};
use crate::report::{Counts, Reason, StageReport, Swap};
use crate::sched::{Action, Event, Scheduler};
use crate::topology::Topology;

/// When it is judged whether the stage is long enough for the optimizing compiler to go before its workers.
const JUDGEMENT: Duration = Duration::from_millis(500);

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
    /// Kernel of each stage, as [`Tiers`] numbers them.
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

pub(super) struct Running<'a> {
    /// This rank, as its scheduler knows it: 0 where it is alone.
    pub owner: Rank,
    pub context: &'a Context<'a>,
    stage_index: usize,
    pub shared: Arc<Shared>,
    pub tiles: Arc<Vec<Tile>>,
    pub inputs: Inputs<'a>,
    pub outputs: Outputs,
    pub reduction: Option<Reduction>,
    pub sums: SumKeeper,
    pub stealing: Stealing,
    /// What is put off until its inputs have come.
    pub held: Vec<Held>,
    /// When the scheduler wants to be woken.
    wake_at_ns: Option<u64>,
    /// Whether every rank's blocks are computed; always, where ranks do not steal and need not know.
    over: bool,
    pub report: StageReport,
    pub blocks_done: u64,
    /// Counted when somebody asks.
    bytes: OnceCell<u64>,
    pub run: u64,
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

impl<'a> Running<'a> {
    /// Begins with a stage: on all ranks, which send their inputs to one another. Its workers are at work when this returns, on
    /// blocks that need nothing of what is still on its way. Collective.
    pub fn begin(
        link: &mut Link,
        tiers: &mut Tiers,
        context: &'a Context<'a>,
        stage_index: usize,
        data: &mut Data,
        stagings: &mut Stagings,
    ) -> Result<Running<'a>, RunError> {
        let started = Instant::now();
        let (stage, plan) = (&context.job.stages[stage_index], &context.plan.stages[stage_index]);
        let kernel = context.kernels[stage_index];
        // Before anything slow: whoever compiles can start while inputs are read.
        let code = tiers.code(link, kernel, &stage.name, context.options.swap_before_task.is_some())?;
        let run = data.begin_run();
        let mut outputs = Outputs::create(link, context.job, plan, !data.deferred, run, &mut data.places, stagings)?;
        outputs.recover(link, plan, stagings)?;
        // What goes into files is complete for all ranks at once; what stays in memory is fetched when it is needed.
        let together = outputs.has_datasets() || run.is_multiple_of(tag::RUNS / 2);
        let mut report = StageReport { stage: stage.name.clone(), ..StageReport::default() };
        let from = Origins { places: &data.places, resident: &data.resident, kept: &mut data.kept };
        let this = (stage_index, run);
        let skips = stagings.manifest.skips(&plan.name);
        let begun = link.tracer.begin();
        let mut inputs = match skips {
            true => Inputs::none(plan, this),
            false => Inputs::gather(link, context.job, &context.plan, this, from, &mut report.counts)?,
        };
        link.tracer.end(begun, || What::Inputs { stage: stage_index, read_bytes: report.counts.read_bytes });
        let done = stagings.manifest.done(&plan.name);
        let blocks = || if skips { Vec::new() } else { done.blocks_left(plan, link.rank()) };
        let tiles = data.tiles.remove(&stage_index).unwrap_or_else(|| Arc::new(blocks()));
        if data.deferred {
            data.tiles.insert(stage_index, tiles.clone());
        }
        let reduction = if skips { None } else { Reduction::new(plan, link.rank(), &done) };
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
            inputs.wait(link, &mut report.counts)?;
        }
        let mut scheduler = Scheduler::new(tiles.len() as u64, in_flight, workers, context.options.granularity)
            .expecting(data.costs.expected((stage_index, plan), kernel, tiers.kernel(kernel)));
        let steals = context.options.steal && link.size() > 1 && (!data.deferred || data.balance.steals(stage_index));
        if steals {
            scheduler = scheduler.in_team(team(context.topology, link.rank())).stealing(costs(plan, &inputs));
        }
        let setup = Setup {
            plan: context.plan.clone(),
            stage_index,
            engine: tiers.engine().clone(),
            kernel: tiers.kernel(kernel).clone(),
            merge_kernel: context.merges[stage_index].clone(),
            memory_limit_bytes: stage.limits.memory_bytes,
            whole: std::mem::take(&mut inputs.whole),
            instances: data.instances.remove(&stage_index).unwrap_or_default(),
            swap_before_task: context.options.swap_before_task,
            process_start: context.process_start,
            to_main: data.to_main.clone(),
            tracer: link.tracer.clone(),
            run,
        };
        let optimized = code.tier() == Tier::Optimized;
        let shared = Arc::new(Shared::new(setup, scheduler, code, workers));
        let mut running = Running {
            owner: if steals { link.rank() } else { 0 },
            context,
            stage_index,
            shared: shared.clone(),
            tiles,
            inputs,
            outputs,
            reduction,
            sums: if keeps_sums { SumKeeper::noting() } else { SumKeeper::default() },
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
        running.take_up_sums(link, stagings)?;
        Ok(running)
    }
}

impl Running<'_> {
    fn stage(&self) -> &Stage {
        &self.context.job.stages[self.stage_index]
    }

    fn plan(&self) -> &StagePlan {
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

    /// Does what messages of other ranks, time and compilers ask for; notes when all is done: this rank's blocks are written
    /// and, on rank 0, all others'. Returns whether another rank has said something.
    pub fn look(&mut self, link: &mut Link, tiers: &mut Tiers, stagings: &mut Stagings) -> Result<bool, RunError> {
        let kernel = self.context.kernels[self.stage_index];
        let of_run = [tag::CHUNKS, tag::PARTIAL, tag::STAGE_DONE, tag::SCHEDULER, tag::SHARD];
        let of_run = of_run.map(|kind| tag::of_run(kind, self.run));
        let wanted = |tag| tag == tag::ARTIFACT || tag == tag::PROGRESS || of_run.contains(&tag);
        let mut heard = false;
        while let Some(message) = link.poll(wanted)? {
            self.heed_rank(link, tiers, message, stagings)?;
            heard = true;
        }
        if self.wake_at_ns.is_some_and(|ns| self.shared.now_ns() >= ns) {
            self.wake_at_ns = None;
            self.shared.event(Event::Tick);
        }
        if self.last_save.elapsed() >= SAVE_INTERVAL {
            self.save_parts(link, stagings, false)?;
            self.last_save = Instant::now();
        }
        tiers.poll(link)?;
        if !self.optimized
            && let Some(code) = tiers.optimized(kernel)
        {
            self.optimized = true;
            self.shared.adopt(code.clone());
            link.tracer.mark(|| What::Code { stage: self.stage_index });
        }
        self.judge_length(tiers);
        self.check_time_limit(link)?;
        let all_told = self.ranks_done + 1 == link.size() && self.outputs.all_received();
        let others_done = link.rank() != 0 || !self.together || all_told;
        let reduced = self.reduction.as_ref().is_none_or(Reduction::is_complete);
        if self.complete && reduced && !self.told {
            self.told = true;
            if link.rank() != 0 && self.together {
                let sent = self.outputs.messages_sent().to_le_bytes().to_vec();
                link.send(0, tag::of_run(tag::STAGE_DONE, self.run), sent.into())?;
            }
        }
        self.done = self.told && self.over && others_done && self.inputs.all_here();
        Ok(heard)
    }

    /// Of split operands of this rank's blocks.
    fn bytes(&self) -> u64 {
        let of_tile = |tile: &Tile| self.plan().split_operand_bytes(tile);
        *self.bytes.get_or_init(|| self.tiles.iter().map(of_tile).sum())
    }

    /// A long stage gains most when its optimized code comes soon, a short one when its workers are left in peace. What is
    /// left is reckoned in CPU time, since the compiler may have taken much of the time on the clock.
    fn judge_length(&mut self, tiers: &mut Tiers) {
        let Some((_, cpu_at_start)) = self.to_judge.filter(|(started, _)| started.elapsed() >= JUDGEMENT) else {
            return;
        };
        self.to_judge = None;
        let done = self.shared.counts[2].load(Ordering::Relaxed) as f64 / self.bytes().max(1) as f64;
        let left = cpu_time().saturating_sub(cpu_at_start).as_secs_f64() * (1.0 - done) / done.max(1e-6);
        tiers.judge(self.context.kernels[self.stage_index], Duration::from_secs_f64(left.max(0.0)));
    }

    pub fn heed_worker(
        &mut self,
        link: &mut Link,
        message: FromWorker,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        match message {
            FromWorker::Do(Action::Fetch { block }) => self.fetch(block),
            FromWorker::Do(Action::Write { block }) => self.write(link, block, stagings),
            FromWorker::Do(Action::Complete) => {
                self.complete = true;
                Ok(())
            }
            FromWorker::Do(Action::Over) => {
                self.over = true;
                Ok(())
            }
            FromWorker::Do(Action::WakeAt { ns }) => {
                self.wake_at_ns = Some(ns);
                Ok(())
            }
            FromWorker::Do(Action::Send { to, message }) => self.send(link, to, &message),
            FromWorker::Do(Action::Take { piece }) => self.take(link, piece),
            FromWorker::Do(Action::Merge { piece, thief }) => self.merge(link, piece, thief),
            FromWorker::Do(Action::Drop { .. }) => {
                unreachable!("a death ends the run before the scheduler hears of it")
            }
            FromWorker::Do(Action::Start { .. }) => unreachable!("workers start themselves"),
            FromWorker::Merged(handed) => {
                let shared = self.shared.clone();
                let outcome = self.reduction.as_mut().and_then(|r| r.merged(shared.stage(), *handed));
                self.follow(link, outcome.into_iter().collect(), stagings)
            }
            FromWorker::Fault { task, tier, merges, fault } => Err(RunError::Task {
                task,
                rank: link.rank(),
                hostname: self.context.topology.host(link.rank()).hostname.clone(),
                kernel: self.shared.kernel.name().to_owned(),
                code: error::code_name(tier, merges),
                source: Box::new(fault),
            }),
            FromWorker::Engine(source) => Err(RunError::Engine {
                kernel: self.shared.kernel.name().to_owned(),
                stage: self.stage().name.clone(),
                source: Box::new(source),
            }),
            FromWorker::Panicked(message) => Err(RunError::Worker { message }),
            FromWorker::Ended(report) if self.released || self.shared.is_spent() => {
                self.left.push(*report);
                Ok(())
            }
            FromWorker::Ended(_) => Err(RunError::Worker { message: "it left before the stage was over".to_owned() }),
        }
    }

    fn heed_rank(
        &mut self,
        link: &mut Link,
        tiers: &mut Tiers,
        mut message: Message,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let source = message.source;
        let wrong = |what| RunError::Protocol { rank: source, what };
        let kind = message.tag;
        match kind {
            tag::ARTIFACT => tiers.receive(link, &message),
            _ if kind == tag::of_run(tag::CHUNKS, self.run) => {
                self.outputs.receive(link, message, stagings, &mut self.report.counts.moved)
            }
            _ if kind == tag::of_run(tag::PARTIAL, self.run) => {
                Stamp::run(self.run).check(&mut message.bytes, message.source, "a partial result")?;
                let bytes = message.bytes.len().saturating_sub(Reduction::header_bytes(&message.bytes));
                link.received(&mut self.report.counts.moved, Reason::Reduce, message.source, bytes as u64);
                let shared = self.shared.clone();
                let received = self.reduction.as_mut().and_then(|r| r.receive(shared.stage(), &message.bytes));
                let outcomes = received.ok_or_else(|| wrong("a partial result"))?;
                self.follow(link, outcomes, stagings)
            }
            _ if kind == tag::of_run(tag::STAGE_DONE, self.run) => {
                let sent = message.bytes.as_slice().try_into().map_err(|_| wrong("the end of its stage"))?;
                self.ranks_done += 1;
                self.outputs.expect(u64::from_le_bytes(sent));
                Ok(())
            }
            tag::PROGRESS => {
                link.pulse.hear(&message);
                Ok(())
            }
            _ if kind == tag::of_run(tag::SCHEDULER, self.run) => self.heed_scheduler(message),
            _ if kind == self.inputs.tag() => self.arrive(link, message),
            _ => Err(wrong("a message of unknown kind")),
        }
    }

    /// A kernel that never returns cannot be stopped from within: naming it ends the run, and with it the process.
    fn check_time_limit(&self, link: &Link) -> Result<(), RunError> {
        let limit = self.stage().limits.task_time;
        for current in &self.shared.current {
            let Some(current) = lock(current).clone() else { continue };
            if current.started.elapsed() > limit {
                return Err(RunError::TimeLimit {
                    task: self.plan().task_name(&current.tile),
                    rank: link.rank(),
                    hostname: self.context.topology.host(link.rank()).hostname.clone(),
                    kernel: self.shared.kernel.name().to_owned(),
                    code: error::code_name(current.tier, current.merges),
                    limit,
                });
            }
        }
        Ok(())
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
    pub fn finish(&mut self, link: &mut Link, data: &mut Data, stagings: &mut Stagings) -> Result<(), RunError> {
        let (stage_index, context, shared) = (self.stage_index, self.context, self.shared.clone());
        let plan = &context.plan.stages[stage_index];
        if self.together {
            link.barrier()?;
            stagings.settle()?;
        }
        self.outputs.keep(stage_index, !stagings.manifest.skips(&plan.name), &mut data.resident);
        if data.deferred {
            let bytes = costs(plan, &self.inputs).fetched_block_bytes * self.tiles.len() as u64;
            data.balance.note(stage_index, shared.load_ns(), bytes);
        }
        data.costs.note(stage_index, context.kernels[stage_index], shared.take_costs());
        link.tracer.end(Some(self.started), || What::Stage(stage_index));
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
