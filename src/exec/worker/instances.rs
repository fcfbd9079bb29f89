//! The kernels of a stage on one worker: the one that computes tiles and, where partial results are merged by a kernel,
//! that one too, in an instance of its own, so that neither can disturb the other.

use std::time::Instant;

use crate::engine::{Access, Code, EngineError, Instance, OperandSpec, Tier, View};
use crate::exec::reduce::fold::Merge;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::{TraceEventKind, Tracer};
use crate::exec::worker::FromWorker;
use crate::exec::worker::shared_state::{BlockData, BlockOutputs, Call, Current, Shared};
use crate::plan::{StagePlan, Tile};

/// Lives on one worker; goes on to the next run of an iterated stage.
#[derive(Debug)]
pub(in crate::exec) struct Instances {
    pub task: Instance,
    merge: Option<Instance>,
}

impl Instances {
    /// With room for the operands of the stage's tasks; those that all tasks share are yet to be written. What modules run
    /// as they start is held to the limits of a task.
    pub fn new(shared: &Shared, worker: usize) -> Result<Instances, EngineError> {
        let (engine, limit_bytes) = (&shared.setup.engine, shared.setup.memory_limit_bytes);
        let new = |kernel, operands: &[_], merges| {
            Instance::watched(engine, kernel, &shared.start, limit_bytes, operands, |function| {
                let tier = shared.start.tier();
                let current = |function| Current { started: Instant::now(), call: Call::Start(function), tier, merges };
                *lock(&shared.current[worker]) = function.map(current);
            })
        };
        let merge = shared.setup.merge_kernel.as_ref();
        let merge = merge.map(|kernel| new(kernel, &merge_operands(shared.stage()), true));
        let mut task = new(&shared.setup.kernel, &shared.operands, false)?;
        task.expect_all_written();
        Ok(Instances { task, merge: merge.transpose()? })
    }

    /// Of the code that the next call runs.
    pub fn tier(&self) -> Tier {
        self.task.tier()
    }

    /// Makes `code` current. Returns what it took in nanoseconds.
    pub fn swap(&mut self, code: &Code) -> Result<u64, EngineError> {
        let merge_ns = self.merge.as_mut().map_or(Ok(0), |merge| merge.swap(code))?;
        Ok(self.task.swap(code)? + merge_ns)
    }

    /// Merges partial results of `tile` into one. Each call of a kernel is held to the limits of a task.
    pub fn merge(
        &mut self,
        shared: &Shared,
        worker: usize,
        tile: &Tile,
        merge: &mut Merge,
    ) -> Result<(), Box<FromWorker>> {
        let begun = shared.setup.tracer.begin();
        let what = || TraceEventKind::Merge { stage: shared.setup.stage_index, run: shared.setup.run };
        let merged = |tracer: &Tracer| tracer.end_tile(begun, tile, what);
        if shared.merger.as_ref().is_none_or(|merger| merger.merge(merge)) {
            merged(&shared.setup.tracer);
            return Ok(());
        }
        let Some(instance) = &mut self.merge else { panic!("no kernel merges partial results") };
        let (stage, tier) = (shared.stage(), instance.tier());
        let count = merge.sum.len();
        let views: Vec<View> = stage.outputs().chain(stage.outputs()).map(|index| view(stage, index, tile)).collect();
        let put = |instance: &mut Instance, first: usize, results: &[Vec<u8>]| {
            for (operand, bytes) in (first..).zip(results) {
                let Some(target) = instance.operand_mut(operand, bytes.len() as u64) else {
                    panic!("a partial result of {} does not fit its slot", stage.task_name(tile))
                };
                target.copy_from_slice(bytes);
            }
        };
        // The sum stays in the outputs' places from one call to the next.
        put(instance, count, &merge.sum);
        for next in merge.next.drain(..) {
            put(instance, 0, &next);
            let current = Current { started: Instant::now(), call: Call::Task(tile.clone()), tier, merges: true };
            *lock(&shared.current[worker]) = Some(current);
            let result = instance.call(&views);
            *lock(&shared.current[worker]) = None;
            result.map_err(|fault| FromWorker::Fault { task: stage.task_name(tile), tier, merges: true, fault })?;
        }
        for (operand, sum) in (count..).zip(&mut merge.sum) {
            let Some(bytes) = instance.operand(operand, sum.len() as u64) else {
                panic!("a sum of {} does not fit its slot", stage.task_name(tile))
            };
            sum.copy_from_slice(bytes);
        }
        merged(&shared.setup.tracer);
        Ok(())
    }
}

/// The outputs of the stage twice: what is merged in, and what it is merged into.
fn merge_operands(stage: &StagePlan) -> Vec<OperandSpec> {
    let of = |access| {
        let spec = move |index| OperandSpec { max_bytes: stage.operand_max_bytes(index), access };
        stage.outputs().map(spec)
    };
    of(Access::In).chain(of(Access::InOut)).collect()
}

/// What a kernel sees of operand `index` for `tile`.
pub(in crate::exec) fn view(stage: &StagePlan, index: usize, tile: &Tile) -> View {
    let operand = &stage.operands[index];
    View {
        dtype: operand.dtype,
        region: stage.region(index, tile),
        halo: operand.halo.clone(),
        shape: operand.shape.clone(),
    }
}

/// Merges what can be merged now of the group that slice `start` of a block belongs to. Other workers add to it
/// meanwhile.
pub(in crate::exec) fn merge_group(
    shared: &Shared,
    worker: usize,
    instances: &mut Instances,
    block: &BlockData,
    start: u64,
) -> Result<(), Box<FromWorker>> {
    let next = |merged: Option<Merge>| match &mut *lock(&block.outputs) {
        BlockOutputs::Groups(reduce, groups) => {
            let group = &mut groups[(start / reduce.leaves) as usize];
            merged.into_iter().for_each(|merge| group.give_back(merge));
            group.take_merge()
        }
        _ => None,
    };
    let mut merge = next(None);
    while let Some(mut taken) = merge {
        instances.merge(shared, worker, &block.tile, &mut taken)?;
        merge = next(Some(taken));
    }
    Ok(())
}
