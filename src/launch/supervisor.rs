//! The supervisor of `exuvia run --ranks N`: it starts the ranks, here or on several hosts, so that the others continue
//! when one fails, and restarts them where they cannot, without the hosts that no longer respond.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exec::ExitCode;
use crate::exec::Signal;
use crate::exec::first_folder;
use crate::job::Job;
use crate::launch::error::LaunchError;
use crate::launch::hostfile::Hosts;
use crate::launch::launcher::{self, LauncherProcess};
use crate::launch::status_files::StatusFiles;
use crate::text;
use crate::{fabric, topology};

/// The number of times that failed ranks are restarted.
const RESTARTS: u32 = 3;
/// The time for ranks to end by themselves after a signal.
const GRACE: Duration = Duration::from_secs(60);
/// The time for a launcher on this machine to end after its ranks, which have a minute to leave MPI.
const LEAVE: Duration = Duration::from_secs(90);

/// A request to run this program's command on several ranks.
pub(crate) struct LaunchRequest<'a> {
    pub ranks: u32,
    pub hostfile: Option<&'a Path>,
    pub job: &'a Path,
    /// The time for the ranks to connect to each other.
    pub start_limit: Duration,
    /// Receives a note on each restart.
    pub note: fn(&str),
}

/// The end of one launch.
enum Outcome {
    Exited(ExitCode),
    /// The ranks are gone without an exit status.
    Failed,
    /// The ranks are gone without an exit status, after a signal.
    Stopped,
    /// The ranks did not connect to each other in time.
    StartLimit,
}

/// Runs this program's command on several ranks until it ends; a signal that arrives in `signal` is forwarded to them.
pub(crate) fn supervise(request: &LaunchRequest, signal: &Signal) -> Result<ExitCode, LaunchError> {
    let mut supervisor = Supervisor::new(request)?;
    for restarts in 1.. {
        match supervisor.launch(signal)? {
            Outcome::Exited(code) => return Ok(code),
            Outcome::Stopped => return Err(LaunchError::Interrupted),
            Outcome::StartLimit => {
                return Err(LaunchError::StartLimit { limit: request.start_limit, ranks: supervisor.ranks });
            }
            Outcome::Failed if restarts > RESTARTS => break,
            Outcome::Failed => supervisor.prepare_restart(restarts)?,
        }
    }
    Err(LaunchError::RanksFailed { starts: RESTARTS + 1 })
}

struct Supervisor<'a> {
    request: &'a LaunchRequest<'a>,
    status_files: StatusFiles,
    arguments: Vec<OsString>,
    all_hosts: Option<Hosts>,
    hosts: Option<Hosts>,
    ranks: u32,
}

impl<'a> Supervisor<'a> {
    fn new(request: &'a LaunchRequest<'a>) -> Result<Supervisor<'a>, LaunchError> {
        let all_hosts = request.hostfile.map(read_hosts).transpose()?;
        let folder = match all_hosts {
            Some(_) => shared_folder(request.job)?,
            None => std::env::temp_dir(),
        };
        Ok(Supervisor {
            request,
            status_files: StatusFiles::create_in(&folder).map_err(|source| LaunchError::StatusFiles { source })?,
            arguments: std::env::args_os().skip(1).collect(),
            hosts: all_hosts.clone(),
            all_hosts,
            ranks: request.ranks,
        })
    }

    fn launch(&self, signal: &Signal) -> Result<Outcome, LaunchError> {
        let launcher = LauncherProcess::start(self.ranks, self.hosts.as_ref(), &self.status_files, |command| {
            command.args(&self.arguments);
        })?;
        let launch = Launch {
            launcher,
            status_files: &self.status_files,
            signal,
            start_limit: self.request.start_limit,
            started: Instant::now(),
            signals: 0,
            kill_at: None,
            exited_at: None,
            detects_failures: false,
            local_ranks: Vec::new(),
        };
        Ok(launch.wait())
    }

    /// Leaves out the hosts that do not respond, and tells how the run continues.
    fn prepare_restart(&mut self, number: u32) -> Result<(), LaunchError> {
        let status_files = &self.status_files;
        let probe = |host: &Hosts| launcher::responds(host, status_files);
        let lost = self.hosts.as_mut().map(|hosts| hosts.remove_unresponsive(probe)).unwrap_or_default();
        match (&self.hosts, &self.all_hosts) {
            (Some(hosts), _) if hosts.names().is_empty() => {
                return Err(LaunchError::NoHostResponds { hosts: lost.join(", ") });
            }
            (Some(hosts), Some(all)) if !lost.is_empty() => {
                self.ranks = hosts.scale_ranks(self.request.ranks, all);
                let (ranks, left) =
                    (text::count(u64::from(self.ranks), "rank"), text::count(hosts.names().len() as u64, "host"));
                let lost = lost.join(", ");
                (self.request.note)(&format!(
                    "{lost} failed; restarting with {ranks} on {left} (restart {number} of {RESTARTS})"
                ));
            }
            _ => (self.request.note)(&format!(
                "the run ended because ranks failed; restarting them (restart {number} of {RESTARTS})"
            )),
        }
        // The first launch has already discarded earlier work.
        self.arguments.retain(|argument| argument != "--fresh");
        self.status_files.reset().map_err(|source| LaunchError::StatusFiles { source })
    }
}

