//! Names of the sums of a reduction.

use crate::plan::{StagePlan, Tile};

/// A sum under way: that of a cell, along the reduced axis of this number, within the groups of the axes before it.
/// After the last axis that is the sum of a group, of its leaves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::exec) struct GroupKey {
    pub cell: u64,
    pub within: Vec<u64>,
}

impl GroupKey {
    /// The groups of a block, in their order.
    pub fn of_groups(plan: &StagePlan, block: &Tile) -> impl Iterator<Item = GroupKey> + use<> {
        let (cell, ranges) = (plan.cell(block), plan.groups(block));
        let along = ranges.last().cloned().unwrap_or(0..0);
        let before: Vec<u64> = ranges.iter().rev().skip(1).rev().map(|range| range.start).collect();
        along.map(move |group| GroupKey { cell, within: before.iter().copied().chain([group]).collect() })
    }
}
