//! Determines which stages run at the same time. A *wave* consists of consecutive stages none of which needs the output
//! of another.

use crate::plan::model::{Plan, Role, StagePlan};
use std::ops::Range;

/// The largest number of stages in a wave, since each stage has its own workers.
const WIDTH: usize = 4;

impl Plan {
    /// Returns the stages in waves, in order. The stages of a wave share no tensor that one of them writes, and fit
    /// into the memory of a rank together. The iterated stages, `iterated`, share no wave with others.
    pub fn waves(&self, iterated: Range<usize>) -> Vec<Range<usize>> {
        let mut waves: Vec<Range<usize>> = Vec::new();
        for (position, stage) in self.stages.iter().enumerate() {
            let joins = |wave: &Range<usize>| {
                let others = &self.stages[wave.clone()];
                let peaks = others.iter().chain([stage]).map(|stage| stage.peak_bytes_per_rank);
                wave.len() < WIDTH
                    && !wave.clone().chain([position]).any(|position| iterated.contains(&position))
                    && others.iter().all(|other| stage.is_independent_of(other))
                    && peaks.fold(0u64, u64::saturating_add) <= self.budget_bytes
            };
            match waves.last_mut() {
                Some(wave) if joins(wave) => wave.end = position + 1,
                _ => waves.push(position..position + 1),
            }
        }
        waves
    }
}

impl StagePlan {
    /// Returns whether neither stage writes a tensor of the other.
    fn is_independent_of(&self, other: &StagePlan) -> bool {
        let writes = |stage: &StagePlan, tensor: &str| {
            stage.operands.iter().any(|operand| operand.role == Role::Output && operand.tensor == tensor)
        };
        !self.operands.iter().any(|operand| writes(other, &operand.tensor))
            && !other.operands.iter().any(|operand| writes(self, &operand.tensor))
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::super::tests::{job, layout, layouts, machine};
    use crate::plan::model::Machine;
    use crate::tensor::Dtype;

    #[test]
    fn independent_stages_share_a_wave_if_they_fit() {
        let text = "[tensors]\nx = { file = \"i\", dataset = \"x\" }\na = { dtype = \"f64\" }\nb = { dtype = \"f64\" }\n\
                    c = { create = \"o\", dataset = \"c\", dtype = \"f64\" }\n\
                    d = { create = \"o\", dataset = \"d\", dtype = \"f64\" }\n\
                    [[stages]]\nkernel = \"k\"\ncompute = \"x[n] -> a[n]\"\n\
                    [[stages]]\nkernel = \"k\"\ncompute = \"x[n] -> b[n]\"\n\
                    [[stages]]\nkernel = \"k\"\ncompute = \"a[n], b[n] -> c[n]\"\n\
                    [[stages]]\nkernel = \"k\"\ncompute = \"b[n] -> d[n]\"\n";
        let given = layouts([("x", layout(Dtype::F64, &[100_000], None))]);
        let roomy = plan(&job(text), &given, &machine(2)).unwrap();
        assert_eq!(roomy.waves(0..0), [0..2, 2..4]);
        assert_eq!(roomy.waves(1..2), [0..1, 1..2, 2..4]);
        let peak = roomy.stages.iter().map(|stage| stage.peak_bytes_per_rank).max().unwrap();
        let tight = plan(&job(text), &given, &Machine { memory_bytes: peak, ..machine(2) }).unwrap();
        assert_eq!(tight.waves(0..0), [0..1, 1..2, 2..3, 3..4]);
    }
}
