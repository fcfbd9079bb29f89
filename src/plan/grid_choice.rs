//! Process grids: how ranks divide stages where it matters which box a rank has, because it reads its neighbours' part
//! (halos), reads inputs that lack a split index, combines partial results (reductions), or finds its inputs where another
//! stage with a process grid left them.

use super::footprint::Footprint;
use super::tiling::{Space, Tiling, WHOLE_BYTES, extents_of, fill};
use crate::placement::{Choice, best_grid};
use crate::plan::model::{OperandPlan, ProcessGrid, Role, StagePlan};
use crate::plan::residency::Residence;

/// A leaf of a reduction reads at least this much, so that calling the kernel costs little.
const LEAF_LEAST_BYTES: u64 = 16 << 10;
/// And at least this many times what it writes, so that combining costs little.
const LEAF_GAIN: u64 = 2;
/// And, leaves permitting, at most this much, so that a task stays short.
const LEAF_MOST_BYTES: u64 = 1 << 20;
/// Where a kernel visits all combinations of its indices, as a product does, a leaf is at least so long and combining costs
/// little, whatever it reads and writes; so many leaves are enough for ranks to divide the reduced index among them.
const LEAF_LEAST_EXTENT: u64 = 64;
const PRODUCT_LEAVES: u64 = 8;
/// Groups into which the leaves of a reduction are bound, at most. Many divisors, so that they divide evenly among ranks.
const GROUPS: u64 = 720;
/// Groups along every reduced axis but the last, where there are several.
const INNER_GROUPS: [u64; 6] = [12, 6, 4, 3, 2, 1];
/// A rank that waits for halos while it computes cuts this part of its box off, at most, on each side that needs them: the rest,
/// at least 42 % of a box with neighbours all around, takes longer than messages do, and thinner sides would be all edge.
const RIM_PART: u64 = 8;
/// Copying shorter runs than this costs more than it hides.
const RIM_RUN_BYTES: u64 = 512;
/// Nor does a box with fewer bytes take long enough: its halos are there before two more blocks would be.
const RIM_LEAST_BYTES: u64 = 1 << 20;
/// A cell is not cut for more parallelism once it has fewer bytes than this.
const CELL_LEAST_BYTES: u64 = 64 << 10;

/// What is asked of a tiling with a process grid.
pub(super) struct Boxes<'a> {
    pub space: &'a Space,
    pub operands: &'a [OperandPlan],
    pub split: &'a [usize],
    /// How many of the last axes are reduced.
    pub reduced: usize,
    /// Partial results may be combined in any order and give the same bits, so groups may depend on the ranks.
    pub any_order: bool,
    pub ranks: u32,
    pub threads: u64,
    /// What the split operands of a block should take.
    pub target_bytes: u64,
    /// The stages before this one, and where resident inputs come from.
    pub earlier: &'a [StagePlan],
    pub residence: &'a Residence,
}

/// An operand and what it costs to bring it to a part.
struct Cost<'a> {
    operand: &'a OperandPlan,
    footprint: Footprint,
    /// How the parts that it lies in are cut, per axis of this stage; none: unknown, or as here.
    parts: Option<Vec<u64>>,
}

