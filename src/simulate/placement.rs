//! The placement of blocks on ranks: planned, or random or round-robin for comparison.

use serde::Serialize;

use crate::plan::{StagePlan, Tile};
use crate::simulate::random::{Draw, bits};
use crate::tensor::Region;

/// The rule by which the blocks of a stage are placed on ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// The placement of the plan.
    #[default]
    Planned,
    /// The plan's blocks are shuffled and distributed evenly, again for every run of a stage, as by a scheduler that
    /// ignores where data is.
    Random,
    /// The plan's blocks are distributed round-robin in the order of their offsets, the same in every run of a stage.
    RoundRobin,
}

impl Placement {
    /// Number of placements between which the runs of a stage alternate.
    pub(super) fn alternatives(self) -> u64 {
        if self == Placement::Random { 2 } else { 1 }
    }
}

/// Owner and number of a block in the plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedBlock {
    pub owner: u32,
    pub number: u64,
}

/// A block that is placed on a rank.
#[derive(Clone, Debug)]
pub(super) struct PlacedBlock {
    pub tile: Tile,
    pub planned: PlannedBlock,
}

/// The placement of the blocks of a stage.
#[derive(Debug)]
pub(super) struct BlockPlacement {
    /// Blocks by rank; `None` if they are placed as planned.
    pub blocks: Option<Vec<Vec<PlacedBlock>>>,
}

impl BlockPlacement {
    /// Places the blocks of `stage`. `run` distinguishes runs of stages.
    pub fn new(stage: &StagePlan, ranks: u32, placement: Placement, seed: u64, run: u64) -> BlockPlacement {
        if placement == Placement::Planned {
            return BlockPlacement { blocks: None };
        }
        let of = |owner| {
            let place = move |(tile, number)| PlacedBlock { tile, planned: PlannedBlock { owner, number } };
            stage.blocks(owner).zip(0..).map(place)
        };
        let mut all: Vec<PlacedBlock> = (0..ranks).flat_map(of).collect();
        all.sort_by(|a, b| a.tile.0.offset.cmp(&b.tile.0.offset));
        if placement == Placement::Random {
            // The shuffle of Fisher and Yates.
            for last in (1..all.len()).rev() {
                let other = bits(seed, Draw::Placement, run, last as u64) % (last as u64 + 1);
                all.swap(last, other as usize);
            }
        }
        let mut blocks = vec![Vec::new(); ranks as usize];
        all.into_iter().enumerate().for_each(|(number, block)| blocks[number % ranks as usize].push(block));
        blocks.iter_mut().for_each(|blocks| blocks.sort_by(|a, b| a.tile.0.offset.cmp(&b.tile.0.offset)));
        BlockPlacement { blocks: Some(blocks) }
    }

    /// The regions of input `operand` that `rank` reads, halos included; they may overlap.
    pub fn needs(&self, stage: &StagePlan, operand: usize, rank: u32) -> Vec<Region> {
        let Some(blocks) = self.blocks(rank).filter(|_| !stage.is_broadcast(operand)) else {
            return stage.needs(operand, rank);
        };
        let regions = blocks.iter().map(|block| stage.region(operand, &block.tile));
        regions.flat_map(|region| stage.sources(operand, &region)).map(|part| part.source).collect()
    }

    /// The regions of output `operand` that end up on `rank`.
    pub fn owned(&self, stage: &StagePlan, operand: usize, rank: u32) -> Vec<Region> {
        match (self.blocks(rank), stage.reduce) {
            (None, _) => stage.owned(operand, rank),
            (Some(blocks), None) => blocks.iter().map(|block| stage.region(operand, &block.tile)).collect(),
            (Some(_), Some(_)) => {
                let cells = self.cells(stage).into_iter().filter(|cell| cell.last().is_some_and(|l| l.0 == rank));
                cells.filter_map(|cell| Some(stage.region(operand, &cell.last()?.1))).collect()
            }
        }
    }

    fn blocks(&self, rank: u32) -> Option<&Vec<PlacedBlock>> {
        self.blocks.as_ref().map(|blocks| &blocks[rank as usize])
    }

    /// The blocks of each cell of a reduction with their ranks, in the order in which their results are combined.
    pub fn cells(&self, stage: &StagePlan) -> Vec<Vec<(u32, Tile)>> {
        let blocks = self.blocks.iter().flat_map(|blocks| (0u32..).zip(blocks));
        let all = blocks.flat_map(|(rank, blocks)| blocks.iter().map(move |block| (rank, block.tile.clone())));
        let key = |tile: &Tile| {
            let starts: Vec<u64> = stage.groups(tile).iter().map(|groups| groups.start).collect();
            (stage.cell(tile), starts)
        };
        let mut all: Vec<(u32, Tile)> = all.collect();
        all.sort_by_cached_key(|(_, tile)| key(tile));
        let same = |a: &(u32, Tile), b: &(u32, Tile)| stage.cell(&a.1) == stage.cell(&b.1);
        all.chunk_by(same).map(<[_]>::to_vec).collect()
    }
}

/// Number of elements that lie in at least one of `boxes`.
pub(super) fn covered(boxes: &[Region]) -> u64 {
    match boxes {
        [] => return 0,
        [only] => return only.elements(),
        _ => {}
    }
    let rank = boxes[0].rank();
    fn sweep(boxes: &[&Region], dim: usize, rank: usize) -> u64 {
        if boxes.is_empty() || dim == rank {
            return u64::from(!boxes.is_empty());
        }
        let mut cuts: Vec<u64> = boxes.iter().flat_map(|b| [b.offset[dim], b.end(dim)]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let slab = |pair: &[u64]| {
            let inside: Vec<&Region> =
                boxes.iter().filter(|b| b.offset[dim] <= pair[0] && b.end(dim) >= pair[1]).copied().collect();
            (pair[1] - pair[0]) * sweep(&inside, dim + 1, rank)
        };
        cuts.windows(2).map(slab).sum()
    }
    sweep(&boxes.iter().filter(|b| b.elements() > 0).collect::<Vec<_>>(), 0, rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_count_once() {
        let region = |offset: [u64; 2], extent: [u64; 2]| Region { offset: offset.into(), extent: extent.into() };
        assert_eq!(covered(&[]), 0);
        assert_eq!(covered(&[region([0, 0], [3, 4])]), 12);
        assert_eq!(covered(&[region([0, 0], [3, 4]), region([2, 2], [2, 4]), region([9, 9], [0, 1])]), 12 + 8 - 2);
        assert_eq!(covered(&[Region::default(), Region::default()]), 1);
    }
}
