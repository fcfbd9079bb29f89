//! A worker's loop: it takes spans from the scheduler, computes them, merges partial results, and adopts new code
//! between two tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::engine::{Code, Tier};
use crate::exec::reduce::chain::MergeRequest;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::fault::TaskError;
use crate::exec::worker::instances::Instances;
use crate::exec::worker::message::{FromWorker, WorkerReport};
use crate::exec::worker::setup::{CallSlot, StageSetup};
use crate::exec::worker::shared_state::{Assignment, SharedState};
use crate::exec::worker::task::{CompletedTask, run_task};
use crate::report::Swap;
use crate::sched::{CostClass, Event, Span};

/// Runs a worker to the end of the stage, and tells the main thread how it ended, even if it panicked.
pub(in crate::exec) fn run_worker(shared: &SharedState, index: usize) {
    let ended = catch_unwind(AssertUnwindSafe(|| Worker::new(shared, index)?.run()));
    let message = match ended {
        Ok(Ok(report)) => FromWorker::Ended(Box::new(report)),
        Ok(Err(error)) => FromWorker::Failed(error),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            FromWorker::Panicked(text.unwrap_or_else(|| "no message".to_owned()))
        }
    };
    shared.send_to_main(message);
}

struct Worker<'a> {
    shared: &'a SharedState,
    setup: &'a StageSetup,
    index: usize,
    slot: &'a CallSlot,
    instances: Instances,
    report: WorkerReport,
}

fn cost_class(tier: Tier) -> CostClass {
    CostClass(tier as u8)
}

impl<'a> Worker<'a> {
    fn new(shared: &'a SharedState, index: usize) -> Result<Worker<'a>, TaskError> {
        let (setup, slot) = (&shared.setup, &shared.current[index]);
        let kept = lock(&shared.instances[index]).take();
        let mut instances = match kept {
            Some(instances) => instances,
            None => Instances::new(setup, slot)?,
        };
        for (operand, input) in setup.broadcast.iter().enumerate() {
            if let Some(input) = input {
                input.put(&mut instances.task, operand)?;
            }
        }
        Ok(Worker { shared, setup, index, slot, instances, report: WorkerReport::default() })
    }

    fn run(mut self) -> Result<WorkerReport, TaskError> {
        let mut idle = Some(cost_class(self.instances.tier()));
        while let Some((assignment, code)) = self.shared.next(self.index, idle.take(), self.report.counts.tasks()) {
            self.adopt(&code)?;
            match assignment {
                Assignment::Merge(request) => self.merge(request)?,
                Assignment::Span(span) => {
                    self.compute(span)?;
                    idle = Some(cost_class(self.instances.tier()));
                }
            }
        }
        self.report.instances = Some(self.instances);
        Ok(self.report)
    }

    /// Makes `code` current, unless a test asks for more tasks on the code before.
    fn adopt(&mut self, code: &Code) -> Result<(), TaskError> {
        let after_tasks = self.report.counts.tasks();
        let early = self.setup.swap_before_task.is_some_and(|task| after_tasks < task);
        if code.tier() == self.instances.tier() || early {
            return Ok(());
        }
        let held_ns = self.instances.swap(code)?;
        let (stage, worker) = (self.setup.stage_index, self.index);
        self.setup.tracer.mark(|| TraceEventKind::Swap { stage, worker, held_ns, after_tasks });
        self.report.swaps.push(Swap {
            stage: self.setup.stage().name.clone(),
            worker: worker as u32,
            at_ns: self.setup.process_start.elapsed().as_nanos() as u64,
            held_ns,
            after_tasks,
        });
        Ok(())
    }

    fn merge(&mut self, mut request: Box<MergeRequest>) -> Result<(), TaskError> {
        let started = Instant::now();
        self.instances.merge(self.setup, self.slot, &request.tile, &mut request.merge)?;
        self.report.counts.busy_ns += started.elapsed().as_nanos() as u64;
        self.shared.send_to_main(FromWorker::Merged(request));
        Ok(())
    }

    fn compute(&mut self, span: Span) -> Result<(), TaskError> {
        let Some(block) = self.shared.block(span) else { panic!("{span:?} is not in memory") };
        let stage = self.setup.stage();
        // Partial results are combined slice by slice, so each slice is a task of its own.
        let slices = if stage.reduce.is_some() { 1 } else { span.len };
        let (mut elapsed_ns, mut computed) = (0, 0);
        let starts = (span.start..span.start + span.len).step_by(slices as usize);
        for start in starts.filter(|start| !block.is_summed(stage, *start)) {
            let task = run_task(self.setup, self.slot, &mut self.instances, &block, start, slices)?;
            elapsed_ns += task.elapsed_ns;
            computed += slices;
            self.count(&task);
        }
        self.report.counts.busy_ns += elapsed_ns;
        // The scheduler measures the cost of a slice as if no slice had been summed by an earlier run.
        elapsed_ns = (elapsed_ns as f64 * span.len as f64 / computed.max(1) as f64) as u64;
        drop(block);
        self.shared.event(Event::Finished { span, elapsed_ns, class: cost_class(self.instances.tier()) });
        Ok(())
    }

    fn count(&mut self, task: &CompletedTask) {
        let stage = self.setup.stage();
        let processed_bytes = stage.split_operand_bytes(&task.tile);
        self.shared.progress.add(task.tier, processed_bytes);
        let counts = &mut self.report.counts;
        counts.processed_bytes += processed_bytes;
        match task.tier {
            Tier::Baseline => {
                counts.baseline_tasks += 1;
                counts.baseline_ns += task.kernel_ns;
            }
            Tier::Optimized => {
                counts.optimized_tasks += 1;
                counts.optimized_ns += task.kernel_ns;
                if !stage.split.is_empty() {
                    let along_first_axis = task.tile.0.offset[0]..task.tile.0.end(0);
                    counts.add_to_profile(task.kernel_ns, along_first_axis, stage.extent(0));
                }
            }
        }
        self.report.first_task.get_or_insert_with(Instant::now);
        self.setup.tracer.task(task.started, task.elapsed_ns, &task.tile, || TraceEventKind::Task {
            stage: self.setup.stage_index,
            run: self.setup.run,
            tier: task.tier,
            slices: task.slices,
            kernel_after_ns: task.kernel_after_ns,
            kernel_ns: task.kernel_ns,
        });
    }
}
