//! The data of samples: from datasets, from the job file, and from stages, which compute only the needed part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::check::caller::{BoxInputs, CallFailure, Caller, Merging, Way};
use crate::check::context::CheckContext;
use crate::check::error::CheckError;
use crate::check::finding::{CallSite, view};
use crate::engine::TilePlacement;
use crate::job::Source;
use crate::plan::{Role, Tile};
use crate::store::Reader;
use crate::tensor::{Boundary, Region, clamp_edges, copy_box, copy_region, padded};

/// The approximate size of a task that computes a part of a tensor.
const TASK_BYTES: u64 = 16 << 20;

/// The known parts of the tensors of a job.
pub(super) struct Tensors<'a> {
    bench: &'a CheckContext,
    readers: BTreeMap<String, Reader>,
    /// The computed parts of tensors that stages produce.
    pieces: BTreeMap<String, Vec<(Region, Vec<u8>)>>,
    kept_bytes: u64,
    /// The inputs that all tasks of a stage share, by stage and operand.
    whole: BTreeMap<(usize, usize), Arc<Vec<u8>>>,
    /// The time after which reductions stop and use their partial results.
    deadline: Option<Instant>,
    /// Notes on tensors that differ from those of a run.
    pub stand_ins: Vec<String>,
}

impl<'a> Tensors<'a> {
    pub fn new(bench: &'a CheckContext) -> Tensors<'a> {
        let (readers, pieces, whole) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Tensors { bench, readers, pieces, kept_bytes: 0, whole, deadline: None, stand_ins: Vec::new() }
    }

    /// The inputs of a box of a stage.
    pub fn inputs(&mut self, stage: usize, cover: &Tile) -> Result<BoxInputs, CheckError> {
        let bench = self.bench;
        let plan = &bench.plan.stages[stage];
        let mut bytes = Vec::new();
        for (operand, its) in plan.operands.iter().enumerate() {
            let input = its.role == Role::Input;
            bytes.push(match self.whole.get(&(stage, operand)) {
                Some(whole) => Some(whole.clone()),
                None if input => Some(Arc::new(self.input(stage, operand, cover)?)),
                None => None,
            });
            if let (true, Some(Some(whole))) = (input && plan.is_broadcast(operand), bytes.last()) {
                self.whole.insert((stage, operand), whole.clone());
            }
        }
        Ok(BoxInputs { cover: cover.clone(), bytes })
    }

    /// The region of one input, with its halo.
    fn input(&mut self, stage: usize, operand: usize, cover: &Tile) -> Result<Vec<u8>, CheckError> {
        let bench = self.bench;
        let plan = &bench.plan.stages[stage];
        let its = &plan.operands[operand];
        let (region, element_bytes) = (plan.region(operand, cover), its.dtype.size_bytes());
        let outer = padded(&region, &its.halo);
        let mut bytes = vec![0; outer.elements() as usize * element_bytes];
        let parts = plan.sources(operand, &region);
        for part in &parts {
            let found = self.region(&its.tensor, &part.source)?;
            let (extent, start) = (&part.source.extent, vec![0; part.at.len()]);
            copy_box(&found, extent, &start, &mut bytes, &outer.extent, &part.at, extent, element_bytes);
        }
        if let (Some(Boundary::Clamp), [part]) = (plan.boundary, parts.as_slice()) {
            clamp_edges(&mut bytes, &outer, part, element_bytes);
        }
        Ok(bytes)
    }

    /// The elements of a region of a tensor, packed.
    pub fn region(&mut self, tensor: &str, region: &Region) -> Result<Vec<u8>, CheckError> {
        let bench = self.bench;
        let mut bytes = Vec::new();
        match bench.job.tensors.get(tensor).map(|decl| &decl.source) {
            Some(Source::File { file, dataset }) => {
                if !self.readers.contains_key(tensor) {
                    self.readers.insert(tensor.to_owned(), Reader::open(file, dataset)?);
                }
                self.readers[tensor].read(region, &mut bytes)?;
            }
            Some(Source::Inline { dtype, shape, bytes: all }) => {
                bytes.resize(region.elements() as usize * dtype.size_bytes(), 0);
                copy_region(all, &Region::whole(shape), &mut bytes, region, region, dtype.size_bytes());
            }
            _ => {
                let element_bytes = self.compute(tensor, region)?;
                bytes.resize(region.elements() as usize * element_bytes, 0);
                for (have, piece) in self.pieces.get(tensor).into_iter().flatten() {
                    if let Some(common) = have.intersect(region) {
                        copy_region(piece, have, &mut bytes, region, &common, element_bytes);
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Runs the stage that produces a tensor on the missing part of a region. Returns the size of an element.
    fn compute(&mut self, tensor: &str, region: &Region) -> Result<usize, CheckError> {
        let bench = self.bench;
        let is_its = |stage: &usize| {
            let plan = &bench.plan.stages[*stage];
            plan.outputs().find(|operand| plan.operands[*operand].tensor == tensor).map(|operand| (*stage, operand))
        };
        let made = (0..bench.plan.stages.len()).find_map(|stage| is_its(&stage));
        let (stage, operand) = made.ok_or_else(|| missing(tensor, "no stage produces it"))?;
        let plan = &bench.plan.stages[stage];
        let its = &plan.operands[operand];
        let mut left = if region.elements() > 0 { vec![region.clone()] } else { Vec::new() };
        for (have, _) in self.pieces.get(tensor).into_iter().flatten() {
            left = left.iter().flat_map(|part| part.without(have)).collect();
        }
        for part in left {
            let mut tile = Region { offset: Vec::new(), extent: Vec::new() };
            for (axis, index) in plan.split.iter().enumerate() {
                let (start, end) = match its.dims.iter().position(|dim| dim == index) {
                    Some(dim) => (part.offset[dim] / its.scale[dim], part.end(dim).div_ceil(its.scale[dim])),
                    // Reduced indices.
                    None => (0, plan.extent(axis)),
                };
                tile.offset.push(start);
                tile.extent.push(end - start);
            }
            let bytes = plan.operands[operand].dtype.size_bytes() as u64 * part.elements();
            self.kept_bytes += bytes;
            if self.kept_bytes > bench.options.memory_bytes {
                return Err(missing(tensor, "it needs more memory than --memory allows"));
            }
            self.run(stage, &Tile(tile))?;
        }
        Ok(its.dtype.size_bytes())
    }

    /// Discards the shared inputs of earlier stages.
    pub fn begin_stage(&mut self, deadline: Instant) {
        self.whole.clear();
        self.deadline = Some(deadline);
    }

    /// Runs a stage on `tile` and keeps its outputs.
    fn run(&mut self, stage: usize, tile: &Tile) -> Result<(), CheckError> {
        let bench = self.bench;
        let plan = &bench.plan.stages[stage];
        let first_reduced = plan.split.len() - plan.reduce.map_or(0, |reduce| reduce.axes);
        if let Some(halves) = halves(tile, 0..first_reduced).filter(|_| plan.split_operand_bytes(tile) > TASK_BYTES) {
            return halves.iter().try_for_each(|half| self.run(stage, half));
        }
        let code = bench.kernels[stage].best();
        let mut merging = Merging::new(bench, stage, code, TilePlacement::Aligned);
        let (mut sum, mut todo) = (None, vec![tile.clone()]);
        while let Some(task) = todo.pop() {
            if let Some([one, other]) =
                halves(&task, first_reduced..plan.split.len()).filter(|_| plan.split_operand_bytes(&task) > TASK_BYTES)
            {
                todo.extend([other, one]);
                continue;
            }
            if let (Some(_), Some(deadline)) = (&sum, self.deadline)
                && Instant::now() > deadline
            {
                let tensors: Vec<&str> = plan.outputs().map(|output| plan.operands[output].tensor.as_str()).collect();
                let named = tensors.join(" and ");
                self.stand_ins
                    .push(format!("{named} was computed from a part of the data, since there was not enough time"));
                break;
            }
            let inputs = self.inputs(stage, &task)?;
            let call = CallSite { bench, stage, tile: &task, tier: code.tier(), merges: false };
            let failed = |failure: CallFailure| match failure {
                CallFailure::Fault(fault) => {
                    CheckError::Task { task: plan.task_name(call.tile), message: fault.to_string() }
                }
                CallFailure::Engine(source) => CheckError::Engine {
                    kernel: bench.kernels[stage].kernel.name().to_owned(),
                    stage: plan.name.clone(),
                    source: Box::new(source),
                },
            };
            let results = Caller::new(bench, stage, code, Way::AsInRuns, &task).call(&inputs, &task).map_err(failed)?;
            match (&mut sum, &mut merging) {
                (Some(sum), Some(merging)) => merging.merge(sum, results, &task).map_err(failed)?,
                (sum, _) => *sum = Some(results),
            }
        }
        for (operand, bytes) in plan.outputs().zip(sum.unwrap_or_default()) {
            let region = view(plan, operand, tile).region;
            self.pieces.entry(plan.operands[operand].tensor.clone()).or_default().push((region, bytes));
        }
        Ok(())
    }
}

fn missing(tensor: &str, reason: &str) -> CheckError {
    CheckError::Missing { tensor: tensor.to_owned(), reason: reason.to_owned() }
}

/// Returns both halves of a tile along the longest of these axes; `None` if no axis has more than one element.
fn halves(tile: &Tile, axes: std::ops::Range<usize>) -> Option<[Tile; 2]> {
    let axis = axes.max_by_key(|axis| tile.0.extent[*axis]).filter(|axis| tile.0.extent[*axis] > 1)?;
    let middle = tile.0.extent[axis] / 2;
    let (mut one, mut other) = (tile.clone(), tile.clone());
    one.0.extent[axis] = middle;
    other.0.offset[axis] += middle;
    other.0.extent[axis] -= middle;
    Some([one, other])
}
