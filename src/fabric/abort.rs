//! Abort of all ranks at once. Part of the second unsafe door: these calls do not return and touch no buffer.

use std::io::Write;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mpi::ffi;

/// MPI is initialised and not yet being finalized: aborting has to go through it.
static MPI_LIVE: AtomicBool = AtomicBool::new(false);

/// Time for the launcher to forward this rank's last output: MPICH's launcher loses, one time in fifteen, output that
/// it has not read when the abort arrives.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

pub(super) fn set_mpi_live(live: bool) {
    MPI_LIVE.store(live, Ordering::SeqCst);
}

/// Makes a panic on any thread end every rank with code 101, after the usual message. Call it first thing in `main`:
/// unwinding out of a rank would hang forever in MPI_Finalize, and a panic of one worker alone would leave the others
/// waiting for its task.
pub fn install_panic_hook() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        static FIRST: AtomicBool = AtomicBool::new(true);
        if !FIRST.swap(false, Ordering::SeqCst) {
            // Another thread is ending the process; a second report would only hide the first.
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        report(info);
        end_all_ranks(101)
    }));
}

/// Ends every rank with this code. From a thread other than MPI's this is a step outside FUNNELED that every
/// implementation tolerates in practice, and the alternative is a job that hangs.
pub(super) fn end_all_ranks(code: i32) -> ! {
    flush_output();
    if MPI_LIVE.load(Ordering::SeqCst) {
        std::thread::sleep(OUTPUT_GRACE);
        #[expect(unsafe_code, reason = "MPI_Abort has no safe form that checks for initialisation as we do")]
        // SAFETY: MPI is initialised and not finalized (MPI_LIVE); the world communicator is a constant handle.
        unsafe {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        }
    }
    exit_now(code)
}

/// Exits without running destructors, which would tear down what other threads still use.
pub(super) fn exit_now(code: i32) -> ! {
    #[expect(unsafe_code, reason = "std offers no exit that skips atexit handlers and keeps the exit code")]
    // SAFETY: `_exit` is in every C library, has this signature, takes any code and never returns.
    unsafe {
        unsafe extern "C" {
            fn _exit(code: std::ffi::c_int) -> !;
        }
        _exit(code)
    }
}

pub(super) fn flush_output() {
    // A broken pipe must not delay the exit.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
}
