//! Which ranks take part in a stage, which of them are near, and whom a thief asks next.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Nodes that [`Team::packed`] takes for a group.
const NODES_PER_GROUP: u32 = 16;

/// Of this many attempts in a row ...
pub(super) const ROUND: u32 = 12;
/// ... this many go to the own node first, where bytes are cheapest, ...
const ROUND_NODE: u32 = 4;
/// ... and this many then to the own group; the rest to anyone.
const ROUND_GROUP: u32 = 2;

/// A rank's view of all ranks of a stage.
#[derive(Clone, Debug)]
pub struct Team {
    rank: u32,
    size: u32,
    /// Ranks of the own node, ascending, this one included. Shared by the ranks of a simulated node.
    node: Arc<[u32]>,
    /// Ranks that are nearer than the others, if not as near as those of the node.
    group: Range<u32>,
}

impl Team {
    /// Rank `rank` of `size`, sharing its node with the ranks of `node`, which may come in any order.
    pub fn new(rank: u32, size: u32, node: impl IntoIterator<Item = u32>, group: Range<u32>) -> Team {
        let node: BTreeSet<u32> = node.into_iter().chain([rank]).collect();
        Team { rank, size, node: node.into_iter().collect(), group }
    }

    /// A rank that nobody else has to know of.
    pub fn alone() -> Team {
        Team::new(0, 1, [], 0..1)
    }

    /// All ranks of a team that fills one node of `ranks_per_node` after the other; groups are of 16 nodes.
    pub fn packed(size: u32, ranks_per_node: u32) -> impl Iterator<Item = Team> {
        let ranks_per_node = ranks_per_node.max(1);
        let around = move |rank: u32, width: u32| {
            let start = rank / width * width;
            start..start.saturating_add(width).min(size)
        };
        let mut node: Arc<[u32]> = Arc::new([]);
        (0..size).map(move |rank| {
            if rank.is_multiple_of(ranks_per_node) {
                node = around(rank, ranks_per_node).collect();
            }
            let group = around(rank, ranks_per_node.saturating_mul(NODES_PER_GROUP));
            Team { rank, size, node: node.clone(), group }
        })
    }

    pub fn rank(&self) -> u32 {
        self.rank
    }

    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether `rank` is on the own node.
    pub fn is_near(&self, rank: u32) -> bool {
        self.node.binary_search(&rank).is_ok()
    }

    /// Whom to ask as attempt `attempt`, the `turn`th of a round; `None` if chance points at this rank.
    /// Deterministic, and different for every rank, so that thieves do not meet at the same victim.
    pub(super) fn victim(&self, attempt: u64, turn: u32) -> Option<u32> {
        let chance = mix(u64::from(self.rank) << 32 ^ attempt);
        let below = |count: usize| ((u128::from(chance) * count as u128) >> 64) as usize;
        let pick = if turn < ROUND_NODE && self.node.len() > 1 {
            self.node[below(self.node.len())]
        } else if turn < ROUND_NODE + ROUND_GROUP && self.group.len() > self.node.len() {
            self.group.start + below(self.group.len()) as u32
        } else {
            below(self.size as usize) as u32
        };
        (pick != self.rank).then_some(pick)
    }
}

/// A hash of 64 bits to 64 bits in which every bit matters (the finalizer of SplitMix64, Steele et al. 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_from_near_to_far_and_reach_everyone() {
        let team = Team::packed(64, 2).nth(9).unwrap();
        assert!(team.is_near(8) && team.is_near(9) && !team.is_near(10));
        let mut asked = BTreeSet::new();
        for attempt in 0..12_000u64 {
            let turn = (attempt % u64::from(ROUND)) as u32;
            let Some(victim) = team.victim(attempt, turn) else { continue };
            assert_ne!(victim, 9);
            assert!(turn >= ROUND_NODE || victim == 8, "turn {turn} asks {victim}");
            assert!(turn >= ROUND_NODE + ROUND_GROUP || victim < 32, "turn {turn} asks {victim}");
            asked.insert(victim);
        }
        assert_eq!(asked.len(), 63);
    }
}
