//! Combines partial results, in an order that does not depend on which worker computed them, or when.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::job::Combine;
use crate::plan::{Role, StagePlan};
use crate::tensor::Dtype;

/// Combines `other` into `sum`, element by element. Both are packed, of one length and `dtype`, which is none of the
/// storage types f16 and bf16 (a job that asks for them is refused). Integers wrap; a NaN in either makes a canonical
/// NaN.
fn combine(how: Combine, dtype: Dtype, sum: &mut [u8], other: &[u8]) {
    assert_eq!(sum.len(), other.len(), "partial results of one tile have one size");
    macro_rules! each {
        ($type:ty, $merge:expr) => {{
            const BYTES: usize = size_of::<$type>();
            let pairs = sum.chunks_exact_mut(BYTES).zip(other.chunks_exact(BYTES));
            for (a, b) in pairs {
                let value = |bytes: &[u8]| bytes.try_into().map_or(Default::default(), <$type>::from_le_bytes);
                let merged: $type = $merge(value(a), value(b));
                a.copy_from_slice(&merged.to_le_bytes());
            }
        }};
    }
    macro_rules! integers {
        ($type:ty) => {
            match how {
                Combine::Sum => each!($type, <$type>::wrapping_add),
                Combine::Prod => each!($type, <$type>::wrapping_mul),
                Combine::Min => each!($type, Ord::min),
                Combine::Max => each!($type, Ord::max),
                Combine::ArgMin | Combine::ArgMax | Combine::Kernel => unreachable!("not combined by element"),
            }
        };
    }
    macro_rules! floats {
        ($type:ty) => {{
            let known = |value: $type| if value.is_nan() { <$type>::NAN } else { value };
            let either = |a: $type, b: $type, value: $type| if a.is_nan() || b.is_nan() { <$type>::NAN } else { value };
            match how {
                Combine::Sum => each!($type, |a: $type, b: $type| known(a + b)),
                Combine::Prod => each!($type, |a: $type, b: $type| known(a * b)),
                // In the total order: -0 is below 0, so that neither depends on the order of its arguments.
                Combine::Min => {
                    each!($type, |a: $type, b: $type| either(a, b, if b.total_cmp(&a).is_lt() { b } else { a }))
                }
                Combine::Max => {
                    each!($type, |a: $type, b: $type| either(a, b, if b.total_cmp(&a).is_gt() { b } else { a }))
                }
                Combine::ArgMin | Combine::ArgMax | Combine::Kernel => unreachable!("not combined by element"),
            }
        }};
    }
    match dtype {
        Dtype::F32 => floats!(f32),
        Dtype::F64 => floats!(f64),
        Dtype::I8 => integers!(i8),
        Dtype::I16 => integers!(i16),
        Dtype::I32 => integers!(i32),
        Dtype::I64 => integers!(i64),
        Dtype::U8 => integers!(u8),
        Dtype::U16 => integers!(u16),
        Dtype::U32 => integers!(u32),
        Dtype::U64 => integers!(u64),
        Dtype::F16 | Dtype::Bf16 => unreachable!("refused with the job"),
    }
}

/// Chooses the pair of value and place with the least or greatest value, element by element. A NaN wins over all
/// numbers, as in NumPy; of equal values the least place wins. So the order of the arguments does not matter.
fn choose(how: Combine, dtypes: [Dtype; 2], sum: &mut [Vec<u8>], other: &[Vec<u8>]) {
    let [value_bytes, place_bytes] = dtypes.map(Dtype::size_bytes);
    let ([values, places], [other_values, other_places]) = (sum, other) else { return };
    let mine = values.chunks_exact_mut(value_bytes).zip(places.chunks_exact_mut(place_bytes));
    let others = other_values.chunks_exact(value_bytes).zip(other_places.chunks_exact(place_bytes));
    for ((value, place), (other_value, other_place)) in mine.zip(others) {
        let better = match (dtypes[0].to_integer(value), dtypes[0].to_integer(other_value)) {
            (Some(a), Some(b)) => b.cmp(&a),
            _ => {
                let float = |bytes: &[u8]| dtypes[0].to_f64(bytes).unwrap_or(f64::NAN);
                let (a, b) = (float(value), float(other_value));
                let nan = b.is_nan().cmp(&a.is_nan());
                // Equal where neither is the greater: two NaNs, two zeros.
                let by_value = b.partial_cmp(&a).unwrap_or(Ordering::Equal);
                if nan.is_ne() { if how == Combine::ArgMax { nan } else { nan.reverse() } } else { by_value }
            }
        };
        let better = if how == Combine::ArgMax { better } else { better.reverse() };
        let nearer = dtypes[1].to_integer(other_place).cmp(&dtypes[1].to_integer(place)).reverse();
        if better.then(nearer).is_gt() {
            value.copy_from_slice(other_value);
            place.copy_from_slice(other_place);
        }
    }
}

