//! A worker: takes spans from the scheduler, runs the kernel on them, merges partial results, and adopts new code
//! between two tasks.

pub mod instances;
pub mod shared_state;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::engine::{EngineError, KernelFault, Tier, View};
use crate::exec::reduce::chain::MergeRequest;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::transfer::piece::{BlockInput, fill};
use crate::exec::worker::instances::{Instances, merge_group, view};
use crate::exec::worker::shared_state::{BlockData, BlockOutputs, Call, Current, Shared, Work};
use crate::report::{Counts, Swap};
use crate::sched::{Action, CostClass, Event};
use crate::tensor::{copy_box, copy_region};

/// What a worker tells the main thread.
#[derive(Debug)]
pub(super) enum FromWorker {
    /// Something that the main thread has to do.
    Do(Action),
    Fault {
        task: String,
        tier: Tier,
        /// In the kernel that merges.
        merges: bool,
        fault: KernelFault,
    },
    /// Partial results that the main thread had handed out.
    Merged(Box<MergeRequest>),
    Engine(EngineError),
    Panicked(String),
    Ended(Box<WorkerReport>),
}

/// The number of a run of a stage, and what one of its workers says.
pub(super) type FromRun = (u64, FromWorker);

/// What one worker did in a stage.
#[derive(Debug, Default)]
pub(super) struct WorkerReport {
    pub counts: Counts,
    pub swaps: Vec<Swap>,
    /// End of its first task.
    pub first_task: Option<Instant>,
    /// For the next run of the stage.
    pub instances: Option<Instances>,
}

fn class(tier: Tier) -> CostClass {
    CostClass(tier as u8)
}

/// Runs a worker to the end of the stage; tells the main thread how it ended, whatever happens.
pub(super) fn work(shared: &Shared, worker: usize) {
    let ended = catch_unwind(AssertUnwindSafe(|| run(shared, worker)));
    let message = match ended {
        Ok(Ok(report)) => FromWorker::Ended(Box::new(report)),
        Ok(Err(failed)) => *failed,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            FromWorker::Panicked(text.unwrap_or_else(|| "no message".to_owned()))
        }
    };
    let _ = shared.setup.to_main.send((shared.setup.run, message));
}

fn run(shared: &Shared, worker: usize) -> Result<WorkerReport, Box<FromWorker>> {
    let engine_error = |e| Box::new(FromWorker::Engine(e));
    let mut report = WorkerReport::default();
    let kept = lock(&shared.instances[worker]).take();
    let mut instances = match kept {
        Some(instances) => instances,
        None => Instances::new(shared, worker).map_err(engine_error)?,
    };
    for (operand, whole) in shared.setup.whole.iter().enumerate() {
        if let Some(whole) = whole {
            whole.put(&mut instances.task, operand).map_err(engine_error)?;
        }
    }
    let mut idle = Some(class(instances.tier()));
    while let Some((work, code)) = shared.next(worker, idle.take(), report.counts.tasks()) {
        let early = shared.setup.swap_before_task.is_some_and(|task| report.counts.tasks() < task);
        if code.tier() != instances.tier() && !early {
            let held_ns = instances.swap(&code).map_err(engine_error)?;
            let (stage, after_tasks) = (shared.setup.stage_index, report.counts.tasks());
            shared.setup.tracer.mark(|| TraceEventKind::Swap { stage, worker, held_ns, after_tasks });
            report.swaps.push(Swap {
                stage: shared.stage().name.clone(),
                worker: worker as u32,
                at_ns: shared.setup.process_start.elapsed().as_nanos() as u64,
                held_ns,
                after_tasks,
            });
        }
        let span = match work {
            Work::Span(span) => span,
            Work::Merge(mut handed) => {
                let started = Instant::now();
                instances.merge(shared, worker, &handed.tile, &mut handed.merge)?;
                report.counts.busy_ns += started.elapsed().as_nanos() as u64;
                // As in `dispatch`.
                let _ = shared.setup.to_main.send((shared.setup.run, FromWorker::Merged(handed)));
                continue;
            }
        };
        let Some(block) = shared.block(span) else { panic!("{span:?} is not in memory") };
        // Partial results are combined slice by slice, so each is a task of its own.
        let len = if shared.stage().reduce.is_some() { 1 } else { span.len };
        let (mut elapsed_ns, mut computed) = (0, 0);
        let starts = (span.start..span.start + span.len).step_by(len as usize);
        for start in starts.filter(|start| !block.is_summed(shared.stage(), *start)) {
            elapsed_ns += task(shared, worker, &mut instances, &block, (start, len), &mut report)?;
            computed += len;
        }
        report.counts.busy_ns += elapsed_ns;
        // As if there had been something to do for each.
        elapsed_ns = (elapsed_ns as f64 * span.len as f64 / computed.max(1) as f64) as u64;
        drop(block);
        shared.event(Event::Finished { span, elapsed_ns, class: class(instances.tier()) });
        idle = Some(class(instances.tier()));
    }
    report.instances = Some(instances);
    Ok(report)
}

