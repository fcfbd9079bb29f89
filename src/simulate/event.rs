//! The events of a simulation, and what they carry.

/// An event of the simulation; it happens to a rank, unless the variant names another subject.
#[derive(Clone, Copy, Debug)]
pub(super) enum SimEvent {
    /// Tasks have ended on cores of their own.
    TasksEnded,
    /// The bytes of the first main-thread job are read or written.
    BytesMoved,
    /// The first main-thread job of the rank is done.
    MainThreadJobDone,
    /// A span that came with a grant is in memory.
    SpanTaken { slot: u32 },
    /// A scheduler's message has arrived.
    SchedulerMessage { slot: u32 },
    /// A part of a tensor has arrived.
    TensorMessage { slot: u32 },
    /// The time that the rank's scheduler asked to be woken at.
    Tick,
    /// Optimized code has arrived.
    OptimizedCode,
    /// A thread on the shared cores of a node may be done. The event names the node in place of a rank.
    ThreadDone { epoch: u32 },
}

/// Work that runs on a core.
#[derive(Clone, Copy, Debug)]
pub(super) enum CpuWork {
    /// A task of a worker.
    Worker { rank: u32, worker: u32 },
    /// A job of a rank's main thread.
    MainThread { rank: u32 },
    /// A rank that waits for messages and keeps a core busy.
    Poll,
    /// The compiler of optimized code.
    Compiler,
}

/// A message between ranks that carries a part of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TensorMessage {
    /// A part of an input.
    Input,
    /// The broadcast input with this number.
    Broadcast(usize),
    /// Partial results for this level of a reduction.
    Partial(usize),
}
