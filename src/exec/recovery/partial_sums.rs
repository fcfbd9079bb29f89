//! Partial sums that outlive a run: of a long reduction, the sums of the first leaves of its groups are stored beside
//! the log. A later run continues each in the same order, so that the bits are the same.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::exec::error::RunError;
use crate::exec::recovery::record::{CompletionRecord, StoredAt};
use crate::exec::reduce::fold::{Fold, Results};
use crate::exec::reduce::group::GroupKey;
use crate::manifest::StoredPayload;
use crate::plan::{StagePlan, Tile};
use crate::tensor::copy_region;

/// The partial sums that earlier runs recorded for a stage, by the steps of their groups along the reduced axes. They
/// are the same on all ranks.
#[derive(Clone, Debug, Default)]
pub(in crate::exec) struct Sums(Arc<BTreeMap<Vec<u64>, Vec<Sum>>>);

#[derive(Debug)]
struct Sum {
    /// The box of its outputs. It need not be a cell of this run, as cells depend on the number of ranks.
    tile: Tile,
    /// The number of first leaves in it.
    leaves: u64,
    outputs: Vec<StoredAt>,
}

/// The sum of the first leaves of a group, in one or more boxes of outputs.
struct GroupSum<'a> {
    leaves: u64,
    parts: Vec<&'a Sum>,
}

