//! Shares, blocks and tasks in closed form over the grid of units, so that a plan for any number of ranks is small.
//!
//! Units are numbered in row-major order, and without a process grid a share is a contiguous range of numbers. A
//! contiguous range is cut into boxes as follows: from the current unit, take the largest run of whole trailing axes
//! that starts there, ends in the range and is within the limit. In `n` dimensions and without a limit, this gives at
//! most `2n - 1` runs.

use super::bind::REDUCED_AXES;
use super::footprint::{Footprint, footprints};
use crate::plan::model::{Distribution, Role, StagePlan};
use crate::tensor::{Boundary, HaloPart, MAX_RANK, Region, halo_parts};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::ops::Range;

/// The largest number of axes: the split indices of an output, and the reduced indices.
const MAX_AXES: usize = MAX_RANK + REDUCED_AXES;

/// A box over the split indices of a stage, in elements: one dimension per axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tile(pub Region);

impl Tile {
    /// Returns whether the last axes of the tile cover exactly `ranges`.
    pub fn is_along(&self, ranges: &[Range<u64>]) -> bool {
        let first = self.0.rank().checked_sub(ranges.len());
        let same = |first| (first..).zip(ranges).all(|(axis, range)| (self.0.offset[axis]..self.0.end(axis)) == *range);
        first.is_some_and(same)
    }

    /// Sets the last axes of the tile to `ranges`. The tile has at least as many axes as there are ranges.
    pub fn cut_along(&mut self, ranges: &[Range<u64>]) {
        for (axis, range) in (self.0.rank() - ranges.len()..).zip(ranges) {
            (self.0.offset[axis], self.0.extent[axis]) = (range.start, range.end - range.start);
        }
    }
}

/// Consecutive units that form a box: one unit on the axes before `axis`, `rows` units on it, all units of the axes
/// after it.
#[derive(Clone, Copy, Debug)]
struct Run {
    axis: usize,
    rows: u64,
    /// The units in one row: the product of the grid after `axis`.
    stride: u64,
}

/// Returns the longest run that starts at unit `at`, ends by `end` and has rows of at most `limit` units.
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

/// Divides `rows` into the fewest equal parts of at most `limit` units, at `stride` units per row. Returns the rows of
/// the first part.
fn first_piece(rows: u64, stride: u64, limit: u64) -> u64 {
    rows.div_ceil(pieces(rows, stride, limit))
}

fn pieces(rows: u64, stride: u64, limit: u64) -> u64 {
    rows.div_ceil((limit / stride).max(1))
}

/// Returns the units of `rank` when `units` are distributed as evenly as possible. The first ranks get one more.
fn balanced(units: u64, ranks: u64, rank: u64) -> Range<u64> {
    let (each, extra) = (units / ranks, units % ranks);
    let start = |rank: u64| rank * each + rank.min(extra);
    start(rank)..start(rank + 1)
}

/// Computes `number * units / steps` without overflow.
pub(super) fn portion(number: u64, units: u64, steps: u64) -> u64 {
    (u128::from(number) * u128::from(units) / u128::from(steps)) as u64
}

/// A rank's share of the stage, or a part of that share: consecutive numbers of a grid of units, or all of a box of
/// steps.
#[derive(Clone, Debug)]
struct Walk {
    /// The first unit or step, per axis.
    offset: Vec<u64>,
    grid: Vec<u64>,
    numbers: Range<u64>,
    /// The largest number of units or steps in a block.
    limit: u64,
}

impl Walk {
    /// Cuts steps off a box, from its start or its end along `axis`, and returns them as another box.
    fn cut(&mut self, axis: usize, steps: u64, from_start: bool) -> Walk {
        let mut piece = self.clone();
        self.grid[axis] -= steps;
        piece.grid[axis] = steps;
        match from_start {
            true => self.offset[axis] += steps,
            false => piece.offset[axis] += self.grid[axis],
        }
        piece
    }
}