impl Boxes<'_> {
    fn costs(&self) -> Vec<Cost<'_>> {
        let cut = |operand: &&OperandPlan| operand.dims.iter().any(|dim| self.split.contains(dim));
        let cost = |operand| {
            let footprint = Footprint::new(operand, self.split);
            Cost { operand, footprint, parts: self.parts_of(operand) }
        };
        self.operands.iter().filter(cut).map(cost).collect()
    }

    /// How many parts an earlier stage left a resident input in, per axis of this stage.
    fn parts_of(&self, operand: &OperandPlan) -> Option<Vec<u64>> {
        if operand.role == Role::Output || !operand.resident {
            return None;
        }
        let (stage, output) = self.residence.producer(&operand.tensor)?;
        let by_dim = self.earlier.get(stage)?.parts_by_dim(output);
        let part = |axis| {
            let dim = operand.dims.iter().position(|dim| self.split[axis] == *dim);
            dim.map_or(1, |dim| by_dim[dim])
        };
        Some((0..self.split.len()).map(part).collect())
    }

    /// Whether an earlier stage left an input in boxes. A rank that goes on with its box moves nothing.
    pub fn finds_boxes(&self) -> bool {
        let grid = |operand: &OperandPlan| {
            let (stage, _) = self.residence.producer(&operand.tensor).filter(|_| operand.role == Role::Input)?;
            self.earlier.get(stage)?.process_grid.as_ref()
        };
        self.operands.iter().filter_map(grid).any(|grid| grid.parts.iter().any(|parts| *parts > 1))
    }

    /// The axes in the order in which ranks are numbered: as the stage that left the largest input in boxes has them, so that
    /// equal grids have equal ranks in equal places; otherwise as the notation has the indices.
    fn order(&self) -> Vec<usize> {
        let found = |operand: &OperandPlan| {
            let (stage, output) = self.residence.producer(&operand.tensor).filter(|_| operand.role == Role::Input)?;
            let stage = self.earlier.get(stage)?;
            let axis = |of: &usize| {
                let dim = stage.operands[output].dims.iter().position(|index| *index == stage.split[*of])?;
                self.split.iter().position(|index| *index == operand.dims[dim])
            };
            Some((operand.bytes(), stage.process_grid.as_ref()?.order.iter().filter_map(axis).collect::<Vec<_>>()))
        };
        let largest = self.operands.iter().filter_map(found).max_by_key(|(bytes, _)| *bytes);
        let mut order = largest.map(|(_, order)| order).unwrap_or_default();
        let mut others: Vec<usize> = (0..self.split.len()).filter(|axis| !order.contains(axis)).collect();
        others.sort_by_key(|axis| self.split[*axis]);
        order.extend(others);
        order
    }

    fn grid(&self, choice: Choice, steps: Vec<u64>, rim: Vec<u64>) -> ProcessGrid {
        ProcessGrid { parts: choice.grid, order: self.order(), steps, rim, bytes: choice.bytes, next: choice.next }
    }

    /// Blocks that every rank should get: enough for its workers, while one is brought in and another written. Not more, as a
    /// box is in memory as a whole, and workers share blocks; every block costs some microseconds.
    fn blocks_per_rank(&self) -> u64 {
        2 * self.threads
    }

    /// Whole aligned units per axis.
    fn units(&self) -> Vec<u64> {
        self.space.extents.iter().zip(&self.space.aligned).map(|(extent, unit)| extent.div_ceil(*unit)).collect()
    }

    /// Elements per axis of the largest of `parts` parts.
    fn largest(&self, units: &[u64], parts: &[u64]) -> Vec<u64> {
        let along =
            |axis: usize| (units[axis].div_ceil(parts[axis]) * self.space.aligned[axis]).min(self.space.extents[axis]);
        (0..parts.len()).map(along).collect()
    }

    /// The process grid that costs least, with at most `most` parts per axis.
    fn best(&self, units: &[u64], most: &[u64], costs: &[Cost<'_>]) -> Choice {
        let reduced_from = self.split.len() - self.reduced;
        let bytes = |parts: &[u64]| {
            let part = self.largest(units, parts);
            costs.iter().fold(0u64, |sum, cost| sum.saturating_add(cost.bytes(&part, parts, reduced_from)))
        };
        let weight = |parts: &[u64]| self.largest(units, parts).iter().product();
        best_grid(most, self.ranks, weight, bytes)
    }

    /// How deep the parts of boxes are that need what other ranks have; see [`ProcessGrid::rim`]. Bands of whole rows would be
    /// cheapest, but where boxes border on others along their last axis, all of them touch a border.
    fn rim(&self, units: &[u64], parts: &[u64], costs: &[Cost<'_>], box_bytes: u64) -> Vec<u64> {
        let none = vec![0; parts.len()];
        let awaited = |cost: &&Cost<'_>| {
            let comes = cost.operand.role == Role::Input && cost.operand.resident;
            comes && cost.parts.as_ref().is_none_or(|found| found == parts)
        };
        let along = |axis: usize| {
            let dims = |cost: &'_ Cost<'_>| {
                let operand = cost.operand;
                let reaches = |dim: &usize| operand.halo[*dim] > 0 && operand.dims[*dim] == self.split[axis];
                let depth = |dim: usize| {
                    let unit = self.space.aligned[axis] * operand.scale[dim];
                    let run_bytes = if dim + 1 == operand.dims.len() { RIM_RUN_BYTES } else { 0 };
                    let run = run_bytes.div_ceil(unit * operand.dtype.size_bytes() as u64);
                    operand.halo[dim].div_ceil(unit).max(run).max(units[axis] / parts[axis] / RIM_PART)
                };
                (0..operand.dims.len()).filter(reaches).map(depth).max()
            };
            let depth = costs.iter().filter(awaited).filter_map(dims).max();
            depth.filter(|_| parts[axis] > 1).unwrap_or(0)
        };
        let rim: Vec<u64> = (0..parts.len()).map(along).collect();
        // Both sides together are at most half of the narrowest box.
        let leaves_most = |axis: usize| 4 * rim[axis] <= units[axis] / parts[axis];
        if box_bytes >= RIM_LEAST_BYTES && (0..parts.len()).all(leaves_most) { rim } else { none }
    }

    /// Blocks of a map within boxes of ranks.
    pub fn map(&self) -> Tiling {
        let (space, units, costs) = (self.space, self.units(), self.costs());
        let choice = self.best(&units, &units, &costs);
        let parts = choice.grid.clone();
        let local: Vec<u64> = units.iter().zip(&parts).map(|(units, parts)| units.div_ceil(*parts)).collect();
        let fits = |tile: &[u64]| costs.iter().map(|c| c.footprint.bytes(tile)).sum::<u64>() <= self.target_bytes;
        let box_bytes = costs.iter().map(|c| c.footprint.bytes(&self.largest(&units, &parts))).sum::<u64>();
        let rim = self.rim(&units, &parts, &costs, box_bytes);
        let per_rank = if box_bytes <= WHOLE_BYTES { 1 } else { self.blocks_per_rank() };
        let fair_share = (local.iter().product::<u64>() / per_rank).max(1);
        let block_units = fill(space, &space.aligned, &local, fits).min(fair_share);
        // Where the units do not divide evenly, other parts are one unit narrower along some axes, and their blocks reach
        // further along others.
        let narrower = |set: usize| -> Vec<u64> {
            let along = |axis: usize| if set >> axis & 1 == 1 { units[axis] / parts[axis] } else { local[axis] };
            (0..local.len()).map(along).collect()
        };
        let shapes = (0..1 << local.len()).map(narrower).filter(|local| !local.contains(&0));
        let blocks = shapes.map(|local| extents_of(space, &space.aligned, &local, block_units));
        let widest = |a: Vec<u64>, b: Vec<u64>| a.iter().zip(b).map(|(a, b)| (*a).max(b)).collect();
        Tiling {
            block: blocks.reduce(widest).unwrap_or_default(),
            unit: space.aligned.clone(),
            grid: units.clone(),
            block_units,
            process_grid: Some(self.grid(choice, units, rim)),
            leaves: None,
        }
    }

    /// Cells and groups of a reduction along the last axes; a block is one cell and some groups along the last axis.
    pub fn reduce(&self) -> Tiling {
        let (units, costs) = (self.units(), self.costs());
        let (last, cells) = (units.len() - 1, units.len() - self.reduced);
        let (groups, leaves) = self.groups(&units);
        let mut steps = units.clone();
        if !self.any_order {
            steps[cells..].copy_from_slice(&groups);
        }
        let choice = self.best(&units, &steps, &costs);
        let parts = choice.grid.clone();
        steps[..cells].copy_from_slice(&parts[..cells]);
        for (axis, wanted) in (cells..).zip(&groups).filter(|_| self.any_order) {
            // Free to cut where the ranks do.
            steps[axis] = (parts[axis] * wanted.div_ceil(parts[axis])).min(units[axis]);
        }
        let extents = |steps: &[u64]| self.largest(&units, steps);
        let blocks = |steps: &[u64]| steps.iter().zip(&parts).map(|(steps, parts)| steps / parts).product::<u64>();
        loop {
            let block = extents(&steps);
            let bytes = costs.iter().fold(0u64, |sum, c| sum.saturating_add(c.footprint.bytes(&block)));
            let few = blocks(&steps) < self.blocks_per_rank() && bytes > CELL_LEAST_BYTES;
            if bytes <= self.target_bytes && !few {
                break;
            }
            let divisible = (0..cells).filter(|axis| 2 * steps[*axis] <= units[*axis]);
            let Some(widest) = divisible.max_by_key(|axis| block[*axis]) else { break };
            steps[widest] *= 2;
        }
        // As many groups to a block as still give every rank its share of blocks; the least that any rank has bounds it.
        let few = (blocks(&steps) / (2 * self.blocks_per_rank())).clamp(1, steps[last] / parts[last]);
        let mut block_steps = steps.clone();
        let mut block_units = few;
        let bytes = |block: &[u64]| costs.iter().fold(0u64, |sum, c| sum.saturating_add(c.footprint.bytes(block)));
        let block = loop {
            block_steps[last] = steps[last] / block_units;
            let block = extents(&block_steps);
            if block_units == 1 || bytes(&block) <= self.target_bytes {
                break block;
            }
            block_units /= 2;
        };
        let rim = vec![0; units.len()];
        let grid = self.grid(choice, steps, rim);
        let unit = self.space.aligned.clone();
        Tiling { block, unit, grid: units, block_units, process_grid: Some(grid), leaves: Some(leaves) }
    }

    /// Whether every index of the outputs is one of an input that has the reduced indices too: then the kernel's work grows with
    /// the product of all.
    fn is_product(&self) -> bool {
        let (kept, reduced) = self.split.split_at(self.split.len() - self.reduced);
        let reads = |o: &&OperandPlan| o.role == Role::Input && reduced.iter().all(|index| o.dims.contains(index));
        let covered = |index: &usize| self.operands.iter().filter(reads).any(|o| o.dims.contains(index));
        kept.iter().all(covered)
    }

    /// Groups per reduced axis, and leaves of a group: from the job and its data alone.
    fn groups(&self, units: &[u64]) -> (Vec<u64>, u64) {
        let cells = self.split.len() - self.reduced;
        let (reduced, units) = (&self.split[cells..], &units[cells..]);
        let read = |o: &&OperandPlan| o.role == Role::Input && reduced.iter().all(|index| o.dims.contains(index));
        let in_bytes: u64 = self.operands.iter().filter(read).map(OperandPlan::bytes).sum();
        let out_bytes = self.operands.iter().filter(|o| o.role == Role::Output).map(OperandPlan::bytes).sum::<u64>();
        let least = LEAF_LEAST_BYTES.max(out_bytes.saturating_mul(LEAF_GAIN));
        let by_bytes = (in_bytes / least).clamp(1, GROUPS).max(in_bytes / LEAF_MOST_BYTES.max(least));
        let all = match self.is_product() {
            true => by_bytes.max((units[units.len() - 1] / LEAF_LEAST_EXTENT).min(PRODUCT_LEAVES)),
            false => by_bytes,
        };
        let inner = units.len() - 1;
        let fits = |groups: &u64| groups.pow(inner as u32 + 1) * 2 <= all.min(GROUPS);
        let inner_groups = if inner > 0 { INNER_GROUPS.into_iter().find(fits).unwrap_or(1) } else { 1 };
        let mut groups: Vec<u64> = units.iter().map(|units| inner_groups.min(*units)).collect();
        let product: u64 = groups[..inner].iter().product();
        let outer = (all / product).clamp(1, units[inner]);
        groups[inner] = outer.min((GROUPS / product).max(1));
        let leaves = (outer / groups[inner]).clamp(1, (units[inner] / groups[inner]).max(1));
        (groups, leaves)
    }
}

