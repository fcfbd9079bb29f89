//! How much work an owner lends to a thief, and what it has lent.

use std::collections::BTreeMap;

use crate::sched::span::{Span, TARGET_TASK_NS};

/// A grant takes this part of what its owner has to do: many thieves may come before that is done, and nobody can take
/// work back from a thief, even if its estimate was wrong and others run out of work while it is busy.
const GRANT_PART: f64 = 0.125;
/// How long a thief may take for one grant, at least ...
const GRANT_MIN_NS: f64 = 0.5 * TARGET_TASK_NS as f64;
/// ... and at most.
const GRANT_MAX_NS: f64 = 4.0 * TARGET_TASK_NS as f64;
/// Whatever the time, a grant should take so many times as long as the messages around it.
const GRANT_PER_LATENCY: f64 = 20.0;

/// Latency and bandwidth between two ranks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Path {
    pub latency_ns: u64,
    pub ns_per_byte: f64,
}

/// What moving work costs. Estimates: they decide who computes what and when, never what comes out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Costs {
    /// Between ranks of one node.
    pub node: Path,
    /// Between nodes.
    pub network: Path,
    /// Bytes between owner and thief for a block that the owner has not fetched: outputs, and inputs that only the
    /// owner has.
    pub unfetched_block_bytes: u64,
    /// Bytes between owner and thief for a block in the owner's memory: its inputs and outputs.
    pub fetched_block_bytes: u64,
}

/// An owner's situation and a thief's, as far as they decide about a grant. Times are of a rank, all its workers
/// together.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrantRequest {
    /// Slices that nobody has started.
    pub slices: u64,
    pub own_ns_per_slice: f64,
    pub thief_ns_per_slice: f64,
    pub thief_busy_ns: u64,
    /// How long it waits for an answer, as it has measured.
    pub thief_wait_ns: u64,
    pub path: Path,
    pub bytes_per_slice: f64,
    /// What a grant is a multiple of: all slices of an unfetched block, or 1.
    pub unit: u64,
}

impl GrantRequest {
    /// How many slices to lend; 0 when the owner is done earlier without the thief, or the least there is takes too
    /// long. Otherwise as many as let both end at the same time, but not more than half.
    pub fn slices(&self) -> u64 {
        let alone_ns = self.slices as f64 * self.own_ns_per_slice;
        let latency_ns = 2 * self.path.latency_ns;
        // Its answer is on the way while the thief is at what it has.
        let fixed_ns = latency_ns.max(self.thief_wait_ns).max(self.thief_busy_ns) as f64;
        let lent_ns = self.thief_ns_per_slice + self.bytes_per_slice * self.path.ns_per_byte;
        let even = (alone_ns - fixed_ns) / (self.own_ns_per_slice + lent_ns);
        // Main threads that share cores with others answer late: then few and long grants.
        let longest_ns = GRANT_MAX_NS.max(GRANT_PER_LATENCY * self.thief_wait_ns as f64);
        let latest_ns = (alone_ns * GRANT_PART).clamp(GRANT_MIN_NS, longest_ns);
        let limit = latest_ns.max(GRANT_PER_LATENCY * latency_ns as f64) / lent_ns;
        if self.unit > 1 && self.unit as f64 > limit {
            return 0;
        }
        let wanted = even.min(limit).min((self.slices / 2) as f64) as u64;
        let slices = (wanted / self.unit.max(1) * self.unit).max(self.unit).min(self.slices);
        if fixed_ns + slices as f64 * lent_ns < alone_ns { slices } else { 0 }
    }
}

/// Pieces of this rank's blocks that are with thieves, by thief and attempt.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<(u32, u64), Vec<Span>>);

impl Leases {
    pub fn contains(&self, thief: u32, attempt: u64) -> bool {
        self.0.contains_key(&(thief, attempt))
    }

    pub fn add(&mut self, thief: u32, attempt: u64, pieces: Vec<Span>) {
        self.0.insert((thief, attempt), pieces);
    }

