//! Shards, blocks and tasks: closed forms over the grid of units, so that a plan for any number of ranks is small.
//!
//! Units are numbered in row-major order; a shard is a contiguous range of numbers. A contiguous range is cut into
//! boxes by walking it: from the current unit, take the largest run of whole trailing axes that starts here, ends in
//! the range and is within the limit. In `n` dimensions and without limit that gives at most `2n - 1` runs.

use super::{Distribution, OperandPlan, StagePlan};
use crate::tensor::{MAX_RANK, Region};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::ops::Range;

/// A box over the split indices of a stage, in elements: one dimension per axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tile(pub Region);

/// Consecutive units that form a box: one unit on the axes before `axis`, `rows` on it, everything after.
#[derive(Clone, Copy, Debug)]
struct Run {
    axis: usize,
    rows: u64,
    /// Units in one row: the product of the grid after `axis`.
    stride: u64,
}

/// The longest run that starts at unit `at`, ends by `end` and whose rows are not longer than `limit`.
fn run_at(grid: &[u64], at: u64, end: u64, limit: u64) -> Run {
    let mut axis = grid.len().saturating_sub(1);
    let mut stride = 1;
    while axis > 0 {
        let row = stride * grid[axis];
        if !at.is_multiple_of(row) || row > limit.min(end - at) {
            break;
        }
        stride = row;
        axis -= 1;
    }
    let length = grid.get(axis).copied().unwrap_or(1);
    let rows = (length - at / stride % length).min((end - at) / stride);
    Run { axis, rows, stride }
}

/// Rows of the first of the fewest equal pieces of `rows` that keep to `limit` units of `stride` each.
fn first_piece(rows: u64, stride: u64, limit: u64) -> u64 {
    rows.div_ceil(pieces(rows, stride, limit))
}

fn pieces(rows: u64, stride: u64, limit: u64) -> u64 {
    rows.div_ceil((limit / stride).max(1))
}

/// Units of rank `rank` when `units` are dealt out as evenly as possible, the first ranks getting one more.
fn balanced(units: u64, ranks: u32, rank: u32) -> Range<u64> {
    let (each, extra) = (units / u64::from(ranks), units % u64::from(ranks));
    let start = |rank: u64| rank * each + rank.min(extra);
    start(u64::from(rank))..start(u64::from(rank) + 1)
}

impl StagePlan {
    /// Units of the whole stage: 1 without split indices, 0 if a split index has no extent.
    pub fn units(&self) -> u64 {
        self.grid.iter().product()
    }

    /// Extent of split index `axis`.
    pub fn extent(&self, axis: usize) -> u64 {
        self.indices[self.split[axis]].extent
    }

    /// Unit numbers of `rank`'s shard. Ranks differ by one unit at most.
    pub fn shard_units(&self, rank: u32) -> Range<u64> {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        balanced(self.units(), self.ranks, rank)
    }

