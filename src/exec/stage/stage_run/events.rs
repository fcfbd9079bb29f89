//! What a stage that is under way hears from its workers, from other ranks and from the clock, and what follows from
//! that.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{StageMessage, Tag, TaggedMessage};
use crate::exec::comm::trailer::Trailer;
use crate::exec::error;
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::recovery::staging::Stagings;
use crate::exec::reduce::chain::Reduction;
use crate::exec::stage::stage_run::StageRun;
use crate::exec::stage::stage_run::cpu_time;
use crate::exec::stage::sum_recorder::SAVE_INTERVAL;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::fault::TaskError;
use crate::exec::worker::message::FromWorker;
use crate::exec::worker::setup::KernelCall;
use crate::report::Reason;
use crate::sched::{Action, Event};

/// When it is judged whether the stage is long enough for the optimizing compiler to go before its workers.
const JUDGEMENT: Duration = Duration::from_millis(500);

impl StageRun<'_> {
    /// Does what time and compilers ask for, and notes when all is done: this rank's blocks are written and, on rank 0,
    /// all others'.
    pub fn poll(
        &mut self,
        comm: &mut Communicator,
        tiers: &mut TierUp,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let kernel = self.context.kernels[self.stage_index];
        if self.wake_at_ns.is_some_and(|ns| self.shared.now_ns() >= ns) {
            self.wake_at_ns = None;
            self.shared.event(Event::Tick);
        }
        if self.last_save.elapsed() >= SAVE_INTERVAL {
            self.save_parts(comm, stagings, false)?;
            self.last_save = Instant::now();
        }
        tiers.poll(comm)?;
        if !self.optimized
            && let Some(code) = tiers.optimized(kernel)
        {
            self.optimized = true;
            self.shared.adopt(code.clone());
            comm.tracer.mark(|| TraceEventKind::Code { stage: self.stage_index });
        }
        self.judge_length(tiers);
        self.check_time_limit(comm)?;
        let all_told = self.ranks_done + 1 == comm.size() && self.outputs.all_received();
        let others_done = comm.rank() != 0 || !self.synchronized || all_told;
        let reduced = self.reduction.as_ref().is_none_or(Reduction::is_complete);
        if self.complete && reduced && !self.reported {
            self.reported = true;
            if comm.rank() != 0 && self.synchronized {
                let sent = self.outputs.messages_sent().to_le_bytes().to_vec();
                comm.send(0, Tag::stage(StageMessage::Done, self.run), sent.into())?;
            }
        }
        self.done = self.reported && self.all_complete && others_done && self.inputs.all_here();
        Ok(())
    }

    pub fn handle_worker(
        &mut self,
        comm: &mut Communicator,
        message: FromWorker,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        match message {
            FromWorker::Do(Action::Fetch { block }) => self.fetch(block),
            FromWorker::Do(Action::Write { block }) => self.write(comm, block, stagings),
            FromWorker::Do(Action::Complete) => {
                self.complete = true;
                Ok(())
            }
            FromWorker::Do(Action::Over) => {
                self.all_complete = true;
                Ok(())
            }
            FromWorker::Do(Action::WakeAt { ns }) => {
                self.wake_at_ns = Some(ns);
                Ok(())
            }
            FromWorker::Do(Action::Send { to, message }) => self.send(comm, to, &message),
            FromWorker::Do(Action::Take { piece }) => self.take(comm, piece),
            FromWorker::Do(Action::Merge { piece, thief }) => self.merge(comm, piece, thief),
            FromWorker::Do(Action::Start { .. }) => unreachable!("workers start themselves"),
            FromWorker::Merged(handed) => {
                let shared = self.shared.clone();
                let outcome = self.reduction.as_mut().and_then(|r| r.merged(shared.stage(), *handed));
                self.follow(comm, outcome.into_iter().collect(), stagings)
            }
            FromWorker::Failed(TaskError::Fault { task, tier, merges, fault }) => Err(RunError::Task {
                task,
                rank: comm.rank(),
                hostname: self.context.topology.host(comm.rank()).hostname.clone(),
                kernel: self.shared.setup.kernel.name().to_owned(),
                code: error::code_name(tier, merges),
                source: fault,
            }),
            FromWorker::Failed(TaskError::Engine(source)) => Err(RunError::Engine {
                kernel: self.shared.setup.kernel.name().to_owned(),
                stage: self.stage().name.clone(),
                source,
            }),
            FromWorker::Panicked(message) => Err(RunError::Worker { message }),
            FromWorker::Ended(report) if self.released || self.shared.is_spent() => {
                self.left.push(*report);
                Ok(())
            }
            FromWorker::Ended(_) => Err(RunError::Worker { message: "it left before the stage was over".to_owned() }),
        }
    }

    /// Handles a message of another rank.
    pub fn handle_rank(
        &mut self,
        comm: &mut Communicator,
        kind: StageMessage,
        mut message: TaggedMessage,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let source = message.source;
        let wrong = |what| RunError::Protocol { rank: source, what };
        match kind {
            StageMessage::Chunks => self.outputs.receive(comm, message, stagings, &mut self.report.counts.moved),
            StageMessage::Partial => {
                Trailer::run(self.run).check(&mut message.bytes, source, "a partial result")?;
                let bytes = message.bytes.len().saturating_sub(Reduction::header_bytes(&message.bytes));
                comm.received(&mut self.report.counts.moved, Reason::Reduce, source, bytes as u64);
                let shared = self.shared.clone();
                let received = self.reduction.as_mut().and_then(|r| r.receive(shared.stage(), &message.bytes));
                let outcomes = received.ok_or_else(|| wrong("a partial result"))?;
                self.follow(comm, outcomes, stagings)
            }
            StageMessage::Done => {
                let sent = message.bytes.as_slice().try_into().map_err(|_| wrong("the end of its stage"))?;
                self.ranks_done += 1;
                self.outputs.expect(u64::from_le_bytes(sent));
                Ok(())
            }
            StageMessage::Scheduler => self.handle_scheduler(message),
            StageMessage::Shard => self.arrive(comm, message),
        }
    }

    /// A kernel that never returns cannot be stopped from within: naming it ends the run, and with it the process.
    fn check_time_limit(&self, comm: &Communicator) -> Result<(), RunError> {
        let limit = self.stage().limits.task_time;
        for current in &self.shared.current {
            let Some(current) = lock(current).clone() else { continue };
            if current.started.elapsed() > limit {
                let (rank, kernel) = (comm.rank(), self.shared.setup.kernel.name().to_owned());
                let hostname = self.context.topology.host(rank).hostname.clone();
                let code = error::code_name(current.tier, current.merges);
                return Err(match current.call {
                    KernelCall::Task(tile) => {
                        RunError::TimeLimit { task: self.plan().task_name(&tile), rank, hostname, kernel, code, limit }
                    }
                    KernelCall::Start(function) => {
                        let stage = self.stage().name.clone();
                        RunError::StartTimeLimit { function, stage, rank, hostname, kernel, code, limit }
                    }
                });
            }
        }
        Ok(())
    }

    /// A long stage gains most when its optimized code comes soon, a short one when its workers are left in peace. What
    /// is left is reckoned in CPU time, since the compiler may have taken much of the time on the clock.
    fn judge_length(&mut self, tiers: &mut TierUp) {
        let Some((_, cpu_at_start)) = self.to_judge.filter(|(started, _)| started.elapsed() >= JUDGEMENT) else {
            return;
        };
        self.to_judge = None;
        let done = self.shared.progress.processed_bytes.load(Ordering::Relaxed) as f64 / self.bytes().max(1) as f64;
        let left = cpu_time().saturating_sub(cpu_at_start).as_secs_f64() * (1.0 - done) / done.max(1e-6);
        tiers.reconsider_compile(self.context.kernels[self.stage_index], Duration::from_secs_f64(left.max(0.0)));
    }
}
