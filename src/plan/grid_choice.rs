//! Chooses process grids: the division of a stage among ranks where the box of a rank matters. It matters where a rank
//! reads its neighbours' part (halos), reads inputs that lack a split index, combines partial results (reductions), or
//! finds its inputs where another stage with a process grid left them.

use super::footprint::Footprint;
use super::tiling::{Space, Tiling, WHOLE_BYTES, extents_of, fill};
use crate::placement::{Choice, best_grid};
use crate::plan::model::{OperandPlan, ProcessGrid, Role, StagePlan};
use crate::plan::residency::Residence;

/// The least bytes that a leaf of a reduction reads, so that the kernel call costs little in comparison.
const LEAF_LEAST_BYTES: u64 = 16 << 10;
/// The least ratio of bytes read to bytes written by a leaf, so that combining costs little.
const LEAF_GAIN: u64 = 2;
/// The most bytes that a leaf reads if the number of leaves permits, so that a task stays short.
const LEAF_MOST_BYTES: u64 = 1 << 20;
/// The least extent of a leaf where a kernel visits all combinations of its indices, as in a product. Combining then
/// costs little, whatever the leaf reads and writes.
const LEAF_LEAST_EXTENT: u64 = 64;
/// The number of leaves of a product that suffices for ranks to divide the reduced index among them.
const PRODUCT_LEAVES: u64 = 8;
/// The largest number of groups of a reduction. It has many divisors, so that groups divide evenly among ranks.
const GROUPS: u64 = 720;
/// The possible numbers of groups along every reduced axis but the last, where there are several.
const INNER_GROUPS: [u64; 6] = [12, 6, 4, 3, 2, 1];
/// The largest part of its box, as a divisor, that a rank cuts off on each side that needs halos, in order to compute
/// while it waits for them. The rest is at least 42 % of a box with neighbours on all sides and takes longer than the
/// messages do. Thinner sides would consist of edges only.
const RIM_PART: u64 = 8;
/// The shortest run worth a rim: copying shorter runs costs more than the overlap hides.
const RIM_RUN_BYTES: u64 = 512;
/// The smallest box worth a rim: the halos of a smaller box arrive before two more blocks would be computed.
const RIM_LEAST_BYTES: u64 = 1 << 20;
/// The number of bytes below which a cell is not cut for more parallelism.
const CELL_LEAST_BYTES: u64 = 64 << 10;

/// The requirements for a tiling with a process grid.
pub(super) struct Boxes<'a> {
    pub space: &'a Space,
    pub operands: &'a [OperandPlan],
    pub split: &'a [usize],
    /// The number of reduced axes, which are the last ones.
    pub reduced: usize,
    /// Whether partial results give the same bits in any order of combination, so that groups may depend on the ranks.
    pub any_order: bool,
    pub ranks: u32,
    pub threads: u64,
    /// The target size of the split operands of a block.
    pub target_bytes: u64,
    /// The stages before this one, from which resident inputs come.
    pub earlier: &'a [StagePlan],
    pub residence: &'a Residence,
}

