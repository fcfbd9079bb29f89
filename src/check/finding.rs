//! What a check finds, in words, and where.

use serde::Serialize;

use super::Bench;
use crate::engine::{KernelFault, Tier, View};
use crate::plan::{StagePlan, Tile};
use crate::tensor::{Dtype, Region};

/// One thing that a kernel does wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub stage: String,
    pub kernel: String,
    pub export: String,
    /// The call in which it was seen: `step@y=0..4,x=0..7`.
    pub task: String,
    pub tier: Tier,
    pub kind: Kind,
    /// The tensor that it is about.
    pub operand: Option<String>,
    /// The first element that it is about, in the whole tensor; of one that is outside, where it would be.
    pub position: Option<Vec<i64>>,
    pub message: String,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// A write beside an operand's tile.
    WritesOutside,
    ReadsOutside,
    WritesInput,
    /// A touch of memory that is far from any operand.
    TouchesElsewhere,
    Unwritten,
    /// A result that depends on what the output, or memory beside the tiles, holds before.
    ReadsWhatWasThere,
    /// A result that depends on earlier calls.
    Stateful,
    DependsOnCut,
    DependsOnTier,
    /// The kernel says that it cannot compute a tile.
    Status,
    Trap,
    TimeLimit,
    MemoryLimit,
}

/// Where something is found: a call.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub bench: &'a Bench,
    pub stage: usize,
    pub tile: &'a Tile,
    pub tier: Tier,
    /// By the kernel that merges.
    pub merges: bool,
}

impl Call<'_> {
    pub fn plan(&self) -> &StagePlan {
        &self.bench.plan.stages[self.stage]
    }

    pub fn finding(
        &self,
        kind: Kind,
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

    /// Of a fault that says all there is to say.
    pub fn fault(&self, fault: &KernelFault) -> Finding {
        let kind = match fault {
            KernelFault::Status(_) => Kind::Status,
            KernelFault::MemoryLimit { .. } => Kind::MemoryLimit,
            KernelFault::OutOfBounds | KernelFault::WroteOutside { .. } => Kind::TouchesElsewhere,
            _ => Kind::Trap,
        };
        let message = match fault {
            KernelFault::Status(status) => format!(
                "the kernel returns status {status}: the job allows this tile, so the kernel must compute it, or the notation \
                 must say what has to stay whole"
            ),
            other => other.to_string(),
        };
        self.finding(kind, None, None, message)
    }

    /// Of a call that does not end.
    pub fn endless(&self) -> Finding {
        let limit = self.bench.job.stages[self.stage].limits.task_time;
        self.finding(
            Kind::TimeLimit,
            None,
            None,
            format!("the kernel runs for more than {limit:?}, the limit of its stage"),
        )
    }
}

/// What a kernel sees of operand `operand` for `tile`.
pub(super) fn view(stage: &StagePlan, operand: usize, tile: &Tile) -> View {
    let plan = &stage.operands[operand];
    let (region, halo, shape) = (stage.region(operand, tile), plan.halo.clone(), plan.shape.clone());
    View { dtype: plan.dtype, region, halo, shape }
}

/// Where in the tensor the element is that lies `offset` elements behind the first one of a tile, halo included; the first
/// dimension takes what goes beyond.
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

/// Where in the tensor element `index` of a packed region is.
pub(super) fn position_in(region: &Region, index: u64) -> Vec<i64> {
    let mut place = vec![0; region.rank()];
    let mut rest = index;
    for dim in (0..region.rank()).rev() {
        place[dim] = (region.offset[dim] + rest % region.extent[dim].max(1)) as i64;
        rest /= region.extent[dim].max(1);
    }
    place
}

/// `y[3, 17]`.
pub(super) fn element(tensor: &str, position: &[i64]) -> String {
    let places: Vec<String> = position.iter().map(i64::to_string).collect();
    format!("{tensor}[{}]", places.join(", "))
}

/// The value of one element, for a person.
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
    fn elements_beside_a_tile_have_places_too() {
        let region = Region { offset: vec![10, 4], extent: vec![2, 3] };
        let view = View { dtype: Dtype::F64, region, halo: vec![0, 1], shape: Shape::new(vec![99, 9]).unwrap() };
        assert_eq!(position(&view, 0), [10, 3]);
        assert_eq!(position(&view, 9), [11, 7]);
        assert_eq!(position(&view, 10), [12, 3], "behind it");
        assert_eq!(position(&view, -1), [9, 7], "before it");
        assert_eq!(position_in(&view.region, 4), [11, 5]);
        assert_eq!(element("y", &[3, -1]), "y[3, -1]");
        assert_eq!(value(Dtype::F32, &0.1f32.to_le_bytes()), "0.1");
        assert_eq!(value(Dtype::F16, &[0, 0x3c]), "1");
    }
}
