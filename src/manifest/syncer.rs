use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest pause between two rounds: the work that a power failure may cost.
const PAUSE: Duration = Duration::from_secs(5);
/// Rounds take at most one part in this many of the time.
const DUTY_DIVISOR: u32 = 20;

/// A thread that syncs files to disk from time to time. No other thread waits for it: written data survive the process
/// anyway, and a record whose bytes were lost in a power failure is detected by its checksum.
#[derive(Debug)]
pub struct Syncer {
    shared: Arc<(Mutex<SyncState>, Condvar)>,
}

#[derive(Debug, Default)]
struct SyncState {
    files: BTreeSet<PathBuf>,
    stopped: bool,
    rounds: u64,
}

impl Syncer {
    pub fn start() -> Syncer {
        Syncer::with_pause(PAUSE)
    }

    fn with_pause(pause: Duration) -> Syncer {
        let shared = Arc::<(Mutex<SyncState>, Condvar)>::default();
        let theirs = shared.clone();
        std::thread::spawn(move || run(&theirs, pause));
        Syncer { shared }
    }

    /// Adds a file.
    pub fn add(&self, file: &Path) {
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.files.insert(file.to_owned());
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.shared.1.notify_all();
    }
}

fn run((state, changed): &(Mutex<SyncState>, Condvar), least: Duration) {
    let mut pause = least;
    loop {
        let state_now = state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(state_now, pause, |state| !state.stopped);
        let (state_now, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state_now.stopped {
            return;
        }
        let (files, started) = (state_now.files.clone(), Instant::now());
        drop(state_now);
        for file in &files {
            if let Err(error) = File::open(file).and_then(|file| file.sync_data()) {
                tracing::debug!("{} is not on the disk yet: {error}", file.display());
            }
        }
        pause = least.max(started.elapsed() * DUTY_DIVISOR);
        state.lock().unwrap_or_else(PoisonError::into_inner).rounds += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_round_until_it_is_dropped() {
        let syncer = Syncer::with_pause(Duration::from_millis(1));
        syncer.add(Path::new("/nowhere/to/be/found"));
        syncer.add(tempfile::NamedTempFile::new().unwrap().path());
        let shared = syncer.shared.clone();
        let rounds = || shared.0.lock().unwrap().rounds;
        while rounds() < 3 {
            std::thread::yield_now();
        }
        drop(syncer);
        while Arc::strong_count(&shared) > 1 {
            std::thread::yield_now();
        }
    }
}
