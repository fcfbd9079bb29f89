//! Signals that ask a run to end.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// The signal that asks the run to end, as its handler stored it; 0 for none.
pub type Signal = Arc<AtomicUsize>;

/// The name of a signal by its number.
pub(in crate::exec) fn signal_name(signal: usize) -> &'static str {
    match signal as i32 {
        signal_hook::consts::SIGINT => "SIGINT",
        signal_hook::consts::SIGUSR1 => "SIGUSR1",
        _ => "SIGTERM",
    }
}
