use smallvec::SmallVec;

/// Which code ran: costs are kept apart per class, since tiers differ by an order of magnitude.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CostClass(pub u8);

/// Weight of the newest measurement in the moving average.
const NEWEST_WEIGHT: f64 = 0.3;

/// A task may grow by at most this factor over the last one of its class, so that one measurement that fell below
/// the clock's resolution cannot hand the whole shard to one worker; further only to what was expected.
const GROWTH: u64 = 64;

/// Cost per slice, by class of code: measured, and until then as it was expected.
#[derive(Debug, Default)]
pub struct CostTable {
    entries: SmallVec<[(CostClass, Entry); 2]>,
    expected: Vec<(CostClass, f64)>,
}

#[derive(Debug)]
struct Entry {
    ns_per_slice: f64,
    last_len: u64,
}

impl CostTable {
    /// A table that has measured nothing, but knows what a slice has cost elsewhere, in nanoseconds; figures that make
    /// no sense are left out.
    pub fn expecting(costs: impl IntoIterator<Item = (CostClass, f64)>) -> CostTable {
        let expected = costs.into_iter().filter(|(_, ns)| *ns > 0.0 && ns.is_finite()).collect();
        CostTable { entries: SmallVec::new(), expected }
    }

    /// What was measured: nanoseconds a slice.
    pub fn measured(&self) -> impl Iterator<Item = (CostClass, f64)> + '_ {
        self.entries.iter().map(|(class, entry)| (*class, entry.ns_per_slice))
    }

    /// Adds the measurement of a task of `slices` slices. One that took no time had nothing to do, and says nothing.
    pub fn record(&mut self, class: CostClass, slices: u64, elapsed_ns: u64) {
        if elapsed_ns == 0 {
            return;
        }
        let measured = elapsed_ns as f64 / slices.max(1) as f64;
        match self.entries.iter_mut().find(|(c, _)| *c == class) {
            Some((_, entry)) => {
                // A longer task measures the cost per slice better than the short ones before it.
                let weight = if slices >= 4 * entry.last_len { 1.0 } else { NEWEST_WEIGHT };
                entry.ns_per_slice += weight * (measured - entry.ns_per_slice);
                entry.last_len = slices;
            }
            None => self.entries.push((class, Entry { ns_per_slice: measured, last_len: slices })),
        }
    }

    /// Cost of a slice; `None` while nothing is known of the class.
    pub fn ns_per_slice(&self, class: CostClass) -> Option<f64> {
        let measured = self.entries.iter().find(|(c, _)| *c == class).map(|(_, entry)| entry.ns_per_slice);
        measured.or_else(|| self.expected.iter().find(|(c, _)| *c == class).map(|(_, ns)| *ns))
    }

    /// How many slices take about `target_ns`; 1 while nothing is measured of the class. What was expected may have
    /// been of other data or parameters: a first task that went by it could take any time, and more than a task may.
    pub fn slices_in(&self, class: CostClass, target_ns: u64) -> u64 {
        let Some((_, entry)) = self.entries.iter().find(|(c, _)| *c == class) else { return 1 };
        let slices = |ns: f64| (target_ns as f64 / ns) as u64;
        let expected = self.expected.iter().find(|(c, _)| *c == class).map_or(0, |(_, ns)| slices(*ns));
        slices(entry.ns_per_slice).clamp(1, entry.last_len.saturating_mul(GROWTH).max(expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converges_to_the_target_and_keeps_classes_apart() {
        let (slow, fast) = (CostClass(0), CostClass(1));
        let mut table = CostTable::default();
        assert_eq!(table.slices_in(slow, 5_000_000), 1);
        // 2 us of overhead and 100 ns a slice: the overhead must not dominate the estimate for long.
        let mut len = 1;
        for _ in 0..8 {
            table.record(slow, len, 2_000 + 100 * len);
            len = table.slices_in(slow, 5_000_000);
        }
        assert!((40_000..=52_000).contains(&len), "{len}");
        assert_eq!(table.slices_in(fast, 5_000_000), 1);
    }

    #[test]
    fn expectations_shorten_the_way_and_measurements_decide() {
        let class = CostClass(1);
        let expecting = || CostTable::expecting([(class, 100.0), (CostClass(0), f64::NAN), (CostClass(2), 0.0)]);
        let mut table = expecting();
        assert_eq!([0, 1, 2].map(|class| table.slices_in(CostClass(class), 1_000_000)), [1, 1, 1]);
        assert_eq!((table.measured().count(), table.ns_per_slice(class)), (0, Some(100.0)));
        table.record(class, 1, 125);
        assert_eq!(table.slices_in(class, 1_000_000), 8000, "at once as many as were expected to be right");
        // The same kernel with other parameters.
        let mut table = expecting();
        table.record(class, 1, 10_000_000);
        assert_eq!((table.slices_in(class, 1_000_000), table.ns_per_slice(class)), (1, Some(1e7)));
        assert_eq!(table.measured().collect::<Vec<_>>(), [(class, 1e7)]);
    }

    #[test]
    fn growth_is_bounded() {
        let mut table = CostTable::default();
        table.record(CostClass(0), 1, 1);
        assert_eq!(table.slices_in(CostClass(0), u64::MAX), GROWTH);
    }
}
