use std::collections::BTreeMap;

use super::{
    Distribution, IndexPlan, Layout, Machine, OperandPlan, PlanError, Role, StageBytes, StageKind, StagePlan, Tile,
};
use crate::job::{Job, Operand, Source, Stage};
use crate::tensor::{Region, Shape};

/// What is read, computed and written as one has about this many bytes: large enough for the disk, small enough that
/// several fit in memory and work can be handed out.
const BLOCK_BYTES: u64 = 4 << 20;
/// A rank has at least this many blocks where the data allow, so that reading, computing and writing overlap.
const BLOCKS_PER_RANK: u64 = 8;
/// Where nothing is chunked, a shard has this many units: ranks then differ by 1/64 of their work at most.
const UNITS_PER_RANK: u64 = 64;
/// Room for a kernel's views and guard pages beside its operands.
const ARENA_OVERHEAD_BYTES: u64 = 256 << 10;

pub(super) fn plan_stage(
    job: &Job,
    stage: &Stage,
    known: &BTreeMap<String, Layout>,
    machine: &Machine,
) -> Result<StagePlan, PlanError> {
    let mut indices = bind_indices(job, stage, known)?;
    mark_split(job, stage, known, machine.ranks, &mut indices);
    let operands = operands(job, stage, known, &indices)?;
    let first_output = &stage.compute.outputs[0];
    let position = |name: &str| indices.iter().position(|i| i.name == name);
    let split: Vec<usize> =
        first_output.indices.iter().filter_map(|i| position(&i.name)).filter(|i| indices[*i].split).collect();
    let mut planned = StagePlan {
        name: stage.name.clone(),
        kind: StageKind::Map,
        indices,
        operands,
        split,
        unit: Vec::new(),
        grid: Vec::new(),
        block_units: 1,
        bytes: StageBytes::default(),
        peak_bytes_per_rank: 0,
        arena_bytes: 0,
        notes: Vec::new(),
    };
    choose_units(&mut planned, machine);
    let block_bytes = choose_blocks(&mut planned, machine);
    account(&mut planned, stage, machine, block_bytes)?;
    Ok(planned)
}

/// Finds the extent of every index of the stage, in order of appearance.
fn bind_indices(job: &Job, stage: &Stage, known: &BTreeMap<String, Layout>) -> Result<Vec<IndexPlan>, PlanError> {
    let mut bound: Vec<(IndexPlan, String)> = Vec::new();
    for operand in &stage.compute.inputs {
        let shape = input_shape(job, stage, operand, known)?;
        if shape.rank() != operand.indices.len() {
            return Err(PlanError::Rank {
                stage: stage.name.clone(),
                operand: operand.to_string(),
                tensor: operand.tensor.clone(),
                indices: operand.indices.len(),
                rank: shape.rank(),
                shape: shape.to_string(),
            });
        }
        for (index, extent) in operand.indices.iter().zip(shape.iter()) {
            match bound.iter().find(|(other, _)| other.name == index.name) {
                Some((other, _)) if other.extent == *extent => {}
                Some((other, by)) => {
                    return Err(PlanError::Extents {
                        stage: stage.name.clone(),
                        index: index.name.clone(),
                        operand: operand.to_string(),
                        extent: *extent,
                        other: by.clone(),
                        other_extent: other.extent,
                    });
                }
                None => {
                    let plan = IndexPlan { name: index.name.clone(), extent: *extent, split: false };
                    bound.push((plan, operand.to_string()));
                }
            }
        }
    }
    for (name, size) in &stage.sizes {
        match bound.iter().find(|(other, _)| other.name == *name) {
            Some((other, by)) if other.extent != *size => {
                return Err(PlanError::Extents {
                    stage: stage.name.clone(),
                    index: name.clone(),
                    operand: "sizes".to_owned(),
                    extent: *size,
                    other: by.clone(),
                    other_extent: other.extent,
                });
            }
            Some(_) => {}
            None => bound.push((IndexPlan { name: name.clone(), extent: *size, split: false }, "sizes".to_owned())),
        }
    }
    for operand in &stage.compute.outputs {
        for index in &operand.indices {
            if !bound.iter().any(|(other, _)| other.name == index.name) {
                let (index, operand) = (index.name.clone(), operand.to_string());
                return Err(PlanError::Unbound { stage: stage.name.clone(), index, operand });
            }
        }
    }
    Ok(bound.into_iter().map(|(index, _)| index).collect())
}

