//! The way of partial results: along each reduced axis from one part to the next, where they are combined in order.

use std::collections::BTreeMap;
use std::ops::Range;

use super::combine::{Fold, Merger};
use crate::fabric::Rank;
use crate::plan::{Role, StagePlan, Tile};

/// A sum under way: that of a cell, along the reduced axis of this number, within the groups of the axes before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    cell: u64,
    within: Vec<u64>,
}

/// What follows from a partial result.
#[derive(Debug)]
pub(super) enum Outcome {
    /// This rank's part of a sum is complete: the next rank goes on with it.
    Pass { to: Rank, bytes: Vec<u8> },
    /// All of a cell is in: the outputs' bytes.
    Done { tile: Tile, results: Vec<Vec<u8>> },
}

/// The reduction of a stage on one rank.
#[derive(Debug)]
pub(super) struct Reduction {
    merger: Merger,
    axes: Vec<Axis>,
    rank: Rank,
    sums: BTreeMap<Key, Fold>,
    /// Sums that this rank has yet to complete.
    left: u64,
}

/// A reduced axis as this rank sees it.
#[derive(Debug)]
struct Axis {
    /// Groups of this rank, and of all ranks.
    own: Range<u64>,
    all: u64,
    /// From this rank to the next along the axis.
    stride: u32,
}

impl Reduction {
    /// Of a stage that reduces; none on ranks without a part in it.
    pub fn new(plan: &StagePlan, rank: Rank) -> Option<Reduction> {
        let (reduce, grid) = (plan.reduce.as_ref()?, plan.process_grid.as_ref()?);
        let place = plan.place(rank)?;
        let axis = |axis: usize| Axis {
            own: grid.steps_of(axis, place[axis]),
            all: grid.steps[axis],
            stride: grid.stride(axis),
        };
        let first = plan.split.len() - reduce.axes;
        let axes: Vec<Axis> = (first..plan.split.len()).map(axis).collect();
        let mut chains: u64 =
            (0..first).map(|axis| grid.steps_of(axis, place[axis])).map(|steps| steps.end - steps.start).product();
        let mut left = 0;
        for (level, axis) in axes.iter().enumerate() {
            // Sums of an axis come together on the last rank along the axes after it.
            if plan.is_last_along(rank, level + 1) {
                left += chains;
            }
            chains *= axis.own.end - axis.own.start;
        }
        Some(Reduction { merger: Merger::new(plan)?, axes, rank, sums: BTreeMap::new(), left })
    }

    /// Whether every sum of this rank is done or passed on.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Takes the partial results of a block: for each group along the last axis one per output.
    pub fn add(&mut self, plan: &StagePlan, block: &Tile, groups: Vec<Vec<Vec<u8>>>) -> Vec<Outcome> {
        let ranges = plan.groups(block);
        let Some((along, before)) = ranges.split_last() else { return Vec::new() };
        let within: Vec<u64> = before.iter().map(|range| range.start).collect();
        let key = Key { cell: plan.cell(block), within };
        let take = |(group, results)| self.take(plan, key.clone(), group, results);
        along.clone().zip(groups).filter_map(take).collect()
    }

    /// Takes what the rank before passed on. `None` if it makes no sense.
    pub fn receive(&mut self, plan: &StagePlan, bytes: &[u8]) -> Option<Vec<Outcome>> {
        let word = |bytes: &mut &[u8]| {
            let (word, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Some(u64::from_le_bytes(*word))
        };
        let mut rest = bytes;
        let (cell, level) = (word(&mut rest)?, word(&mut rest)?);
        let within = (0..level.min(self.axes.len() as u64)).map(|_| word(&mut rest)).collect::<Option<Vec<_>>>()?;
        let before = self.axes.get(within.len())?.own.start.checked_sub(1)?;
        let tile = plan.cell_tile(cell)?;
        let mut results = Vec::new();
        for (operand, output) in plan.operands.iter().enumerate().filter(|(_, operand)| operand.role == Role::Output) {
            let length = plan.region(operand, &tile).elements() as usize * output.dtype.size_bytes();
            let (bytes, after) = rest.split_at_checked(length)?;
            results.push(bytes.to_vec());
            rest = after;
        }
        rest.is_empty().then(|| self.take(plan, Key { cell, within }, before, results).into_iter().collect())
    }

    /// Bytes of a message that are no tensor's.
    pub fn header_bytes(message: &[u8]) -> usize {
        let level = message.get(8..16).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
        16 + 8 * level as usize
    }

    fn take(&mut self, plan: &StagePlan, key: Key, number: u64, results: Vec<Vec<u8>>) -> Option<Outcome> {
        let level = key.within.len();
        let Axis { own, all, stride } = &self.axes[level];
        // What comes from the rank before has the number before this rank's first.
        let first = own.start.saturating_sub(1);
        let fold = self.sums.entry(key.clone()).or_insert_with(|| Fold::starting_at(first));
        fold.add(number, results, &self.merger);
        let sums = fold.take_up_to(own.end)?;
        let (own_end, all, to) = (own.end, *all, self.rank + stride);
        self.sums.remove(&key);
        self.left -= 1;
        let Key { cell, mut within } = key;
        if own_end < all {
            let mut bytes = cell.to_le_bytes().to_vec();
            bytes.extend_from_slice(&(level as u64).to_le_bytes());
            within.iter().for_each(|group| bytes.extend_from_slice(&group.to_le_bytes()));
            sums.iter().for_each(|sum| bytes.extend_from_slice(sum));
            return Some(Outcome::Pass { to, bytes });
        }
        match within.pop() {
            Some(group) => self.take(plan, Key { cell, within }, group, sums),
            None => Some(Outcome::Done { tile: plan.cell_tile(cell)?, results: sums }),
        }
    }
}
