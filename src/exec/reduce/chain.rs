//! The chain of a reduction: along each reduced axis, partial results pass from rank to rank and are combined in order.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::exec::reduce::fold::{Fold, Merge, Merger, Results};
use crate::exec::reduce::group::GroupKey;
use crate::fabric::Rank;
use crate::plan::{Role, StagePlan, Tile};

/// The next step of a reduction after a partial result.
#[derive(Debug)]
pub(in crate::exec) enum ReductionStep {
    /// This rank's part of a sum is complete: the next rank continues it.
    Pass { to: Rank, bytes: Vec<u8> },
    /// A worker has to merge partial results and to return them.
    Merge(Box<MergeRequest>),
    /// A cell is complete: the bytes of its outputs.
    Complete { tile: Tile, results: Results },
}

/// Partial results that only a worker can merge, before or after it has done so.
#[derive(Debug)]
pub(in crate::exec) struct MergeRequest {
    key: GroupKey,
    /// The cell.
    pub tile: Tile,
    pub merge: Merge,
}

/// The reduction of a stage on one rank.
#[derive(Debug)]
pub(in crate::exec) struct Reduction {
    merger: Merger,
    axes: Vec<Axis>,
    /// The number of leaves of a group.
    leaves: u64,
    rank: Rank,
    sums: BTreeMap<GroupKey, Fold>,
    /// The number of sums that this rank has yet to complete.
    left: u64,
}

/// A reduced axis as this rank sees it.
#[derive(Debug)]
struct Axis {
    /// The groups of this rank, and the number of groups of all ranks.
    own: Range<u64>,
    all: u64,
    /// The distance from this rank to the next along the axis.
    stride: u32,
}

impl Reduction {
    /// Makes the reduction of a stage that reduces, on a rank that has a part in it. `is_finished` tells the cells that
    /// an earlier run has completed, if there are any.
    pub fn new(plan: &StagePlan, rank: Rank, is_finished: Option<&dyn Fn(&Tile) -> bool>) -> Option<Reduction> {
        let (reduce, grid) = (plan.reduce.as_ref()?, plan.process_grid.as_ref()?);
        let place = plan.place(rank)?;
        let axis = |axis: usize| Axis {
            own: grid.steps_of(axis, place[axis]),
            all: grid.steps[axis],
            stride: grid.stride(axis),
        };
        let first = plan.split.len() - reduce.axes;
        let axes: Vec<Axis> = (first..plan.split.len()).map(axis).collect();
        let cells: Vec<Range<u64>> = (0..first).map(|axis| grid.steps_of(axis, place[axis])).collect();
        let mut chains: u64 = cells.iter().map(|steps| steps.end - steps.start).product();
        if let Some(is_finished) = is_finished {
            let is_left = |number: &u64| {
                let cell = cell_number(&cells, &grid.steps, *number);
                plan.cell_tile(cell).is_none_or(|tile| !is_finished(&tile))
            };
            chains = (0..chains).filter(is_left).count() as u64;
        }
        let mut left = 0;
        for (level, axis) in axes.iter().enumerate() {
            // Sums of an axis come together on the last rank along the axes after it.
            if plan.is_last_along(rank, level + 1) {
                left += chains;
            }
            chains *= axis.own.end - axis.own.start;
        }
        let (merger, leaves) = (Merger::new(plan)?, reduce.leaves);
        Some(Reduction { merger, axes, leaves, rank, sums: BTreeMap::new(), left })
    }

    /// Whether every sum of this rank is done or passed on.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Takes the partial results of a block, whose leaves are all there, for each group along the last axis.
    pub fn add(&mut self, plan: &StagePlan, block: &Tile, groups: Vec<Fold>) -> Vec<ReductionStep> {
        let add = |(key, leaves): (GroupKey, Fold)| {
            self.sums.insert(key.clone(), leaves);
            self.advance(plan, key)
        };
        GroupKey::of_groups(plan, block).zip(groups).filter_map(add).collect()
    }

    /// Takes back what a worker has merged.
    pub fn merged(&mut self, plan: &StagePlan, handed: MergeRequest) -> Option<ReductionStep> {
        self.sums.get_mut(&handed.key)?.give_back(handed.merge);
        self.advance(plan, handed.key)
    }

    /// Takes what the rank before passed on. `None` if it makes no sense.
    pub fn receive(&mut self, plan: &StagePlan, bytes: &[u8]) -> Option<Vec<ReductionStep>> {
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
        rest.is_empty().then(|| self.take(plan, GroupKey { cell, within }, before, results).into_iter().collect())
    }

    /// Bytes of a message that are no tensor's.
    pub fn header_bytes(message: &[u8]) -> usize {
        let level = message.get(8..16).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
        16 + 8 * level as usize
    }

    fn take(&mut self, plan: &StagePlan, key: GroupKey, number: u64, results: Results) -> Option<ReductionStep> {
        // A sum from the rank before has the number before this rank's first one.
        let first = self.axes[key.within.len()].own.start.saturating_sub(1);
        let fold = self.sums.entry(key.clone()).or_insert_with(|| Fold::starting_at(first));
        fold.put(number, results);
        self.advance(plan, key)
    }

    /// Continues a sum as far as possible, and the sums that it is a part of.
    fn advance(&mut self, plan: &StagePlan, key: GroupKey) -> Option<ReductionStep> {
        let fold = self.sums.get_mut(&key)?;
        if let Some(mut merge) = fold.take_merge() {
            if !self.merger.merge(&mut merge) {
                let tile = plan.cell_tile(key.cell)?;
                return Some(ReductionStep::Merge(Box::new(MergeRequest { key, tile, merge })));
            }
            fold.give_back(merge);
        }
        let level = key.within.len();
        let axis = self.axes.get(level);
        let sums = fold.take_up_to(axis.map_or(self.leaves, |axis| axis.own.end))?;
        self.sums.remove(&key);
        let GroupKey { cell, mut within } = key;
        if let Some(Axis { own, all, stride }) = axis {
            self.left -= 1;
            if own.end < *all {
                let mut bytes = cell.to_le_bytes().to_vec();
                bytes.extend_from_slice(&(level as u64).to_le_bytes());
                within.iter().for_each(|group| bytes.extend_from_slice(&group.to_le_bytes()));
                sums.iter().for_each(|sum| bytes.extend_from_slice(sum));
                return Some(ReductionStep::Pass { to: self.rank + stride, bytes });
            }
        }
        match within.pop() {
            Some(group) => self.take(plan, GroupKey { cell, within }, group, sums),
            None => Some(ReductionStep::Complete { tile: plan.cell_tile(cell)?, results: sums }),
        }
    }
}

/// Returns the number of a cell among all cells. `number` counts this rank's cells, which lie in `own` along each axis.
fn cell_number(own: &[Range<u64>], steps: &[u64], mut number: u64) -> u64 {
    let (mut cell, mut stride) = (0, 1);
    for (own, steps) in own.iter().zip(steps).rev() {
        let length = own.end - own.start;
        cell += (own.start + number % length) * stride;
        number /= length;
        stride *= steps;
    }
    cell
}
