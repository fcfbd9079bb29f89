//! Notes for the user on a stage: idle ranks, data read more than once, chunks that do not fit each other.

use super::footprint::Footprint;
use super::tiling::Space;
use crate::job::Why;
use crate::plan::model::{IndexPlan, Role, StagePlan};

/// Adds a note on inputs that are read several times because they lack a split index, if they are much of the reading.
pub(super) fn note_rereads(plan: &mut StagePlan, split: &[(usize, Footprint)], block_sums: &[u128]) {
    for ((position, _), sum) in split.iter().zip(block_sums) {
        let operand = &plan.operands[*position];
        let times = sum / u128::from(operand.bytes().max(1));
        let much = sum * 8 > u128::from(plan.bytes.read);
        let streamed = operand.is_stored() && !operand.resident && !plan.is_held(*position);
        if operand.role == Role::Input && streamed && times > 1 && much {
            plan.notes.push(format!("{} is read {times} times: it lacks a split index", operand.tensor));
        }
    }
}

/// Returns a note for a stage that combines without naming the indices to reduce.
pub(super) fn undecided(indices: &[IndexPlan]) -> Option<String> {
    let names = indices.iter().filter(|index| index.why == Why::Undecided).map(|index| index.name.as_str());
    let names: Vec<&str> = names.collect();
    let list = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let note = || {
        format!(
            "every task gets all of {}, since there is no 'reduce' to say which of them may be cut: reduce = [{list}], less \
             those that the kernel needs as wholes, would spread the work",
            names.join(", ")
        )
    };
    (!names.is_empty()).then(note)
}

impl StagePlan {
    /// Returns a note if the stage combines without naming which of several indices to reduce.
    pub fn undecided(&self) -> Option<String> {
        undecided(&self.indices)
    }
}

pub(super) fn note_idle(plan: &mut StagePlan, busy: u32) {
    let idle = plan.ranks - busy;
    let units = plan.units();
    if plan.split.is_empty() {
        plan.notes.push("no index is cut: everything is one task on rank 0".to_owned());
    } else if units == 0 {
        plan.notes.push("a split index has extent 0: there is nothing to compute".to_owned());
    } else if idle > 0 {
        let unit = plan.extents_text(&plan.unit);
        plan.notes.push(format!("{idle} of {} ranks are idle: there are {units} units of {unit}", plan.ranks));
    }
}

/// Adds a note on chunks that do not divide each other: they meet only at their least common multiple, and so do units.
pub(super) fn note_chunks(plan: &mut StagePlan, space: &Space) {
    for (axis, aligned) in space.aligned.iter().enumerate() {
        let index = plan.split[axis];
        let name = &plan.indices[index].name;
        let mut largest = 0;
        let mut list: Vec<String> = Vec::new();
        for operand in &plan.operands {
            let Some(dim) = operand.dims.iter().position(|dim| *dim == index) else { continue };
            if let (Some(along), Some(chunk)) = (operand.chunk_along(dim), &operand.chunk) {
                largest = largest.max(along.min(space.extents[axis]));
                let tensor = match operand.scale[dim] {
                    1 => operand.tensor.clone(),
                    scale => format!("{}, {scale} to each {name}", operand.tensor),
                };
                list.push(format!("{} ({tensor})", chunk[dim].min(operand.shape[dim])));
            }
        }
        if largest > 0 && *aligned > largest {
            let list = list.join(" and ");
            plan.notes.push(format!("chunks of {list} along {name} only meet every {aligned}: equal chunks cut finer"));
        }
    }
}