fn read_hosts(file: &Path) -> Result<Hosts, LaunchError> {
    Hosts::read(file).map_err(|source| LaunchError::Hostfile { file: file.to_owned(), source })
}

/// A folder that all hosts see: the one that the job's outputs go to.
fn shared_folder(job: &Path) -> Result<PathBuf, LaunchError> {
    let create = |folder: PathBuf| {
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    };
    let folder = std::path::absolute(first_folder(&Job::load(job)?));
    folder.and_then(create).map_err(|source| LaunchError::OutputFolder { source })
}

/// One launch while it runs.
struct Launch<'a> {
    launcher: LauncherProcess,
    status_files: &'a StatusFiles,
    signal: &'a Signal,
    start_limit: Duration,
    started: Instant,
    /// The number of signals forwarded so far.
    signals: u32,
    /// When ranks that were asked to end are killed.
    kill_at: Option<Instant>,
    /// When an exit status was first seen.
    exited_at: Option<Instant>,
    /// Whether ranks notice the failure of others by themselves.
    detects_failures: bool,
    /// The ranks seen on this machine before they detect failures.
    local_ranks: Vec<u32>,
}

impl Launch<'_> {
    /// Waits until the launcher has ended. Ends it where it or ranks wait for failed ones, where ranks do not connect
    /// within the start limit, and where it ignores a signal.
    fn wait(mut self) -> Outcome {
        while self.launcher.is_running() {
            std::thread::sleep(launcher::POLL);
            self.forward_signal();
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                if fabric::is_open_mpi() {
                    // Open MPI's launcher would give them another second.
                    self.launcher.kill_local_ranks();
                }
                self.launcher.stop();
                break;
            }
            if self.launcher_outlives_run() {
                self.launcher.stop();
                break;
            }
            self.detects_failures |= self.status_files.detects_failures() || self.status_files.exit_code().is_some();
            if !self.detects_failures && self.start_failed() {
                let is_late = self.is_late();
                self.launcher.kill_local_ranks();
                self.launcher.stop();
                if is_late && !self.launcher.spans_hosts() && self.signals == 0 {
                    return Outcome::StartLimit;
                }
                break;
            }
        }
        self.launcher.drain_output();
        let without_status = if self.signals > 0 { Outcome::Stopped } else { Outcome::Failed };
        self.status_files.exit_code().map_or(without_status, Outcome::Exited)
    }

    /// Forwards a signal that has arrived. The first one asks the ranks to end, by the one signal that all launchers
    /// forward, if they are ready for it; another one ends them at once.
    fn forward_signal(&mut self) {
        let signal = self.signal.swap(0, Ordering::Relaxed);
        if signal == 0 {
            return;
        }
        self.status_files.request_end(signal as i32);
        self.signals += 1;
        let is_graceful = self.signals == 1 && self.detects_failures;
        if is_graceful {
            self.launcher.send_usr1();
        }
        self.kill_at = Some(Instant::now() + if is_graceful { GRACE } else { Duration::ZERO });
    }

    /// Whether the launcher still runs long after the run has ended.
    fn launcher_outlives_run(&mut self) -> bool {
        let limit = if self.launcher.spans_hosts() { launcher::OUTPUT } else { LEAVE };
        self.status_files.exit_code().is_some() && self.exited_at.get_or_insert_with(Instant::now).elapsed() > limit
    }

    /// Whether a rank has failed, or the start limit has passed, while MPI starts: MPI itself waits for all ranks
    /// without a limit.
    fn start_failed(&mut self) -> bool {
        let now = self.launcher.local_ranks();
        let one_failed = self.local_ranks.iter().any(|rank| !topology::process_alive(*rank))
            && self.status_files.exit_code().is_none();
        self.local_ranks.extend(now.into_iter().filter(|rank| !self.local_ranks.contains(rank)).collect::<Vec<_>>());
        one_failed || self.is_late()
    }

    fn is_late(&self) -> bool {
        self.started.elapsed() > self.start_limit
    }
}
