//! Shards, blocks and tasks: closed forms over the grid of units, so that a plan for any number of ranks is small.
//!
//! Units are numbered in row-major order; a shard is a contiguous range of numbers. A contiguous range is cut into
//! boxes by walking it: from the current unit, take the largest run of whole trailing axes that starts here, ends in
//! the range and is within the limit. In `n` dimensions and without limit that gives at most `2n - 1` runs.

use super::{Distribution, OperandPlan, ProcessGrid, Reduce, Role, StagePlan};
use crate::tensor::{Boundary, HaloPart, MAX_RANK, Region, halo_parts};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::ops::Range;

/// Split indices of an output, and one that is reduced.
const MAX_AXES: usize = MAX_RANK + 1;

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
fn balanced(units: u64, ranks: u64, rank: u64) -> Range<u64> {
    let (each, extra) = (units / ranks, units % ranks);
    let start = |rank: u64| rank * each + rank.min(extra);
    start(rank)..start(rank + 1)
}

/// `number * units / steps`, without overflow.
fn portion(number: u64, units: u64, steps: u64) -> u64 {
    (u128::from(number) * u128::from(units) / u128::from(steps)) as u64
}

impl ProcessGrid {
    /// From the number of a rank to that of the next along `axis`.
    pub fn stride(&self, axis: usize) -> u32 {
        let inner = self.order.iter().rev().take_while(|other| **other != axis);
        inner.map(|other| self.parts[*other]).product::<u64>() as u32
    }

    /// The steps of `axis` that part `part` has.
    pub fn steps_of(&self, axis: usize, part: u64) -> Range<u64> {
        let start = |part| portion(part, self.steps[axis], self.parts[axis]);
        start(part)..start(part + 1)
    }
}

/// A rank's part of the stage: consecutive numbers of a grid of units, or all of a box of steps.
#[derive(Debug)]
struct Walk {
    /// First unit or step, per axis.
    offset: Vec<u64>,
    grid: Vec<u64>,
    numbers: Range<u64>,
}

impl StagePlan {
    /// The part of `rank`: a range of all units, or a box of steps where there is a process grid.
    fn walk(&self, rank: u32) -> Walk {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        let Some(grid) = &self.process_grid else {
            let numbers = balanced(self.units(), u64::from(self.ranks), u64::from(rank));
            return Walk { offset: vec![0; self.grid.len()], grid: self.grid.clone(), numbers };
        };
        let Some(place) = self.place(rank) else {
            return Walk { offset: vec![0; self.grid.len()], grid: vec![0; self.grid.len()], numbers: 0..0 };
        };
        let ranges = (0..place.len()).map(|axis| grid.steps_of(axis, place[axis]));
        let (offset, grid): (Vec<u64>, Vec<u64>) = ranges.map(|r| (r.start, r.end - r.start)).unzip();
        let numbers = 0..grid.iter().product();
        Walk { offset, grid, numbers }
    }

    /// First element of unit or step `number` of `axis`; the extent for the one after the last.
    fn start(&self, axis: usize, number: u64) -> u64 {
        let unit = match &self.process_grid {
            Some(grid) => portion(number, self.grid[axis], grid.steps[axis]),
            None => number,
        };
        (unit * self.unit[axis]).min(self.extent(axis))
    }

    /// The step of `axis` that begins at element `start`.
    fn step_at(&self, axis: usize, start: u64) -> u64 {
        let steps = self.process_grid.as_ref().map_or(self.grid[axis], |grid| grid.steps[axis]);
        let unit = start.div_ceil(self.unit[axis]);
        (u128::from(unit) * u128::from(steps)).div_ceil(u128::from(self.grid[axis])) as u64
    }

    /// Where `rank` is in the process grid, by axis; `None` for ranks beyond it.
    pub fn place(&self, rank: u32) -> Option<Vec<u64>> {
        let grid = self.process_grid.as_ref()?;
        let mut rest = u64::from(rank);
        let mut place = vec![0; grid.parts.len()];
        for axis in grid.order.iter().rev() {
            place[*axis] = rest % grid.parts[*axis];
            rest /= grid.parts[*axis];
        }
        (rest == 0).then_some(place)
    }

    /// The fewest boxes that are `rank`'s part of the stage.
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

