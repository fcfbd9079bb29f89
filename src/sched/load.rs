//! The cost of a rank's own blocks, including the slices that thieves computed.

/// Times are of all workers together.
#[derive(Debug, Default)]
pub(super) struct Load {
    own_slices: u64,
    own_ns: u64,
    lent_slices: u64,
    /// What thieves took.
    lent_ns: u64,
}

impl Load {
    pub fn add_own(&mut self, slices: u64, elapsed_ns: u64) {
        self.own_slices += slices;
        self.own_ns += elapsed_ns;
    }

    pub fn add_lent(&mut self, slices: u64, elapsed_ns: u64) {
        self.lent_slices += slices;
        self.lent_ns = self.lent_ns.saturating_add(elapsed_ns);
    }

    /// What the owner alone would have taken. Where it is slower than its thieves, its own pace tells more than theirs,
    /// and where its dear slices were lent, theirs does: the larger, because who stops stealing too early loses more.
    pub fn ns(&self) -> u64 {
        let pace_ns = self.own_ns as f64 / self.own_slices.max(1) as f64;
        self.own_ns.saturating_add(self.lent_ns.max((pace_ns * self.lent_slices as f64) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_slices_count_as_dear_as_they_may_be_here() {
        let mut load = Load::default();
        assert_eq!(load.ns(), 0);
        load.add_own(10, 1000);
        assert_eq!(load.ns(), 1000);
        // A faster thief, or cheaper slices.
        load.add_lent(5, 100);
        assert_eq!(load.ns(), 1500);
        load.add_lent(5, 8900);
        assert_eq!(load.ns(), 10_000);
        load.add_lent(1, u64::MAX);
        assert_eq!(load.ns(), u64::MAX);
    }
}
