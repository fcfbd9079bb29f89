//! Containment of HDF5's crashes. On some damaged files HDF5 accesses memory beyond its buffers or aborts; on others it
//! loops forever. If that happens while a file is read, the process ends at once with an error that names the file, as
//! if HDF5 had reported it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::text;

/// Signals of a process that accesses memory wrongly.
const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGABRT];
/// The exit status of a failed run, as a number and as the supervisor of the ranks reads it.
const FAILED: (c_int, &[u8; 5]) = (1, b"   1\n");

thread_local! {
    /// The message for a crash of HDF5 on this thread; null while HDF5 does not run.
    static MESSAGE: Cell<(*const u8, usize)> = const { Cell::new((ptr::null(), 0)) };
    /// A timer on the CPU time of this thread; null before its first use.
    static TIMER: Cell<libc::timer_t> = const { Cell::new(ptr::null_mut()) };
}
/// CPU time that one call may take, in seconds; 0 means no limit.
static LIMIT: AtomicI64 = AtomicI64::new(0);
/// CPU time after which HDF5 is taken to be in an endless loop while it describes a file.
pub const CALL_LIMIT: Duration = Duration::from_secs(60);
/// The signal of an expired timer.
const OUT_OF_TIME: c_int = libc::SIGVTALRM;
/// Factor on the limit for calls that read elements: they may decompress large chunks.
const READING: i64 = 20;
/// Descriptor of the file that receives the exit status, or -1.
static WORD: AtomicI32 = AtomicI32::new(-1);
/// The handlers that were installed before.
static BEFORE: OnceLock<Vec<(c_int, libc::sigaction)>> = OnceLock::new();

/// From now on a crash of HDF5 on a file that is read, or more than `limit` of CPU time to describe it, ends the
/// process with exit status 1 and an error that names the file. The status is also written to `word`. Call this once,
/// before other handlers of these signals are installed; those must pass on signals that are not theirs.
pub fn contain_crashes(word: Option<File>, limit: Duration) {
    BEFORE.get_or_init(|| {
        WORD.store(word.map_or(-1, IntoRawFd::into_raw_fd), Ordering::Relaxed);
        LIMIT.store(limit.as_secs() as i64, Ordering::Relaxed);
        SIGNALS.iter().chain([&OUT_OF_TIME]).filter_map(|signal| Some((*signal, catch(*signal)?))).collect()
    });
}

fn catch(signal: c_int) -> Option<libc::sigaction> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: both structures are plain data; the handler keeps to what may be called in one.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = crashed;
        action.sa_sigaction = handler as usize;
        // The stack may have overflowed.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        (libc::sigaction(signal, &action, before.as_mut_ptr()) == 0).then(|| before.assume_init())
    }
}

extern "C" fn crashed(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    // A thread-local with a constant initial value and without a destructor is plain memory.
    let (message, length) = MESSAGE.get();
    // SAFETY: only calls that are allowed in a handler; the message lives as long as it stands there.
    unsafe {
        if !message.is_null() {
            let what: &[u8] = match signal {
                OUT_OF_TIME => b"error: HDF5 did not return while reading ",
                _ => b"error: HDF5 crashed while reading ",
            };
            libc::write(2, what.as_ptr().cast(), what.len());
            libc::write(2, message.cast(), length);
            let word = WORD.load(Ordering::Relaxed);
            if word >= 0 {
                libc::pwrite(word, FAILED.1.as_ptr().cast(), FAILED.1.len(), 0);
            }
            libc::_exit(FAILED.0);
        }
        // The call has just returned.
        if signal == OUT_OF_TIME {
            return;
        }
        // The fault is not HDF5's: the earlier handler runs when it happens again.
        let before = BEFORE.get().and_then(|all| all.iter().find(|(number, _)| *number == signal));
        match before {
            Some((_, before)) => libc::sigaction(signal, before, ptr::null_mut()),
            None => libc::sigaction(signal, &MaybeUninit::zeroed().assume_init(), ptr::null_mut()),
        };
        if signal == libc::SIGABRT {
            libc::raise(signal);
        }
    }
}

/// Marks this thread as running HDF5 while it exists.
pub(in crate::store) struct Guard {
    outer: (*const u8, usize),
    _message: Arc<[u8]>,
}

