//! Termination detection: the end of a stage on all ranks of a team.

use super::Scheduler;
use crate::sched::event::Action;
use crate::sched::message::Message;

impl Scheduler {
    /// `from` and its whole branch have written their blocks.
    pub(super) fn handle_done(&mut self, from: u32, actions: &mut Vec<Action>) {
        if self.finish.done.insert(from) {
            self.check_over(actions);
        }
    }

    /// The whole stage is over.
    pub(super) fn handle_over(&mut self, actions: &mut Vec<Action>) {
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
            None => self.handle_over(actions),
            Some(parent) => actions.push(Action::Send { to: parent, message: Message::Done }),
        }
    }
}
