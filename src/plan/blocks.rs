use std::fmt;
use std::ops::Range;

use super::{Distribution, StagePlan};
use crate::tensor::Region;

/// A box in the space of a stage's split indices, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tile(pub Region);

impl StagePlan {
    /// Number of units of the stage.
    pub fn units(&self) -> u64 {
        self.grid.iter().product()
    }

    /// The units that a rank owns: contiguous in row-major order, and as many as any other rank's or one fewer.
    pub fn shard_units(&self, rank: u32, ranks: u32) -> Range<u64> {
        let at = |r: u32| (u128::from(self.units()) * u128::from(r) / u128::from(ranks)) as u64;
        at(rank)..at(rank + 1)
    }

    /// The blocks of a rank's shard, in order. Takes constant memory.
    pub fn blocks(&self, rank: u32, ranks: u32) -> Blocks<'_> {
        Blocks { stage: self, units: self.shard_units(rank, ranks) }
    }

    /// The axis along which a block is sliced into tasks: the first with more than one element.
    pub fn task_axis(&self, block: &Tile) -> usize {
        block.0.extent.iter().position(|extent| *extent > 1).unwrap_or(0)
    }

    /// How many slices a block has.
    pub fn slices(&self, block: &Tile) -> u64 {
        block.0.extent.get(self.task_axis(block)).copied().unwrap_or(1)
    }

    /// `len` slices of a block, from `start` on.
    pub fn task(&self, block: &Tile, start: u64, len: u64) -> Tile {
        let mut task = block.clone();
        let axis = self.task_axis(block);
        if let Some(offset) = task.0.offset.get_mut(axis) {
            *offset += start;
            task.0.extent[axis] = len;
        }
        task
    }

    /// What a tile needs or makes of an operand: its own part along split indices, everything along others.
    pub fn region(&self, operand: usize, tile: &Tile) -> Region {
        let mut region = Region::default();
        for index in &self.operands[operand].dims {
            let (offset, extent) = match self.split.iter().position(|split| split == index) {
                Some(axis) => (tile.0.offset[axis], tile.0.extent[axis]),
                None => (0, self.indices[*index].extent),
            };
            region.offset.push(offset);
            region.extent.push(extent);
        }
        region
    }

    /// Bytes of a tile's split operands.
    pub fn split_operand_bytes(&self, tile: &Tile) -> u64 {
        let operands = self.operands.iter().enumerate().filter(|(_, o)| o.distribution == Distribution::Split);
        operands.map(|(i, o)| self.region(i, tile).elements() * o.dtype.size_bytes() as u64).sum()
    }

    /// A tile with its indices: `n=0..32,k=0..10`.
    pub fn describe<'a>(&'a self, tile: &'a Tile) -> impl fmt::Display + 'a {
        TileOf { stage: self, tile }
    }
}

struct TileOf<'a> {
    stage: &'a StagePlan,
    tile: &'a Tile,
}

impl fmt::Display for TileOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.stage.name)?;
        for (axis, index) in self.stage.split.iter().enumerate() {
            let comma = if axis > 0 { "," } else { "" };
            let (start, end) = (self.tile.0.offset[axis], self.tile.0.end(axis));
            write!(f, "{comma}{}={start}..{end}", self.stage.indices[*index].name)?;
        }
        Ok(())
    }
}

/// The blocks of a shard: boxes of whole units, each as large as the rest of the shard and the block size allow.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    stage: &'a StagePlan,
    units: Range<u64>,
}

impl Blocks<'_> {
    /// The longest box that begins at `start`, goes on in row-major order, and has at most `limit` units: a run along
    /// one axis, of whole rows in the axes behind it.
    fn box_at(&self, start: u64, limit: u64) -> (Vec<u64>, Vec<u64>) {
        let grid = &self.stage.grid;
        let mut at = vec![0; grid.len()];
        let mut rest = start;
        for axis in (0..grid.len()).rev() {
            at[axis] = rest % grid[axis];
            rest /= grid[axis];
        }
        let mut extent = vec![1; grid.len()];
        let mut row = 1;
        for axis in (0..grid.len()).rev() {
            let run = (limit / row).min(grid[axis] - at[axis]).max(1);
            extent[axis] = run;
            // Only a whole row can be continued along the axis before.
            if at[axis] != 0 || run < grid[axis] {
                break;
            }
            row *= grid[axis];
        }
        (at, extent)
    }
}

impl Iterator for Blocks<'_> {
    type Item = Tile;

    fn next(&mut self) -> Option<Tile> {
        if self.units.is_empty() {
            return None;
        }
        let stage = self.stage;
        let limit = (self.units.end - self.units.start).min(stage.block_units.max(1));
        let (at, extent) = self.box_at(self.units.start, limit);
        self.units.start += extent.iter().product::<u64>();
        let mut region = Region::default();
        for axis in 0..at.len() {
            let whole = stage.indices[stage.split[axis]].extent;
            let offset = at[axis] * stage.unit[axis];
            region.offset.push(offset);
            region.extent.push((extent[axis] * stage.unit[axis]).min(whole - offset));
        }
        Some(Tile(region))
    }
}
