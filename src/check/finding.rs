//! Findings of a check, with their place.

use crate::check::context::CheckContext;
use crate::check::report::{Finding, FindingKind};
use crate::engine::{KernelFault, Tier, View};
use crate::plan::{StagePlan, Tile};
use crate::tensor::{Dtype, Region};

/// The call in which an error is found.
#[derive(Clone, Copy)]
pub(super) struct CallSite<'a> {
    pub bench: &'a CheckContext,
    pub stage: usize,
    pub tile: &'a Tile,
    pub tier: Tier,
    /// Whether the merge kernel was called.
    pub merges: bool,
}

impl CallSite<'_> {
    pub fn plan(&self) -> &StagePlan {
        &self.bench.plan.stages[self.stage]
    }

    pub fn finding(
        &self,
        kind: FindingKind,
        operand: Option<usize>,
        position: Option<Vec<i64>>,
        message: impl Into<String>,
    ) -> Finding {
        let compiled = &self.bench.kernels[self.stage];
        let kernel = compiled.merge.as_ref().filter(|_| self.merges).unwrap_or(&compiled.kernel);
        Finding {
            stage: self.plan().name.clone(),
            kernel: kernel.name().to_owned(),
            export: kernel.export().to_owned(),
            task: self.plan().task_name(self.tile),
            tier: self.tier,
            kind,
            operand: operand.map(|operand| self.plan().operands[operand].tensor.clone()),
            position,
            message: message.into(),
        }
    }

    /// The finding for a fault that needs no further analysis.
    pub fn fault(&self, fault: &KernelFault) -> Finding {
        let kind = match fault {
            KernelFault::Status(_) => FindingKind::Status,
            KernelFault::MemoryLimit { .. } => FindingKind::MemoryLimit,
            KernelFault::OutOfBounds | KernelFault::WroteOutside { .. } => FindingKind::TouchesElsewhere,
            _ => FindingKind::Trap,
        };
        let message = match fault {
            KernelFault::Status(status) => format!(
                "the kernel returns status {status}, but the job allows this tile: compute it in the kernel, or exclude it in \
                 the notation"
            ),
            other => other.to_string(),
        };
        self.finding(kind, None, None, message)
    }

    /// The finding for a call that does not return.
    pub fn endless(&self) -> Finding {
        let limit = self.bench.job.stages[self.stage].limits.task_time;
        self.finding(
            FindingKind::TimeLimit,
            None,
            None,
            format!("the kernel exceeds the time limit of its stage, {limit:?}"),
        )
    }
}

/// The view of operand `operand` for `tile`.
pub(super) fn view(stage: &StagePlan, operand: usize, tile: &Tile) -> View {
    let plan = &stage.operands[operand];
    let (region, halo, shape) = (stage.region(operand, tile), plan.halo.clone(), plan.shape.clone());
    View { dtype: plan.dtype, region, halo, shape }
}

/// The position in the tensor of the element `offset` elements after the first one of a tile, including its halo.
/// Offsets outside the tile continue along the first dimension.
pub(super) fn position(view: &View, offset: i64) -> Vec<i64> {
    let padded = view.padded();
    let mut place = vec![0; padded.len()];
    let mut rest = offset;
    for dim in (0..padded.len()).rev() {
        let extent = (padded[dim] as i64).max(1);
        let along = if dim == 0 { rest } else { rest.rem_euclid(extent) };
        rest = rest.div_euclid(extent);
        place[dim] = view.region.offset[dim] as i64 - view.halo[dim] as i64 + along;
    }
    place
}

/// The position in the tensor of element `index` of a packed region.
pub(super) fn position_in(region: &Region, index: u64) -> Vec<i64> {
    let mut place = vec![0; region.rank()];
    let mut rest = index;
    for dim in (0..region.rank()).rev() {
        place[dim] = (region.offset[dim] + rest % region.extent[dim].max(1)) as i64;
        rest /= region.extent[dim].max(1);
    }
    place
}

/// Formats an element, such as `y[3, 17]`.
pub(super) fn element(tensor: &str, position: &[i64]) -> String {
    let places: Vec<String> = position.iter().map(i64::to_string).collect();
    format!("{tensor}[{}]", places.join(", "))
}

/// Formats the value of an element.
pub fn value(dtype: Dtype, bytes: &[u8]) -> String {
    let half: Option<[u8; 2]> = bytes.try_into().ok();
    match (dtype, half) {
        (Dtype::F16, Some(half)) => half::f16::from_le_bytes(half).to_string(),
        (Dtype::Bf16, Some(half)) => half::bf16::from_le_bytes(half).to_string(),
        (Dtype::F32, _) => dtype.to_f64(bytes).map_or_else(String::new, |value| (value as f32).to_string()),
        (Dtype::F64, _) => dtype.to_f64(bytes).map_or_else(String::new, |value| value.to_string()),
        _ => dtype.to_integer(bytes).map_or_else(String::new, |value| value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn elements_outside_a_tile_have_positions_too() {
        let region = Region { offset: vec![10, 4], extent: vec![2, 3] };
        let view = View { dtype: Dtype::F64, region, halo: vec![0, 1], shape: Shape::new(vec![99, 9]).unwrap() };
        assert_eq!(position(&view, 0), [10, 3]);
        assert_eq!(position(&view, 9), [11, 7]);
        assert_eq!(position(&view, 10), [12, 3], "after it");
        assert_eq!(position(&view, -1), [9, 7], "before it");
        assert_eq!(position_in(&view.region, 4), [11, 5]);
        assert_eq!(element("y", &[3, -1]), "y[3, -1]");
        assert_eq!(value(Dtype::F32, &0.1f32.to_le_bytes()), "0.1");
        assert_eq!(value(Dtype::F16, &[0, 0x3c]), "1");
    }
}
