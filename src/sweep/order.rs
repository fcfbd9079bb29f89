//! The order of the runs of a sweep.

use std::collections::BTreeSet;

use crate::sweep::point::{Point, Setting};

/// The missing runs, each with its repetition. Each repetition runs every setting once, so that changes of the machine
/// affect all settings equally. The order is reversed in every other repetition, so that a steady change does so too.
pub fn remaining(settings: &[Setting], repetitions: u32, points: &[Point]) -> Vec<(Setting, u32)> {
    let done: BTreeSet<(Setting, u32)> = points.iter().map(|point| (point.setting, point.repetition)).collect();
    let round = |repetition: u32| {
        let mut round: Vec<(Setting, u32)> = settings.iter().map(|setting| (*setting, repetition)).collect();
        if repetition.is_multiple_of(2) {
            round.reverse();
        }
        round
    };
    (1..=repetitions).flat_map(round).filter(|run| !done.contains(run)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::statistics::tests::{point, setting};

    #[test]
    fn repetitions_are_outermost_and_alternate_in_order() {
        let settings = [setting(1), setting(2), setting(4)];
        let ranks = |points: &[Point]| -> Vec<(u32, u32)> {
            let runs = remaining(&settings, 3, points);
            runs.iter().map(|(setting, repetition)| (setting.ranks, *repetition)).collect()
        };
        let all = [(1, 1), (2, 1), (4, 1), (4, 2), (2, 2), (1, 2), (1, 3), (2, 3), (4, 3)];
        assert_eq!(ranks(&[]), all);
        // Interrupted in the second repetition: completed runs are not repeated.
        let done = [point(1, 1, 1.0), point(2, 1, 1.0), point(4, 1, 1.0), point(4, 2, 1.0)];
        assert_eq!(ranks(&done), all[4..]);
        assert_eq!(remaining(&settings, 1, &done), []);
    }
}
