//! Blocks in memory, and what their tasks have computed so far.

use std::sync::Mutex;

use crate::exec::reduce::fold::{Fold, Results};
use crate::exec::transfer::piece::BlockInput;
use crate::fabric::Rank;
use crate::plan::{Reduce, StagePlan, Tile};
use crate::sched::Span;
use crate::tensor::copy_region;

/// The name of a block in memory, or of a stolen span of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::exec) struct BlockKey {
    pub owner: Rank,
    pub block: u64,
    /// The first slice: 0 for a whole block.
    pub start: u64,
}

impl BlockKey {
    /// Names a whole block.
    pub fn whole(owner: Rank, block: u64) -> BlockKey {
        BlockKey { owner, block, start: 0 }
    }

    /// Names the block that a stolen span becomes.
    pub fn of_span(span: Span) -> BlockKey {
        BlockKey { owner: span.owner, block: span.block, start: span.start }
    }
}

/// A block in memory, or a stolen span of another rank's block.
#[derive(Debug)]
pub(in crate::exec) struct BlockData {
    /// The tile of the whole block, in which slices are counted.
    pub tile: Tile,
    /// The part of the block that inputs and outputs cover.
    pub cover: Tile,
    /// By operand.
    pub inputs: Vec<BlockInput>,
    pub outputs: Mutex<BlockOutputs>,
    /// By group, the number of its first leaves that earlier runs have summed; empty if they have summed none.
    pub summed: Vec<u64>,
}

impl BlockData {
    /// Whether an earlier run has summed a slice.
    pub fn is_summed(&self, plan: &StagePlan, slice: u64) -> bool {
        let leaves = plan.reduce.map_or(1, |reduce| reduce.leaves);
        self.summed.get((slice / leaves) as usize).is_some_and(|summed| slice % leaves < *summed)
    }
}

/// The results of the tasks of a block so far.
#[derive(Debug)]
pub(in crate::exec) enum BlockOutputs {
    Tiles(TileOutputs),
    /// Partial results of each group, merged in the order of its leaves.
    Groups(Reduce, Vec<Fold>),
    /// Partial results of each slice from this one on, which their owner combines.
    Slices(u64, Vec<Vec<Vec<u8>>>),
}

impl BlockOutputs {
    /// Makes the outputs of a block of this rank.
    pub fn own(plan: &StagePlan, tile: &Tile) -> BlockOutputs {
        match plan.reduce {
            None => BlockOutputs::tiles(plan, tile),
            Some(reduce) => {
                let groups = plan.slices(tile) / reduce.leaves;
                BlockOutputs::Groups(reduce, (0..groups).map(|_| Fold::default()).collect())
            }
        }
    }

    /// Makes the outputs of a map over `cover`, filled with zeros.
    pub fn tiles(plan: &StagePlan, cover: &Tile) -> BlockOutputs {
        let bytes =
            |index| vec![0; plan.region(index, cover).elements() as usize * plan.operands[index].dtype.size_bytes()];
        BlockOutputs::Tiles(TileOutputs::new(plan.outputs().map(bytes).collect()))
    }
}

/// A set of slices of a block: disjoint ranges in ascending order, no two of which touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::exec) struct Slices(Vec<(u64, u64)>);

impl Slices {
    /// Adds `start..end`.
    pub fn add(&mut self, start: u64, end: u64) {
        let (from, to) = (self.0.partition_point(|run| run.1 < start), self.0.partition_point(|run| run.0 <= end));
        let joined =
            self.0[from..to].iter().fold((start, end), |joined, run| (joined.0.min(run.0), joined.1.max(run.1)));
        self.0.splice(from..to, [joined]);
    }

    /// Returns the ranges of slices that are not in `other`.
    fn without(&self, other: &Slices) -> Vec<(u64, u64)> {
        let mut left = Vec::new();
        for &(start, end) in &self.0 {
            let mut from = start;
            for run in other.0.iter().filter(|run| run.1 > start && run.0 < end) {
                if run.0 > from {
                    left.push((from, run.0));
                }
                from = run.1;
            }
            if from < end {
                left.push((from, end));
            }
        }
        left
    }
}

/// The results of the tasks of a map so far.
#[derive(Debug, Default)]
pub(in crate::exec) struct TileOutputs {
    /// The bytes of each output.
    pub buffers: Vec<Vec<u8>>,
    /// The computed slices, and the written ones among them.
    pub computed: Slices,
    written: Slices,
}

/// A computed part of a block: its tile, and the bytes of each output.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::exec) struct ComputedTile {
    pub tile: Tile,
    pub results: Results,
}

impl TileOutputs {
    pub fn new(buffers: Vec<Vec<u8>>) -> TileOutputs {
        TileOutputs { buffers, ..TileOutputs::default() }
    }

