//! Who should own which shard: process grids over the split indices of a stage, and the choice among them. Pure.
//!
//! Refuses to know of tensors, jobs and bytes: the caller says what a grid costs. Invariant: the same arguments give
//! the same grid on every rank.

/// A grid may leave this part of the ranks idle if that moves less.
const IDLE_SHARE: f64 = 0.03;
/// The largest part may be this much larger than in the most even grid. Only parts of few units differ so much, and
/// what comes to such small ones from their neighbours is a tenth of them or more: worth it where the grid saves some
/// of that.
const IMBALANCE: f64 = 1.05;
/// Axes that are cut, at most: those with most units.
const CUT_AXES: usize = 3;

/// A process grid (parts per axis) and its runner-up, each with its cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub grid: Vec<u64>,
    pub bytes: u64,
    /// The best of the grids that were possible and cost more.
    pub next: Option<(Vec<u64>, u64)>,
}

/// The process grid that costs least among those that use nearly all `ranks` and cut nearly evenly, where `units[axis]`
/// is the most parts that an axis can have. `weight` is what the largest part of a grid has to compute, `cost` the
/// bytes that it moves. Of equals the one with most parts along the outermost axis: they are contiguous, and so are
/// their borders.
///
/// Brute force over all grids, as COSMA and others do for matrix multiplication (Kwasniewski et al., SC19); about
/// `ranks * ln(ranks)` candidates for three axes.
pub fn best_grid(units: &[u64], ranks: u32, weight: impl Fn(&[u64]) -> u64, cost: impl Fn(&[u64]) -> u64) -> Choice {
    let most = units.iter().fold(1u64, |product, units| product.saturating_mul((*units).max(1)));
    let busy = u64::from(ranks).min(most).max(1);
    let least = (busy as f64 * (1.0 - IDLE_SHARE)).ceil() as u64;
    let mut cut: Vec<usize> = (0..units.len()).filter(|axis| units[*axis] > 1).collect();
    cut.sort_by_key(|axis| std::cmp::Reverse(units[*axis]));
    cut.truncate(CUT_AXES);
    cut.sort_unstable();
    let mut lightest = u64::MAX;
    // Where no grid comes near the number of ranks, the one with most parts.
    let mut widest = vec![1; units.len()];
    visit(units, &cut, u64::from(ranks), &mut |grid| {
        if grid.iter().product::<u64>() >= least {
            lightest = lightest.min(weight(grid));
        }
        if grid.iter().product::<u64>() > widest.iter().product() {
            widest = grid.to_vec();
        }
    });
    type Candidate = Option<(Vec<u64>, u64)>;
    let (mut best, mut next): (Candidate, Candidate) = (None, None);
    visit(units, &cut, u64::from(ranks), &mut |grid| {
        if grid.iter().product::<u64>() < least || weight(grid) as f64 > lightest as f64 * IMBALANCE {
            return;
        }
        let bytes = cost(grid);
        let below = |other: &Candidate| other.as_ref().is_none_or(|(_, other)| bytes < *other);
        if below(&best) {
            next = best.replace((grid.to_vec(), bytes)).or(next.take());
        } else if best.as_ref().is_some_and(|(_, best)| bytes == *best) {
            best = Some((grid.to_vec(), bytes));
        } else if best.as_ref().is_some_and(|(_, best)| bytes > *best) && below(&next) {
            next = Some((grid.to_vec(), bytes));
        }
    });
    match best {
        Some((grid, bytes)) => Choice { grid, bytes, next },
        None => Choice { bytes: cost(&widest), grid: widest, next: None },
    }
}

/// All grids over the axes `cut` that take at most `ranks`, the last of them as large as it can be.
fn visit(units: &[u64], cut: &[usize], ranks: u64, see: &mut impl FnMut(&[u64])) {
    fn go(units: &[u64], cut: &[usize], ranks: u64, grid: &mut Vec<u64>, see: &mut impl FnMut(&[u64])) {
        match cut {
            [] => see(grid),
            [last] => {
                grid[*last] = units[*last].min(ranks);
                see(grid);
                grid[*last] = 1;
            }
            [axis, rest @ ..] => {
                for parts in 1..=units[*axis].min(ranks) {
                    grid[*axis] = parts;
                    go(units, rest, ranks / parts, grid, see);
                }
                grid[*axis] = 1;
            }
        }
    }
    go(units, cut, ranks, &mut vec![1; units.len()], see);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(extents: [u64; 3]) -> impl Fn(&[u64]) -> u64 {
        move |grid| grid.iter().zip(extents).map(|(parts, extent)| extent.div_ceil(*parts)).product()
    }

    /// Halo bytes of a box with most neighbours: a layer on each side that has one.
    fn surface(extents: [u64; 3]) -> impl Fn(&[u64]) -> u64 {
        move |grid| {
            let sides: Vec<u64> = grid.iter().zip(extents).map(|(parts, extent)| extent.div_ceil(*parts)).collect();
            let along = |d: usize| sides.iter().product::<u64>() / sides[d] * (grid[d] - 1).min(2);
            (0..3).map(along).sum()
        }
    }

    #[test]
    fn halos_get_near_cubes_and_flat_spaces_slabs() {
        let best = |extents: [u64; 3], ranks| best_grid(&extents, ranks, volume(extents), surface(extents)).grid;
        assert_eq!(best([64, 64, 64], 8), [2, 2, 2]);
        assert_eq!(best([64, 64, 64], 64), [4, 4, 4]);
        assert_eq!(best([1000, 2, 2], 4), [4, 1, 1]);
        assert_eq!(best([2, 2, 1], 16).iter().product::<u64>(), 4);
    }

    #[test]
    fn the_runner_up_costs_more() {
        let extents = [64, 64, 64];
        let choice = best_grid(&extents, 8, volume(extents), surface(extents));
        assert_eq!((choice.grid.as_slice(), choice.bytes), ([2, 2, 2].as_slice(), 3 * 32 * 32));
        assert_eq!(choice.next.map(|(_, bytes)| bytes), Some(64 * 16 + 2 * 64 * 32));
        assert_eq!(best_grid(&[1], 4, |_| 1, |_| 0).next, None);
    }

    #[test]
    fn primes_may_leave_a_few_ranks_idle() {
        let extents = [1024, 1024, 1024];
        let grid = best_grid(&extents, 4099, volume(extents), surface(extents)).grid;
        let busy: u64 = grid.iter().product();
        assert!((3977..=4099).contains(&busy), "{grid:?}");
        assert!(surface(extents)(&grid) < surface(extents)(&[4099, 1, 1]) / 4, "{grid:?}");
    }

    #[test]
    fn a_hundred_thousand_ranks_take_no_time_to_speak_of() {
        let extents = [1 << 20, 1 << 20, 1 << 20];
        let grid = best_grid(&extents, 100_000, volume(extents), surface(extents)).grid;
        assert!(grid.iter().product::<u64>() >= 97_000);
    }
}
