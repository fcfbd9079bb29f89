//! How a rank learns that the stage is over: along a binary tree of ranks, in which the parent of rank `r` is `(r - 1) / 2`.
//! A rank says *done* to its parent for its whole branch: for itself and for every rank below it.

use std::collections::BTreeSet;

use super::{Action, Scheduler};
use crate::sched::message::Message;
use crate::sched::peers::Team;

/// What a rank knows of the end of the stage.
#[derive(Debug, Default)]
pub(super) struct Finish {
    /// Children that have said done.
    done: BTreeSet<u32>,
    pub over: bool,
}

impl Team {
    /// Whom this rank tells that its branch is done; `None` for the root.
    fn parent(&self) -> Option<u32> {
        Some(self.rank().checked_sub(1)? / 2)
    }

    /// The ranks whose parent this rank is.
    fn children(&self) -> impl Iterator<Item = u32> {
        let child = |side| self.rank().checked_mul(2)?.checked_add(side);
        (1..=2).filter_map(child).filter(|child| *child < self.size())
    }
}

impl Scheduler {
    /// `from` and its whole branch have written their blocks.
    pub(super) fn heed_done(&mut self, from: u32, actions: &mut Vec<Action>) {
        if self.finish.done.insert(from) {
            self.check_over(actions);
        }
    }

    /// The whole stage is over.
    pub(super) fn heed_over(&mut self, actions: &mut Vec<Action>) {
        if !self.finish.over {
            self.finish.over = true;
            actions.push(Action::Over);
            actions.extend(self.team.children().map(|to| Action::Send { to, message: Message::Over }));
        }
    }

    /// Says done to the parent once the branch is; the root ends the stage. To be called once for each change.
    pub(super) fn check_over(&mut self, actions: &mut Vec<Action>) {
        let branch_done = self.team.children().all(|child| self.finish.done.contains(&child));
        if !self.complete_said || !branch_done {
            return;
        }
        match self.team.parent() {
            None => self.heed_over(actions),
            Some(parent) => actions.push(Action::Send { to: parent, message: Message::Done }),
        }
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