/// One task, on slices `start .. start + len` of a block: copies its inputs in, runs the kernel, copies its outputs out.
/// Returns the time it took.
fn task(
    shared: &Shared,
    worker: usize,
    instances: &mut Instances,
    block: &BlockData,
    (start, len): (u64, u64),
    report: &mut WorkerReport,
) -> Result<u64, Box<FromWorker>> {
    let (stage, started) = (shared.stage(), Instant::now());
    let tile = &stage.task(&block.tile, start, len);
    let (tier, instance) = (instances.tier(), &mut instances.task);
    let views: Vec<View> = (0..stage.operands.len()).map(|index| view(stage, index, tile)).collect();
    for (index, input) in block.inputs.iter().enumerate() {
        if matches!(input, BlockInput::Packed(bytes) if bytes.is_empty()) {
            continue;
        }
        let (view, from) = (&views[index], stage.region(index, &block.cover));
        let Some(target) = instance.operand_mut(index, view.bytes()) else {
            panic!("{} does not fit its slots", stage.task_name(tile))
        };
        let input = match input {
            BlockInput::Packed(bytes) => bytes,
            BlockInput::Here(pieces) => {
                fill(target, pieces, stage, index, &view.region);
                continue;
            }
        };
        // Both have their halo around them, so the tile's begins where the tile does in the block.
        let outer: Vec<u64> = from.extent.iter().zip(&view.halo).map(|(extent, halo)| extent + 2 * halo).collect();
        let at: Vec<u64> = view.region.offset.iter().zip(&from.offset).map(|(at, start)| at - start).collect();
        let (padded, zero) = (view.padded(), vec![0; at.len()]);
        copy_box(input, &outer, &at, target, &padded, &zero, &padded, view.dtype.size_bytes());
    }
    *lock(&shared.current[worker]) = Some(Current { started, call: Call::Task(tile.clone()), tier, merges: false });
    let kernel_started = Instant::now();
    let result = instance.call(&views);
    let kernel_ns = kernel_started.elapsed().as_nanos() as u64;
    *lock(&shared.current[worker]) = None;
    result.map_err(|fault| FromWorker::Fault { task: stage.task_name(tile), tier, merges: false, fault })?;
    let mut results = Vec::new();
    for index in stage.outputs() {
        let Some(bytes) = instance.operand(index, views[index].bytes()) else {
            panic!("{} does not fit its slots", stage.task_name(tile))
        };
        results.push((&views[index], stage.region(index, &block.cover), bytes));
    }
    let copies = || results.iter().map(|(_, _, bytes)| bytes.to_vec()).collect();
    match &mut *lock(&block.outputs) {
        BlockOutputs::Tiles(tiles) => {
            for (target, (view, to, bytes)) in tiles.buffers.iter_mut().zip(&results) {
                copy_region(bytes, &view.region, target, to, &view.region, view.dtype.size_bytes());
            }
            tiles.computed.add(start, start + len);
        }
        BlockOutputs::Groups(reduce, groups) => {
            groups[(start / reduce.leaves) as usize].put(start % reduce.leaves, copies());
        }
        BlockOutputs::Slices(first, slices) => slices[(start - *first) as usize] = copies(),
    }
    if stage.reduce.is_some() {
        merge_group(shared, worker, instances, block, start)?;
    }
    let processed = stage.split_operand_bytes(tile);
    report.counts.processed_bytes += processed;
    shared.counts[2].fetch_add(processed, Ordering::Relaxed);
    shared.counts[tier as usize].fetch_add(1, Ordering::Relaxed);
    match tier {
        Tier::Baseline => {
            report.counts.baseline_tasks += 1;
            report.counts.baseline_ns += kernel_ns;
        }
        Tier::Optimized => {
            report.counts.optimized_tasks += 1;
            report.counts.optimized_ns += kernel_ns;
            if !stage.split.is_empty() {
                let places = tile.0.offset[0]..tile.0.end(0);
                report.counts.add_to_profile(kernel_ns, places, stage.extent(0));
            }
        }
    }
    report.first_task.get_or_insert_with(Instant::now);
    let elapsed_ns = started.elapsed().as_nanos() as u64;
    shared.setup.tracer.task(started, elapsed_ns, tile, || TraceEventKind::Task {
        stage: shared.setup.stage_index,
        run: shared.setup.run,
        tier,
        slices: len,
        kernel_after_ns: (kernel_started - started).as_nanos() as u64,
        kernel_ns,
    });
    Ok(elapsed_ns)
}