    /// Takes the whole units of `block` that are computed and not written. They count as written from now on.
    pub fn take_whole_units(&mut self, plan: &StagePlan, block: &Tile) -> Vec<ComputedTile> {
        let axis = plan.task_axis(block);
        let Some(unit) = plan.unit.get(axis).copied() else { return Vec::new() };
        let offset = block.0.offset[axis];
        let mut parts = Vec::new();
        for (start, end) in self.computed.without(&self.written) {
            let first = (offset + start).next_multiple_of(unit) - offset;
            let is_last = offset + end == plan.extent(axis);
            let last = if is_last { end } else { ((offset + end) / unit * unit).saturating_sub(offset) };
            if first < last {
                self.written.add(first, last);
                parts.push(self.part(plan, block, first, last));
            }
        }
        parts
    }

    fn part(&self, plan: &StagePlan, block: &Tile, start: u64, end: u64) -> ComputedTile {
        let tile = plan.task(block, start, end - start);
        let copy = |(index, buffer): (usize, &Vec<u8>)| {
            let element_bytes = plan.operands[index].dtype.size_bytes();
            let (whole, part) = (plan.region(index, block), plan.region(index, &tile));
            let mut bytes = vec![0; part.elements() as usize * element_bytes];
            copy_region(buffer, &whole, &mut bytes, &part, &part, element_bytes);
            bytes
        };
        let results = plan.outputs().zip(&self.buffers).map(copy).collect();
        ComputedTile { tile, results }
    }

    /// Takes everything of a computed block that is not written yet.
    pub fn take_rest(&mut self, plan: &StagePlan, block: &Tile) -> Vec<ComputedTile> {
        if self.written.0.is_empty() {
            return vec![ComputedTile { tile: block.clone(), results: std::mem::take(&mut self.buffers) }];
        }
        let mut all = Slices::default();
        all.add(0, plan.slices(block));
        all.without(&self.written).into_iter().map(|(start, end)| self.part(plan, block, start, end)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::test_plans::stage;
    use crate::tensor::Region;

    /// A block that is computed in two steps is written once, whole units first, each element in its place.
    #[test]
    fn whole_units_of_a_block_and_its_rest_are_the_block() {
        for (chunk, unit) in [("", 1), (", chunk = [7, 500]", 7)] {
            let plan = stage("\"x[a,b] -> y[a,b]\"", chunk, 1);
            let output = plan.outputs().next().unwrap();
            let numbers = |region: &Region| -> Vec<u8> {
                let row = |a: u64| (0..region.extent[1]).map(move |b| (a * 500 + b + region.offset[1]) as f64);
                (region.offset[0]..region.end(0)).flat_map(row).flat_map(f64::to_le_bytes).collect()
            };
            let blocks: Vec<Tile> = plan.blocks(0).collect();
            for block in [&blocks[1], &blocks[blocks.len() - 1]] {
                let (slices, offset) = (plan.slices(block), block.0.offset[0]);
                assert!(slices > 3 * unit, "{slices}");
                let mut tiles = TileOutputs::new(vec![numbers(&plan.region(output, block))]);
                let (mut parts, middle) = (Vec::new(), slices / 2 + 1);
                for (start, end) in [(1, middle), (middle + 1, slices)] {
                    tiles.computed.add(start, end);
                    parts.extend(tiles.take_whole_units(&plan, block));
                }
                assert_eq!(parts.len(), 2);
                assert_eq!(tiles.take_whole_units(&plan, block), [], "they count as written");
                tiles.computed.add(0, slices);
                parts.extend(tiles.take_rest(&plan, block));
                parts.sort_by_key(|part| part.tile.0.offset[0]);
                let mut next = offset;
                for ComputedTile { tile, results } in &parts {
                    assert_eq!(tile.0.offset[0], next, "each slice once");
                    assert!(next % unit == 0 && (tile.0.end(0) % unit == 0 || tile.0.end(0) == 600), "{tile:?}");
                    assert!(results[0] == numbers(&plan.region(output, tile)), "{tile:?}");
                    next = tile.0.end(0);
                }
                assert_eq!(next, offset + slices);
            }
        }
    }

    #[test]
    fn ranges_join_where_they_touch() {
        let mut slices = Slices::default();
        for (start, end) in [(4, 6), (0, 1), (8, 9), (6, 8), (1, 2)] {
            slices.add(start, end);
        }
        assert_eq!(slices.0, [(0, 2), (4, 9)]);
        slices.add(1, 5);
        assert_eq!(slices.0, [(0, 9)]);
        let mut some = Slices::default();
        [(0, 1), (3, 5), (8, 12)].into_iter().for_each(|(start, end)| some.add(start, end));
        assert_eq!(slices.without(&some), [(1, 3), (5, 8)]);
        assert_eq!(slices.without(&Slices::default()), [(0, 9)]);
        assert_eq!(some.without(&slices), [(9, 12)]);
    }
}