fn input_shape(
    job: &Job,
    stage: &Stage,
    operand: &Operand,
    known: &BTreeMap<String, Layout>,
) -> Result<Shape, PlanError> {
    if let Some(layout) = known.get(&operand.tensor) {
        return Ok(layout.shape.clone());
    }
    match job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
        Some(Source::Inline { shape, .. }) => Ok(shape.clone()),
        _ => Err(PlanError::Shape {
            stage: stage.name.clone(),
            message: format!("the shape of tensor '{}' is not known", operand.tensor),
        }),
    }
}

/// Chooses what to split. Only an index that every output has may be; of these, a set is taken of which every input has
/// all or none, so that each input is read once: in parts, or whole and then broadcast. Among such sets the one that
/// gives every rank work, then broadcasts least, then has most parts.
fn mark_split(job: &Job, stage: &Stage, known: &BTreeMap<String, Layout>, ranks: u32, indices: &mut [IndexPlan]) {
    let has = |operand: &Operand, index: usize| operand.indices.iter().any(|i| i.name == indices[index].name);
    let outputs = &stage.compute.outputs;
    let candidates: Vec<usize> =
        (0..indices.len()).filter(|index| outputs.iter().all(|output| has(output, *index))).collect();
    let input_bytes = |operand: &Operand| -> u64 {
        let dtype = known.get(&operand.tensor).map(|l| l.dtype).or_else(|| job.declared_dtype(&operand.tensor));
        let extents = (0..indices.len()).filter(|index| has(operand, *index)).map(|index| indices[index].extent);
        extents.product::<u64>() * dtype.map_or(1, |d| d.size_bytes() as u64)
    };
    let mut best: (Vec<usize>, (u64, u64, u64)) = (Vec::new(), (0, 0, 0));
    for choice in 1u32..1 << candidates.len() {
        let set: Vec<usize> = (0..candidates.len()).filter(|i| choice >> i & 1 == 1).map(|i| candidates[i]).collect();
        let shared = |operand: &Operand| set.iter().filter(|index| has(operand, **index)).count();
        if stage.compute.inputs.iter().any(|input| !matches!(shared(input), n if n == 0 || n == set.len())) {
            continue;
        }
        let parts = set.iter().map(|index| indices[*index].extent).fold(1, u64::saturating_mul);
        let whole = stage.compute.inputs.iter().filter(|input| shared(input) == 0);
        let broadcast: u64 = whole.map(input_bytes).sum();
        let score = (parts.min(u64::from(ranks)), u64::MAX - broadcast, parts);
        if best.0.is_empty() || score > best.1 {
            best = (set, score);
        }
    }
    for index in best.0 {
        indices[index].split = true;
    }
}

fn operands(
    job: &Job,
    stage: &Stage,
    known: &BTreeMap<String, Layout>,
    indices: &[IndexPlan],
) -> Result<Vec<OperandPlan>, PlanError> {
    let input_count = stage.compute.inputs.len();
    let plan = |(position, operand): (usize, &Operand)| {
        let role = if position < input_count { Role::Input } else { Role::Output };
        let dims: Vec<usize> =
            operand.indices.iter().filter_map(|i| indices.iter().position(|other| other.name == i.name)).collect();
        let extents: Vec<u64> = dims.iter().map(|dim| indices[*dim].extent).collect();
        let shape = Shape::new(extents)
            .map_err(|e| PlanError::Shape { stage: stage.name.clone(), message: format!("{operand}: {e}") })?;
        let source = job.tensors.get(&operand.tensor).map(|decl| &decl.source);
        let layout = known.get(&operand.tensor);
        let (dtype, chunk, deflate) = match (layout, source) {
            (Some(layout), _) => (layout.dtype, layout.chunk.clone(), None),
            (None, Some(Source::Create { dtype, chunk, deflate, .. })) => {
                // A chunk larger than the tensor would be all padding.
                let clip = |chunk: &Vec<u64>| chunk.iter().zip(shape.iter()).map(|(c, s)| *c.min(s.max(&1))).collect();
                (*dtype, chunk.as_ref().map(clip), *deflate)
            }
            (None, Some(Source::Inline { dtype, .. } | Source::Scratch { dtype })) => (*dtype, None, None),
            (None, _) => {
                let message = format!("the dtype of tensor '{}' is not known", operand.tensor);
                return Err(PlanError::Shape { stage: stage.name.clone(), message });
            }
        };
        let has_split = dims.iter().any(|dim| indices[*dim].split);
        let whole = role == Role::Input && !has_split;
        let distribution = if whole { Distribution::Broadcast } else { Distribution::Split };
        Ok(OperandPlan { tensor: operand.tensor.clone(), role, dtype, shape, dims, distribution, chunk, deflate })
    };
    stage.compute.operands().enumerate().map(plan).collect()
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}

