//! `exuvia run --ranks N`: starts the ranks with the launcher of the MPI that the program is built with, in the way that lets
//! the others go on when one dies, and starts them again where they cannot.
//!
//! Ranks tell their supervisor how they are through a folder, since launchers lose exit codes: Open MPI's is 0 whenever deaths
//! are survivable.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal as Kill, kill_process};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use super::fail;
use crate::exec::{ExitCode, Signal};
use crate::{fabric, topology};

/// Names the folder to the ranks.
const FOLDER: &str = "EXUVIA_LAUNCH";
/// In it: some rank notices deaths from now on.
const WATCHED: &str = "watched";
/// In it: the run has ended, with this exit status.
const ENDED: &str = "ended";
/// In it: the signal that asked the run to end.
const ASKED: &str = "asked";
/// How often ranks are started again.
const RESTARTS: u32 = 3;
const GLANCE: Duration = Duration::from_millis(10);
/// What Open MPI's launcher says when a rank has died, and when it does what it was asked to do; it means nothing.
const NOISE: [&str; 2] = ["PMIX ERROR: ", "Forwarding signal "];

#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("none of {names} is in PATH, one of which starts the ranks of {library}")]
    NoLauncher { names: String, library: String },
    #[error("cannot start ranks with {program}")]
    Start { program: String, source: std::io::Error },
}

/// What became of the ranks.
enum End {
    Status(ExitCode),
    /// They are gone, and have not said why.
    Lost,
    /// So they are, but were asked to end.
    Stopped,
}

/// This rank notices when others die.
pub(super) fn watched() {
    tell(WATCHED, "");
}

/// The run has ended with this code, as seen by the rank that speaks for all.
pub(super) fn ended(code: ExitCode) {
    tell(ENDED, &(code as i32).to_string());
}

/// A bug is no death: it would only happen again.
pub(super) fn tell_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        ended(ExitCode::Bug);
        report(info);
    }));
}

/// From now on SIGUSR1 sets `signal`: under a supervisor to what it got, since launchers forward that one signal alone.
pub(super) fn heed_usr1(signal: &Signal) -> std::io::Result<()> {
    let (mut signals, signal, folder) = (Signals::new([SIGUSR1])?, signal.clone(), std::env::var_os(FOLDER));
    std::thread::spawn(move || {
        for number in signals.forever() {
            let asked = || std::fs::read_to_string(Path::new(folder.as_ref()?).join(ASKED)).ok()?.parse().ok();
            signal.store(asked().unwrap_or(number as usize), Ordering::Relaxed);
        }
    });
    Ok(())
}

fn tell(name: &str, text: &str) {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    if let Err(error) = write(&folder, name, text) {
        tracing::warn!("the supervisor of this run cannot be told: {}: {error}", folder.display());
    }
}

fn write(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(folder.join(name)).map_err(|e| e.error)?;
    Ok(())
}

/// Runs this command on so many ranks, and sees to it that it comes to an end.
pub(super) fn supervise(ranks: u32, signal: &Signal) -> ExitCode {
    let folder = match tempfile::Builder::new().prefix("exuvia-run-").tempdir() {
        Ok(folder) => folder,
        Err(error) => return fail(&error, ExitCode::Environment, Some("is there a writable TMPDIR?")),
    };
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    for restarts in 0.. {
        let mut launched = match launch(ranks, &arguments, folder.path()) {
            Ok(launched) => launched,
            Err(error) => return fail(&error, ExitCode::Environment, Some("run `exuvia doctor` for more")),
        };
        match look_after(&mut launched, folder.path(), signal) {
            End::Status(code) => return code,
            End::Stopped => {
                eprintln!("error: interrupted, and the ranks had no time to say how far they were");
                eprintln!("help: run the same command again: what is finished is kept");
                return ExitCode::Resumable;
            }
            End::Lost if restarts == RESTARTS => break,
            End::Lost => {
                eprintln!("note: the run was lost with its ranks; starting them again ({} of {RESTARTS})", restarts + 1)
            }
        }
        // What the first of them has cleared away is gone.
        arguments.retain(|argument| argument != "--fresh");
        let _ = std::fs::remove_file(folder.path().join(WATCHED));
    }
    eprintln!("error: the ranks of the run were lost {} times", RESTARTS + 1);
    eprintln!(
        "help: look for the cause (out of memory? killed?) and run the same command again: what is finished is kept"
    );
    ExitCode::Failed
}

