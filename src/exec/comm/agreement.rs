//! How survivors agree on who has died.
//!
//! Whoever learns of a death, by itself or from another rank, tells all others that it takes for alive the whole set of
//! those it takes for dead. A rank goes on once all of them have last told it the set that it has itself. A death meanwhile, or
//! later, only makes the sets larger: any two sets that ranks ever agree on contain one another, since of both each member
//! was told by each rank that survived the larger. Ranks are called what they were at the start.

use std::collections::{BTreeMap, BTreeSet};

use crate::fabric::Rank;

/// What one rank knows of deaths. No clock, no messages of its own: those are its owner's to send.
#[derive(Clone, Debug)]
pub(in crate::exec) struct Agreement {
    me: Rank,
    size: u32,
    dead: BTreeSet<Rank>,
    /// What each rank has last said.
    said: BTreeMap<Rank, BTreeSet<Rank>>,
}

impl Agreement {
    pub fn new(me: Rank, size: u32) -> Agreement {
        Agreement { me, size, dead: BTreeSet::new(), said: BTreeMap::new() }
    }

    pub fn dead(&self) -> &BTreeSet<Rank> {
        &self.dead
    }

    /// How many this rank takes for alive, itself included.
    pub fn alive(&self) -> usize {
        self.size as usize - self.dead.len()
    }

    /// Those that this rank takes for alive, itself apart.
    pub fn others(&self) -> impl Iterator<Item = Rank> + '_ {
        (0..self.size).filter(|rank| *rank != self.me && !self.dead.contains(rank))
    }

    /// This rank has seen that another is dead. True if that is news: then all [`Agreement::others`] are to be told.
    pub fn see(&mut self, dead: Rank) -> bool {
        self.dead.insert(dead)
    }

    /// Another rank has told its set. True if there is news in it: then all [`Agreement::others`] are to be told.
    pub fn hear(&mut self, from: Rank, dead: BTreeSet<Rank>) -> bool {
        let known = self.dead.len();
        self.dead.extend(dead.iter().filter(|rank| **rank < self.size && **rank != self.me));
        self.said.insert(from, dead);
        self.dead.len() > known
    }

    /// Whether all others know of these deaths, and of no more.
    pub fn is_reached(&self) -> bool {
        self.others().all(|rank| self.said.get(&rank) == Some(&self.dead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that repeat from run to run.
    fn chance(state: &mut u64, below: usize) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 33) % below as u64) as usize
    }

    /// Messages between ranks, in order between any two, that arrive in any order otherwise.
    struct World {
        ranks: Vec<Option<Agreement>>,
        wires: BTreeMap<(Rank, Rank), Vec<BTreeSet<Rank>>>,
        /// Sets that ranks have gone on with.
        reached: Vec<BTreeSet<Rank>>,
    }

    impl World {
        fn tell(&mut self, rank: Rank) {
            let Some(agreement) = &self.ranks[rank as usize] else { return };
            for other in agreement.others() {
                self.wires.entry((rank, other)).or_default().push(agreement.dead().clone());
            }
        }

        fn step(&mut self, rank: Rank, change: impl FnOnce(&mut Agreement) -> bool) {
            let Some(agreement) = &mut self.ranks[rank as usize] else { return };
            if change(agreement) {
                self.tell(rank);
            }
            let Some(agreement) = &self.ranks[rank as usize] else { return };
            if !agreement.dead().is_empty() && agreement.is_reached() {
                self.reached.push(agreement.dead().clone());
            }
        }
    }

    #[test]
    fn whatever_dies_when_survivors_end_with_the_same_set_and_never_with_sets_that_differ() {
        for seed in 0..3000 {
            let mut state = seed;
            let size = 2 + chance(&mut state, 6) as u32;
            let ranks = (0..size).map(|rank| Some(Agreement::new(rank, size))).collect();
            let mut world = World { ranks, wires: BTreeMap::new(), reached: Vec::new() };
            let mut killed = BTreeSet::new();
            let deaths = 1 + chance(&mut state, size as usize - 1);
            loop {
                // A death, some rank sees one, or a message arrives.
                let unseen: Vec<(Rank, Rank)> = (0..size)
                    .flat_map(|rank| killed.iter().map(move |dead| (rank, *dead)))
                    .filter(|(rank, dead)| {
                        world.ranks[*rank as usize].as_ref().is_some_and(|agreement| !agreement.dead().contains(dead))
                    })
                    .collect();
                let wires: Vec<(Rank, Rank)> = world.wires.keys().copied().collect();
                match chance(&mut state, 8) {
                    0 if killed.len() < deaths => {
                        let victim = chance(&mut state, size as usize) as Rank;
                        killed.insert(victim);
                        world.ranks[victim as usize] = None;
                        // Of what it has sent, the end may be lost.
                        for ((from, _), wire) in &mut world.wires {
                            if *from == victim {
                                wire.truncate(chance(&mut state, wire.len() + 1));
                            }
                        }
                    }
                    1 | 2 if !unseen.is_empty() => {
                        let (rank, dead) = unseen[chance(&mut state, unseen.len())];
                        world.step(rank, |agreement| agreement.see(dead));
                    }
                    _ if !wires.is_empty() => {
                        let wire = wires[chance(&mut state, wires.len())];
                        let queue = world.wires.get_mut(&wire).expect("it was just listed");
                        let first = (!queue.is_empty()).then(|| queue.remove(0));
                        if queue.is_empty() {
                            world.wires.remove(&wire);
                        }
                        if let Some(set) = first {
                            world.step(wire.1, |agreement| agreement.hear(wire.0, set));
                        }
                    }
                    _ if killed.len() == deaths && unseen.is_empty() => break,
                    _ => {}
                }
            }
            for agreement in world.ranks.iter().flatten() {
                assert!(
                    agreement.is_reached() && *agreement.dead() == killed,
                    "seed {seed}: {agreement:?}, {killed:?}"
                );
            }
            for (one, other) in world.reached.iter().flat_map(|one| world.reached.iter().map(move |other| (one, other)))
            {
                assert!(one.is_subset(other) || other.is_subset(one), "seed {seed}: {one:?} and {other:?}");
            }
        }
    }
}
