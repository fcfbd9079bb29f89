//! Chooses the units and blocks of a stage: the shape that reads least, within a target size and with enough blocks for
//! every rank.
//!
//! The cost of a block is the bytes it reads, plus a little for each contiguous run of a file that it touches. The
//! search starts from the finest units that chunks allow. It doubles the tile along the axis that saves most, as long
//! as the tile keeps to the target size and every rank still gets enough tiles. Then it makes the axis along which
//! consecutive units follow each other fine again: blocks have the tile's shape, and shares are balanced to less than a
//! block.

use super::footprint::Footprint;
use crate::plan::model::{Distribution, OperandPlan, Origin, ProcessGrid, Role};

/// The cost of one more contiguous run of a file, in bytes read: a seek or a system call, compared to streaming.
const RUN_COST_BYTES: u128 = 4096;
/// The number of blocks that every rank should get, so that work can be balanced during the run.
const BLOCKS_PER_RANK: u64 = 8;
/// The size up to which a rank's data in memory are one block. Workers share its slices, and fetching it takes no time
/// that must be hidden. Another block would take longer than the fetch.
pub(super) const WHOLE_BYTES: u64 = 16 << 10;

/// The extents of the split indices and the finest unit along each.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub extents: Vec<u64>,
    /// The finest unit per axis: a union of whole chunks of every operand, or 1 where nothing is chunked.
    pub aligned: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tiling {
    pub unit: Vec<u64>,
    pub grid: Vec<u64>,
    pub block_units: u64,
    /// The largest extent of a block in elements, per axis.
    pub block: Vec<u64>,
    /// See [`crate::plan::model::StagePlan`].
    pub process_grid: Option<ProcessGrid>,
    /// The number of leaves in a group of a reduction.
    pub leaves: Option<u64>,
}

/// The cost of an operand.
struct Load {
    footprint: Footprint,
    /// The number of times that each tile transfers the operand: 0 for operands that are not read.
    reads: u128,
    /// For each dimension of a contiguous operand: its extent, and, if it has an axis, that axis and the elements per
    /// value of its index. Empty for a chunked operand, whose runs are its chunks.
    dims: Vec<(u64, Option<(usize, u64)>)>,
}

/// Returns the aligned unit of each axis: the least common multiple of all chunks along it, at most its extent.
pub(super) fn space(operands: &[OperandPlan], split: &[usize], extents: Vec<u64>) -> Space {
    let align = |(index, extent): (&usize, &u64)| {
        let chunks = operands.iter().filter_map(|operand| {
            let dim = operand.dims.iter().position(|dim| dim == index)?;
            operand.chunk_along(dim)
        });
        let whole = (*extent).max(1);
        chunks.fold(1, |unit, chunk| least_common_multiple(unit, chunk.clamp(1, whole)).min(whole))
    };
    let aligned = split.iter().zip(&extents).map(align).collect();
    Space { extents, aligned }
}

