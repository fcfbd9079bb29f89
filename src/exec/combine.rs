//! Partial results into one, in an order that does not depend on who computed them when.

use std::collections::BTreeMap;

use crate::job::Combine;
use crate::tensor::Dtype;

/// Combines `other` into `sum`, element by element. Both are packed, of one length and `dtype`, which is none of the storage
/// types f16 and bf16 (a job that asks for them is refused). Integers wrap; a NaN in either makes a canonical NaN.
pub(super) fn combine(how: Combine, dtype: Dtype, sum: &mut [u8], other: &[u8]) {
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

/// Folds numbered partial results from the left, in the order of their numbers, whatever the order they come in.
#[derive(Debug, Default)]
pub(super) struct Fold {
    next: u64,
    sum: Option<Vec<u8>>,
    /// Those that came before their turn.
    early: BTreeMap<u64, Vec<u8>>,
}

impl Fold {
    /// A fold whose first partial result has this number.
    pub fn starting_at(first: u64) -> Fold {
        Fold { next: first, ..Fold::default() }
    }

    /// Takes partial result `number`.
    pub fn add(&mut self, number: u64, bytes: Vec<u8>, how: Combine, dtype: Dtype) {
        self.early.insert(number, bytes);
        while let Some(bytes) = self.early.remove(&self.next) {
            match &mut self.sum {
                Some(sum) => combine(how, dtype, sum, &bytes),
                None => self.sum = Some(bytes),
            }
            self.next += 1;
        }
    }

    /// The sum of all before `end`, once they are there.
    pub fn take_up_to(&mut self, end: u64) -> Option<Vec<u8>> {
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
    fn folds_from_the_left_whatever_the_order() {
        let parts = [1e16f64, 1.0, -1e16, 3.0, 1e-3];
        let expected = parts.iter().copied().reduce(|a, b| a + b).unwrap();
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let mut fold = Fold::starting_at(7);
            assert_eq!(fold.take_up_to(12), None);
            for number in order {
                fold.add(7 + number as u64, parts[number].to_le_bytes().to_vec(), Combine::Sum, Dtype::F64);
            }
            assert_eq!(fold.take_up_to(12), Some(expected.to_le_bytes().to_vec()));
        }
    }
}
