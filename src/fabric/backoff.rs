use std::thread;
use std::time::Duration;

/// How to wait between polls: give the core away at once, and sleep once waiting proves long. On oversubscribed
/// cores this is what keeps a message at microseconds where spinning costs milliseconds.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    const YIELDS: u32 = 50;
    const SLEEP: Duration = Duration::from_micros(50);

    /// Waits a little; longer after the first 50 times.
    pub fn wait(&mut self) {
        if self.tries < Backoff::YIELDS {
            self.tries += 1;
            thread::yield_now();
        } else {
            thread::sleep(Backoff::SLEEP);
        }
    }

    /// Something happened: be quick again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}
