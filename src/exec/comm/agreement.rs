//! Agreement of the surviving ranks on the set of failed ranks.
//!
//! A rank that learns of a failed rank, by itself or from a report, sends its whole set of failed ranks to all ranks
//! that it believes to be alive. It continues once the last report of each of them equals its own set. Sets only grow,
//! and each member of an agreed set was reported by every rank that survived the larger one: of any two sets that ranks
//! ever agree on, one contains the other. Ranks are numbered as at the start of the run.

use std::collections::{BTreeMap, BTreeSet};

use crate::fabric::Rank;

/// The failed ranks that one rank knows, and what others reported. It sends no messages itself.
#[derive(Clone, Debug)]
pub(in crate::exec) struct Agreement {
    me: Rank,
    size: u32,
    failed: BTreeSet<Rank>,
    /// The last report of each rank.
    reports: BTreeMap<Rank, BTreeSet<Rank>>,
}

impl Agreement {
    pub fn new(me: Rank, size: u32) -> Agreement {
        Agreement { me, size, failed: BTreeSet::new(), reports: BTreeMap::new() }
    }

    pub fn failed(&self) -> &BTreeSet<Rank> {
        &self.failed
    }

    /// The number of ranks that this rank believes to be alive, itself included.
    pub fn alive(&self) -> usize {
        self.size as usize - self.failed.len()
    }

    /// The other ranks that this rank believes to be alive.
    pub fn others(&self) -> impl Iterator<Item = Rank> + '_ {
        (0..self.size).filter(|rank| *rank != self.me && !self.failed.contains(rank))
    }

    /// Adds a rank that this rank has found to have failed. Returns whether that is news, which must be sent to all
    /// [`Agreement::others`].
    pub fn add_failed(&mut self, rank: Rank) -> bool {
        self.failed.insert(rank)
    }

    /// Records another rank's set of failed ranks. Returns whether it holds news, which must be sent to all
    /// [`Agreement::others`].
    pub fn record_report(&mut self, from: Rank, failed: BTreeSet<Rank>) -> bool {
        let known = self.failed.len();
        self.failed.extend(failed.iter().filter(|rank| **rank < self.size && **rank != self.me));
        self.reports.insert(from, failed);
        self.failed.len() > known
    }

    /// Whether all others know exactly the failed ranks that this rank knows.
    pub fn is_reached(&self) -> bool {
        self.others().all(|rank| self.reports.get(&rank) == Some(&self.failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pseudo-random number below `below`.
    fn random(state: &mut u64, below: usize) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 33) % below as u64) as usize
    }

    /// Messages between ranks: those between two ranks stay in order, others arrive in any order.
    struct Network {
        ranks: Vec<Option<Agreement>>,
        channels: BTreeMap<(Rank, Rank), Vec<BTreeSet<Rank>>>,
        /// Sets that ranks have agreed on.
        reached: Vec<BTreeSet<Rank>>,
    }

    impl Network {
        fn announce(&mut self, rank: Rank) {
            let Some(agreement) = &self.ranks[rank as usize] else { return };
            for other in agreement.others() {
                self.channels.entry((rank, other)).or_default().push(agreement.failed().clone());
            }
        }

        fn change(&mut self, rank: Rank, change: impl FnOnce(&mut Agreement) -> bool) {
            let Some(agreement) = &mut self.ranks[rank as usize] else { return };
            if change(agreement) {
                self.announce(rank);
            }
            let Some(agreement) = &self.ranks[rank as usize] else { return };
            if !agreement.failed().is_empty() && agreement.is_reached() {
                self.reached.push(agreement.failed().clone());
            }
        }
    }

    #[test]
    fn survivors_agree_on_one_set_whatever_fails_when() {
        for seed in 0..3000 {
            let mut state = seed;
            let size = 2 + random(&mut state, 6) as u32;
            let ranks = (0..size).map(|rank| Some(Agreement::new(rank, size))).collect();
            let mut network = Network { ranks, channels: BTreeMap::new(), reached: Vec::new() };
            let mut killed = BTreeSet::new();
            let failures = 1 + random(&mut state, size as usize - 1);
            loop {
                // A rank fails, another one notices a failure, or a message arrives.
                let unseen: Vec<(Rank, Rank)> = (0..size)
                    .flat_map(|rank| killed.iter().map(move |failed| (rank, *failed)))
                    .filter(|(rank, failed)| {
                        network.ranks[*rank as usize]
                            .as_ref()
                            .is_some_and(|agreement| !agreement.failed().contains(failed))
                    })
                    .collect();
                let channels: Vec<(Rank, Rank)> = network.channels.keys().copied().collect();
                match random(&mut state, 8) {
                    0 if killed.len() < failures => {
                        let victim = random(&mut state, size as usize) as Rank;
                        killed.insert(victim);
                        network.ranks[victim as usize] = None;
                        // The last messages that it sent may be lost.
                        for ((from, _), channel) in &mut network.channels {
                            if *from == victim {
                                channel.truncate(random(&mut state, channel.len() + 1));
                            }
                        }
                    }
                    1 | 2 if !unseen.is_empty() => {
                        let (rank, failed) = unseen[random(&mut state, unseen.len())];
                        network.change(rank, |agreement| agreement.add_failed(failed));
                    }
                    _ if !channels.is_empty() => {
                        let channel = channels[random(&mut state, channels.len())];
                        let queue = network.channels.get_mut(&channel).expect("it was just listed");
                        let first = (!queue.is_empty()).then(|| queue.remove(0));
                        if queue.is_empty() {
                            network.channels.remove(&channel);
                        }
                        if let Some(set) = first {
                            network.change(channel.1, |agreement| agreement.record_report(channel.0, set));
                        }
                    }
                    _ if killed.len() == failures && unseen.is_empty() => break,
                    _ => {}
                }
            }
            for agreement in network.ranks.iter().flatten() {
                assert!(
                    agreement.is_reached() && *agreement.failed() == killed,
                    "seed {seed}: {agreement:?}, {killed:?}"
                );
            }
            for (one, other) in
                network.reached.iter().flat_map(|one| network.reached.iter().map(move |other| (one, other)))
            {
                assert!(one.is_subset(other) || other.is_subset(one), "seed {seed}: {one:?} and {other:?}");
            }
        }
    }
}
