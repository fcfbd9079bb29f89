//! How a rank learns that the stage is over. The tree itself is in `tree`.

use std::collections::BTreeSet;

use super::{Action, Scheduler};
use crate::sched::message::Message;

/// What a rank knows of the end of the stage.
#[derive(Debug, Default)]
pub(super) struct Finish {
    /// Ranks that have said done.
    done: BTreeSet<u32>,
    /// To whom this rank has said done.
    told: Option<u32>,
    pub over: bool,
}

impl Scheduler {
    /// `from` and its whole branch have written their blocks.
    pub(super) fn heed_done(&mut self, from: u32, actions: &mut Vec<Action>) {
        if self.finish.over {
            // It lost its parent before that could tell it.
            actions.push(Action::Send { to: from, message: Message::Over });
        } else {
            self.finish.done.insert(from);
            self.check_over(actions);
        }
    }

    /// The whole stage is over.
    pub(super) fn heed_over(&mut self, actions: &mut Vec<Action>) {
        if !self.finish.over {
            self.finish.over = true;
            actions.push(Action::Over);
            self.tell_over(actions);
        }
    }

    fn tell_over(&self, actions: &mut Vec<Action>) {
        actions.extend(self.team.children().into_iter().map(|to| Action::Send { to, message: Message::Over }));
    }

    /// Says done to the parent, again if it is a new one; the root ends the stage.
    pub(super) fn check_over(&mut self, actions: &mut Vec<Action>) {
        let branch_done = || self.team.children().iter().all(|child| self.finish.done.contains(child));
        if self.finish.over || !self.complete_said || !branch_done() {
            return;
        }
        match self.team.parent() {
            None => self.heed_over(actions),
            Some(parent) if self.finish.told != Some(parent) => {
                self.finish.told = Some(parent);
                actions.push(Action::Send { to: parent, message: Message::Done });
            }
            Some(_) => {}
        }
    }

    /// Heals the tree after a death.
    pub(super) fn heal(&mut self, actions: &mut Vec<Action>) {
        if self.finish.over {
            self.tell_over(actions);
        } else {
            self.check_over(actions);
        }
    }
}