impl Cost<'_> {
    /// Bytes that come from other ranks to a part of these extents, the mean over ranks.
    fn bytes(&self, part: &[u64], parts: &[u64], reduced_from: usize) -> u64 {
        let (bytes, core_bytes) = (self.footprint.bytes(part), self.footprint.core_bytes(part));
        let others_of = |ranks: u64| core_bytes - core_bytes / ranks.max(1);
        match self.operand.role {
            // A partial result comes from the part before, but to the first.
            Role::Output => others_of(parts[reduced_from..].iter().product()),
            Role::Input if !self.operand.is_stored() => 0,
            // Who needs the same part reads it together.
            Role::Input if !self.operand.resident => {
                let sharers = (0..parts.len()).filter(|axis| !self.footprint.has(*axis)).map(|axis| parts[axis]);
                bytes - core_bytes + others_of(sharers.product())
            }
            Role::Input => {
                let Some(found) = &self.parts else { return bytes - core_bytes };
                // With ranks numbered as suits best, one that needs a part has the found part that overlaps it most.
                let along = |axis: &usize| self.footprint.has(*axis);
                let overlap = |axis: usize| (parts[axis] as f64 / found[axis] as f64).min(1.0);
                let overlap: f64 = (0..parts.len()).filter(along).map(overlap).product();
                let holders = (0..parts.len()).filter(along).fold(1u64, |all, axis| all.saturating_mul(found[axis]));
                let holders = (holders as f64 / parts.iter().product::<u64>() as f64).min(1.0);
                bytes - (core_bytes as f64 * overlap * holders) as u64
            }
        }
    }
}
