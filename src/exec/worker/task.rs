//! One task: copies its inputs into the kernel's memory, runs the kernel, and copies its outputs out.

use std::time::Instant;

use crate::engine::{Instance, Tier, View};
use crate::exec::sync::lock;
use crate::exec::transfer::piece::{BlockInput, fill};
use crate::exec::worker::block::{BlockData, BlockOutputs};
use crate::exec::worker::fault::TaskError;
use crate::exec::worker::instances::Instances;
use crate::exec::worker::instances::view;
use crate::exec::worker::setup::{CallSlot, CurrentCall, KernelCall, StageSetup};
use crate::plan::{StagePlan, Tile};
use crate::tensor::{Region, copy_box, copy_region};

/// A completed task, and how long it took.
pub(in crate::exec) struct CompletedTask {
    pub tile: Tile,
    pub tier: Tier,
    pub slices: u64,
    pub started: Instant,
    /// All of it, with copies and merges.
    pub elapsed_ns: u64,
    pub kernel_after_ns: u64,
    pub kernel_ns: u64,
}

/// An output of a task: its view, the region of the block's output, and its bytes.
struct TaskOutput<'a> {
    view: &'a View,
    block_region: Region,
    bytes: &'a [u8],
}

/// Runs one task on `slices` slices of a block from `start` on.
pub(in crate::exec) fn run_task(
    setup: &StageSetup,
    slot: &CallSlot,
    instances: &mut Instances,
    block: &BlockData,
    start: u64,
    slices: u64,
) -> Result<CompletedTask, TaskError> {
    let (stage, started) = (setup.stage(), Instant::now());
    let tile = stage.task(&block.tile, start, slices);
    let (tier, instance) = (instances.tier(), &mut instances.task);
    let views: Vec<View> = (0..stage.operands.len()).map(|index| view(stage, index, &tile)).collect();
    copy_inputs(stage, instance, block, &views);
    *lock(slot) = Some(CurrentCall { started, call: KernelCall::Task(tile.clone()), tier, merges: false });
    let kernel_started = Instant::now();
    let result = instance.call(&views);
    let kernel_ns = kernel_started.elapsed().as_nanos() as u64;
    *lock(slot) = None;
    result.map_err(|fault| TaskError::Fault {
        task: stage.task_name(&tile),
        tier,
        merges: false,
        fault: Box::new(fault),
    })?;
    copy_outputs(stage, instance, block, &views, start..start + slices);
    if stage.reduce.is_some() {
        instances.merge_group(setup, slot, block, start)?;
    }
    Ok(CompletedTask {
        tile,
        tier,
        slices,
        started,
        elapsed_ns: started.elapsed().as_nanos() as u64,
        kernel_after_ns: (kernel_started - started).as_nanos() as u64,
        kernel_ns,
    })
}

/// Copies the inputs that a task has for itself into the kernel's memory.
fn copy_inputs(stage: &StagePlan, instance: &mut Instance, block: &BlockData, views: &[View]) {
    for (index, (input, view)) in block.inputs.iter().zip(views).enumerate() {
        if matches!(input, BlockInput::Packed(bytes) if bytes.is_empty()) {
            continue;
        }
        let Some(target) = instance.operand_mut(index, view.bytes()) else {
            panic!("operand {index} of {} has no room for {} bytes", stage.name, view.bytes())
        };
        match input {
            BlockInput::Here(pieces) => fill(target, pieces, stage, index, &view.region),
            BlockInput::Packed(bytes) => {
                let from = stage.region(index, &block.cover);
                // Block and tile both have their halo around them, so the tile's begins where the tile does in the
                // block.
                let outer: Vec<u64> =
                    from.extent.iter().zip(&view.halo).map(|(extent, halo)| extent + 2 * halo).collect();
                let at: Vec<u64> = view.region.offset.iter().zip(&from.offset).map(|(at, start)| at - start).collect();
                let (padded, zero) = (view.padded(), vec![0; at.len()]);
                copy_box(bytes, &outer, &at, target, &padded, &zero, &padded, view.dtype.size_bytes());
            }
        }
    }
}

/// Copies the outputs of a task, which covers these slices, to the block.
fn copy_outputs(
    stage: &StagePlan,
    instance: &Instance,
    block: &BlockData,
    views: &[View],
    slices: std::ops::Range<u64>,
) {
    let mut outputs = Vec::new();
    for index in stage.outputs() {
        let view = &views[index];
        let Some(bytes) = instance.operand(index, view.bytes()) else {
            panic!("operand {index} of {} has no room for {} bytes", stage.name, view.bytes())
        };
        outputs.push(TaskOutput { view, block_region: stage.region(index, &block.cover), bytes });
    }
    let copies = || outputs.iter().map(|output| output.bytes.to_vec()).collect();
    match &mut *lock(&block.outputs) {
        BlockOutputs::Tiles(tiles) => {
            for (target, TaskOutput { view, block_region, bytes }) in tiles.buffers.iter_mut().zip(&outputs) {
                copy_region(bytes, &view.region, target, block_region, &view.region, view.dtype.size_bytes());
            }
            tiles.computed.add(slices.start, slices.end);
        }
        BlockOutputs::Groups(reduce, groups) => {
            groups[(slices.start / reduce.leaves) as usize].put(slices.start % reduce.leaves, copies());
        }
        BlockOutputs::Slices(first, results) => results[(slices.start - *first) as usize] = copies(),
    }
}
