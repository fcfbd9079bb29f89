//! Process grids: how ranks divide stages where it matters which box a rank has, because it reads its neighbours' part
//! (halos) or reads inputs that lack a split index and combines partial results (reductions).

use super::geometry::Footprint;
use super::tiling::{BLOCKS_PER_RANK, Space, Tiling, extents_of, fill};
use super::{OperandPlan, Origin, Role};
use crate::placement::best_grid;

/// A leaf of a reduction reads at least this much, so that calling the kernel costs little.
const LEAF_LEAST_BYTES: u64 = 2 << 10;
/// And at least this many times what it writes, so that combining costs little.
const LEAF_GAIN: u64 = 2;
/// And, leaves permitting, at most this much, so that a task stays short.
const LEAF_MOST_BYTES: u64 = 1 << 20;
/// Groups into which the leaves of a reduction are bound, at most. Many divisors, so that they divide evenly among ranks.
const GROUPS: u64 = 720;
/// A cell is not cut for more parallelism once it has fewer bytes than this.
const CELL_LEAST_BYTES: u64 = 64 << 10;

/// What is asked of a tiling with a process grid.
pub(super) struct Boxes<'a> {
    pub space: &'a Space,
    pub operands: &'a [OperandPlan],
    pub split: &'a [usize],
    pub ranks: u32,
    /// What the split operands of a block should take.
    pub target_bytes: u64,
}

impl Boxes<'_> {
    fn footprints(&self) -> Vec<(&OperandPlan, Footprint)> {
        let cut = |operand: &&OperandPlan| operand.dims.iter().any(|dim| self.split.contains(dim));
        self.operands.iter().filter(cut).map(|operand| (operand, Footprint::new(operand, self.split))).collect()
    }

    /// Whole aligned units per axis.
    fn units(&self) -> Vec<u64> {
        self.space.extents.iter().zip(&self.space.aligned).map(|(extent, unit)| extent.div_ceil(*unit)).collect()
    }

    /// Blocks of a map with halos, within boxes of ranks.
    pub fn halo(&self) -> Tiling {
        let (space, units) = (self.space, self.units());
        let footprints = self.footprints();
        let largest = |parts: &[u64]| -> Vec<u64> {
            let along =
                |axis: usize| (units[axis].div_ceil(parts[axis]) * space.aligned[axis]).min(space.extents[axis]);
            (0..parts.len()).map(along).collect()
        };
        let inputs = || footprints.iter().filter(|(operand, _)| operand.role == Role::Input && operand.is_stored());
        let cost = |parts: &[u64]| {
            let part = largest(parts);
            inputs().fold(0, |sum: u64, (_, footprint)| sum.saturating_add(footprint.bytes(&part)))
        };
        let parts = best_grid(&units, self.ranks, |parts| largest(parts).iter().product(), cost);
        let local: Vec<u64> = units.iter().zip(&parts).map(|(units, parts)| units.div_ceil(*parts)).collect();
        let fits = |tile: &[u64]| footprints.iter().map(|(_, f)| f.bytes(tile)).sum::<u64>() <= self.target_bytes;
        let fair_share = (local.iter().product::<u64>() / BLOCKS_PER_RANK).max(1);
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
            grid: units,
            block_units,
            process_grid: Some(parts),
            leaf: None,
        }
    }

    /// Cells and groups of a reduction along the last axis; a block is one cell and one group.
    pub fn reduce(&self) -> Tiling {
        let (space, footprints) = (self.space, self.footprints());
        let last = space.extents.len() - 1;
        let leaf = self.leaf();
        let leaves = space.extents[last].div_ceil(leaf);
        let group = leaf * leaves.div_ceil(GROUPS.min(leaves));
        let mut units = self.units();
        units[last] = space.extents[last].div_ceil(group);
        let cut = |cells: &[u64]| -> Vec<u64> {
            // `cells` in aligned units, groups along the last axis.
            let along = |axis: usize| {
                let unit = if axis == last { group } else { space.aligned[axis] };
                cells[axis].saturating_mul(unit).min(space.extents[axis])
            };
            (0..cells.len()).map(along).collect()
        };
        let per_part = |parts: &[u64]| -> Vec<u64> { units.iter().zip(parts).map(|(u, p)| u.div_ceil(*p)).collect() };
        let cost = |parts: &[u64]| {
            let part = cut(&per_part(parts));
            footprints.iter().fold(0u64, |sum, (operand, footprint)| {
                sum.saturating_add(match operand.role {
                    Role::Input if operand.origin != Origin::Inline => footprint.bytes(&part),
                    // A partial result comes in from the part before and goes on to the next.
                    Role::Output if parts[last] > 1 => 2 * footprint.bytes(&part),
                    _ => 0,
                })
            })
        };
        let parts = best_grid(&units, self.ranks, |parts| cut(&per_part(parts)).iter().product(), cost);
        let mut cell = per_part(&parts);
        let groups = std::mem::replace(&mut cell[last], 1);
        loop {
            let bytes: u64 = footprints.iter().fold(0, |sum, (_, f)| sum.saturating_add(f.bytes(&cut(&cell))));
            let blocks: u64 =
                groups * (0..last).map(|a| units[a].div_ceil(parts[a]).div_ceil(cell[a])).product::<u64>();
            let few = blocks < BLOCKS_PER_RANK && bytes > CELL_LEAST_BYTES;
            let Some(widest) = (0..last).filter(|axis| cell[*axis] > 1).max_by_key(|axis| cut(&cell)[*axis]) else {
                break;
            };
            if bytes <= self.target_bytes && !few {
                break;
            }
            cell[widest] = cell[widest].div_ceil(2);
        }
        let unit: Vec<u64> = (0..=last).map(|a| if a == last { group } else { cell[a] * space.aligned[a] }).collect();
        let grid = space.extents.iter().zip(&unit).map(|(extent, unit)| extent.div_ceil(*unit)).collect();
        Tiling { block: cut(&cell), unit, grid, block_units: 1, process_grid: Some(parts), leaf: Some(leaf) }
    }

    /// Elements of a leaf: from the job and its data alone.
    fn leaf(&self) -> u64 {
        let last = self.space.extents.len() - 1;
        let (extent, aligned) = (self.space.extents[last], self.space.aligned[last]);
        let reduced = self.split[last];
        let inputs = self.operands.iter().filter(|o| o.role == Role::Input && o.dims.contains(&reduced));
        let outputs = self.operands.iter().filter(|o| o.role == Role::Output);
        let (in_bytes, out_bytes): (u64, u64) =
            (inputs.map(OperandPlan::bytes).sum(), outputs.map(OperandPlan::bytes).sum());
        let least = LEAF_LEAST_BYTES.max(out_bytes.saturating_mul(LEAF_GAIN));
        let leaves = (in_bytes / least).clamp(1, GROUPS).max(in_bytes / LEAF_MOST_BYTES.max(least));
        extent.div_ceil(leaves).next_multiple_of(aligned)
    }
}
