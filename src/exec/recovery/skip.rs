//! The stages that a resumed run need not run again.

use std::collections::{BTreeMap, BTreeSet};

use crate::exec::recovery::completed::CompletedTiles;
use crate::exec::recovery::snapshot::CheckpointIndex;
use crate::plan::{Origin, Plan, Role, StagePlan};

/// Returns the stages that need not run: complete ones, and those whose outputs only such stages read.
pub(in crate::exec) fn skippable(
    plan: &Plan,
    iterated: std::ops::Range<usize>,
    done: &BTreeMap<String, CompletedTiles>,
    saved: Option<&CheckpointIndex>,
) -> BTreeSet<String> {
    let next = saved.and_then(|saved| plan.stages.iter().position(|stage| stage.name == saved.stage)).unwrap_or(0);
    let is_saved = |tensor: &String| saved.is_some_and(|saved| saved.tensors.iter().any(|t| t.tensor == *tensor));
    let mut needed = vec![true; plan.stages.len()];
    for (position, stage) in plan.stages.iter().enumerate().rev() {
        let is_complete = done.get(&stage.name).is_some_and(|done| done.is_all(stage));
        let writes = |tensor: &str| stage.outputs().any(|output| stage.operands[output].tensor == tensor);
        let reads = |other: &StagePlan| other.operands.iter().any(|o| o.role == Role::Input && writes(&o.tensor));
        let vanishes = stage.outputs().all(|output| stage.operands[output].origin == Origin::Scratch);
        let is_saved_before =
            position < next && vanishes && stage.outputs().all(|o| is_saved(&stage.operands[o].tensor));
        let mut readers = plan.stages.iter().zip(&needed).filter(|(other, _)| reads(other));
        let unread = vanishes && readers.all(|(_, needed)| !needed);
        needed[position] = !(is_complete || is_saved_before || unread);
        if iterated.start == position && needed[iterated.clone()].contains(&true) {
            needed[iterated.clone()].fill(true);
        }
    }
    plan.stages.iter().zip(needed).filter(|(_, needed)| !needed).map(|(stage, _)| stage.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::recovery::snapshot::SavedTensor;
    use crate::job::Job;
    use crate::plan::{Layout, Machine, Tile, plan};
    use crate::store::{OutputLayout, Storage};
    use crate::tensor::{Dtype, Region, Shape};

    /// Plans x -> a -> b -> c -> d: b and c go into files, and no stage reads d.
    fn chain() -> Plan {
        let text = "[tensors]\nx = { file = \"i\", dataset = \"x\" }\na = { dtype = \"f64\" }\nd = { dtype = \"f64\" }\n\
                    b = { create = \"o\", dataset = \"b\", dtype = \"f64\" }\n\
                    c = { create = \"o\", dataset = \"c\", dtype = \"f64\" }\n\
                    [[stages]]\nname = \"one\"\nkernel = \"k\"\ncompute = \"x[n] -> a[n]\"\n\
                    [[stages]]\nname = \"two\"\nkernel = \"k\"\ncompute = \"a[n] -> b[n]\"\n\
                    [[stages]]\nname = \"three\"\nkernel = \"k\"\ncompute = \"b[n] -> c[n]\"\n\
                    [[stages]]\nname = \"four\"\nkernel = \"k\"\ncompute = \"c[n] -> d[n]\"\n";
        let job = Job::parse(text, "job.toml".as_ref()).unwrap();
        let layout = Layout { dtype: Dtype::F64, shape: Shape::new([900]).unwrap(), chunk: None };
        let machine = Machine { ranks: 2, ranks_per_node: 2, threads: 1, memory_bytes: 1 << 30 };
        plan(&job, &[("x".to_owned(), layout)].into(), &machine).unwrap()
    }

    fn skipped(
        iterated: std::ops::Range<usize>,
        rows: &[(&str, u64)],
        saved: Option<(&str, &[&str])>,
    ) -> Vec<&'static str> {
        let tile = |rows| Tile(Region { offset: vec![0], extent: vec![rows] });
        let done =
            rows.iter().map(|(stage, rows)| ((*stage).to_owned(), CompletedTiles::new(vec![tile(*rows)]))).collect();
        let tensor = |name: &&str| SavedTensor {
            tensor: (*name).to_owned(),
            stage: "one".to_owned(),
            operand: 1,
            layout: OutputLayout {
                temporary: "t".into(),
                dataset: (*name).to_owned(),
                dtype: Dtype::F64,
                shape: Shape::new([900]).unwrap(),
                storage: Storage::Contiguous { offset_bytes: 0 },
            },
            pieces: Vec::new(),
        };
        let saved = saved.map(|(stage, tensors)| CheckpointIndex {
            stage: stage.to_owned(),
            iteration: 0,
            file: "f".into(),
            tensors: tensors.iter().map(tensor).collect(),
        });
        let found = skippable(&chain(), iterated, &done, saved.as_ref());
        ["one", "two", "three", "four"].into_iter().filter(|stage| found.contains(*stage)).collect()
    }

    #[test]
    fn complete_stages_and_stages_that_only_they_read_are_skipped() {
        assert_eq!(skipped(0..0, &[], None), ["four"], "no stage reads its output");
        assert_eq!(skipped(0..0, &[("two", 899)], None), ["four"]);
        assert_eq!(skipped(0..0, &[("two", 900)], None), ["one", "two", "four"]);
        assert_eq!(skipped(0..0, &[("three", 900)], None), ["three", "four"], "the file of two is not complete");
    }

    #[test]
    fn stages_whose_outputs_a_checkpoint_holds_are_skipped() {
        assert_eq!(skipped(0..0, &[], Some(("two", &["a"]))), ["one", "four"]);
        assert_eq!(skipped(0..0, &[], Some(("two", &[]))), ["four"], "it is not in the checkpoint");
        assert_eq!(skipped(0..0, &[], Some(("one", &["a"]))), ["four"], "the stage comes after the checkpoint");
    }

    #[test]
    fn iterated_stages_run_together_or_not_at_all() {
        assert_eq!(skipped(0..2, &[("one", 900)], None), ["four"]);
        assert_eq!(skipped(0..2, &[("two", 900)], None), ["one", "two", "four"]);
        assert_eq!(skipped(1..3, &[("two", 900)], None), ["four"]);
        assert_eq!(skipped(1..3, &[("two", 900), ("three", 900)], None), ["one", "two", "three", "four"]);
    }
}