/// Partial results of one tile: one buffer for each output.
pub(crate) type Results = Vec<Vec<u8>>;

/// A merge to do: the sum so far, and the partial results that follow it, in order.
#[derive(Debug)]
pub(crate) struct Merge {
    pub sum: Results,
    pub next: Vec<Results>,
}

/// How a stage merges partial results.
#[derive(Clone, Debug)]
pub(crate) enum Merger {
    /// Element by element, on any thread.
    Elements { how: Combine, dtypes: Vec<Dtype> },
    /// By an export of the stage's module. Only workers run it, since it may trap or never return.
    Kernel,
}

impl Merger {
    /// Returns the merger of a stage that reduces; none for other stages.
    pub fn new(plan: &StagePlan) -> Option<Merger> {
        let outputs = plan.operands.iter().filter(|operand| operand.role == Role::Output);
        let dtypes = outputs.map(|operand| operand.dtype).collect();
        plan.reduce.map(|reduce| match reduce.combine {
            Combine::Kernel => Merger::Kernel,
            how => Merger::Elements { how, dtypes },
        })
    }

    /// Merges all partial results into the sum. Returns false, and does nothing, if that takes a kernel.
    pub fn merge(&self, merge: &mut Merge) -> bool {
        let Merger::Elements { how, dtypes } = self else { return false };
        for next in merge.next.drain(..) {
            if let (Combine::ArgMin | Combine::ArgMax, [value, place]) = (how, dtypes.as_slice()) {
                choose(*how, [*value, *place], &mut merge.sum, &next);
                continue;
            }
            for ((sum, next), dtype) in merge.sum.iter_mut().zip(&next).zip(dtypes) {
                combine(*how, *dtype, sum, next);
            }
        }
        true
    }
}

/// Numbered partial results, which are merged from left to right, in whatever order they arrive.
///
/// A fold only keeps the order. A thread takes the next merge out and gives the sum back, and holds no lock meanwhile.
#[derive(Debug, Default)]
pub(in crate::exec) struct Fold {
    /// The number of the first partial result that is not in the sum.
    next: u64,
    sum: Option<Results>,
    /// Whether a thread has taken the sum out to merge.
    is_out: bool,
    /// Partial results that arrived before their turn.
    early: BTreeMap<u64, Results>,
}

impl Fold {
    /// Makes a fold whose first partial result has the number `first`.
    pub fn starting_at(first: u64) -> Fold {
        Fold { next: first, ..Fold::default() }
    }

    /// Makes a fold that continues the sum of all partial results before `next`.
    pub fn continuing(next: u64, sum: Results) -> Fold {
        Fold { next, sum: Some(sum), ..Fold::default() }
    }

    /// Returns the number of partial results in the sum, if the fold started at 0, and the sum. Returns `None` while
    /// there is no sum, or it is taken out.
    pub fn so_far(&self) -> Option<(u64, &Results)> {
        self.sum.as_ref().map(|sum| (self.next, sum))
    }

    /// Adds partial result `number`.
    pub fn put(&mut self, number: u64, results: Results) {
        if self.sum.is_none() && !self.is_out && number == self.next {
            self.sum = Some(results);
            self.next += 1;
        } else {
            self.early.insert(number, results);
        }
    }

    /// Takes out the sum and the partial results that can be merged into it now; none while it is taken out already.
    pub fn take_merge(&mut self) -> Option<Merge> {
        let mut next = Vec::new();
        while self.sum.is_some()
            && let Some(results) = self.early.remove(&self.next)
        {
            next.push(results);
            self.next += 1;
        }
        let sum = if next.is_empty() { None } else { self.sum.take() };
        self.is_out |= sum.is_some();
        sum.map(|sum| Merge { sum, next })
    }

    /// Gives a merged sum back.
    pub fn give_back(&mut self, merge: Merge) {
        assert!(self.is_out && merge.next.is_empty(), "a sum comes back once, with all merged into it");
        self.is_out = false;
        self.sum = Some(merge.sum);
    }

