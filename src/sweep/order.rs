//! In which order a sweep runs.

use std::collections::BTreeSet;

use super::{Point, Setting};

/// The runs that are missing, each with its repetition. Repetitions come one after another and have every setting once, so
/// that whatever changes on the machine meanwhile concerns all alike; each goes the other way than the one before, so that what
/// changes steadily does too.
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
    fn repetitions_are_outermost_and_go_back_and_forth() {
        let settings = [setting(1), setting(2), setting(4)];
        let ranks = |points: &[Point]| -> Vec<(u32, u32)> {
            let runs = remaining(&settings, 3, points);
            runs.iter().map(|(setting, repetition)| (setting.ranks, *repetition)).collect()
        };
        let all = [(1, 1), (2, 1), (4, 1), (4, 2), (2, 2), (1, 2), (1, 3), (2, 3), (4, 3)];
        assert_eq!(ranks(&[]), all);
        // Interrupted in the second repetition: nothing of what is there comes again.
        let done = [point(1, 1, 1.0), point(2, 1, 1.0), point(4, 1, 1.0), point(4, 2, 1.0)];
        assert_eq!(ranks(&done), all[4..]);
        assert_eq!(remaining(&settings, 1, &done), []);
    }
}
