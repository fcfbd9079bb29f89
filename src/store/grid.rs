//! Selections in virtual datasets: for each axis a set of places, regular or irregular, so that the selected elements
//! form a grid.

use super::raw::dataset::{Selection, Slab};

/// The places that are selected along one axis, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    Even(Slab),
    /// The start and length of each run, and the number of places before it.
    Runs(Vec<(u64, u64, u64)>),
}

impl Axis {
    pub fn whole(extent: u64) -> Axis {
        Axis::box_of(0, extent)
    }

    pub fn box_of(start: u64, length: u64) -> Axis {
        Axis::Even(Slab { start, stride: length.max(1), count: 1, block: length })
    }

    pub fn len(&self) -> u64 {
        match self {
            Axis::Even(slab) => slab.count.saturating_mul(slab.block),
            Axis::Runs(runs) => runs.last().map_or(0, |(_, length, before)| before + length),
        }
    }

    /// The number of places below `end`.
    pub fn below(&self, end: u64) -> u64 {
        match self {
            Axis::Even(slab) if end <= slab.start => 0,
            Axis::Even(slab) => {
                let (blocks, rest) = ((end - slab.start) / slab.stride, (end - slab.start) % slab.stride);
                if blocks >= slab.count { self.len() } else { blocks * slab.block + rest.min(slab.block) }
            }
            Axis::Runs(runs) => {
                let at = runs.partition_point(|(start, ..)| *start < end);
                at.checked_sub(1).map_or(0, |at| {
                    let (start, length, before) = runs[at];
                    before + (end - start).min(length)
                })
            }
        }
    }

    /// The coordinate of the place of this number.
    pub fn place(&self, number: u64) -> u64 {
        match self {
            Axis::Even(slab) => slab.start + number / slab.block * slab.stride + number % slab.block,
            Axis::Runs(runs) => {
                let at = runs.partition_point(|(_, _, before)| *before <= number) - 1;
                runs[at].0 + number - runs[at].2
            }
        }
    }

    /// The number of adjacent places from this number on.
    pub fn run(&self, number: u64) -> u64 {
        match self {
            Axis::Even(slab) if slab.stride == slab.block => self.len() - number,
            Axis::Even(slab) => slab.block - number % slab.block,
            Axis::Runs(runs) => {
                let at = runs.partition_point(|(_, _, before)| *before <= number) - 1;
                runs[at].2 + runs[at].1 - number
            }
        }
    }

    /// The places from number `from` to `to` as one slab; `None` if they are more than one.
    pub fn slab(&self, from: u64, to: u64) -> Option<Slab> {
        let start = self.place(from);
        if self.run(from) >= to - from {
            return Some(Slab { start, stride: to - from, count: 1, block: to - from });
        }
        match self {
            Axis::Even(slab) if from.is_multiple_of(slab.block) && to.is_multiple_of(slab.block) => {
                Some(Slab { start, count: (to - from) / slab.block, ..*slab })
            }
            _ => None,
        }
    }

    /// Limits an unlimited axis to places below `extent`.
    pub fn ended(self, extent: u64) -> Axis {
        match self {
            Axis::Even(slab) if slab.block == u64::MAX => Axis::box_of(slab.start, extent.saturating_sub(slab.start)),
            Axis::Even(slab) if slab.count == u64::MAX => {
                let blocks = extent.saturating_sub(slab.start).div_ceil(slab.stride);
                Axis::Even(Slab { count: blocks, ..slab })
            }
            axis => axis,
        }
    }

    /// The first `length` of its places.
    pub fn first(self, length: u64) -> Axis {
        match self {
            Axis::Even(slab) if slab.count == 1 || slab.stride == slab.block => Axis::box_of(slab.start, length),
            Axis::Even(slab) if length.is_multiple_of(slab.block.max(1)) => {
                Axis::Even(Slab { count: length / slab.block.max(1), ..slab })
            }
            axis if axis.len() == length => axis,
            axis => {
                let (mut number, mut all) = (0, Vec::new());
                while number < length {
                    let run = axis.run(number).min(length - number);
                    let start = axis.place(number);
                    all.push((start, start + run - 1));
                    number += run;
                }
                runs(all.into_iter())
            }
        }
    }

    pub fn has_end(&self) -> bool {
        !matches!(self, Axis::Even(slab) if slab.count == u64::MAX || slab.block == u64::MAX)
    }
}

