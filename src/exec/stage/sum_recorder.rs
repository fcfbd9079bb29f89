//! What a stage of this rank keeps about partial sums that outlive the run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::exec::reduce::fold::Fold;
use crate::exec::reduce::group::GroupKey;
use crate::exec::worker::block::BlockOutputs;
use crate::plan::{StagePlan, Tile};

/// How much of a run may be lost because it was not written yet, roughly.
pub(in crate::exec) const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Recording sums takes at most this part of a stage's time.
pub(in crate::exec) const COST_PART: u32 = 20;

/// The partial sums of one rank in a run of a stage: those that earlier runs left, and those that it records.
#[derive(Debug, Default)]
pub(in crate::exec) struct SumRecorder {
    /// Whether sums are noted.
    pub(super) notes: bool,
    /// Of groups of blocks that are not in memory yet.
    pub(super) loaded: BTreeMap<GroupKey, Fold>,
    /// Leaves that are in what is noted, of groups of blocks in memory.
    pub(super) noted: BTreeMap<GroupKey, u64>,
    pub(super) spent: Duration,
}

impl SumRecorder {
    /// Of a reduction whose sums are noted.
    pub fn noting() -> SumRecorder {
        SumRecorder { notes: true, ..SumRecorder::default() }
    }

    /// The outputs of an own block, with what is summed of them.
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
