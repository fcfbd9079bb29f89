//! The end of a run on all ranks: after success, after a signal, and after a failure.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::monitor::{Interruption, RemoteFailure, SignalPolicy};
use crate::exec::comm::signal::Signal;
use crate::exec::comm::tag::{Control, Tag};
use crate::exec::error::{ExitCode, RunError, RunFailure};
use crate::fabric::{Backoff, FabricError, Rank};

/// The longest time that a failed rank waits for rank 0 to reply.
const FAREWELL: Duration = Duration::from_secs(4);
/// How much longer than rank 0 the others may take to finish their tasks.
const DRAINED: Duration = Duration::from_secs(1);
/// The longest time that the last message of a rank that has ended may take to arrive.
const LATE: Duration = Duration::from_millis(200);

/// The text that goes with a failure, and its way to the user.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct FailureOutput<'a> {
    /// A note that rank 0 prints below the error, whichever rank's error that is.
    pub note: Option<&'a str>,
    /// Prints an error at once; without it, [`RunFailure`] carries the text.
    pub print_error: Option<fn(&str)>,
}

impl Communicator {
    /// Leaves after success.
    pub fn finalize(self, code: ExitCode) -> Result<(), RunError> {
        self.fabric.finalize(code as i32).map_err(RunError::Fabric)
    }

    /// Sets whether a signal may wait for the end of an iteration, after which all ranks ask for
    /// [`Communicator::signal`].
    pub fn defer_signals(&mut self, defers: bool) {
        self.monitor.signal_policy =
            if defers { SignalPolicy::AfterIteration { since: None } } else { SignalPolicy::AtOnce };
    }