    /// The elements of input `operand` that `rank` reads, its halo included; some twice where a halo meets itself.
    pub fn needs(&self, operand: usize, rank: u32) -> Vec<Region> {
        let input = &self.operands[operand];
        if input.distribution == Distribution::Broadcast {
            return vec![Region::whole(&input.shape)];
        }
        let regions = self.shard(rank).into_iter().map(|tile| self.region(operand, &tile));
        regions.flat_map(|region| self.sources(operand, &region)).map(|part| part.source).collect()
    }

    /// The ranks that need the same part of input `operand` as `rank`, which is one of them: those that differ only in their
    /// place along axes that the operand does not have. Ascending.
    pub fn sharers(&self, operand: usize, rank: u32) -> Vec<u32> {
        let (Some(grid), Some(place)) = (&self.process_grid, self.place(rank)) else { return vec![rank] };
        let dims = &self.operands[operand].dims;
        let mut ranks = vec![0];
        for axis in &grid.order {
            let stride = grid.stride(*axis);
            let places = match dims.contains(&self.split[*axis]) {
                true => place[*axis]..place[*axis] + 1,
                false => 0..grid.parts[*axis],
            };
            ranks = ranks.iter().flat_map(|rank| places.clone().map(move |at| rank + stride * at as u32)).collect();
        }
        ranks
    }

    /// The part of what `rank` needs of input `operand` that it reads from the dataset; the other sharers read and send it the
    /// rest, so that nothing is read twice. Cut along the outermost dimension, at whole chunks.
    pub fn share(&self, operand: usize, rank: u32) -> Region {
        let input = &self.operands[operand];
        let sharers = self.sharers(operand, rank);
        let at = sharers.iter().position(|sharer| *sharer == rank).unwrap_or(0) as u64;
        let shard = self.shard(rank);
        let Some(tile) = shard.first() else { return Region::empty(input.shape.rank()) };
        let mut region = self.region(operand, tile);
        let Some(longest) = (0..region.rank()).max_by_key(|dim| region.extent[*dim]) else { return region };
        let dim = if region.extent[0] >= sharers.len() as u64 { 0 } else { longest };
        let chunk = input.chunk.as_ref().map_or(1, |chunk| chunk[dim]);
        let (first, end) = (region.offset[dim] / chunk, region.end(dim).div_ceil(chunk));
        let cut = |number| {
            let chunks = first + portion(number, end - first, sharers.len() as u64);
            (chunks * chunk).clamp(region.offset[dim], region.end(dim))
        };
        let (from, to) =
            if at + 1 == sharers.len() as u64 { (cut(at), region.end(dim)) } else { (cut(at), cut(at + 1)) };
        region.offset[dim] = from;
        region.extent[dim] = to - from;
        region
    }

    /// The elements of output `operand` that end up on `rank`; over all ranks, all of them once.
    pub fn owned(&self, operand: usize, rank: u32) -> Vec<Region> {
        if !self.is_last_along(rank, 0) {
            // Partial results go up the reduced axes, to the last part.
            return Vec::new();
        }
        self.shard(rank).iter().map(|tile| self.region(operand, tile)).collect()
    }

    /// Whether no rank comes after `rank` along the reduced axes from the one of number `level` on.
    pub fn is_last_along(&self, rank: u32, level: usize) -> bool {
        let (Some(reduce), Some(grid), Some(place)) = (&self.reduce, &self.process_grid, self.place(rank)) else {
            return true;
        };
        let first = self.split.len() - reduce.axes + level;
        (first..place.len()).all(|axis| place[axis] + 1 == grid.parts[axis])
    }

    /// Where the elements of `region` of input `operand`, padded by its halo, come from.
    pub fn sources(&self, operand: usize, region: &Region) -> Vec<HaloPart> {
        let input = &self.operands[operand];
        halo_parts(region, &input.halo, &input.shape, self.boundary.unwrap_or(Boundary::None))
    }

    /// Units of the whole stage: 1 without split indices, 0 if a split index has no extent.
    pub fn units(&self) -> u64 {
        self.grid.iter().product()
    }

    /// Names of the split indices, by axis.
    pub fn axis_names(&self) -> Vec<&str> {
        self.split.iter().map(|index| self.indices[*index].name.as_str()).collect()
    }

    /// Extent of split index `axis`.
    pub fn extent(&self, axis: usize) -> u64 {
        self.indices[self.split[axis]].extent
    }

    /// Number of units of `rank`.
    pub fn shard_units(&self, rank: u32) -> u64 {
        let units = |tile: &Tile| -> u64 {
            (0..self.grid.len()).map(|axis| tile.0.extent[axis].div_ceil(self.unit[axis])).product()
        };
        self.shard(rank).iter().map(units).sum()
    }

