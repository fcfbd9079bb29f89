//! Detection of output elements that a kernel has not written: they still hold the fill value.
//!
//! A written value can equal the fill value, especially -1 in integers. A task with such an element is computed again
//! with another fill value, which unwritten elements then hold. This happens for the first such tasks, and then ever
//! more rarely.

use std::time::Duration;

/// A longer task is not computed twice, since its time limit is that of one call.
const LONG: Duration = Duration::from_millis(100);

/// Decides which tasks of one instance are computed twice.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// The number of tasks with possibly unwritten elements.
    tasks: u64,
}

impl Suspicion {
    /// Whether to compute a task with possibly unwritten elements again; it took this long.
    pub fn is_worth_it(&mut self, took: Duration) -> bool {
        if took > LONG {
            return false;
        }
        self.tasks += 1;
        self.tasks <= 4 || self.tasks.is_power_of_two()
    }
}

/// Whether any element of this size is `fill` in every byte.
pub(super) fn looks_unwritten(bytes: &[u8], element_bytes: usize, fill: u8) -> bool {
    macro_rules! any {
        ($type:ty) => {{
            let filled = <$type>::from_ne_bytes([fill; size_of::<$type>()]);
            // Whole blocks without a branch, so that they are compared in few instructions.
            bytes.chunks(512).any(|block| {
                let words = block.chunks_exact(size_of::<$type>());
                let word = |bytes: &[u8]| bytes.try_into().map_or(!filled, <$type>::from_ne_bytes);
                words.fold(false, |found, bytes| found | (word(bytes) == filled))
            })
        }};
    }
    match element_bytes {
        1 => any!(u8),
        2 => any!(u16),
        4 => any!(u32),
        _ => any!(u64),
    }
}

/// The first element that is `fill` in every byte of `before` and the opposite in every byte of `after`.
pub(super) fn first_unwritten(before: &[u8], after: &[u8], element_bytes: usize, fill: u8) -> Option<usize> {
    let is = |bytes: &[u8], fill: u8| bytes.iter().all(|byte| *byte == fill);
    let pairs = before.chunks_exact(element_bytes).zip(after.chunks_exact(element_bytes));
    pairs.enumerate().find(|(_, (before, after))| is(before, fill) && is(after, !fill)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_elements_count() {
        for size in [1usize, 2, 4, 8] {
            let mut bytes = vec![0; 1200 * size];
            assert!(!looks_unwritten(&bytes, size, 0xFF));
            bytes[999 * size + 1..1000 * size + 1].fill(0xFF);
            assert_eq!(looks_unwritten(&bytes, size, 0xFF), size == 1, "across two elements of {size}");
            bytes[999 * size..1000 * size].fill(0xFF);
            assert!(looks_unwritten(&bytes, size, 0xFF));
            assert_eq!(first_unwritten(&bytes, &vec![0; 1200 * size], size, 0xFF), Some(999));
            assert_eq!(first_unwritten(&bytes, &bytes, size, 0xFF), None, "it is written");
        }
    }

    #[test]
    fn ever_fewer_tasks_are_computed_twice() {
        let mut suspicion = Suspicion::default();
        assert!(!suspicion.is_worth_it(Duration::from_secs(1)));
        let looks: Vec<u64> = (1..=40).filter(|_| suspicion.is_worth_it(Duration::ZERO)).collect();
        assert_eq!(looks, [1, 2, 3, 4, 8, 16, 32]);
    }
}
