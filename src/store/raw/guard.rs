//! HDF5 crashes on some damaged files: it reads and writes beyond its buffers, and aborts. Where that happens while a file is
//! being looked at, the process ends at once with an error that names the file, as if HDF5 had said so.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::words;

/// How a process ends that uses memory wrongly.
const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGABRT];
/// The exit status of a failed run, and as whoever started the ranks is told.
const FAILED: (c_int, &[u8; 5]) = (1, b"   1\n");

thread_local! {
    /// What to say if HDF5 crashes now on this thread; null while it is not at work.
    static MESSAGE: Cell<(*const u8, usize)> = const { Cell::new((ptr::null(), 0)) };
}
/// A file that is told how the run ends, or -1.
static WORD: AtomicI32 = AtomicI32::new(-1);
/// What was done about the signals before.
static BEFORE: OnceLock<Vec<(c_int, libc::sigaction)>> = OnceLock::new();

/// From now on a crash of HDF5 on a file that is read is an error: exit status 1, which `word` is told too. To be called
/// before other handlers of these signals are installed, which hand on what is not theirs.
pub(in crate::store) fn contain_crashes(word: Option<File>) {
    BEFORE.get_or_init(|| {
        WORD.store(word.map_or(-1, IntoRawFd::into_raw_fd), Ordering::Relaxed);
        SIGNALS.iter().filter_map(|signal| Some((*signal, catch(*signal)?))).collect()
    });
}

fn catch(signal: c_int) -> Option<libc::sigaction> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: both structures are plain data; the handler keeps to what may be called in one.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = crashed;
        action.sa_sigaction = handler as usize;
        // The stack may have run over.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        (libc::sigaction(signal, &action, before.as_mut_ptr()) == 0).then(|| before.assume_init())
    }
}

extern "C" fn crashed(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    // Without a destructor and with a constant to begin with it is a plain place in memory.
    let (message, length) = MESSAGE.get();
    // SAFETY: only calls that are allowed in a handler; the message lives as long as it stands there.
    unsafe {
        if !message.is_null() {
            libc::write(2, message.cast(), length);
            let word = WORD.load(Ordering::Relaxed);
            if word >= 0 {
                libc::pwrite(word, FAILED.1.as_ptr().cast(), FAILED.1.len(), 0);
            }
            libc::_exit(FAILED.0);
        }
        // Not HDF5's: what was done before, when the same happens again.
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

/// While it lives, this thread is in HDF5.
pub(in crate::store) struct Guard {
    outer: (*const u8, usize),
    _message: Arc<[u8]>,
}

impl Guard {
    fn new(message: &Arc<[u8]>) -> Guard {
        Guard { outer: MESSAGE.replace((message.as_ptr(), message.len())), _message: message.clone() }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        MESSAGE.set(self.outer);
    }
}

/// What is said if HDF5 crashes on this file.
pub(in crate::store) fn message(path: &Path) -> Arc<[u8]> {
    let text = format!(
        "error: HDF5 crashed while it read {}: the file is damaged\nhelp: copy it again from its source, or make it anew\n",
        words::line(&path.display().to_string())
    );
    text.into_bytes().into()
}

/// Something of HDF5's that is used, and in the end closed, under a guard.
#[derive(Debug)]
pub(in crate::store) struct Held<T> {
    inner: ManuallyDrop<T>,
    message: Arc<[u8]>,
}

impl<T> Held<T> {
    /// Opens it.
    pub fn open<E>(message: Arc<[u8]>, open: impl FnOnce() -> Result<T, E>) -> Result<Held<T>, E> {
        let _guard = Guard::new(&message);
        let inner = ManuallyDrop::new(open()?);
        Ok(Held { inner, message })
    }

    /// To be held while HDF5 works on it.
    pub fn guard(&self) -> Guard {
        Guard::new(&self.message)
    }

    pub fn message(&self) -> Arc<[u8]> {
        self.message.clone()
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let _guard = Guard::new(&self.message);
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
        for how in ["read", "abort"] {
            std::fs::write(&word, "").unwrap();
            let inside = crash(&format!("{how} {}", word.display()));
            assert_eq!(inside.status.code(), Some(1), "{inside:?}");
            let text = String::from_utf8_lossy(&inside.stderr).into_owned();
            assert!(text.contains("error: HDF5 crashed while it read some/file.h5"), "{text}");
            assert_eq!(std::fs::read_to_string(&word).unwrap(), "   1\n");
            let outside = crash(how);
            assert!(outside.status.signal().is_some(), "{outside:?}");
        }
    }

    #[test]
    #[ignore = "the other process of a_crash_in_hdf5_is_an_error_and_elsewhere_a_crash"]
    fn crashes() {
        let Ok(place) = std::env::var(WHERE) else { return };
        let (how, word) = place.split_once(' ').unwrap_or((&place, ""));
        contain_crashes(File::options().write(true).open(word).ok());
        let message = message(Path::new("some/file.h5"));
        let guard = (!word.is_empty()).then(|| Guard::new(&message));
        match how {
            "abort" => std::process::abort(),
            // SAFETY: not sound at all, which is the point.
            _ => unsafe { ptr::dangling::<u8>().wrapping_sub(1).read_volatile() },
        };
        drop(guard);
    }
}
