//! Process grids: the places of ranks, the ranks that share inputs, and the cells and groups of reductions.

use super::geometry::{Tile, portion};
use crate::plan::model::{ProcessGrid, Reduce, StagePlan};
use crate::tensor::Region;
use std::ops::Range;

impl ProcessGrid {
    /// Returns the difference between the number of a rank and that of the next rank along `axis`.
    pub fn stride(&self, axis: usize) -> u32 {
        let inner = self.order.iter().rev().take_while(|other| **other != axis);
        inner.map(|other| self.parts[*other]).product::<u64>() as u32
    }

    /// Returns the steps of `axis` that part `part` has.
    pub fn steps_of(&self, axis: usize, part: u64) -> Range<u64> {
        let start = |part| portion(part, self.steps[axis], self.parts[axis]);
        start(part)..start(part + 1)
    }
}

impl StagePlan {
    /// Returns the place of `rank` in the process grid, by axis; `None` for ranks beyond the grid.
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

    /// Returns the ranks, in ascending order, that need the same part of input `operand` as `rank`, including `rank`
    /// itself. They differ only in their place along axes that the operand does not have.
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

    /// Returns the part of `rank`'s need of input `operand` that `rank` reads from the dataset. The other sharers read
    /// the rest and send it to `rank`, so that nothing is read twice. The cut is along the outermost dimension, at
    /// whole chunks.
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

    /// Returns whether no rank comes after `rank` along the reduced axes from axis number `level` on.
    pub fn is_last_along(&self, rank: u32, level: usize) -> bool {
        let (Some(reduce), Some(grid), Some(place)) = (&self.reduce, &self.process_grid, self.place(rank)) else {
            return true;
        };
        let first = self.split.len() - reduce.axes + level;
        (first..place.len()).all(|axis| place[axis] + 1 == grid.parts[axis])
    }

    /// Returns the first element of leaf `number` of the last reduced axis.
    pub(super) fn leaf_start(&self, axis: usize, number: u64, reduce: &Reduce) -> u64 {
        let steps = self.process_grid.as_ref().map_or(1, |grid| grid.steps[axis]);
        (portion(number, self.grid[axis], steps * reduce.leaves) * self.unit[axis]).min(self.extent(axis))
    }

    /// Returns the groups of a reduction in `block`, per reduced axis. Only the last axis can have several.
    pub fn groups(&self, block: &Tile) -> Vec<Range<u64>> {
        let axes = self.reduce.as_ref().map_or(0, |reduce| reduce.axes);
        let range = |axis| self.step_at(axis, block.0.offset[axis])..self.step_at(axis, block.0.end(axis));
        (self.split.len() - axes..self.split.len()).map(range).collect()
    }

    /// Returns the number of the cell of a reduction that contains `block`: the row-major number of its step on the
    /// axes that are not reduced.
    pub fn cell(&self, block: &Tile) -> u64 {
        let axes = self.reduce.as_ref().map_or(0, |reduce| reduce.axes);
        let steps = |axis: usize| self.process_grid.as_ref().map_or(1, |grid| grid.steps[axis]);
        let at = |axis| self.step_at(axis, block.0.offset[axis]);
        (0..self.split.len() - axes).fold(0, |cell, axis| cell * steps(axis) + at(axis))
    }

    /// Returns the box of a cell, along the whole of the reduced axes; `None` if there is no such cell.
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

    /// Returns the ranges, along the reduced axes, of the first `leaves` leaves of `group`, which is given by its
    /// steps. Returns `None` if there are no such leaves.
    pub fn leaves_along(&self, group: &[u64], leaves: u64) -> Option<Vec<Range<u64>>> {
        let (grid, reduce) = (self.process_grid.as_ref()?, self.reduce.as_ref()?);
        let first = self.split.len() - reduce.axes;
        let steps = &grid.steps[first..];
        if group.len() != steps.len() || group.iter().zip(steps).any(|(at, all)| at >= all) || leaves > reduce.leaves {
            return None;
        }
        let step = |(axis, step): (usize, &u64)| self.start(axis, *step)..self.start(axis, step + 1);
        let mut along: Vec<Range<u64>> = (first..).zip(group).map(step).collect();
        along.last_mut()?.end = self.leaf_start(self.split.len() - 1, group.last()? * reduce.leaves + leaves, reduce);
        Some(along)
    }

    /// Extends the tile along the whole of the reduced axes, which makes it a box of outputs.
    pub fn widen(&self, tile: &mut Tile) {
        let axes = self.reduce.as_ref().map_or(0, |reduce| reduce.axes);
        for axis in self.split.len() - axes..self.split.len() {
            (tile.0.offset[axis], tile.0.extent[axis]) = (0, self.extent(axis));
        }
    }

    /// Returns the number of parts in which output `operand` lies, per dimension.
    pub(super) fn parts_by_dim(&self, operand: usize) -> Vec<u64> {
        let parts = |axis: usize| match &self.process_grid {
            Some(grid) => grid.parts[axis],
            // If a single axis is cut, its consecutive units form the parts. If several are cut, the units of a rank
            // form no part along any axis, and the number of parts counts as unlimited.
            None if self.grid.iter().filter(|units| **units > 1).count() <= 1 && self.grid[axis] > 1 => {
                u64::from(self.ranks)
            }
            None => u64::from(self.grid[axis] > 1) * u64::MAX,
        };
        let axis_of = |index: &usize| self.split.iter().position(|split| split == index);
        self.operands[operand].dims.iter().map(|index| axis_of(index).map_or(1, parts)).collect()
    }
}