    /// Takes back a piece that is computed; false if it is not (any more) lent so.
    pub fn settle(&mut self, thief: u32, attempt: u64, piece: Span) -> bool {
        let Some(pieces) = self.0.get_mut(&(thief, attempt)) else { return false };
        let Some(position) = pieces.iter().position(|lent| *lent == piece) else { return false };
        pieces.swap_remove(position);
        if pieces.is_empty() {
            self.0.remove(&(thief, attempt));
        }
        true
    }

    /// Takes back what was not computed.
    pub fn cancel(&mut self, thief: u32, attempt: u64) -> Vec<Span> {
        self.0.remove(&(thief, attempt)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARGAIN: GrantRequest = GrantRequest {
        slices: 100,
        own_ns_per_slice: 10_000.0,
        thief_ns_per_slice: 10_000.0,
        thief_busy_ns: 0,
        thief_wait_ns: 0,
        path: Path { latency_ns: 1000, ns_per_byte: 0.1 },
        bytes_per_slice: 10_000.0,
        unit: 1,
    };

    #[test]
    fn both_end_together_and_nobody_gives_more_than_half() {
        // (1 ms - 2 us) / (10 us + 10 us + 1 us)
        assert_eq!(BARGAIN.slices(), 47);
        assert_eq!(GrantRequest { thief_ns_per_slice: 1000.0, ..BARGAIN }.slices(), 50);
        assert_eq!(GrantRequest { thief_ns_per_slice: 40_000.0, ..BARGAIN }.slices(), 19);
        assert_eq!(GrantRequest { unit: 30, ..BARGAIN }.slices(), 30);
    }

    #[test]
    fn what_does_not_pay_is_not_lent() {
        assert_eq!(GrantRequest { thief_busy_ns: 10_000_000, ..BARGAIN }.slices(), 0);
        assert_eq!(GrantRequest { bytes_per_slice: 200e6, ..BARGAIN }.slices(), 0);
        assert_eq!(GrantRequest { slices: 1, ..BARGAIN }.slices(), 0);
        assert_eq!(GrantRequest { slices: 1, thief_ns_per_slice: 1000.0, ..BARGAIN }.slices(), 1);
        assert_eq!(GrantRequest { slices: 0, ..BARGAIN }.slices(), 0);
        assert_eq!(GrantRequest { unit: 100, ..BARGAIN }.slices(), 0);
        assert_eq!(GrantRequest { slices: 10_000, unit: 2000, ..BARGAIN }.slices(), 0);
    }

    #[test]
    fn a_grant_is_short() {
        let slices = GrantRequest { slices: 1_000_000, ..BARGAIN }.slices();
        assert_eq!(slices, 1818);
        // And shorter when there is less to do: an eighth of 50 ms.
        assert_eq!(GrantRequest { slices: 5000, ..BARGAIN }.slices(), 568);
        // Longer for a thief that waits 5 ms each time, if there is enough to do.
        let late = GrantRequest { slices: 1_000_000, thief_wait_ns: 5_000_000, ..BARGAIN };
        assert_eq!(late.slices(), 9090);
        assert_eq!(GrantRequest { slices: 5000, ..late }.slices(), 568);
    }

    #[test]
    fn a_piece_is_settled_once() {
        let piece = |start| Span { owner: 0, block: 4, start, len: 2 };
        let mut leases = Leases::default();
        leases.add(1, 7, vec![piece(0), piece(2)]);
        leases.add(1, 8, vec![piece(4)]);
        leases.add(2, 7, vec![piece(6)]);
        assert!(leases.settle(1, 7, piece(0)) && !leases.settle(1, 7, piece(0)) && !leases.settle(1, 7, piece(4)));
        assert_eq!(leases.cancel(2, 7), [piece(6)]);
        assert_eq!(leases.cancel(1, 7), [piece(2)]);
        assert_eq!(leases.cancel(1, 8), [piece(4)]);
        assert!(!leases.contains(1, 7) && !leases.contains(1, 8) && leases.cancel(1, 8).is_empty());
    }
}