/// Bytes of the split operands in a box of the given extents.
fn box_bytes(stage: &StagePlan, extent: &[u64]) -> u64 {
    stage.split_operand_bytes(&Tile(Region { offset: vec![0; extent.len()], extent: extent.to_vec() }))
}

/// Chunk-aligned units; where nothing is chunked, fine enough to balance the ranks.
fn choose_units(stage: &mut StagePlan, machine: &Machine) {
    let extents: Vec<u64> = stage.split.iter().map(|index| stage.indices[*index].extent).collect();
    let mut unit = extents.clone();
    let mut pieces = 1u64;
    let wanted = u64::from(machine.ranks) * UNITS_PER_RANK;
    for axis in 0..extents.len() {
        let index = stage.split[axis];
        let chunked = stage.operands.iter().filter_map(|operand| {
            let dim = operand.dims.iter().position(|d| *d == index)?;
            operand.chunk.as_ref().map(|chunk| chunk[dim])
        });
        let aligned = chunked.reduce(least_common_multiple);
        unit[axis] = match aligned {
            Some(chunk) => chunk.min(extents[axis]).max(1),
            None => {
                let whole_bytes = box_bytes(stage, &unit);
                let cuts =
                    wanted.div_ceil(pieces).max(whole_bytes.div_ceil(BLOCK_BYTES)).clamp(1, extents[axis].max(1));
                extents[axis].div_ceil(cuts).max(1)
            }
        };
        pieces = pieces.saturating_mul(extents[axis].div_ceil(unit[axis]).max(1));
    }
    stage.grid = extents.iter().zip(&unit).map(|(extent, unit)| extent.div_ceil(*unit)).collect();
    stage.unit = unit;
}

/// Sets the block size and returns the bytes of the largest block.
fn choose_blocks(stage: &mut StagePlan, machine: &Machine) -> u64 {
    let unit_bytes = box_bytes(stage, &stage.unit).max(1);
    let per_rank = stage.units().div_ceil(u64::from(machine.ranks));
    stage.block_units = (BLOCK_BYTES / unit_bytes).min(per_rank.div_ceil(BLOCKS_PER_RANK)).max(1);
    // A box of whole operands is an upper bound where blocks are larger than what there is.
    let whole: Vec<u64> = stage.split.iter().map(|index| stage.indices[*index].extent).collect();
    unit_bytes.saturating_mul(stage.block_units).min(box_bytes(stage, &whole))
}

fn account(stage: &mut StagePlan, limits: &Stage, machine: &Machine, block_bytes: u64) -> Result<(), PlanError> {
    let ranks = u64::from(machine.ranks);
    let threads = u64::from(machine.threads);
    let sum = |role, distribution| -> u64 {
        let operands = stage.operands.iter().filter(|o| o.role == role && o.distribution == distribution);
        operands.map(OperandPlan::bytes).sum()
    };
    let broadcast = sum(Role::Input, Distribution::Broadcast);
    stage.bytes = StageBytes {
        read: broadcast + sum(Role::Input, Distribution::Split),
        moved: broadcast.saturating_mul(ranks - 1),
        written: sum(Role::Output, Distribution::Split),
    };
    stage.arena_bytes = broadcast + block_bytes + ARENA_OVERHEAD_BYTES;
    stage.peak_bytes_per_rank = broadcast
        .saturating_add(threads.saturating_mul(stage.arena_bytes))
        .saturating_add((threads + 2).saturating_mul(block_bytes));
    let largest = stage.operands.iter().max_by_key(|o| match o.distribution {
        Distribution::Broadcast => o.bytes(),
        Distribution::Split => o.bytes().min(block_bytes),
    });
    let (tensor, tensor_bytes) = largest.map(|o| (o.tensor.clone(), o.bytes())).unwrap_or_default();
    let limit_bytes = limits.limits.memory_bytes.min(1 << 32);
    if stage.arena_bytes > limit_bytes {
        let (stage, needed_bytes) = (stage.name.clone(), stage.arena_bytes);
        return Err(PlanError::GuestMemory { stage, needed_bytes, limit_bytes, tensor, tensor_bytes });
    }
    if stage.peak_bytes_per_rank > machine.memory_bytes {
        return Err(PlanError::OverBudget {
            stage: stage.name.clone(),
            needed_bytes: stage.peak_bytes_per_rank,
            budget_bytes: machine.memory_bytes,
            tensor,
            tensor_bytes,
            advice: "fewer threads per rank, fewer ranks per node, smaller chunks, or a larger `memory`",
        });
    }
    let units = stage.units();
    if units < ranks {
        let what = if stage.split.is_empty() { "no index may be split" } else { "it has only so many chunks" };
        stage.notes.push(format!("{units} of {ranks} ranks have work: {what}"));
    }
    Ok(())
}