impl StagePlan {
    /// Returns the share of `rank`: a range of all units, or a box of steps if there is a process grid.
    fn walk(&self, rank: u32) -> Walk {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        let limit = self.block_units;
        let Some(grid) = &self.process_grid else {
            let numbers = balanced(self.units(), u64::from(self.ranks), u64::from(rank));
            return Walk { offset: vec![0; self.grid.len()], grid: self.grid.clone(), numbers, limit };
        };
        let Some(place) = self.place(rank) else {
            return Walk { offset: vec![0; self.grid.len()], grid: vec![0; self.grid.len()], numbers: 0..0, limit };
        };
        let ranges = (0..place.len()).map(|axis| grid.steps_of(axis, place[axis]));
        let (offset, grid): (Vec<u64>, Vec<u64>) = ranges.map(|r| (r.start, r.end - r.start)).unzip();
        let numbers = 0..grid.iter().product();
        Walk { offset, grid, numbers, limit }
    }

    /// Returns the parts of `rank`'s share that are cut into blocks separately: first the part that needs no data of
    /// other ranks, then the rims.
    fn walks(&self, rank: u32) -> Vec<Walk> {
        let mut inside = self.walk(rank);
        let (Some(grid), Some(place)) = (&self.process_grid, self.place(rank)) else { return vec![inside] };
        if grid.rim.iter().all(|rim| *rim == 0) {
            return vec![inside];
        }
        let round = self.boundary == Some(Boundary::Periodic);
        let mut rims = Vec::new();
        for (axis, rim) in grid.rim.iter().enumerate().filter(|(_, rim)| **rim > 0) {
            if place[axis] > 0 || round {
                rims.push(inside.cut(axis, *rim, true));
            }
            if place[axis] + 1 < grid.parts[axis] || round {
                rims.push(inside.cut(axis, *rim, false));
            }
        }
        let mut walks = vec![inside];
        walks.append(&mut rims);
        for walk in &mut walks {
            // Blocks of narrow parts are no longer than those of wide parts: along every axis, no block is larger than
            // the memory was planned for.
            let along = |axis: usize| walk.grid[axis].min(self.block[axis].div_ceil(self.unit[axis]));
            walk.numbers = 0..walk.grid.iter().product();
            walk.limit = walk.limit.min((0..walk.grid.len()).map(along).product());
        }
        walks
    }

    /// Returns the first element of unit or step `number` of `axis`. For the number after the last, it returns the
    /// extent.
    pub(super) fn start(&self, axis: usize, number: u64) -> u64 {
        let unit = match &self.process_grid {
            Some(grid) => portion(number, self.grid[axis], grid.steps[axis]),
            None => number,
        };
        (unit * self.unit[axis]).min(self.extent(axis))
    }

    /// Returns the step of `axis` that begins at element `start`.
    pub(super) fn step_at(&self, axis: usize, start: u64) -> u64 {
        let steps = self.process_grid.as_ref().map_or(self.grid[axis], |grid| grid.steps[axis]);
        let unit = start.div_ceil(self.unit[axis]);
        (u128::from(unit) * u128::from(steps)).div_ceil(u128::from(self.grid[axis])) as u64
    }

    /// Returns `rank`'s share of the stage as the fewest possible boxes.
    pub fn shard(&self, rank: u32) -> Vec<Tile> {
        let walk = self.walk(rank);
        let mut at = walk.numbers.start;
        let mut tiles = Vec::new();
        while at < walk.numbers.end {
            let run = run_at(&walk.grid, at, walk.numbers.end, u64::MAX);
            tiles.push(self.tile(&walk, at, run));
            at += run.rows * run.stride;
        }
        tiles
    }

    /// Returns the elements of input `operand` that `rank` reads, including its halo. Some occur twice where a halo
    /// overlaps itself.
    pub fn needs(&self, operand: usize, rank: u32) -> Vec<Region> {
        let input = &self.operands[operand];
        if input.distribution == Distribution::Broadcast {
            return vec![Region::whole(&input.shape)];
        }
        let regions = self.shard(rank).into_iter().map(|tile| self.region(operand, &tile));
        regions.flat_map(|region| self.sources(operand, &region)).map(|part| part.source).collect()
    }

    /// Returns the elements of output `operand` that end up on `rank`. Over all ranks, every element occurs once.
    pub fn owned(&self, operand: usize, rank: u32) -> Vec<Region> {
        if !self.is_last_along(rank, 0) {
            // Partial results move along the reduced axes to the last part.
            return Vec::new();
        }
        self.shard(rank).iter().map(|tile| self.region(operand, tile)).collect()
    }

    /// Returns the sources of the elements of `region` of input `operand`, padded by its halo.
    pub fn sources(&self, operand: usize, region: &Region) -> Vec<HaloPart> {
        let input = &self.operands[operand];
        halo_parts(region, &input.halo, &input.shape, self.boundary.unwrap_or(Boundary::None))
    }