/// A selection in an array of these extents, by axis; `Err` says what is not supported.
pub(super) fn grid(selection: &Selection, extents: &[u64]) -> Result<Vec<Axis>, String> {
    let rank = extents.len();
    let wrong_rank = |found: usize| format!("it is mapped with {found} dimensions, but has {rank}");
    match selection {
        Selection::All => Ok(extents.iter().map(|extent| Axis::whole(*extent)).collect()),
        Selection::None => Ok(vec![Axis::whole(0); rank.max(1)]),
        Selection::Points => Err("it is mapped point by point, which kernel inputs do not support".to_owned()),
        Selection::Regular(slabs) if slabs.len() != rank => Err(wrong_rank(slabs.len())),
        Selection::Regular(slabs) => {
            let even = |slab: &Slab| {
                let dense = slab.count != u64::MAX && slab.block != u64::MAX && slab.stride == slab.block;
                if dense {
                    return Axis::box_of(slab.start, slab.count.saturating_mul(slab.block));
                }
                // The stride of a single block has no meaning.
                let stride = if slab.count == 1 { slab.stride.max(slab.block) } else { slab.stride };
                Axis::Even(Slab { stride: stride.max(1), ..*slab })
            };
            Ok(slabs.iter().map(even).collect())
        }
        Selection::Blocks(blocks) => {
            if let Some((first, _)) = blocks.iter().find(|(first, _)| first.len() != rank) {
                return Err(wrong_rank(first.len()));
            }
            let axes: Vec<Axis> = (0..rank).map(|d| runs(blocks.iter().map(|(a, b)| (a[d], b[d])))).collect();
            let volume = |(first, last): &(Vec<u64>, Vec<u64>)| {
                first.iter().zip(last).map(|(first, last)| (last - first + 1) as u128).product::<u128>()
            };
            let selected: u128 = blocks.iter().map(volume).sum();
            if axes.iter().map(|axis| u128::from(axis.len())).product::<u128>() != selected {
                return Err("its mapped blocks do not form a grid, which kernel inputs do not support".to_owned());
            }
            Ok(axes)
        }
    }
}

/// The union of intervals, given by the first and last place of each.
fn runs(intervals: impl Iterator<Item = (u64, u64)>) -> Axis {
    let mut intervals: Vec<(u64, u64)> = intervals.collect();
    intervals.sort_unstable();
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for (first, last) in intervals {
        match runs.last_mut() {
            Some((start, length, _)) if first <= *start + *length => *length = (*length).max(last + 1 - *start),
            _ => runs.push((first, last + 1 - first, 0)),
        }
    }
    let mut before = 0;
    for run in &mut runs {
        run.2 = before;
        before += run.1;
    }
    Axis::Runs(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn axes() -> impl Strategy<Value = Axis> {
        let even = (0..20u64, 1..6u64, 1..6u64, 0..5u64).prop_map(|(start, count, block, gap)| {
            grid(&Selection::Regular(vec![Slab { start, stride: block + gap, count, block }]), &[100])
                .unwrap()
                .remove(0)
        });
        let uneven = proptest::collection::vec((0..50u64, 1..6u64), 1..6)
            .prop_map(|all| runs(all.into_iter().map(|(first, length)| (first, first + length - 1))));
        prop_oneof![even, uneven]
    }

    proptest! {
        #[test]
        fn an_axis_counts_its_places(axis in axes()) {
            let places: Vec<u64> = (0..axis.len()).map(|number| axis.place(number)).collect();
            prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
            for end in 0..120 {
                prop_assert_eq!(axis.below(end), places.iter().filter(|place| **place < end).count() as u64);
            }
            for length in 0..places.len() {
                let first = axis.clone().first(length as u64);
                prop_assert!((0..first.len()).map(|number| first.place(number)).eq(places[..length].iter().copied()));
            }
            for from in 0..places.len() {
                let run = axis.run(from as u64) as usize;
                prop_assert!(run >= 1 && from + run <= places.len());
                prop_assert_eq!(places[from] + run as u64 - 1, places[from + run - 1]);
                for to in from + 1..=places.len() {
                    let Some(slab) = axis.slab(from as u64, to as u64) else { continue };
                    let of_slab = |number| slab.start + number / slab.block * slab.stride + number % slab.block;
                    let found: Vec<u64> = (0..slab.count * slab.block).map(of_slab).collect();
                    prop_assert_eq!(&found[..], &places[from..to]);
                }
            }
        }
    }

    #[test]
    fn blocks_that_are_no_grid_are_refused() {
        let corner = Selection::Blocks(vec![(vec![0, 0], vec![1, 1]), (vec![2, 2], vec![3, 3])]);
        assert!(grid(&corner, &[4, 4]).unwrap_err().contains("form a grid"));
        let cross = Selection::Blocks(vec![(vec![0, 0], vec![0, 1]), (vec![0, 3], vec![0, 3])]);
        assert_eq!(grid(&cross, &[4, 4]).unwrap().iter().map(Axis::len).collect::<Vec<_>>(), [1, 3]);
    }
}
