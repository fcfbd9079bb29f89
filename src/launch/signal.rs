//! SIGUSR1, the only signal that all launchers forward to their ranks.

use std::sync::atomic::Ordering;

use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use crate::exec::Signal;
use crate::launch::status_files;

/// Sets `signal` whenever SIGUSR1 arrives; under a supervisor, to the signal that the supervisor received.
pub(crate) fn forward_usr1(signal: &Signal) -> std::io::Result<()> {
    let (mut signals, signal) = (Signals::new([SIGUSR1])?, signal.clone());
    std::thread::spawn(move || {
        for number in signals.forever() {
            signal.store(status_files::requested_signal().unwrap_or(number) as usize, Ordering::Relaxed);
        }
    });
    Ok(())
}
