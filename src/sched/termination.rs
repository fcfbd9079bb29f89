//! How a rank learns that the stage is over: along a binary tree of ranks, in which the parent of rank `r` is `(r - 1)
//! / 2`. A rank says *done* to its parent for its whole branch: for itself and for every rank below it.

use std::collections::BTreeSet;

use crate::sched::peers::Team;

/// What a rank knows of the end of the stage.
#[derive(Debug, Default)]
pub(super) struct Finish {
    /// Children that have said done.
    pub done: BTreeSet<u32>,
    pub over: bool,
}

impl Team {
    /// Whom this rank tells that its branch is done; `None` for the root.
    pub(super) fn parent(&self) -> Option<u32> {
        Some(self.rank().checked_sub(1)? / 2)
    }

    /// The ranks whose parent this rank is.
    pub(super) fn children(&self) -> impl Iterator<Item = u32> {
        let child = |side| self.rank().checked_mul(2)?.checked_add(side);
        (1..=2).filter_map(child).filter(|child| *child < self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_but_the_root_is_the_child_of_its_parent() {
        for size in 1..40 {
            let teams: Vec<Team> = Team::packed(size, 4).collect();
            let mut seen = Vec::new();
            for (rank, team) in teams.iter().enumerate() {
                for child in team.children() {
                    assert_eq!(teams[child as usize].parent(), Some(rank as u32));
                    seen.push(child);
                }
            }
            seen.sort_unstable();
            assert_eq!(seen, (1..size).collect::<Vec<_>>());
        }
    }
}
