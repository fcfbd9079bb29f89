//! Actions that wait for inputs.

use crate::sched::Action;

/// An action of the scheduler that reads inputs, and the transfers that it waits for.
#[derive(Debug)]
pub(in crate::exec) struct DeferredAction {
    pub missing: Vec<usize>,
    pub action: Action,
}
