//! The launcher of the MPI library that the program is built with: its command line, its process and its ranks.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Kill, kill_process, kill_process_group};

use crate::fabric;
use crate::launch::error::LaunchError;
use crate::launch::hostfile::Hosts;
use crate::launch::output_filter::OutputFilter;
use crate::launch::status_files::{self, StatusFiles};
use crate::topology::Keepalive;

/// The time between two checks of a process.
pub(super) const POLL: Duration = Duration::from_millis(10);
/// The time for a host to start the program, if the host is up at all.
const RESPONSE: Duration = Duration::from_secs(15);
/// The time for the last output of ranks to arrive.
pub(super) const OUTPUT: Duration = Duration::from_secs(1);
/// The time for a launcher to clean up after it was asked to end.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// A launcher process with its ranks.
pub(super) struct LauncherProcess {
    process: Child,
    spans_hosts: bool,
    /// Closed when all of the launcher's standard error is passed on.
    output: Receiver<()>,
}

/// Returns whether the program starts on this host.
pub(super) fn responds(host: &Hosts, status_files: &StatusFiles) -> bool {
    let launched = LauncherProcess::start(1, Some(host), status_files, |command| {
        command.arg("--version").stdout(Stdio::null());
    });
    let Ok(mut launcher) = launched else { return false };
    let deadline = Instant::now() + RESPONSE;
    while Instant::now() < deadline {
        match launcher.process.try_wait() {
            Ok(None) => std::thread::sleep(POLL),
            Ok(Some(status)) => return status.success(),
            Err(_) => return false,
        }
    }
    // The agents that still try to reach the host end too.
    launcher.stop();
    false
}

impl LauncherProcess {
    /// Starts `ranks` ranks of this program; `add_arguments` adds the program's arguments.
    pub fn start(
        ranks: u32,
        hosts: Option<&Hosts>,
        status_files: &StatusFiles,
        add_arguments: impl FnOnce(&mut Command),
    ) -> Result<LauncherProcess, LaunchError> {
        let program = find_launcher()?;
        let failed = |source| LaunchError::Start { program: program.to_owned(), source };
        let mut command = Command::new(program);
        if fabric::is_open_mpi() {
            // Ranks divide the CPUs that the system allows among themselves.
            command.args(["--enable-recovery", "--oversubscribe", "--bind-to", "none"]);
            if rustix::process::geteuid().is_root() {
                command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            }
        }
        if let Some(hosts) = hosts {
            // Several hosts may be probed at the same time: each probe has its own file.
            let names = hosts.names();
            let file = status_files.folder().join(format!("hosts-{}-{}", names.len(), names.first().unwrap_or(&"")));
            hosts.write(&file).map_err(failed)?;
            command.arg(if fabric::is_open_mpi() { "--hostfile" } else { "-f" }).arg(file);
            if fabric::is_open_mpi() {
                command.args(multi_host_options());
            }
        }
        command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().map_err(failed)?);
        status_files.set_environment(&mut command);
        add_arguments(&mut command);
        // A process group of its own: launchers kill their ranks on a signal that the terminal sends to the whole
        // group.
        let mut process =
            command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn().map_err(failed)?;
        let (sender, output) = channel::<()>();
        if let Some(stderr) = process.stderr.take() {
            std::thread::spawn(move || {
                forward_stderr(stderr);
                drop(sender);
            });
        }
        Ok(LauncherProcess { process, spans_hosts: hosts.is_some(), output })
    }

    pub fn spans_hosts(&self) -> bool {
        self.spans_hosts
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Sends SIGUSR1 to the launcher, which forwards it to the ranks.
    pub fn send_usr1(&self) {
        kill(self.process.id(), Kill::USR1);
    }

    pub fn kill_local_ranks(&self) {
        self.local_ranks().into_iter().for_each(|rank| kill(rank, Kill::KILL));
    }

    /// Ends the launcher. Its daemons on other hosts end the ranks there when the launcher is gone.
    pub fn stop(&mut self) {
        kill(self.process.id(), Kill::TERM);
        let deadline = Instant::now() + CLEAN_UP;
        while Instant::now() < deadline && self.is_running() {
            std::thread::sleep(POLL);
        }
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Kill::KILL);
        }
        let _ = self.process.wait();
    }

    /// Waits until the output of the ranks is passed on. A launcher with several hosts waits forever for ranks that
    /// leave MPI without MPI_Finalize, as they do where failures are survivable, and for ranks on failed hosts: the
    /// wait has a limit.
    pub fn drain_output(&self) {
        let _ = self.output.recv_timeout(OUTPUT);
    }

    /// The processes of ranks on this machine; some may not have started the program yet. With several hosts, the
    /// launcher's own children are the agents that start daemons, and only those that run this program are ranks.
    pub fn local_ranks(&self) -> Vec<u32> {
        let launcher = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
        let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
        let own = program("self");
        let children = children.unwrap_or_default();
        let is_rank = |pid: &&str| !self.spans_hosts || program(pid).is_some_and(|exe| Some(exe) == own);
        let ranks = children.split_whitespace().filter(is_rank);
        ranks.filter_map(|pid| pid.parse().ok()).collect()
    }
}

fn find_launcher() -> Result<&'static str, LaunchError> {
    let names = match fabric::is_open_mpi() {
        true => ["mpirun.openmpi", "mpirun"],
        false => ["mpiexec.mpich", "mpiexec"],
    };
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let found = names.into_iter().find(|name| folders.iter().any(|folder| folder.join(name).is_file()));
    found.ok_or_else(|| LaunchError::NoLauncher { names: names.join(" or "), library: fabric::library() })
}

/// Options for Open MPI's launcher on several hosts.
fn multi_host_options() -> Vec<OsString> {
    let Keepalive { idle_s, interval_s, probes } = Keepalive::DAEMONS;
    let settings = [
        // Daemons that start each other also end each other when one is lost.
        ("plm_rsh_no_tree_spawn", 1),
        // By default, a lost host is noticed after seven minutes.
        ("oob_tcp_keepalive_time", idle_s),
        ("oob_tcp_keepalive_intvl", interval_s),
        ("oob_tcp_keepalive_probes", probes),
    ];
    let settings =
        settings.into_iter().flat_map(|(name, value)| ["--mca".into(), name.into(), value.to_string().into()]);
    // The launcher does not pass on the environment by itself.
    let is_ours = |name: &OsString| {
        name.to_str().is_some_and(|name| name.starts_with("EXUVIA_") || ["LD_LIBRARY_PATH", "NO_COLOR"].contains(&name))
    };
    let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| is_ours(name) && name != status_files::FOLDER);
    let exported = ours.chain([status_files::FOLDER.into()]).flat_map(|name| ["-x".into(), name]);
    settings.chain(exported).collect()
}

fn forward_stderr(from: impl std::io::Read) {
    let (mut lines, mut filter) = (BufReader::new(from).split(b'\n'), OutputFilter::default());
    while let Some(Ok(line)) = lines.next() {
        let _ = std::io::stderr().write_all(&filter.push(line));
    }
    let _ = std::io::stderr().write_all(&filter.finish());
}

fn kill(process: u32, signal: Kill) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
