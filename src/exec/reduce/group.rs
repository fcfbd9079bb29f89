//! Names of the sums of a reduction.

use crate::plan::{StagePlan, Tile};

/// The name of a partial sum of a cell. `within` has the group along each reduced axis that the sum has not been taken
/// over; with all axes, it names a group and the sum of its leaves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::exec) struct GroupKey {
    pub cell: u64,
    pub within: Vec<u64>,
}

impl GroupKey {
    /// Returns the groups of a block, in their order.
    pub fn of_groups(plan: &StagePlan, block: &Tile) -> impl Iterator<Item = GroupKey> + use<> {
        let (cell, ranges) = (plan.cell(block), plan.groups(block));
        let along = ranges.last().cloned().unwrap_or(0..0);
        let before: Vec<u64> = ranges.iter().rev().skip(1).rev().map(|range| range.start).collect();
        along.map(move |group| GroupKey { cell, within: before.iter().copied().chain([group]).collect() })
    }
}