fn launch(ranks: u32, arguments: &[OsString], folder: &Path) -> Result<Child, LaunchError> {
    let names = match fabric::is_open_mpi() {
        true => ["mpirun.openmpi", "mpirun"],
        false => ["mpiexec.mpich", "mpiexec"],
    };
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let found = names.iter().find(|name| folders.iter().any(|folder| folder.join(name).is_file()));
    let program =
        found.ok_or_else(|| LaunchError::NoLauncher { names: names.join(", "), library: fabric::library() })?;
    let failed = |source| LaunchError::Start { program: (*program).to_owned(), source };
    let mut command = Command::new(program);
    if fabric::is_open_mpi() {
        // Ranks share the CPUs by themselves, by what the system lets them use.
        command.args(["--enable-recovery", "--oversubscribe", "--bind-to", "none"]);
        if rustix::process::geteuid().is_root() {
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
    }
    command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().map_err(failed)?).args(arguments);
    // In a group of its own: what the terminal sends to all, launchers answer by killing the ranks.
    command.env(FOLDER, folder).stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut launched = command.spawn().map_err(failed)?;
    if let Some(stderr) = launched.stderr.take() {
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr).split(b'\n');
            while let Some(Ok(line)) = lines.next() {
                if !NOISE.iter().any(|noise| String::from_utf8_lossy(&line).contains(noise)) {
                    let _ = std::io::stderr().write_all(&[&line[..], b"\n"].concat());
                }
            }
        });
    }
    Ok(launched)
}

/// Passes on signals until the launcher has ended; ends it where ranks wait for one that is gone.
fn look_after(launched: &mut Child, folder: &Path, signal: &Signal) -> End {
    let status = || std::fs::read_to_string(folder.join(ENDED)).ok()?.parse().ok().map(ExitCode::from_i32);
    let mut passed_on = 0;
    let mut ranks: Vec<u32> = Vec::new();
    let mut watched = false;
    while !matches!(launched.try_wait(), Ok(Some(_)) | Err(_)) {
        std::thread::sleep(GLANCE);
        pass_on(launched, folder, signal, &mut passed_on);
        watched = watched || folder.join(WATCHED).exists() || status().is_some();
        if !watched {
            // MPI itself waits for all ranks as it starts, for ever if need be.
            let now = children(launched.id());
            if ranks.iter().any(|rank| !topology::process_alive(*rank)) && status().is_none() {
                for process in now.iter().copied().chain([launched.id()]) {
                    kill(process, Kill::KILL);
                }
                let _ = launched.wait();
                break;
            }
            ranks.extend(now.into_iter().filter(|rank| !ranks.contains(rank)).collect::<Vec<_>>());
        }
    }
    let unsaid = if passed_on > 0 { End::Stopped } else { End::Lost };
    status().map_or(unsaid, End::Status)
}

/// The first signal asks the ranks to end, by the one signal that all launchers forward; another one ends them at once.
fn pass_on(launched: &Child, folder: &Path, signal: &AtomicUsize, passed_on: &mut u32) {
    let asked = signal.swap(0, Ordering::Relaxed);
    if asked == 0 {
        return;
    }
    if let Err(error) = write(folder, ASKED, &asked.to_string()) {
        tracing::debug!("{}: {error}", folder.display());
    }
    if *passed_on == 0 {
        kill(launched.id(), Kill::USR1);
    } else {
        if fabric::is_open_mpi() {
            // Its launcher would give them another second.
            children(launched.id()).into_iter().for_each(|rank| kill(rank, Kill::KILL));
        }
        kill(launched.id(), Kill::TERM);
    }
    *passed_on += 1;
}

fn kill(process: u32, signal: Kill) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn children(process: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
