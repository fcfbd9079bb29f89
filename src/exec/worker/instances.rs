//! The kernel instances of one worker: one computes tiles. Where a kernel merges partial results, a second instance
//! runs it, so that neither can disturb the other.

use std::time::Instant;

use crate::engine::{Access, Code, EngineError, Instance, Kernel, OperandSpec, Tier, View};
use crate::exec::reduce::fold::{Merge, Results};
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::worker::block::{BlockData, BlockOutputs};
use crate::exec::worker::fault::TaskError;
use crate::exec::worker::setup::{CallSlot, CurrentCall, KernelCall, StageSetup};
use crate::plan::{StagePlan, Tile};

/// A worker's kernel instances. Runs of an iterated stage pass them on.
#[derive(Debug)]
pub(in crate::exec) struct Instances {
    pub task: Instance,
    merge: Option<Instance>,
}

impl Instances {
    /// Makes instances with room for the operands of the stage's tasks. The operands that all tasks share are not
    /// written yet. Start functions of modules are held to the limits of a task.
    pub fn new(setup: &StageSetup, slot: &CallSlot) -> Result<Instances, EngineError> {
        let new = |kernel: &Kernel, operands: &[OperandSpec], merges: bool| {
            let (code, limit_bytes) = (&setup.first_code, setup.memory_limit_bytes);
            Instance::watched(&setup.engine, kernel, code, limit_bytes, operands, |function| {
                let call = |function| CurrentCall {
                    started: Instant::now(),
                    call: KernelCall::Start(function),
                    tier: code.tier(),
                    merges,
                };
                *lock(slot) = function.map(call);
            })
        };
        let merge = setup.merge_kernel.as_ref();
        let merge = merge.map(|kernel| new(kernel, &merge_operands(setup.stage()), true)).transpose()?;
        let mut task = new(&setup.kernel, &setup.operands(), false)?;
        task.expect_all_written();
        Ok(Instances { task, merge })
    }

    /// Returns the tier of the code that the next call runs.
    pub fn tier(&self) -> Tier {
        self.task.tier()
    }

    /// Makes `code` current. Returns how long that took, in nanoseconds.
    pub fn swap(&mut self, code: &Code) -> Result<u64, EngineError> {
        let merge_ns = self.merge.as_mut().map_or(Ok(0), |merge| merge.swap(code))?;
        Ok(self.task.swap(code)? + merge_ns)
    }

    /// Merges partial results of `tile`. Each call of a kernel is held to the limits of a task.
    pub fn merge(
        &mut self,
        setup: &StageSetup,
        slot: &CallSlot,
        tile: &Tile,
        merge: &mut Merge,
    ) -> Result<(), TaskError> {
        let begun = setup.tracer.begin();
        if !setup.merger.as_ref().is_none_or(|merger| merger.merge(merge)) {
            self.merge_by_kernel(setup, slot, tile, merge)?;
        }
        let (stage, run) = (setup.stage_index, setup.run);
        setup.tracer.end_tile(begun, tile, || TraceEventKind::Merge { stage, run });
        Ok(())
    }

    fn merge_by_kernel(
        &mut self,
        setup: &StageSetup,
        slot: &CallSlot,
        tile: &Tile,
        merge: &mut Merge,
    ) -> Result<(), TaskError> {
        let Some(instance) = &mut self.merge else { panic!("no kernel merges partial results") };
        let (stage, tier, count) = (setup.stage(), instance.tier(), merge.sum.len());
        let views: Vec<View> = stage.outputs().chain(stage.outputs()).map(|index| view(stage, index, tile)).collect();
        // The sum stays in the operands of the outputs from one call to the next.
        write_operands(instance, count, &merge.sum);
        for next in merge.next.drain(..) {
            write_operands(instance, 0, &next);
            let call = KernelCall::Task(tile.clone());
            *lock(slot) = Some(CurrentCall { started: Instant::now(), call, tier, merges: true });
            let result = instance.call(&views);
            *lock(slot) = None;
            result.map_err(|fault| TaskError::Fault {
                task: stage.task_name(tile),
                tier,
                merges: true,
                fault: Box::new(fault),
            })?;
        }
        for (operand, sum) in (count..).zip(&mut merge.sum) {
            let Some(bytes) = instance.operand(operand, sum.len() as u64) else {
                panic!("operand {operand} of a merge has no room for {} bytes", sum.len())
            };
            sum.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Merges as much as possible now of the group that slice `start` of a block belongs to. Other workers may add to
    /// the group meanwhile.
    pub fn merge_group(
        &mut self,
        setup: &StageSetup,
        slot: &CallSlot,
        block: &BlockData,
        start: u64,
    ) -> Result<(), TaskError> {
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
            self.merge(setup, slot, &block.tile, &mut taken)?;
            merge = next(Some(taken));
        }
        Ok(())
    }
}

/// Writes partial results into the operands from number `first` on.
fn write_operands(instance: &mut Instance, first: usize, results: &Results) {
    for (operand, bytes) in (first..).zip(results) {
        let Some(target) = instance.operand_mut(operand, bytes.len() as u64) else {
            panic!("operand {operand} of a merge has no room for {} bytes", bytes.len())
        };
        target.copy_from_slice(bytes);
    }
}

/// Returns the operands of a merging kernel: the outputs of the stage twice, first the partial result that it adds,
/// then the sum that it adds it to.
fn merge_operands(stage: &StagePlan) -> Vec<OperandSpec> {
    let outputs = |access| {
        let spec = move |index| OperandSpec { max_bytes: stage.operand_max_bytes(index), access };
        stage.outputs().map(spec)
    };
    outputs(Access::In).chain(outputs(Access::InOut)).collect()
}

/// Returns a kernel's view of operand `index` for `tile`.
pub(in crate::exec) fn view(stage: &StagePlan, index: usize, tile: &Tile) -> View {
    let operand = &stage.operands[index];
    View {
        dtype: operand.dtype,
        region: stage.region(index, tile),
        halo: operand.halo.clone(),
        shape: operand.shape.clone(),
    }
}
