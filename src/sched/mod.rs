//! The run-time scheduler of one rank as a state machine: [`Scheduler::on`] takes an event and returns actions.
//!
//! It decides which blocks to fetch, which slices of them each worker computes next, when a block is ready to be
//! written, and which work moves between ranks. A *slice* is the smallest part of a block that a task can take (extent
//! 1 along the block's task axis). A task is a span, sized to take about [`TARGET_TASK_NS`] on the code that runs it.
//!
//! The owner of a block never changes: it alone counts the slices and writes the block. A rank without work *steals*
//! spans of other ranks' blocks, computes them and returns the results. Spans that a thief does not return are computed
//! by others. So nothing is written twice, results do not depend on the thieves, and a rank knows when all its blocks
//! are written. A tree of ranks detects termination ([`Message::Done`] up, [`Message::Over`] down).
//!
//! It has no clock, thread, I/O or randomness. The driver passes times and messages in; messages may be repeated and
//! reordered. It knows no failures of ranks: a failure ends the run of a stage, and the survivors begin another with
//! new schedulers.
//! Invariants: every slice of every block is counted exactly once, by its owner; a block is written once, after all its
//! slices; memory is in proportion to the blocks in flight, and an event costs no more than the logarithm of that.

mod cost_model;
mod event;
#[cfg(test)]
mod fault_tests;
mod grant;
mod load;
mod message;
mod peers;
mod ready_queue;
mod scheduler;
mod span;
mod steal;
mod termination;
#[cfg(test)]
mod tests;
mod victim;

pub use cost_model::{CostClass, CostTable};
pub use grant::{Costs, Path};
pub use message::{Message, Question};
pub use peers::Team;
pub use steal::StealCounts;

pub use event::{Action, Event, Granularity};
pub use scheduler::Scheduler;
pub use span::{Span, TARGET_TASK_NS};
