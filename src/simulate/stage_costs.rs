//! The measured costs of a stage.

use crate::simulate::contention::Contention;

/// The measured cost of a stage.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StageCosts {
    /// Time of all tasks of one run of the stage, on optimized code and one core.
    pub kernel_ns: f64,
    /// How many times as long they take on baseline code; `None` if the factor of the machine applies.
    pub baseline_factor: Option<f64>,
    /// Cost of equal parts of the first split index, divided by the mean; empty if all parts cost the same.
    pub density: Vec<f64>,
    /// Time of all main threads for each run of the stage, in proportion to the data that they fetch.
    pub copy_ns: f64,
    /// How much longer all of this takes under other loads of a node.
    pub contention: Contention,
}

impl StageCosts {
    /// Mean cost of the index range from one fraction to the other, divided by that of the stage.
    pub(super) fn density_of(&self, from: f64, to: f64) -> f64 {
        let parts = self.density.len() as f64;
        let (from, to) = (from * parts, to * parts);
        let common = |part: usize| (to.min(part as f64 + 1.0) - from.max(part as f64)).max(0.0);
        let sum: f64 = self.density.iter().enumerate().map(|(part, density)| density * common(part)).sum();
        if to > from { sum / (to - from) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn density_is_averaged_over_the_range() {
        let costs = StageCosts { density: vec![1.5, 0.5], ..StageCosts::default() };
        let of = |parts: u32| -> Vec<f64> {
            let part = |at: u32| f64::from(at) / f64::from(parts);
            (0..parts).map(|at| costs.density_of(part(at), part(at + 1))).collect()
        };
        assert_eq!(of(1), [1.0]);
        assert_eq!(of(4), [1.5, 1.5, 0.5, 0.5]);
        assert!((of(3)[1] - 1.0).abs() < 1e-9);
    }
}
