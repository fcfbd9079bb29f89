//! Events that the scheduler takes, and actions that it returns.

use crate::sched::cost_model::CostClass;
use crate::sched::message::Message;
use crate::sched::span::Span;

/// The number of slices of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// The number that takes [`TARGET_TASK_NS`](crate::sched::TARGET_TASK_NS) at the measured cost of the running code.
    Adaptive,
    /// A fixed number, for tests and benchmarks.
    Fixed(u64),
}

/// An event that the driver reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The inputs of an own block are in memory; it has this many slices.
    Fetched { block: u64, slices: u64 },
    /// The inputs of a stolen span are in memory; it has this many slices.
    Taken { piece: Span, slices: u64 },
    /// A worker is idle, and will run code of this class next.
    Idle { worker: usize, class: CostClass },
    /// A worker finished a task, in this time on code of this class. It is not idle until it reports [`Event::Idle`].
    Finished { span: Span, elapsed_ns: u64, class: CostClass },
    /// A block has reached its output and its memory is free again.
    Written { block: u64 },
    /// A message from the scheduler of the same stage on another rank.
    Message { from: u32, message: Message },
    /// The time of [`Action::WakeAt`] has come. At any other time the event has no effect.
    Tick,
}

/// An action that the driver carries out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Bring the inputs of this own block into memory, then report [`Event::Fetched`].
    Fetch { block: u64 },
    /// Bring the inputs of this stolen span into memory, then report [`Event::Taken`]. Inputs that only its owner has
    /// came with the message that this action follows.
    Take { piece: Span },
    /// Let this worker compute this span, of an own block or of stolen work.
    Start { worker: usize, span: Span },
    /// All slices of this own block are computed: write its outputs, then report [`Event::Written`].
    Write { block: u64 },
    /// Send a message. [`Message::Grant`] carries the inputs that the receiver cannot read itself, and
    /// [`Message::Returned`] the outputs of the span, whose memory is then free.
    Send { to: u32, message: Message },
    /// Add the outputs of this span to its block. They came with the message that this action follows.
    Merge { piece: Span, thief: u32 },
    /// Report [`Event::Tick`] at this time, which replaces an earlier one.
    WakeAt { ns: u64 },
    /// Every block of this rank is written. Returned once.
    Complete,
    /// Every block of every rank is written: the stage is over. Returned once, after [`Action::Complete`].
    Over,
}
