//! Events that the scheduler takes, and actions that it returns.

use crate::sched::cost_model::CostClass;
use crate::sched::message::Message;
use crate::sched::span::Span;

/// How many slices a task takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// As many as take [`TARGET_TASK_NS`] by the measured cost of the running code.
    Adaptive,
    /// Always this many (tests and benchmarks sweep it).
    Fixed(u64),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The inputs of an own block are in memory; it has this many slices.
    Fetched { block: u64, slices: u64 },
    /// The inputs of a stolen piece are in memory; it has this many slices.
    Taken { piece: Span, slices: u64 },
    /// A worker has nothing to do, and will run code of this class next.
    Idle { worker: usize, class: CostClass },
    /// A worker finished a task, in this time on code of this class. It is not idle before it says so.
    Finished { span: Span, elapsed_ns: u64, class: CostClass },
    /// A block has reached its output and its memory is free again.
    Written { block: u64 },
    /// Another rank's scheduler of the same stage sent this.
    Message { from: u32, message: Message },
    /// The time asked for by [`Action::WakeAt`] has come. Harmless at any other time.
    Tick,
}

/// What the driver has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Bring the inputs of this own block into memory, then report [`Event::Fetched`].
    Fetch { block: u64 },
    /// Bring the inputs of this stolen piece into memory, then report [`Event::Taken`]. Those that only its owner has
    /// came with the message that this action answers.
    Take { piece: Span },
    /// Let this worker compute this span, of an own block or of a piece that was taken.
    Start { worker: usize, span: Span },
    /// All slices of this own block are computed: write its outputs, then report [`Event::Written`].
    Write { block: u64 },
    /// Send this. With [`Message::Grant`] go the inputs that the receiver cannot read itself, with
    /// [`Message::Returned`] the outputs of the piece, whose memory is then free.
    Send { to: u32, message: Message },
    /// Add to an own block the outputs of this piece, which came with the message that this action answers.
    Merge { piece: Span, thief: u32 },
    /// Report [`Event::Tick`] at this time. Replaces what was asked for before.
    WakeAt { ns: u64 },
    /// Every block of this rank is written. Said once.
    Complete,
    /// Every block of every rank is written: the stage is over. Said once, after [`Action::Complete`].
    Over,
}