    /// Takes the sum of all partial results before `end`, once it is complete.
    pub fn take_up_to(&mut self, end: u64) -> Option<Results> {
        if self.next == end { self.sum.take() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combined(how: Combine, a: f64, b: f64) -> f64 {
        let mut sum = a.to_le_bytes().to_vec();
        combine(how, Dtype::F64, &mut sum, &b.to_le_bytes());
        f64::from_le_bytes(sum.try_into().unwrap())
    }

    #[test]
    fn combines_by_element_and_keeps_nans_canonical() {
        assert_eq!(combined(Combine::Sum, 1.5, 2.0), 3.5);
        assert_eq!(combined(Combine::Prod, 1.5, 2.0), 3.0);
        assert_eq!(combined(Combine::Min, 1.5, 2.0), 1.5);
        assert_eq!(combined(Combine::Max, 1.5, 2.0), 2.0);
        let odd = f64::from_bits(0xFFF8_0000_0000_1234);
        for how in [Combine::Sum, Combine::Prod, Combine::Min, Combine::Max] {
            for (a, b) in [(odd, 1.0), (1.0, odd)] {
                assert_eq!(combined(how, a, b).to_bits(), f64::NAN.to_bits(), "{how:?}");
            }
        }
        for (a, b) in [(0.0, -0.0), (-0.0, 0.0)] {
            assert!(combined(Combine::Min, a, b).is_sign_negative() && combined(Combine::Max, a, b).is_sign_positive());
        }
        let mut sum = [250u8, 3].to_vec();
        combine(Combine::Sum, Dtype::U8, &mut sum, &[10, 4]);
        assert_eq!(sum, [4, 7]);
        combine(Combine::Max, Dtype::I8, &mut sum, &[0xFF, 9]);
        assert_eq!(sum, [4, 9]);
    }

    #[test]
    fn the_better_pair_wins_and_the_least_place_of_equal_ones() {
        let (nan, far, near) = (f32::NAN, 9u16, 2u16);
        let pair = |(value, place): (f32, u16)| vec![value.to_le_bytes().to_vec(), place.to_le_bytes().to_vec()];
        let best = |how, a, b| {
            let merger = Merger::Elements { how, dtypes: vec![Dtype::F32, Dtype::U16] };
            let mut merge = Merge { sum: pair(a), next: vec![pair(b)] };
            assert!(merger.merge(&mut merge));
            u16::from_le_bytes(merge.sum[1].clone().try_into().unwrap())
        };
        for (how, a, b, place) in [
            (Combine::ArgMax, (1.0, near), (2.0, far), far),
            (Combine::ArgMin, (1.0, near), (2.0, far), near),
            (Combine::ArgMax, (2.0, far), (2.0, near), near),
            (Combine::ArgMin, (-0.0, far), (0.0, near), near),
            (Combine::ArgMax, (nan, far), (2.0, near), far),
            (Combine::ArgMin, (nan, far), (2.0, near), far),
            (Combine::ArgMin, (nan, far), (nan, near), near),
        ] {
            assert_eq!((best(how, a, b), best(how, b, a)), (place, place), "{how:?} {a:?} {b:?}");
        }
    }

    #[test]
    fn folds_from_the_left_in_any_order_of_arrival() {
        let merger = Merger::Elements { how: Combine::Sum, dtypes: vec![Dtype::F64] };
        let parts = [1e16f64, 1.0, -1e16, 3.0, 1e-3];
        let expected = parts.iter().copied().reduce(|a, b| a + b).unwrap();
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            for merges_at in 0..4 {
                let mut fold = Fold::starting_at(7);
                assert_eq!(fold.take_up_to(12), None);
                for (at, number) in order.into_iter().enumerate() {
                    fold.put(7 + number as u64, vec![parts[number].to_le_bytes().to_vec()]);
                    // Merged at once, or only when several have gathered.
                    if at >= merges_at
                        && let Some(mut merge) = fold.take_merge()
                    {
                        assert!(fold.take_merge().is_none() && fold.take_up_to(12).is_none(), "the sum is out");
                        assert!(merger.merge(&mut merge));
                        fold.give_back(merge);
                    }
                }
                assert_eq!(fold.take_up_to(12), Some(vec![expected.to_le_bytes().to_vec()]));
            }
        }
    }
}
