//! A few hundred random modules, the same ones in each run.

use crate::engine::differential_tests::{Tally, compare};

/// Calls of each module.
const CALLS: u32 = 24;

/// Runs every third seed from `kind` on, up to 300.
fn run(kind: u64) -> Tally {
    let mut tally = Tally::default();
    for seed in (kind..300).step_by(3) {
        compare(seed, CALLS, &mut tally).unwrap();
    }
    tally
}

#[test]
fn random_modules_without_traps_do_the_same_on_both_tiers() {
    let expected = Tally { modules: 100, unusable: 0, executions: 2400, faults: 905, dropped: 0, overflows: 0 };
    assert_eq!(run(0), expected);
}

#[test]
fn random_modules_with_traps_do_the_same_on_both_tiers() {
    let expected = Tally { modules: 100, unusable: 1, executions: 2376, faults: 1653, dropped: 0, overflows: 0 };
    assert_eq!(run(1), expected);
}

#[test]
fn random_modules_with_128_bit_instructions_do_the_same_on_both_tiers() {
    let expected = Tally { modules: 100, unusable: 7, executions: 2232, faults: 1709, dropped: 0, overflows: 0 };
    assert_eq!(run(2), expected);
}