/// An operand and the cost of bringing it to a part.
struct Cost<'a> {
    operand: &'a OperandPlan,
    footprint: Footprint,
    /// The number of parts in which the operand lies, per axis of this stage. With `None`, it is unknown or as in this
    /// stage.
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

    /// Returns the number of parts in which an earlier stage left a resident input, per axis of this stage.
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

    /// Returns whether an earlier stage left an input in boxes. A rank that continues with its own box moves nothing.
    pub fn finds_boxes(&self) -> bool {
        let grid = |operand: &OperandPlan| {
            let (stage, _) = self.residence.producer(&operand.tensor).filter(|_| operand.role == Role::Input)?;
            self.earlier.get(stage)?.process_grid.as_ref()
        };
        self.operands.iter().filter_map(grid).any(|grid| grid.parts.iter().any(|parts| *parts > 1))
    }

    /// Returns the axes in the order in which ranks are numbered. The order is that of the stage that left the largest
    /// input in boxes, so that equal grids have equal ranks in equal places. Otherwise it is the order of the indices
    /// in the notation.
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

    /// Returns the number of blocks that every rank should get: enough for its workers while one block is fetched and
    /// another is written. More blocks have no use, since a box is in memory as a whole and workers share blocks, and
    /// every block costs some microseconds.
    fn blocks_per_rank(&self) -> u64 {
        2 * self.threads
    }

    /// Returns the number of aligned units per axis.
    fn units(&self) -> Vec<u64> {
        self.space.extents.iter().zip(&self.space.aligned).map(|(extent, unit)| extent.div_ceil(*unit)).collect()
    }

    /// Returns the elements per axis of the largest of `parts` parts.
    fn largest(&self, units: &[u64], parts: &[u64]) -> Vec<u64> {
        let along =
            |axis: usize| (units[axis].div_ceil(parts[axis]) * self.space.aligned[axis]).min(self.space.extents[axis]);
        (0..parts.len()).map(along).collect()
    }

    /// Returns the process grid that costs least, with at most `most` parts per axis.
    fn best(&self, units: &[u64], most: &[u64], costs: &[Cost<'_>]) -> Choice {
        let reduced_from = self.split.len() - self.reduced;
        let bytes = |parts: &[u64]| {
            let part = self.largest(units, parts);
            costs.iter().fold(0u64, |sum, cost| sum.saturating_add(cost.bytes(&part, parts, reduced_from)))
        };
        let weight = |parts: &[u64]| self.largest(units, parts).iter().product();
        best_grid(most, self.ranks, weight, bytes)
    }

    /// Returns the depth of the parts of boxes that need data of other ranks; see [`ProcessGrid::rim`]. Bands of whole
    /// rows would be cheapest, but where boxes border on others along their last axis, all whole rows touch a border.
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

    /// Tiles a map: blocks within the boxes of ranks.
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
        // Where the units do not divide evenly, other parts are one unit narrower along some axes, and their blocks are
        // longer along other axes.
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

    /// Tiles a reduction along the last axes into cells and groups. A block is one cell and some groups along the last
    /// axis.
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
            // In any order, groups may be cut where the ranks are.
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
        // A block takes as many groups as still leave every rank enough blocks. The rank with the fewest groups bounds
        // the number.
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

    /// Returns whether every index of the outputs belongs to an input that has the reduced indices too. The kernel's
    /// work then grows with the product of all indices.
    fn is_product(&self) -> bool {
        let (kept, reduced) = self.split.split_at(self.split.len() - self.reduced);
        let reads = |o: &&OperandPlan| o.role == Role::Input && reduced.iter().all(|index| o.dims.contains(index));
        let covered = |index: &usize| self.operands.iter().filter(reads).any(|o| o.dims.contains(index));
        kept.iter().all(covered)
    }

    /// Returns the groups per reduced axis and the leaves of a group. Both follow from the job and its data alone.
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
    /// Returns the bytes that come from other ranks to a part of these extents, as the mean over ranks.
    fn bytes(&self, part: &[u64], parts: &[u64], reduced_from: usize) -> u64 {
        let (bytes, core_bytes) = (self.footprint.bytes(part), self.footprint.core_bytes(part));
        let others_of = |ranks: u64| core_bytes - core_bytes / ranks.max(1);
        match self.operand.role {
            // Every part but the first receives a partial result from the part before it.
            Role::Output => others_of(parts[reduced_from..].iter().product()),
            Role::Input if !self.operand.is_stored() => 0,
            // Ranks that need the same part read it together.
            Role::Input if !self.operand.resident => {
                let sharers = (0..parts.len()).filter(|axis| !self.footprint.has(*axis)).map(|axis| parts[axis]);
                bytes - core_bytes + others_of(sharers.product())
            }
            Role::Input => {
                let Some(found) = &self.parts else { return bytes - core_bytes };
                // Ranks are numbered as suits best, so a rank already has the part that overlaps its need most.
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