    /// The signal that asks the run to end, if there is one.
    pub fn signal(&self) -> Option<usize> {
        Some(self.monitor.signal.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }

    /// Ends the run because of a signal that this or another rank received.
    pub fn interrupt(&mut self, signal: usize) -> RunError {
        self.monitor.interruption.get_or_insert(Interruption::Signal(signal));
        self.monitor.error(FabricError::Interrupted)
    }

    /// Sends the signal that ends the run to all ranks: some launchers send it to one rank alone.
    pub fn forward_signal(&mut self) {
        if let Some(Interruption::Signal(number)) = self.monitor.interruption {
            let others = if self.rank() == 0 { 1..self.size() } else { 0..1 };
            for rank in others {
                let _ = self.send_unchecked(rank, Control::Drain, vec![number as u8]);
            }
        }
    }

    /// Waits on rank 0, after a signal, until all others have finished their tasks and reported that.
    pub fn await_others(&mut self) {
        if self.rank() == 0 && matches!(self.monitor.interruption, Some(Interruption::Signal(_))) {
            self.wait_until(DRAINED, |comm| {
                let _ = comm.monitor.check_interrupts(&mut *comm.fabric);
                comm.monitor.failure_reports + 1 >= comm.fabric.size()
            });
        }
    }

    /// Reports this rank's failure to the others, and returns the run's exit status and the text that this rank has to
    /// print. Rank 0 prints for all, rank 1 does if rank 0 has failed, and another rank does only if nobody replies.
    pub fn fail(mut self, error: &RunError, output: FailureOutput<'_>) -> RunFailure {
        let text = error.render();
        // From here on only messages count.
        self.monitor.signal = Signal::default();
        self.monitor.is_leaving = true;
        let failed_rank = match self.monitor.interruption {
            Some(Interruption::RankFailed { rank, .. }) => Some(rank),
            _ => None,
        };
        let rank_0_failed = failed_rank == Some(self.monitor.initial_ranks[0]);
        if failed_rank.is_some() {
            // A rank that ended may have reported a failure, in a message that is only now arriving.
            self.await_report(LATE);
        }
        let reported = match &self.monitor.interruption {
            Some(Interruption::Elsewhere(failure)) => Some(failure.clone()),
            _ => None,
        };
        // Some libraries fail if a rank or its node is gone.
        let died = failed_rank.is_some() || matches!(error, RunError::Fabric(FabricError::Mpi { .. }));
        let (code, died) =
            reported.as_ref().map_or((error.code(), died), |failure| (ExitCode::from_i32(failure.code), failure.died));
        let text = if self.rank() == 0 {
            let reported = reported.map(|failure| failure.text).filter(|text| !text.is_empty());
            let failure = RemoteFailure { code: code as i32, died, text: reported.unwrap_or(text) };
            self.stop_others(failure, output)
        } else if reported.is_some() {
            None
        } else if rank_0_failed {
            (self.rank() == 1).then_some(text)
        } else {
            let failure = RemoteFailure { code: code as i32, died, text };
            let _ = self.send_unchecked(0, Control::Fail, failure.encode());
            (!self.await_report(FAREWELL)).then_some(failure.text)
        };
        RunFailure { code, text, died }
    }

    /// Prints the failure on rank 0, and ends the other ranks. Returns the text if it is not printed yet. Printing
    /// comes first: once the others leave, the launcher may end this process at any moment.
    fn stop_others(&mut self, failure: RemoteFailure, output: FailureOutput<'_>) -> Option<String> {
        let note = output.note.map(|note| format!("\nnote: {note}")).unwrap_or_default();
        let mut text = Some(failure.text + &note);
        if let Some(print_error) = output.print_error {
            text.take().iter().for_each(|text| print_error(text));
        }
        let stop = RemoteFailure { text: String::new(), ..failure };
        for rank in 1..self.size() {
            let _ = self.send_unchecked(rank, Control::Stop, stop.encode());
        }
        self.wait_until(FAREWELL, |comm| comm.fabric.sends_pending() == 0);
        // Messages that MPI has sent may still be on their way out of this process.
        if self.size() as usize > self.ranks_on_node().len() {
            self.wait_until(LATE, |_| false);
        }
        text
    }

    /// Waits for another rank to report a failure, and looks for nothing else. Returns whether one has.
    fn await_report(&mut self, timeout: Duration) -> bool {
        self.monitor.interruption = None;
        self.monitor.watched = None;
        self.wait_until(timeout, |comm| {
            let _ = comm.monitor.check_interrupts(&mut *comm.fabric);
            matches!(comm.monitor.interruption, Some(Interruption::Elsewhere(_)))
        })
    }

    /// Ends a run that has succeeded: rank 0 says that the outputs are in place, and no rank continues before it knows. A
    /// rank that fails from then on is not missed, and a signal comes too late.
    pub fn leave(&mut self) -> Result<(), RunError> {
        let signal = std::mem::take(&mut self.monitor.signal);
        let left = self.leave_unsignalled();
        self.monitor.signal = signal;
        left
    }

    fn leave_unsignalled(&mut self) -> Result<(), RunError> {
        let over = Tag::Control(Control::Over);
        if self.rank() != 0 {
            let mut backoff = Backoff::default();
            while !self.monitor.finished.contains(&0) {
                self.check_interrupts()?;
                backoff.wait();
            }
            return self.send(0, over, Vec::new().into());
        }
        for rank in 1..self.size() {
            self.send(rank, over, Vec::new().into())?;
        }
        let all_know = |comm: &mut Communicator| {
            let _ = comm.check_interrupts();
            let monitor = &comm.monitor;
            let has_failed = |rank: Rank| monitor.agreement.failed().contains(&monitor.initial_ranks[rank as usize]);
            (1..comm.size()).all(|rank| monitor.finished.contains(&rank) || has_failed(rank))
        };
        if !self.wait_until(FAREWELL, all_know) {
            tracing::warn!("the outputs are in place, but not every rank has confirmed that it knows");
        }
        Ok(())
    }

    fn send_unchecked(&mut self, to: Rank, control: Control, bytes: Vec<u8>) -> Result<(), FabricError> {
        self.fabric.send(to, Tag::Control(control).encode(), bytes.into())
    }

    /// Lets messages move until `done` returns true. Returns false if that takes longer than `timeout`.
    fn wait_until(&mut self, timeout: Duration, mut done: impl FnMut(&mut Communicator) -> bool) -> bool {
        let (mut backoff, until) = (Backoff::default(), Instant::now() + timeout);
        while Instant::now() < until {
            if done(self) {
                return true;
            }
            if self.fabric.progress().is_err() {
                return false;
            }
            backoff.wait();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::fabric;

    #[test]
    fn a_signal_does_not_interrupt_a_run_that_is_leaving() {
        let asked = Signal::default();
        asked.store(15, Ordering::Relaxed);
        let leave = |fabric| {
            let mut comm = Communicator::new(fabric, asked.clone());
            (comm.leave(), comm.signal())
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = fabric::local(3).into_iter().map(|fabric| scope.spawn(|| leave(fabric))).collect();
            for rank in ranks {
                let (left, signal) = rank.join().expect("no panic");
                assert!(left.is_ok() && signal == Some(15), "{left:?}, {signal:?}");
            }
        });
    }

    #[test]
    fn no_rank_leaves_before_rank_0_has_published_and_all_others_know() {
        for late in 0..3 {
            let ready = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for fabric in fabric::local(3) {
                    scope.spawn(|| {
                        let mut comm = Communicator::new(fabric, Signal::default());
                        if comm.rank() == late {
                            std::thread::sleep(Duration::from_millis(50));
                            ready.store(true, Ordering::SeqCst);
                        }
                        comm.leave().expect("all are alive");
                        // A rank other than rank 0 knows once rank 0 has told it.
                        let waits = late == 0 || comm.rank() == 0;
                        assert!(!waits || ready.load(Ordering::SeqCst), "rank {} leaves before {late}", comm.rank());
                    });
                }
            });
        }
    }
}