impl Guard {
    fn new(message: &Arc<[u8]>, times: i64) -> Guard {
        let outer = MESSAGE.replace((message.as_ptr(), message.len()));
        let seconds = LIMIT.load(Ordering::Relaxed) * times;
        if outer.0.is_null() && seconds > 0 {
            set_timer(seconds);
        }
        Guard { outer, _message: message.clone() }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.outer.0.is_null() && !TIMER.get().is_null() {
            set_timer(0);
        }
        MESSAGE.set(self.outer);
    }
}

/// Sends this thread a signal after this many seconds of its CPU time; 0 means never.
fn set_timer(seconds: i64) {
    // SAFETY: structures are plain data that live during the calls; a timer that cannot be had stays null.
    unsafe {
        if TIMER.get().is_null() {
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = OUT_OF_TIME;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = ptr::null_mut();
            if libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &mut event, &mut timer) != 0 {
                return;
            }
            TIMER.set(timer);
        }
        let mut time: libc::itimerspec = MaybeUninit::zeroed().assume_init();
        time.it_value.tv_sec = seconds;
        libc::timer_settime(TIMER.get(), 0, &time, ptr::null_mut());
    }
}

/// The message for a crash of HDF5 on this file.
pub(in crate::store) fn message(path: &Path) -> Arc<[u8]> {
    let path = text::line(&path.display().to_string());
    let text = format!("{path}: the file is damaged\nhelp: copy it again from its source, or recreate it\n");
    text.into_bytes().into()
}

/// Marks this thread as running HDF5 on this file, without a time limit.
pub(in crate::store) fn guard(path: &Path) -> Guard {
    Guard::new(&message(path), 0)
}

/// An HDF5 object that is used and closed under a guard.
#[derive(Debug)]
pub(in crate::store) struct Guarded<T> {
    inner: ManuallyDrop<T>,
    message: Arc<[u8]>,
}

impl<T> Guarded<T> {
    /// Opens the object under a guard.
    pub fn open<E>(message: Arc<[u8]>, open: impl FnOnce() -> Result<T, E>) -> Result<Guarded<T>, E> {
        let _guard = Guard::new(&message, 1);
        let inner = ManuallyDrop::new(open()?);
        Ok(Guarded { inner, message })
    }

    /// A guard to hold while HDF5 uses the object.
    pub fn guard(&self) -> Guard {
        Guard::new(&self.message, 1)
    }

    /// A guard to hold while elements are read.
    pub fn reading(&self) -> Guard {
        Guard::new(&self.message, READING)
    }

    pub fn message(&self) -> Arc<[u8]> {
        self.message.clone()
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let _guard = Guard::new(&self.message, 1);
        // SAFETY: this is the only place that drops it, once.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    use super::*;

    const WHERE: &str = "EXUVIA_TEST_CRASH";

    fn crash(place: &str) -> Output {
        let name = "store::raw::guard::tests::crashes";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", name, "--nocapture"]).env(WHERE, place).output().unwrap()
    }

    #[test]
    fn a_crash_in_hdf5_is_an_error_and_elsewhere_a_crash() {
        let lab = tempfile::tempdir().unwrap();
        let word = lab.path().join("word");
        for how in ["read", "abort", "loop"] {
            std::fs::write(&word, "").unwrap();
            let inside = crash(&format!("{how} {}", word.display()));
            assert_eq!(inside.status.code(), Some(1), "{inside:?}");
            let text = String::from_utf8_lossy(&inside.stderr).into_owned();
            let what = if how == "loop" { "did not return" } else { "crashed" };
            assert!(text.contains(&format!("error: HDF5 {what} while reading some/file.h5")), "{text}");
            assert_eq!(std::fs::read_to_string(&word).unwrap(), "   1\n");
            if how == "loop" {
                continue;
            }
            let outside = crash(how);
            assert!(outside.status.signal().is_some(), "{outside:?}");
        }
    }

    #[test]
    #[ignore = "the other process of a_crash_in_hdf5_is_an_error_and_elsewhere_a_crash"]
    fn crashes() {
        let Ok(place) = std::env::var(WHERE) else { return };
        let (how, word) = place.split_once(' ').unwrap_or((&place, ""));
        contain_crashes(File::options().write(true).open(word).ok(), Duration::from_secs(1));
        let message = message(Path::new("some/file.h5"));
        let guard = (!word.is_empty()).then(|| Guard::new(&message, 1));
        match how {
            "abort" => std::process::abort(),
            "loop" => loop {
                std::hint::spin_loop();
            },
            // SAFETY: not sound at all, which is the point.
            _ => unsafe { ptr::dangling::<u8>().wrapping_sub(1).read_volatile() },
        };
        drop(guard);
    }
}