    /// Returns the number of units of the whole stage: 1 without split indices, 0 if a split index has no extent.
    pub fn units(&self) -> u64 {
        self.grid.iter().product()
    }

    /// Returns the names of the split indices, by axis.
    pub fn axis_names(&self) -> Vec<&str> {
        self.split.iter().map(|index| self.indices[*index].name.as_str()).collect()
    }

    /// Returns the extent of split index `axis`.
    pub fn extent(&self, axis: usize) -> u64 {
        self.indices[self.split[axis]].extent
    }

    /// Returns the number of units of `rank`.
    pub fn shard_units(&self, rank: u32) -> u64 {
        let units = |tile: &Tile| -> u64 {
            (0..self.grid.len()).map(|axis| tile.0.extent[axis].div_ceil(self.unit[axis])).product()
        };
        self.shard(rank).iter().map(units).sum()
    }

    /// Returns the blocks of `rank`'s share, which they partition. Blocks that need data of other ranks come last.
    pub fn blocks(&self, rank: u32) -> impl Iterator<Item = Tile> + '_ {
        self.walks(rank).into_iter().flat_map(move |walk| {
            let Range { start: mut at, end } = walk.numbers.clone();
            std::iter::from_fn(move || {
                (at < end).then(|| {
                    let run = run_at(&walk.grid, at, end, walk.limit);
                    let rows = first_piece(run.rows, run.stride, walk.limit);
                    let tile = self.tile(&walk, at, Run { rows, ..run });
                    at += rows * run.stride;
                    tile
                })
            })
        })
    }

    /// Returns the box of elements that `run` from unit `at` covers, clipped to the extents.
    fn tile(&self, walk: &Walk, at: u64, run: Run) -> Tile {
        let mut region = Region { offset: vec![0; self.grid.len()], extent: vec![0; self.grid.len()] };
        let mut rest = at;
        for axis in (0..self.grid.len()).rev() {
            let first = walk.offset[axis] + rest % walk.grid[axis];
            rest /= walk.grid[axis];
            let count = match axis {
                _ if axis < run.axis => 1,
                _ if axis == run.axis => run.rows,
                _ => walk.grid[axis],
            };
            region.offset[axis] = self.start(axis, first);
            region.extent[axis] = self.start(axis, first + count) - region.offset[axis];
        }
        Tile(region)
    }

    /// Returns the axis along which a block is cut into tasks: the last axis of a reduction, or else the first axis
    /// with more than one element. It is 0 if there is no such axis.
    pub fn task_axis(&self, block: &Tile) -> usize {
        match self.reduce {
            Some(_) => self.split.len() - 1,
            None => block.0.extent.iter().position(|extent| *extent > 1).unwrap_or(0),
        }
    }

    /// Returns the largest number of slices of a block. A task takes one or more slices.
    pub fn slices(&self, block: &Tile) -> u64 {
        match &self.reduce {
            Some(reduce) => self.groups(block).last().map_or(0, |along| along.end - along.start) * reduce.leaves,
            None => block.0.extent.get(self.task_axis(block)).copied().unwrap_or(1),
        }
    }

    /// Returns the task that computes slices `start .. start + len` of `block`. Without split indices, the only task is
    /// the whole block.
    pub fn task(&self, block: &Tile, start: u64, len: u64) -> Tile {
        assert!(start + len <= self.slices(block), "{start} + {len} of {}", self.slices(block));
        let mut task = block.clone();
        let axis = self.task_axis(block);
        if let (Some(offset), Some(extent)) = (task.0.offset.get_mut(axis), task.0.extent.get_mut(axis)) {
            let (from, to) = match &self.reduce {
                Some(reduce) => {
                    let first = self.step_at(axis, block.0.offset[axis]) * reduce.leaves + start;
                    (self.leaf_start(axis, first, reduce), self.leaf_start(axis, first + len, reduce))
                }
                None => (*offset + start, *offset + start + len),
            };
            *offset = from;
            *extent = to - from;
        }
        task
    }

    /// Returns the positions of the outputs among the operands.
    pub fn outputs(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.operands.len()).filter(|operand| self.operands[*operand].role == Role::Output)
    }

    /// Returns whether every rank gets all of `operand`.
    pub fn is_broadcast(&self, operand: usize) -> bool {
        self.operands[operand].distribution == Distribution::Broadcast
    }

    /// Returns whether the ranks of a node share one copy of `operand`, instead of one copy for each of their workers.
    pub fn is_on_node(&self, operand: usize) -> bool {
        self.operands[operand].is_on_node()
    }

    /// Returns the largest extent of a task in elements, per axis.
    fn task_extents(&self) -> Vec<u64> {
        let mut extents = self.block.clone();
        if let (Some(reduce), Some(grid), Some(last)) = (&self.reduce, &self.process_grid, extents.last_mut()) {
            let axis = self.split.len() - 1;
            let leaf_units = self.grid[axis].div_ceil(grid.steps[axis] * reduce.leaves);
            *last = (leaf_units * self.unit[axis]).min(*last);
        }
        extents
    }

    /// Returns the region of operand `operand` that `tile` needs: the tile's range of the split dimensions, and the
    /// whole of the other dimensions.
    pub fn region(&self, operand: usize, tile: &Tile) -> Region {
        let operand = &self.operands[operand];
        let mut region = Region::whole(&operand.shape);
        for (dim, index) in operand.dims.iter().enumerate() {
            if let Some(axis) = self.split.iter().position(|split| split == index) {
                region.offset[dim] = tile.0.offset[axis] * operand.scale[dim];
                region.extent[dim] = tile.0.extent[axis] * operand.scale[dim];
            }
        }
        region
    }

    /// Returns the bytes of all split operands, inputs and outputs, for `tile`.
    pub fn split_operand_bytes(&self, tile: &Tile) -> u64 {
        footprints(&self.operands, &self.split).iter().map(|f| f.bytes(&tile.0.extent)).sum()
    }

    /// Returns the largest number of bytes of operand `operand` that any task needs, including halos: the whole of a
    /// broadcast operand, or the part of one block of a split operand.
    pub fn operand_max_bytes(&self, operand: usize) -> u64 {
        Footprint::new(&self.operands[operand], &self.split).bytes(&self.task_extents())
    }

    /// Formats `tile` with the names of the split indices: `q=0..16,k=0..4`, or `all` without split indices.
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

    /// Returns the name of the task that computes `tile`, as messages show it: `classify@q=0..16`.
    pub fn task_name(&self, tile: &Tile) -> String {
        format!("{}@{}", self.name, self.tile_name(tile))
    }

    /// Returns the number of `rank`'s blocks, and adds to `bytes[i]` the bytes that they need of `footprints[i]`. The
    /// blocks need not be visited one by one, since the blocks of a run form a grid.
    pub(super) fn tally(&self, rank: u32, footprints: &[Footprint], bytes: &mut [u128]) -> u64 {
        let mut blocks = 0;
        for walk in self.walks(rank) {
            let mut at = walk.numbers.start;
            while at < walk.numbers.end {
                let run = run_at(&walk.grid, at, walk.numbers.end, u64::MAX);
                blocks += self.tally_run(&walk, at, run, footprints, bytes);
                at += run.rows * run.stride;
            }
        }
        blocks
    }

    fn tally_run(&self, walk: &Walk, at: u64, run: Run, footprints: &[Footprint], bytes: &mut [u128]) -> u64 {
        let n = self.grid.len();
        let mut count = [1u64; MAX_AXES];
        let tile = self.tile(walk, at, run);
        let mut stride = 1;
        // From the last axis outwards: whole rows while they fit in a block, then the axis that is cut, then one row at
        // a time up to the run's own axis.
        let mut cut = false;
        for axis in (0..n).rev() {
            let units = match axis {
                _ if axis < run.axis => 1,
                _ if axis == run.axis => run.rows,
                _ => walk.grid[axis],
            };
            if cut {
                count[axis] = units;
            } else if axis == run.axis || stride * walk.grid[axis] > walk.limit {
                count[axis] = pieces(units, stride, walk.limit);
                cut = true;
            }
            stride *= walk.grid[axis];
        }
        for (sum, footprint) in bytes.iter_mut().zip(footprints) {
            let visits = (0..n).filter(|axis| !footprint.has(*axis)).map(|axis| u128::from(count[axis]));
            *sum += footprint.bytes_of_pieces(&tile.0.extent, &count[..n]) * visits.product::<u128>();
        }
        count[..n].iter().product()
    }
}
