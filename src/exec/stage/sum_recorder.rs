//! The partial sums of a stage that outlive the run, on this rank.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::exec::reduce::fold::Fold;
use crate::exec::reduce::group::GroupKey;
use crate::exec::worker::block::BlockOutputs;
use crate::plan::{StagePlan, Tile};

/// The time between two saves: roughly the computed work that a failure may cost.
pub(in crate::exec) const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Recording sums takes at most this part of a stage's time.
pub(in crate::exec) const COST_PART: u32 = 20;

/// The partial sums of one rank in a run of a stage: those that earlier runs left, and those that it records.
#[derive(Debug, Default)]
pub(in crate::exec) struct SumRecorder {
    /// Whether sums are recorded.
    pub(super) records: bool,
    /// Sums of earlier runs, of groups of blocks that are not in memory yet.
    pub(super) loaded: BTreeMap<GroupKey, Fold>,
    /// The number of leaves in the last recorded sum, of groups of blocks in memory.
    pub(super) recorded: BTreeMap<GroupKey, u64>,
    /// Time spent on recording.
    pub(super) spent: Duration,
}

impl SumRecorder {
    /// Makes a recorder for a reduction whose sums are recorded.
    pub fn recording() -> SumRecorder {
        SumRecorder { records: true, ..SumRecorder::default() }
    }

    /// Makes the outputs of an own block, with the sums of earlier runs in them.
    pub fn outputs(&mut self, plan: &StagePlan, block: &Tile) -> BlockOutputs {
        let mut outputs = BlockOutputs::own(plan, block);
        if let BlockOutputs::Groups(_, groups) = &mut outputs
            && !self.loaded.is_empty()
        {
            for (key, group) in GroupKey::of_groups(plan, block).zip(groups) {
                if let Some(fold) = self.loaded.remove(&key) {
                    *group = fold;
                }
            }
        }
        outputs
    }
}