    /// The blocks of `rank`'s shard, in order of their unit numbers; together they are the shard.
    pub fn blocks(&self, rank: u32) -> impl Iterator<Item = Tile> + '_ {
        let walk = self.walk(rank);
        let Range { start: mut at, end } = walk.numbers.clone();
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let run = run_at(&walk.grid, at, end, self.block_units);
                let rows = first_piece(run.rows, run.stride, self.block_units);
                let tile = self.tile(&walk, at, Run { rows, ..run });
                at += rows * run.stride;
                tile
            })
        })
    }

    /// The box of elements that `run` from unit `at` covers, clipped to the extents.
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

    /// The axis along which a block is cut into tasks: the last of a reduction, or the first with more than one element, 0 if
    /// there is none.
    pub fn task_axis(&self, block: &Tile) -> usize {
        match self.reduce {
            Some(_) => self.split.len() - 1,
            None => block.0.extent.iter().position(|extent| *extent > 1).unwrap_or(0),
        }
    }

    /// Into how many slices a block is cut at most; a task takes one or more of them.
    pub fn slices(&self, block: &Tile) -> u64 {
        match &self.reduce {
            Some(reduce) => self.groups(block).last().map_or(0, |along| along.end - along.start) * reduce.leaves,
            None => block.0.extent.get(self.task_axis(block)).copied().unwrap_or(1),
        }
    }

    /// The task that computes slices `start .. start + len` of `block`. Without split indices there is only the whole block.
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

    /// First element of leaf `number` of the last reduced axis.
    fn leaf_start(&self, axis: usize, number: u64, reduce: &Reduce) -> u64 {
        let steps = self.process_grid.as_ref().map_or(1, |grid| grid.steps[axis]);
        (portion(number, self.grid[axis], steps * reduce.leaves) * self.unit[axis]).min(self.extent(axis))
    }

    /// The groups of a reduction that `block` is, per reduced axis; several along the last only.
    pub fn groups(&self, block: &Tile) -> Vec<Range<u64>> {
        let axes = self.reduce.as_ref().map_or(0, |reduce| reduce.axes);
        let range = |axis| self.step_at(axis, block.0.offset[axis])..self.step_at(axis, block.0.end(axis));
        (self.split.len() - axes..self.split.len()).map(range).collect()
    }

    /// Number of the cell of a reduction that `block` is part of: of its step on the axes that are not reduced, row-major.
    pub fn cell(&self, block: &Tile) -> u64 {
        let axes = self.reduce.as_ref().map_or(0, |reduce| reduce.axes);
        let steps = |axis: usize| self.process_grid.as_ref().map_or(1, |grid| grid.steps[axis]);
        let at = |axis| self.step_at(axis, block.0.offset[axis]);
        (0..self.split.len() - axes).fold(0, |cell, axis| cell * steps(axis) + at(axis))
    }

    /// The box of a cell, along the whole of the reduced axes; `None` if there is no such cell.
    pub fn cell_tile(&self, cell: u64) -> Option<Tile> {
        let (grid, reduce) = (self.process_grid.as_ref()?, self.reduce.as_ref()?);
        let extent = (0..self.split.len()).map(|axis| self.extent(axis)).collect();
        let mut region = Region { offset: vec![0; self.split.len()], extent };
        let mut rest = cell;
        for axis in (0..self.split.len() - reduce.axes).rev() {
            let step = rest % grid.steps[axis];
            region.offset[axis] = self.start(axis, step);
            region.extent[axis] = self.start(axis, step + 1) - region.offset[axis];
            rest /= grid.steps[axis];
        }
        (rest == 0).then_some(Tile(region))
    }

    /// Parts in which output `operand` lies, per dimension.
    pub(super) fn parts_by_dim(&self, operand: usize) -> Vec<u64> {
        let parts = |axis: usize| match &self.process_grid {
            Some(grid) => grid.parts[axis],
            // Consecutive units of the only axis that is cut are its parts; of several they are nobody's.
            None if self.grid.iter().filter(|units| **units > 1).count() <= 1 && self.grid[axis] > 1 => {
                u64::from(self.ranks)
            }
            None => u64::from(self.grid[axis] > 1) * u64::MAX,
        };
        let axis_of = |index: &usize| self.split.iter().position(|split| split == index);
        self.operands[operand].dims.iter().map(|index| axis_of(index).map_or(1, parts)).collect()
    }

    /// Positions of the outputs among the operands.
    pub fn outputs(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.operands.len()).filter(|operand| self.operands[*operand].role == Role::Output)
    }

    /// Whether every rank gets all of `operand`.
    pub fn is_broadcast(&self, operand: usize) -> bool {
        self.operands[operand].distribution == Distribution::Broadcast
    }

    /// Elements per axis that no task exceeds.
    fn task_extents(&self) -> Vec<u64> {
        let mut extents = self.block.clone();
        if let (Some(reduce), Some(grid), Some(last)) = (&self.reduce, &self.process_grid, extents.last_mut()) {
            let axis = self.split.len() - 1;
            let leaf_units = self.grid[axis].div_ceil(grid.steps[axis] * reduce.leaves);
            *last = (leaf_units * self.unit[axis]).min(*last);
        }
        extents
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

    /// Most bytes of operand `operand` that any task needs: all of a broadcast one, those of a block of a split one; halos
    /// included.
    pub fn operand_max_bytes(&self, operand: usize) -> u64 {
        Footprint::new(&self.operands[operand], &self.split).bytes(&self.task_extents())
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
        let walk = self.walk(rank);
        let mut at = walk.numbers.start;
        let mut blocks = 0;
        while at < walk.numbers.end {
            let run = run_at(&walk.grid, at, walk.numbers.end, u64::MAX);
            blocks += self.tally_run(&walk, at, run, footprints, bytes);
            at += run.rows * run.stride;
        }
        blocks
    }

    fn tally_run(&self, walk: &Walk, at: u64, run: Run, footprints: &[Footprint], bytes: &mut [u128]) -> u64 {
        let n = self.grid.len();
        let mut count = [1u64; MAX_AXES];
        let tile = self.tile(walk, at, run);
        let mut stride = 1;
        // From the last axis outwards: whole rows while they fit in a block, then the axis that is cut into pieces,
        // then, up to the run's own axis, one row at a time.
        let mut cut = false;
        for axis in (0..n).rev() {
            let units = match axis {
                _ if axis < run.axis => 1,
                _ if axis == run.axis => run.rows,
                _ => walk.grid[axis],
            };
            if cut {
                count[axis] = units;
            } else if axis == run.axis || stride * walk.grid[axis] > self.block_units {
                count[axis] = pieces(units, stride, self.block_units);
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

/// How many bytes of an operand a tile needs, halo included, as a function of the tile's extents.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    /// Bytes at one point of the split indices.
    pub point_bytes: u64,
    /// Axes that the operand has, with the width of its halo.
    axes: Vec<(usize, u64)>,
}

impl Footprint {
    pub fn new(operand: &OperandPlan, split: &[usize]) -> Self {
        let mut footprint = Footprint { point_bytes: operand.dtype.size_bytes() as u64, axes: Vec::new() };
        for (dim, index) in operand.dims.iter().enumerate() {
            match split.iter().position(|split| split == index) {
                Some(axis) => footprint.axes.push((axis, operand.halo[dim])),
                None => footprint.point_bytes *= operand.shape[dim] + 2 * operand.halo[dim],
            }
        }
        footprint
    }

    /// Whether the operand is cut along `axis`.
    pub fn has(&self, axis: usize) -> bool {
        self.axes.iter().any(|(own, _)| *own == axis)
    }

    pub fn bytes(&self, extents: &[u64]) -> u64 {
        let widths = self.axes.iter().map(|(axis, halo)| extents[*axis].saturating_add(2 * halo));
        widths.fold(self.point_bytes, u64::saturating_mul)
    }

    /// Without the halo.
    pub fn core_bytes(&self, extents: &[u64]) -> u64 {
        self.axes.iter().map(|(axis, _)| extents[*axis]).fold(self.point_bytes, u64::saturating_mul)
    }

    /// The sum over a grid of `count` pieces of a tile.
    fn bytes_of_pieces(&self, extents: &[u64], count: &[u64]) -> u128 {
        let width = |(axis, halo): &(usize, u64)| u128::from(extents[*axis] + 2 * halo * count[*axis]);
        self.axes.iter().map(width).product::<u128>() * u128::from(self.point_bytes)
    }
}

/// Those of the split operands, in order.
pub(super) fn footprints(operands: &[OperandPlan], split: &[usize]) -> Vec<Footprint> {
    let is_split = |operand: &&OperandPlan| operand.distribution == Distribution::Split;
    operands.iter().filter(is_split).map(|operand| Footprint::new(operand, split)).collect()
}