    /// The blocks of `rank`'s shard, in order of their unit numbers; together they are the shard.
    pub fn blocks(&self, rank: u32) -> impl Iterator<Item = Tile> + '_ {
        let Range { start: mut at, end } = self.shard_units(rank);
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let run = run_at(&self.grid, at, end, self.block_units);
                let rows = first_piece(run.rows, run.stride, self.block_units);
                let tile = self.tile(at, Run { rows, ..run });
                at += rows * run.stride;
                tile
            })
        })
    }

    /// The box of elements that `run` from unit `at` covers, clipped to the extents.
    fn tile(&self, at: u64, run: Run) -> Tile {
        let mut region = Region { offset: vec![0; self.grid.len()], extent: vec![0; self.grid.len()] };
        let mut rest = at;
        for axis in (0..self.grid.len()).rev() {
            let offset = rest % self.grid[axis] * self.unit[axis];
            rest /= self.grid[axis];
            let units = match axis {
                _ if axis < run.axis => 1,
                _ if axis == run.axis => run.rows,
                _ => self.grid[axis],
            };
            region.offset[axis] = offset;
            region.extent[axis] = (units * self.unit[axis]).min(self.extent(axis) - offset);
        }
        Tile(region)
    }

    /// The axis along which a block is cut into tasks: the first with more than one element, 0 if there is none.
    pub fn task_axis(&self, block: &Tile) -> usize {
        block.0.extent.iter().position(|extent| *extent > 1).unwrap_or(0)
    }

    /// The task that computes elements `start .. start + len` of `block` along its task axis, counted from the
    /// block's first. Without split indices there is only the whole block.
    pub fn task(&self, block: &Tile, start: u64, len: u64) -> Tile {
        let mut task = block.clone();
        let axis = self.task_axis(block);
        if let (Some(offset), Some(extent)) = (task.0.offset.get_mut(axis), task.0.extent.get_mut(axis)) {
            assert!(start + len <= *extent, "{start} + {len} of {extent}");
            *offset += start;
            *extent = len;
        }
        task
    }

    /// What `tile` needs of operand `operand`: its split dimensions from the tile, all of the others.
    pub fn region(&self, operand: usize, tile: &Tile) -> Region {
        let operand = &self.operands[operand];
        let mut region = Region::whole(&operand.shape);
        for (dim, index) in operand.dims.iter().enumerate() {
            if let Some(axis) = self.split.iter().position(|split| split == index) {
                region.offset[dim] = tile.0.offset[axis];
                region.extent[dim] = tile.0.extent[axis];
            }
        }
        region
    }

    /// Bytes of all split operands, inputs and outputs, for `tile`.
    pub fn split_operand_bytes(&self, tile: &Tile) -> u64 {
        footprints(&self.operands, &self.split).iter().map(|f| f.bytes(&tile.0.extent)).sum()
    }

    /// Most bytes of operand `operand` that any task needs: all of a broadcast one, those of a block of a split one.
    pub fn operand_max_bytes(&self, operand: usize) -> u64 {
        Footprint::new(&self.operands[operand], &self.split).bytes(&self.block)
    }

    /// `tile` with the names of the split indices: `q=0..16,k=0..4`; `all` without any.
    pub fn tile_name(&self, tile: &Tile) -> String {
        let mut name = String::new();
        for (axis, index) in self.split.iter().enumerate() {
            let comma = if axis > 0 { "," } else { "" };
            let (start, end) = (tile.0.offset[axis], tile.0.end(axis));
            // Writing to a String cannot fail.
            let _ = write!(name, "{comma}{}={start}..{end}", self.indices[*index].name);
        }
        if name.is_empty() { "all".to_owned() } else { name }
    }

    /// The task that computes `tile`, as it is called in every message: `classify@q=0..16`.
    pub fn task_name(&self, tile: &Tile) -> String {
        format!("{}@{}", self.name, self.tile_name(tile))
    }

    /// Number of `rank`'s blocks, and, in `bytes[i]`, the sum over them of what `footprints[i]` needs.
    /// Counts without visiting the blocks: in a run they are a grid themselves.
    pub(super) fn tally(&self, rank: u32, footprints: &[Footprint], bytes: &mut [u128]) -> u64 {
        let Range { start: mut at, end } = self.shard_units(rank);
        let mut blocks = 0;
        while at < end {
            let run = run_at(&self.grid, at, end, u64::MAX);
            blocks += self.tally_run(at, run, footprints, bytes);
            at += run.rows * run.stride;
        }
        blocks
    }

    fn tally_run(&self, at: u64, run: Run, footprints: &[Footprint], bytes: &mut [u128]) -> u64 {
        let n = self.grid.len();
        let (mut length, mut count) = ([1u64; MAX_RANK], [1u64; MAX_RANK]);
        let (mut rest, mut stride) = (at, 1);
        // From the last axis outwards: whole rows while they fit in a block, then the axis that is cut into pieces,
        // then, up to the run's own axis, one row at a time.
        let mut cut = false;
        for axis in (0..n).rev() {
            let units = match axis {
                _ if axis < run.axis => 1,
                _ if axis == run.axis => run.rows,
                _ => self.grid[axis],
            };
            let offset = rest % self.grid[axis] * self.unit[axis];
            rest /= self.grid[axis];
            length[axis] = (units * self.unit[axis]).min(self.extent(axis) - offset);
            if cut {
                count[axis] = units;
            } else if axis == run.axis || stride * self.grid[axis] > self.block_units {
                count[axis] = pieces(units, stride, self.block_units);
                cut = true;
            }
            stride *= self.grid[axis];
        }
        for (sum, footprint) in bytes.iter_mut().zip(footprints) {
            let visits = (0..n).filter(|axis| !footprint.axes.contains(axis)).map(|axis| u128::from(count[axis]));
            *sum += u128::from(footprint.bytes(&length[..n])) * visits.product::<u128>();
        }
        count[..n].iter().product()
    }
}

/// How many bytes of an operand a tile needs, as a function of the tile's extents.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    /// Bytes at one point of the split indices.
    pub point_bytes: u64,
    /// Axes that the operand has.
    pub axes: Vec<usize>,
}

impl Footprint {
    pub fn new(operand: &OperandPlan, split: &[usize]) -> Self {
        let mut footprint = Footprint { point_bytes: operand.dtype.size_bytes() as u64, axes: Vec::new() };
        for (dim, index) in operand.dims.iter().enumerate() {
            match split.iter().position(|split| split == index) {
                Some(axis) => footprint.axes.push(axis),
                None => footprint.point_bytes *= operand.shape[dim],
            }
        }
        footprint
    }

    /// Fits 64 bits for every tile within the extents: the whole tensor does.
    pub fn bytes(&self, extents: &[u64]) -> u64 {
        self.axes.iter().map(|axis| extents[*axis]).product::<u64>() * self.point_bytes
    }
}

/// Those of the split operands, in order.
pub(super) fn footprints(operands: &[OperandPlan], split: &[usize]) -> Vec<Footprint> {
    let is_split = |operand: &&OperandPlan| operand.distribution == Distribution::Split;
    operands.iter().filter(is_split).map(|operand| Footprint::new(operand, split)).collect()
}
