//! The way of partial results: from each part of the reduction axis to the next, where they are combined in order.

use std::collections::BTreeMap;
use std::ops::Range;

use super::combine::Fold;
use crate::fabric::Rank;
use crate::job::Combine;
use crate::plan::{Role, StagePlan, Tile};

/// One cell of the outputs on this rank: the sum of its groups so far, by output.
type Cell = Vec<Fold>;

/// What has become of a cell.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing yet.
    Waiting,
    /// This rank's groups are in: the next rank goes on with them.
    Pass { to: Rank, bytes: Vec<u8> },
    /// All groups are in: the outputs' bytes.
    Done(Vec<Vec<u8>>),
}

/// The reduction of a stage on one rank.
#[derive(Debug)]
pub(super) struct Reduction {
    combine: Combine,
    /// Groups of this rank, and of all ranks.
    groups: Range<u64>,
    group_count: u64,
    rank: Rank,
    cells: BTreeMap<u64, Cell>,
    cells_left: u64,
}

impl Reduction {
    /// `blocks` are this rank's, of a stage that reduces.
    pub fn new(plan: &StagePlan, combine: Combine, rank: Rank, blocks: &[Tile]) -> Reduction {
        let first = blocks.iter().map(|block| plan.group(block)).min().unwrap_or(0);
        let end = blocks.iter().map(|block| plan.group(block) + 1).max().unwrap_or(0);
        let cells_left = if blocks.is_empty() { 0 } else { blocks.len() as u64 / (end - first) };
        let group_count = plan.grid.last().copied().unwrap_or(0);
        Reduction { combine, groups: first..end, group_count, rank, cells: BTreeMap::new(), cells_left }
    }

    /// Whether every cell of this rank is done or passed on.
    pub fn is_complete(&self) -> bool {
        self.cells_left == 0
    }

    /// Takes the partial results of a block, one per output.
    pub fn add(&mut self, plan: &StagePlan, block: &Tile, results: Vec<Vec<u8>>) -> Outcome {
        self.take(plan, plan.cell(block), plan.group(block), results)
    }

    /// Takes what the rank before passed on. `None` if it makes no sense.
    pub fn receive(&mut self, plan: &StagePlan, bytes: &[u8]) -> Option<(Tile, Outcome)> {
        let (cell, mut rest) = bytes.split_first_chunk::<8>()?;
        let cell = u64::from_le_bytes(*cell);
        let tile = plan.cell_tile(cell)?;
        let mut results = Vec::new();
        for (operand, output) in plan.operands.iter().enumerate().filter(|(_, operand)| operand.role == Role::Output) {
            let length = plan.region(operand, &tile).elements() as usize * output.dtype.size_bytes();
            let (bytes, after) = rest.split_at_checked(length)?;
            results.push(bytes.to_vec());
            rest = after;
        }
        let before = self.groups.start.checked_sub(1).filter(|_| rest.is_empty())?;
        Some((tile, self.take(plan, cell, before, results)))
    }

    fn take(&mut self, plan: &StagePlan, cell: u64, group: u64, results: Vec<Vec<u8>>) -> Outcome {
        // What comes from the rank before has the number before this rank's first.
        let first = self.groups.start.saturating_sub(1);
        let folds =
            self.cells.entry(cell).or_insert_with(|| results.iter().map(|_| Fold::starting_at(first)).collect());
        let outputs = plan.operands.iter().filter(|operand| operand.role == Role::Output);
        for ((fold, output), bytes) in folds.iter_mut().zip(outputs).zip(results) {
            fold.add(group, bytes, self.combine, output.dtype);
        }
        let end = self.groups.end;
        let Some(sums) = folds.iter_mut().map(|fold| fold.take_up_to(end)).collect::<Option<Vec<_>>>() else {
            return Outcome::Waiting;
        };
        self.cells.remove(&cell);
        self.cells_left -= 1;
        if end == self.group_count {
            return Outcome::Done(sums);
        }
        let mut bytes = cell.to_le_bytes().to_vec();
        sums.iter().for_each(|sum| bytes.extend_from_slice(sum));
        Outcome::Pass { to: self.rank + 1, bytes }
    }
}
