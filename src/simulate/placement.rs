//! Which rank has which blocks: as planned, or dealt out by chance or in turn, for comparison.

use serde::Serialize;

use crate::plan::{StagePlan, Tile};
use crate::simulate::random::{Draw, bits};
use crate::tensor::Region;

/// Who gets the blocks of a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// As the plan says.
    #[default]
    Planned,
    /// The plan's blocks are shuffled and dealt out evenly, anew for every run of a stage, as schedulers do that do not
    /// ask where data is.
    Random,
    /// The plan's blocks are dealt out in turn, in the order of their places, the same in every run of a stage.
    RoundRobin,
}

impl Placement {
    /// In how many ways the blocks of a stage are dealt out, run by run in turn.
    pub(super) fn deals(self) -> u64 {
        if self == Placement::Random { 2 } else { 1 }
    }
}

/// A block with its owner and number in the plan.
pub(super) type Dealt = (Tile, (u32, u64));

/// The blocks of a stage by rank; none: as planned.
#[derive(Debug)]
pub(super) struct BlockPlacement(pub Option<Vec<Vec<Dealt>>>);

impl BlockPlacement {
    /// `run` tells the runs of stages apart.
    pub fn new(stage: &StagePlan, ranks: u32, placement: Placement, seed: u64, run: u64) -> BlockPlacement {
        if placement == Placement::Planned {
            return BlockPlacement(None);
        }
        let of = |rank| stage.blocks(rank).zip(0..).map(move |(tile, number)| (tile, (rank, number)));
        let mut all: Vec<Dealt> = (0..ranks).flat_map(of).collect();
        all.sort_by(|(a, _), (b, _)| a.0.offset.cmp(&b.0.offset));
        if placement == Placement::Random {
            // Fisher and Yates.
            for last in (1..all.len()).rev() {
                let other = bits(seed, Draw::Placement, run, last as u64) % (last as u64 + 1);
                all.swap(last, other as usize);
            }
        }
        let mut blocks = vec![Vec::new(); ranks as usize];
        all.into_iter().enumerate().for_each(|(number, block)| blocks[number % ranks as usize].push(block));
        blocks.iter_mut().for_each(|blocks| blocks.sort_by(|(a, _), (b, _)| a.0.offset.cmp(&b.0.offset)));
        BlockPlacement(Some(blocks))
    }

    /// What `rank` reads of input `operand`, halos included; regions may overlap.
    pub fn needs(&self, stage: &StagePlan, operand: usize, rank: u32) -> Vec<Region> {
        let Some(blocks) = self.blocks(rank).filter(|_| !stage.is_broadcast(operand)) else {
            return stage.needs(operand, rank);
        };
        let regions = blocks.iter().map(|(tile, _)| stage.region(operand, tile));
        regions.flat_map(|region| stage.sources(operand, &region)).map(|part| part.source).collect()
    }

    /// What of output `operand` ends up on `rank`.
    pub fn owned(&self, stage: &StagePlan, operand: usize, rank: u32) -> Vec<Region> {
        match (self.blocks(rank), stage.reduce) {
            (None, _) => stage.owned(operand, rank),
            (Some(blocks), None) => blocks.iter().map(|(tile, _)| stage.region(operand, tile)).collect(),
            (Some(_), Some(_)) => {
                let cells = self.cells(stage).into_iter().filter(|cell| cell.last().is_some_and(|l| l.0 == rank));
                cells.filter_map(|cell| Some(stage.region(operand, &cell.last()?.1))).collect()
            }
        }
    }

    fn blocks(&self, rank: u32) -> Option<&Vec<Dealt>> {
        self.0.as_ref().map(|blocks| &blocks[rank as usize])
    }

    /// The blocks of each cell of a reduction with the ranks that have them, in the order in which their results are
    /// combined.
    pub fn cells(&self, stage: &StagePlan) -> Vec<Vec<(u32, Tile)>> {
        let blocks = self.0.iter().flat_map(|blocks| (0u32..).zip(blocks));
        let all = blocks.flat_map(|(rank, blocks)| blocks.iter().map(move |(tile, _)| (rank, tile.clone())));
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

/// Elements that lie in at least one of `boxes`.
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