impl Sums {
    /// Makes the partial sums of a stage from its records. Sums of groups that the plan does not have are dropped:
    /// where any order of adding gives the same bits, groups depend on the number of ranks too.
    pub fn new(plan: &StagePlan, records: &[CompletionRecord]) -> Sums {
        let mut groups: BTreeMap<Vec<u64>, Vec<Sum>> = BTreeMap::new();
        for CompletionRecord { tile, outputs, leaves, .. } in records {
            let Some(leaves) = *leaves else { continue };
            let group: Vec<u64> = plan.groups(tile).into_iter().map(|range| range.start).collect();
            if plan.leaves_along(&group, leaves).is_some_and(|along| tile.is_along(&along)) {
                let (mut tile, outputs) = (tile.clone(), outputs.clone());
                plan.widen(&mut tile);
                groups.entry(group).or_default().push(Sum { tile, leaves, outputs });
            }
        }
        groups.values_mut().for_each(|sums| sums.sort_by_key(|sum| Reverse(sum.leaves)));
        Sums(groups.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the sums that together are the sum of the most first leaves of a group.
    fn of_group(&self, plan: &StagePlan, key: &GroupKey) -> Option<GroupSum<'_>> {
        let (sums, cell) = (self.0.get(&key.within)?, plan.cell_tile(key.cell)?);
        sums.chunk_by(|a, b| a.leaves == b.leaves).find_map(|alike| {
            let (mut left, mut parts) = (vec![cell.0.clone()], Vec::new());
            for sum in alike.iter().filter(|sum| sum.tile.0.intersect(&cell.0).is_some()) {
                left = left.iter().flat_map(|part| part.without(&sum.tile.0)).collect();
                parts.push(sum);
            }
            left.is_empty().then_some(GroupSum { leaves: alike[0].leaves, parts })
        })
    }

    /// By group of a block, the number of its first leaves that are summed; empty if the stage has no partial sums.
    pub fn leaves(&self, plan: &StagePlan, block: &Tile) -> Vec<u64> {
        if self.is_empty() {
            return Vec::new();
        }
        GroupKey::of_groups(plan, block).map(|key| self.of_group(plan, &key).map_or(0, |sum| sum.leaves)).collect()
    }

    /// Whether all leaves of a block are summed.
    pub fn have(&self, plan: &StagePlan, block: &Tile) -> bool {
        let whole = |leaves: &u64| plan.reduce.is_some_and(|reduce| *leaves == reduce.leaves);
        let leaves = self.leaves(plan, block);
        !leaves.is_empty() && leaves.iter().all(whole)
    }

    /// Loads the sum of a group, to continue it. `read` reads stored bytes; it is an error if they are gone.
    pub fn load(
        &self,
        plan: &StagePlan,
        key: &GroupKey,
        read: impl Fn(&StoredPayload) -> Option<Vec<u8>>,
    ) -> Result<Option<Fold>, RunError> {
        let (Some(GroupSum { leaves, parts }), Some(cell)) = (self.of_group(plan, key), plan.cell_tile(key.cell))
        else {
            return Ok(None);
        };
        let mut results = Results::new();
        for (number, output) in plan.outputs().enumerate() {
            let (element_bytes, whole) = (plan.operands[output].dtype.size_bytes(), plan.region(output, &cell));
            let mut bytes = vec![0; whole.elements() as usize * element_bytes];
            for part in &parts {
                let lost = || RunError::Lost { tensor: plan.operands[output].tensor.clone() };
                let region = plan.region(output, &part.tile);
                let stored = part.outputs.get(number).and_then(|stored| match stored {
                    StoredAt::Beside(payload) => read(payload),
                    StoredAt::InPlace(_) => None,
                });
                let stored = stored.ok_or_else(lost)?;
                if stored.len() as u64 != region.elements() * element_bytes as u64 {
                    return Err(lost());
                }
                if let Some(common) = region.intersect(&whole) {
                    copy_region(&stored, &region, &mut bytes, &whole, &common, element_bytes);
                }
            }
            results.push(bytes);
        }
        Ok(Some(Fold::continuing(leaves, results)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::test_plans::stage_on;

    fn stage(ranks: u32) -> StagePlan {
        stage_on([4_000_000, 90], "\"x[a,b] -> y[b]\"\ncombine = \"sum\"", "", ranks)
    }

    /// A record of each group of the stage with so many leaves, on so many ranks.
    fn records(ranks: u32, leaves: impl Fn(&GroupKey) -> u64) -> Vec<CompletionRecord> {
        let plan = stage(ranks);
        let blocks = (0..ranks).flat_map(|rank| plan.blocks(rank).collect::<Vec<_>>());
        let record = |key: GroupKey| {
            let leaves = leaves(&key);
            let mut tile = plan.cell_tile(key.cell).unwrap();
            tile.cut_along(&plan.leaves_along(&key.within, leaves)?);
            (leaves > 0).then(|| CompletionRecord {
                stage: "y".into(),
                tile,
                outputs: Vec::new(),
                leaves: Some(leaves),
            })
        };
        blocks.flat_map(|block| GroupKey::of_groups(&plan, &block)).filter_map(record).collect()
    }

    #[test]
    fn partial_sums_count_on_any_number_of_ranks() {
        let of = stage(2).reduce.unwrap().leaves;
        assert!(of > 1, "{of}");
        let whole = records(2, |_| of);
        let other = |key: &GroupKey| if key.within == [3] { of - 1 } else { of };
        let without_a_leaf = records(2, other);
        let without_a_piece = records(2, |key| if key.within == [3] && key.cell == 0 { 0 } else { of });
        assert!(without_a_piece.len() + 1 == whole.len());
        for ranks in [1, 2, 3, 7] {
            let plan = stage(ranks);
            let blocks: Vec<Tile> = (0..ranks).flat_map(|rank| plan.blocks(rank).collect::<Vec<_>>()).collect();
            let leaves = |records: &[CompletionRecord]| -> BTreeMap<GroupKey, u64> {
                let sums = Sums::new(&plan, records);
                let of_block = |block| GroupKey::of_groups(&plan, block).zip(sums.leaves(&plan, block));
                blocks.iter().flat_map(of_block).collect()
            };
            assert!(leaves(&whole).values().all(|leaves| *leaves == of), "{ranks}");
            let sums = Sums::new(&plan, &whole);
            assert!(blocks.iter().all(|block| sums.have(&plan, block)));
            assert!(leaves(&without_a_leaf).iter().all(|(key, leaves)| *leaves == other(key)), "{ranks}");
            let missing = leaves(&without_a_piece);
            assert!(missing.iter().all(|(key, leaves)| *leaves == of || (*leaves == 0 && key.within == [3])));
            assert!(missing.values().any(|leaves| *leaves == 0), "{ranks}");
            // The sum with the most leaves counts, in whatever order they were noted.
            assert_eq!(leaves(&[&whole[..], &without_a_leaf[..]].concat()), leaves(&whole));
            assert_eq!(leaves(&[&without_a_leaf[..], &whole[..]].concat()), leaves(&whole));
        }
    }

    #[test]
    fn sums_of_groups_that_the_plan_does_not_have_are_dropped() {
        let plan = stage(2);
        let mut records = records(2, |_| 1);
        records.iter_mut().for_each(|record| record.tile.0.extent[1] += 1);
        assert!(Sums::new(&plan, &records).is_empty());
        records.iter_mut().for_each(|record| record.leaves = Some(1 << 40));
        assert!(Sums::new(&plan, &records).is_empty());
    }
}
