//! Incremental saves: computed parts of a block are written while the rest is computed, so that little is lost where
//! blocks take long.

use std::time::Instant;

use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::recovery::record::{CompletionRecord, StoredAt};
use crate::exec::recovery::staging::Stagings;
use crate::exec::reduce::fold::Results;
use crate::exec::reduce::group::GroupKey;
use crate::exec::stage::stage_run::StageRun;
use crate::exec::stage::sum_recorder::{COST_PART, SAVE_INTERVAL};
use crate::exec::sync::lock;
use crate::exec::worker::block::{BlockData, BlockKey, BlockOutputs, ComputedTile};
use crate::plan::{StagePlan, Tile};

impl StageRun<'_> {
    /// Writes the computed parts of this rank's blocks in memory, if they outlive the run. `at_end` records all sums,
    /// however long that takes.
    pub(in crate::exec) fn save_parts(
        &mut self,
        comm: &mut Communicator,
        stagings: &mut Stagings,
        at_end: bool,
    ) -> Result<(), RunError> {
        let lasts = self.outputs.has_datasets() || self.reduction.is_some();
        if !lasts || !stagings.manifest.lasts() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let is_own = |key: &BlockKey| key.owner == self.owner;
        let blocks: Vec<_> =
            lock(&shared.blocks).iter().filter(|(key, _)| is_own(key)).map(|(_, b)| b.clone()).collect();
        for block in blocks {
            self.record_sums(&block, stagings, at_end);
            for ComputedTile { tile, results } in unwritten(shared.stage(), &block) {
                self.emit(comm, &tile, &results, stagings)?;
            }
        }
        Ok(())
    }
}

/// A sum of the first leaves of a group.
struct PartialSum {
    key: GroupKey,
    leaves: u64,
    results: Results,
}

fn unwritten(plan: &StagePlan, block: &BlockData) -> Vec<ComputedTile> {
    match &mut *lock(&block.outputs) {
        BlockOutputs::Tiles(tiles) => tiles.take_whole_units(plan, &block.tile),
        _ => Vec::new(),
    }
}

impl StageRun<'_> {
    /// Loads the sums that earlier runs recorded for this rank's blocks. Complete blocks go into the reduction at once.
    pub(in crate::exec) fn take_up_sums(
        &mut self,
        comm: &mut Communicator,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let (rank, shared, completed) = (comm.rank(), self.shared.clone(), self.stealing.completed().clone());
        let plan = shared.stage();
        if completed.sums.is_empty() || self.reduction.is_none() {
            return Ok(());
        }
        for block in plan.blocks(rank).filter(|block| !completed.has_cell_of(plan, block)) {
            let mut groups = Vec::new();
            for key in GroupKey::of_groups(plan, &block) {
                groups.extend(
                    completed
                        .sums
                        .load(plan, &key, |payload| stagings.manifest.payload(payload))?
                        .map(|fold| (key, fold)),
                );
            }
            if completed.sums.have(plan, &block) {
                let folds = groups.into_iter().map(|(_, fold)| fold).collect();
                let outcomes = self.reduction.as_mut().map(|reduction| reduction.add(plan, &block, folds));
                self.follow(comm, outcomes.unwrap_or_default(), stagings)?;
            } else {
                self.sums.loaded.extend(groups);
            }
        }
        Ok(())
    }

    /// Records the sums of an own block in memory that have grown; unless that takes too much of the stage's time, or
    /// the stage is so young that little would be lost.
    pub(in crate::exec) fn record_sums(&mut self, block: &BlockData, stagings: &mut Stagings, at_end: bool) {
        let (began, age) = (Instant::now(), self.started.elapsed());
        if !self.sums.records || !at_end && (age < SAVE_INTERVAL || self.sums.spent * COST_PART > age) {
            return;
        }
        let shared = self.shared.clone();
        let plan = shared.stage();
        let mut sums: Vec<PartialSum> = Vec::new();
        if let BlockOutputs::Groups(_, groups) = &*lock(&block.outputs) {
            for (group, (key, fold)) in GroupKey::of_groups(plan, &block.tile).zip(groups).enumerate() {
                let earlier = block.summed.get(group).copied().unwrap_or(0);
                let recorded = self.sums.recorded.get(&key).copied().unwrap_or(earlier);
                if let Some((leaves, sum)) = fold.so_far().filter(|(leaves, _)| *leaves > recorded) {
                    sums.push(PartialSum { key, leaves, results: sum.clone() });
                }
            }
        }
        for PartialSum { key, leaves, results } in sums {
            let (Some(mut tile), Some(along)) = (plan.cell_tile(key.cell), plan.leaves_along(&key.within, leaves))
            else {
                continue;
            };
            tile.cut_along(&along);
            let stored: Option<Vec<StoredAt>> = results.iter().map(|bytes| stagings.manifest.store(bytes)).collect();
            let Some(outputs) = stored else { return };
            stagings.manifest.record(&CompletionRecord {
                stage: plan.name.clone(),
                tile,
                outputs,
                leaves: Some(leaves),
            });
            self.sums.recorded.insert(key, leaves);
        }
        self.sums.spent += began.elapsed();
    }

    /// Forgets the recorded sums of a block that has left the memory.
    pub(in crate::exec) fn forget_sums(&mut self, block: &Tile) {
        if self.sums.recorded.is_empty() {
            return;
        }
        for key in GroupKey::of_groups(self.shared.clone().stage(), block) {
            self.sums.recorded.remove(&key);
        }
    }
}
