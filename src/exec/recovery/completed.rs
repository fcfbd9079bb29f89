//! Completed work of a stage: boxes of its split indices whose outputs are stored, and the work that is left.

use crate::exec::recovery::partial_sums::Sums;
use crate::fabric::Rank;
use crate::plan::{StagePlan, Tile};

/// Completed boxes of a stage, which do not overlap; and, in a reduction, partial sums of its other cells.
#[derive(Clone, Debug, Default)]
pub(in crate::exec) struct CompletedTiles {
    tiles: Vec<Tile>,
    pub sums: Sums,
}

impl CompletedTiles {
    pub fn new(mut tiles: Vec<Tile>) -> CompletedTiles {
        // Adjacent boxes of one shape are joined: blocks are completed in rows.
        for axis in (0..tiles.first().map_or(0, |tile| tile.0.rank())).rev() {
            let others = |tile: &Tile| -> Vec<(u64, u64)> {
                let dims = (0..tile.0.rank()).filter(|dim| *dim != axis);
                dims.map(|dim| (tile.0.offset[dim], tile.0.extent[dim])).collect()
            };
            tiles.sort_by_cached_key(|tile| (others(tile), tile.0.offset[axis]));
            let mut joined: Vec<Tile> = Vec::with_capacity(tiles.len());
            for tile in tiles {
                match joined.last_mut() {
                    Some(last) if last.0.end(axis) == tile.0.offset[axis] && others(last) == others(&tile) => {
                        last.0.extent[axis] += tile.0.extent[axis];
                    }
                    _ => joined.push(tile),
                }
            }
            tiles = joined;
        }
        CompletedTiles { tiles, sums: Sums::default() }
    }

    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// Whether the whole stage is complete.
    pub fn is_all(&self, plan: &StagePlan) -> bool {
        let all: u64 = (0..plan.split.len()).map(|axis| plan.extent(axis)).product();
        all > 0 && self.tiles.iter().map(|tile| tile.0.elements()).sum::<u64>() == all
    }

    /// Whether the cell of a reduction that `block` belongs to is complete.
    pub fn has_cell_of(&self, plan: &StagePlan, block: &Tile) -> bool {
        !self.tiles.is_empty() && plan.cell_tile(plan.cell(block)).is_some_and(|cell| self.has(&cell))
    }

    /// Whether one of the boxes contains `tile`.
    pub fn has(&self, tile: &Tile) -> bool {
        self.tiles.iter().any(|done| done.0.contains(&tile.0))
    }

    /// Returns the parts of the blocks of `rank` that are not complete: boxes of whole units, like the completed ones.
    /// A block of a reduction is left as a whole or not at all; some of its leaves may be summed.
    pub fn blocks_left(&self, plan: &StagePlan, rank: Rank) -> Vec<Tile> {
        let blocks = plan.blocks(rank);
        if plan.reduce.is_some() {
            let is_left = |block: &Tile| !self.has_cell_of(plan, block) && !self.sums.have(plan, block);
            return blocks.filter(is_left).collect();
        }
        if self.tiles.is_empty() {
            return blocks.collect();
        }
        let left = |block: Tile| {
            self.tiles
                .iter()
                .fold(vec![block.0], |left, done| left.iter().flat_map(|part| part.without(&done.0)).collect())
        };
        blocks.flat_map(left).map(Tile).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::test_plans::stage;
    use crate::tensor::Region;

    fn tile(offset: &[u64], extent: &[u64]) -> Tile {
        Tile(Region { offset: offset.to_vec(), extent: extent.to_vec() })
    }

    #[test]
    fn adjacent_boxes_are_joined() {
        let rows = (0..4).map(|row| tile(&[2 * row, 0], &[2, 5]));
        assert_eq!(CompletedTiles::new(rows.rev().collect()).tiles(), [tile(&[0, 0], &[8, 5])]);
        let apart = vec![tile(&[0, 0], &[1, 5]), tile(&[2, 0], &[1, 5]), tile(&[3, 0], &[1, 4])];
        assert_eq!(CompletedTiles::new(apart).tiles().len(), 3);
    }

    #[test]
    fn completed_and_remaining_boxes_cover_the_stage_once_on_any_number_of_ranks() {
        for (compute, name) in
            [("\"x[a,b] -> y[a,b]\"", "map"), ("\"x[a~1,b~1] -> y[a,b]\"\nboundary = \"zero\"", "halo")]
        {
            let before = stage(compute, "", 3);
            let blocks: Vec<Tile> = (0..3).flat_map(|rank| before.blocks(rank)).collect();
            assert!(blocks.len() > 6, "{name}: {}", blocks.len());
            let done = CompletedTiles::new(blocks.into_iter().step_by(2).collect());
            assert!(!done.is_all(&before));
            for ranks in [1, 2, 7] {
                let now = stage(compute, "", ranks);
                let left: Vec<Tile> = (0..ranks).flat_map(|rank| done.blocks_left(&now, rank)).collect();
                let all: Vec<&Tile> = left.iter().chain(done.tiles()).collect();
                assert_eq!(all.iter().map(|tile| tile.0.elements()).sum::<u64>(), 600 * 500, "{name}, {ranks}");
                for (at, tile) in all.iter().enumerate() {
                    assert!(all[..at].iter().all(|other| other.0.intersect(&tile.0).is_none()), "{name}, {ranks}");
                }
                let everything = CompletedTiles::new(all.into_iter().cloned().collect());
                assert!((0..ranks).all(|rank| everything.blocks_left(&now, rank).is_empty()));
            }
        }
    }

    #[test]
    fn cells_of_a_reduction_are_complete_as_a_whole() {
        let plan = stage("\"x[a,b] -> y[a]\"\ncombine = \"sum\"", "", 2);
        let cells: Vec<Tile> = (0..).map_while(|cell| plan.cell_tile(cell)).collect();
        assert!(cells.len() > 1, "{}", cells.len());
        let mut part = cells[0].clone();
        part.0.extent[1] -= 1;
        let left =
            |done: Vec<Tile>| (0..2).map(|rank| CompletedTiles::new(done.clone()).blocks_left(&plan, rank).len()).sum();
        let (all, without_a_part, without_a_cell): (usize, usize, usize) =
            (left(vec![]), left(vec![part]), left(vec![cells[0].clone()]));
        assert!(without_a_part == all && without_a_cell < all, "{all} {without_a_part} {without_a_cell}");
        assert!(CompletedTiles::new(cells).is_all(&plan));
    }
}