impl OperandPlan {
    /// Returns the number of index values of dimension `dim` from one chunk boundary to the next, if there are chunks.
    pub(super) fn chunk_along(&self, dim: usize) -> Option<u64> {
        let chunk = *self.chunk.as_ref()?.get(dim)?;
        Some(chunk / greatest_common_divisor(chunk, self.scale[dim]))
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    x
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    (a / greatest_common_divisor(a, b)).saturating_mul(b)
}

/// Chooses units and blocks so that the split operands of a block take at most `target_bytes`, or are one unit.
pub(super) fn choose(
    space: &Space,
    operands: &[OperandPlan],
    split: &[usize],
    ranks: u32,
    target_bytes: u64,
) -> Tiling {
    let loads = loads(operands, split);
    let block_bytes = |tile: &[u64]| loads.iter().map(|load| u128::from(load.footprint.bytes(tile))).sum::<u128>();
    let fits = |tile: &[u64]| block_bytes(tile) <= u128::from(target_bytes);
    let in_memory = operands.iter().all(|operand| operand.resident || operand.origin == Origin::Inline);
    let small = block_bytes(&space.extents) <= u128::from(ranks) * u128::from(WHOLE_BYTES);
    let wanted_tiles = u64::from(ranks) * if in_memory && small { 1 } else { BLOCKS_PER_RANK };

    let mut tile = space.aligned.clone();
    let mut least = cost(space, &loads, &tile);
    loop {
        let doubled = (0..tile.len()).rev().filter(|axis| tile[*axis] < space.extents[*axis]).map(|axis| {
            let mut larger = tile.clone();
            larger[axis] = tile[axis].saturating_mul(2).min(space.extents[axis]);
            larger
        });
        let allowed = doubled.filter(|larger| fits(larger) && count(space, larger) >= wanted_tiles);
        let best = allowed.map(|larger| (cost(space, &loads, &larger), larger)).min_by_key(|(cost, _)| *cost);
        match best {
            Some((cost, larger)) if cost < least => (least, tile) = (cost, larger),
            _ => break,
        }
    }

    let mut unit = tile;
    if let Some(axis) = (0..unit.len()).rfind(|axis| unit[*axis] < space.extents[*axis]).or(unit.len().checked_sub(1)) {
        unit[axis] = space.aligned[axis];
    }
    let grid: Vec<u64> = space.extents.iter().zip(&unit).map(|(extent, unit)| extent.div_ceil(*unit)).collect();
    let fair_share = (grid.iter().product::<u64>() / wanted_tiles).max(1);
    let block_units = fill(space, &unit, &grid, fits).min(fair_share);
    let block = extents_of(space, &unit, &grid, block_units);
    Tiling { unit, grid, block_units, block, process_grid: None, leaves: None }
}

/// Returns the number of tiles of these extents in the whole space.
fn count(space: &Space, tile: &[u64]) -> u64 {
    space.extents.iter().zip(tile).map(|(extent, tile)| extent.div_ceil(*tile)).product()
}

fn loads(operands: &[OperandPlan], split: &[usize]) -> Vec<Load> {
    let is_split = |operand: &&OperandPlan| operand.distribution == Distribution::Split;
    let load = |operand: &OperandPlan| {
        let axis = |dim: usize| split.iter().position(|index| *index == operand.dims[dim]);
        let dims = (0..operand.dims.len()).map(|dim| (operand.shape[dim], axis(dim).map(|a| (a, operand.scale[dim]))));
        let stored = operand.origin != Origin::Inline;
        Load {
            footprint: Footprint::new(operand, split),
            reads: u128::from(stored && operand.role == Role::Input),
            dims: if stored && operand.chunk.is_none() { dims.collect() } else { Vec::new() },
        }
    };
    operands.iter().filter(is_split).map(load).collect()
}

/// Returns the cost of all tiles of these extents: bytes read and runs touched.
fn cost(space: &Space, loads: &[Load], tile: &[u64]) -> u128 {
    let along = |axis: usize| u128::from(space.extents[axis].div_ceil(tile[axis]));
    let tiles: u128 = (0..tile.len()).map(along).product();
    loads.iter().fold(0u128, |sum, load| {
        let visits: u128 = (0..tile.len()).filter(|axis| !load.footprint.has(*axis)).map(along).product();
        let bytes = u128::from(load.footprint.bytes(&space.extents)).saturating_mul(visits * load.reads);
        let runs = runs(&load.dims, tile).saturating_mul(tiles).saturating_mul(RUN_COST_BYTES);
        sum.saturating_add(bytes).saturating_add(runs)
    })
}

/// Returns the number of contiguous runs of a tile in a row-major operand with dimensions `dims`.
fn runs(dims: &[(u64, Option<(usize, u64)>)], tile: &[u64]) -> u128 {
    let width = |(extent, along): &(u64, Option<(usize, u64)>)| {
        along.map_or(*extent, |(axis, scale)| tile[axis].saturating_mul(scale).min(*extent))
    };
    // The dimensions after the last one that the tile does not span belong to the same run.
    let Some(cut) = dims.iter().rposition(|dim| width(dim) < dim.0) else {
        return u128::from(!dims.is_empty());
    };
    dims[..cut].iter().map(|dim| u128::from(width(dim))).product()
}

/// Returns the largest number of consecutive units whose box still fits; at least 1.
pub(super) fn fill(space: &Space, unit: &[u64], grid: &[u64], fits: impl Fn(&[u64]) -> bool) -> u64 {
    let mut stride = 1;
    for axis in (0..grid.len()).rev() {
        // Finds the largest number of rows that fits, by bisection: `low` fits (or is one unit), `high` does not.
        let (mut low, mut high) = (1, grid[axis] + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match fits(&extents_of(space, unit, grid, middle * stride)) {
                true => low = middle,
                false => high = middle,
            }
        }
        if low < grid[axis] {
            return low * stride;
        }
        stride *= low;
    }
    stride
}

/// Returns the elements per axis of the largest possible box of `units` consecutive units.
pub(super) fn extents_of(space: &Space, unit: &[u64], grid: &[u64], units: u64) -> Vec<u64> {
    let mut rest = units.max(1);
    let mut extents = vec![0; unit.len()];
    for axis in (0..unit.len()).rev() {
        let along = rest.min(grid[axis]).max(1);
        extents[axis] = along.saturating_mul(unit[axis]).min(space.extents[axis]);
        // An outer axis has more than one unit only if this axis is whole.
        rest = if along == grid[axis] { rest / along } else { 1 };
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_the_last_dimension_that_is_cut() {
        let dims = |extents: &[u64]| extents.iter().enumerate().map(|(d, e)| (*e, Some((d, 1)))).collect::<Vec<_>>();
        let shape = dims(&[10, 20, 30]);
        assert_eq!(runs(&shape, &[10, 20, 30]), 1);
        assert_eq!(runs(&shape, &[5, 20, 30]), 1);
        assert_eq!(runs(&shape, &[5, 10, 30]), 5);
        assert_eq!(runs(&shape, &[5, 10, 3]), 50);
        assert_eq!(runs(&[(10, Some((0, 1))), (20, None)], &[4]), 1);
        assert_eq!(runs(&[(20, None), (10, Some((0, 1)))], &[4]), 20);
        assert_eq!(runs(&[(20, Some((0, 4))), (6, Some((1, 3)))], &[2, 1]), 8);
        assert_eq!(runs(&[(20, Some((0, 4))), (6, Some((1, 3)))], &[2, 2]), 1);
        assert_eq!(runs(&[], &[4]), 0);
    }

    #[test]
    fn least_common_multiples_do_not_overflow() {
        assert_eq!(least_common_multiple(100, 256), 6400);
        assert_eq!(least_common_multiple(1, 7), 7);
        assert_eq!(least_common_multiple(u64::MAX, u64::MAX - 1), u64::MAX);
    }
}
