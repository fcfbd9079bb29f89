//! The run-time scheduler of one rank as a state machine: [`Scheduler::on`] takes an event and returns actions.
//!
//! It decides which blocks to fetch, which slices of them each worker computes next, when a block is ready to be
//! written, and which work moves between ranks. A *slice* is the smallest piece of a block that a task can take (extent
//! 1 along the block's task axis); a task is a run of slices, sized so that it takes about [`TARGET_TASK_NS`] on the
//! code that runs it.
//!
//! A rank owns its blocks for good: it alone counts their slices and writes them. A rank without work *steals* spans of
//! other ranks' blocks: it computes them and returns their results, and what it does not return is computed by somebody
//! else. So nothing is written twice, results do not depend on who computes, and a rank that has written all its blocks
//! knows it. That all ranks have is found out along a tree ([`Message::Done`] up, [`Message::Over`] down).
//!
//! Refuses to do: clocks, threads, I/O, randomness. Times are measured by the driver and handed in, as are messages,
//! which may be repeated and reordered on their way. Nor does it know of deaths: the run of a stage ends with one, and the
//! survivors begin another with schedulers of their own.
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
