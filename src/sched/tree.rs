//! Who tells whom that the stage is over: a binary tree of ranks that heals when ranks die.
//!
//! The parent of rank `r` is `(r - 1) / 2`, or, when that is dead, the nearest live ancestor. The lowest live rank is
//! the root, and adopts ranks that have no live ancestor. A rank says *done* for its whole branch: for itself and for
//! every live rank below it. Since a rank looks through dead ones at their children, and never takes a live one for
//! dead, this holds whatever the order in which ranks learn of deaths: nobody live is ever left out.

use crate::sched::peers::Team;

impl Team {
    /// Whom this rank tells that its branch is done; `None` for the root.
    pub(super) fn parent(&self) -> Option<u32> {
        let mut rank = self.rank();
        while rank > 0 {
            rank = (rank - 1) / 2;
            if !self.is_dead(rank) {
                return Some(rank);
            }
        }
        (0..self.rank()).find(|rank| !self.is_dead(*rank))
    }

    /// The ranks whose parent this rank is.
    pub(super) fn children(&self) -> Vec<u32> {
        let mut children = Vec::new();
        self.adopt(self.rank(), &mut children);
        if self.rank() > 0 && self.parent().is_none() {
            self.look_at(0, &mut children);
        }
        children
    }

    fn adopt(&self, parent: u32, children: &mut Vec<u32>) {
        for side in 1..=2 {
            if let Some(child) = parent.checked_mul(2).and_then(|left| left.checked_add(side)) {
                self.look_at(child, children);
            }
        }
    }

    fn look_at(&self, child: u32, children: &mut Vec<u32>) {
        if child >= self.size() || child == self.rank() {
        } else if self.is_dead(child) {
            self.adopt(child, children);
        } else {
            children.push(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_live_rank_but_the_root_is_the_child_of_its_parent(
            size in 1u32..40,
            dead in proptest::collection::btree_set(0u32..40, 0..39),
        ) {
            let mut teams: Vec<Team> = Team::packed(size, 4).collect();
            for team in &mut teams {
                dead.iter().for_each(|rank| { team.bury(*rank); });
            }
            let live: Vec<u32> = (0..size).filter(|rank| !dead.contains(rank)).collect();
            let mut seen = Vec::new();
            for &rank in &live {
                for child in teams[rank as usize].children() {
                    prop_assert_eq!(teams[child as usize].parent(), Some(rank));
                    seen.push(child);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(&seen[..], live.get(1..).unwrap_or_default());
        }
    }
}
