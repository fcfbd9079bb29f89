//! `exuvia run --ranks N`: starts the ranks with the launcher of the MPI that the program is built with, here or on several
//! hosts, in the way that lets the others go on when one dies, and starts them again where they cannot, without hosts that do
//! not answer any more.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Kill, kill_process, kill_process_group};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use crate::cli::fail;
use crate::cli::run::RunArguments;
use crate::exec::ExitCode;
use crate::exec::Signal;
use crate::exec::first_folder;
use crate::job::Job;
use crate::launch::hostfile::Hosts;
use crate::launch::output_filter::OutputFilter;
use crate::launch::status_files;
use crate::launch::status_files::StatusFiles;
use crate::text;
use crate::text::Limit;
use crate::topology::Keepalive;
use crate::{fabric, topology};

/// How often ranks are started again.
const RESTARTS: u32 = 3;
const GLANCE: Duration = Duration::from_millis(10);
/// For ranks that were asked to end to do so by themselves.
const GRACE: Duration = Duration::from_secs(60);
/// Files that a launcher opens, more or less.
const LAUNCHER_FILES: u64 = 256;
/// For a host to start the program, if it is there at all.
const ANSWER: Duration = Duration::from_secs(15);
/// For what the ranks have said at the end to arrive. A launcher with several hosts waits for ever for ranks that leave MPI
/// without ceremony, as they do where deaths are survivable, and for those of hosts that are gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For a launcher on this machine to end after its ranks, which have a minute to leave MPI.
const LEAVE: Duration = Duration::from_secs(90);
/// For a launcher to clear up when it is asked to end.
const CLEAR_UP: Duration = Duration::from_secs(2);

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
    /// They did not find one another in time.
    Late,
}

/// From now on SIGUSR1 sets `signal`: under a supervisor to what it got, since launchers forward that one signal alone.
pub(crate) fn forward_usr1(signal: &Signal) -> std::io::Result<()> {
    let (mut signals, signal) = (Signals::new([SIGUSR1])?, signal.clone());
    std::thread::spawn(move || {
        for number in signals.forever() {
            signal.store(status_files::asked().unwrap_or(number) as usize, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Runs this command on so many ranks, and sees to it that it comes to an end.
pub(crate) fn supervise(ranks: u32, arguments: &RunArguments, signal: &Signal) -> ExitCode {
    let (all, folder) = match arguments.hostfile.as_deref().map(|file| hosts_of(file, &arguments.job)).transpose() {
        Ok(hosts) => hosts.unzip(),
        Err(code) => return code,
    };
    let told = match StatusFiles::beside(folder.as_deref().unwrap_or(&std::env::temp_dir())) {
        Ok(told) => told,
        Err(error) => return fail(&error, ExitCode::Environment, Some("is there a writable TMPDIR?")),
    };
    let (mut hosts, mut ranks_now) = (all.clone(), ranks);
    let start_limit = arguments.start_limit;
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    for restarts in 0.. {
        let launched = launch(ranks_now, hosts.as_ref(), &told, |command| {
            command.args(&arguments);
        });
        let mut launched = match launched {
            Ok(launched) => launched,
            Err(error) => return fail(&error, ExitCode::Environment, Some("run `exuvia doctor` for more")),
        };
        match launched.look_after(&told, signal, start_limit) {
            End::Status(code) => return code,
            End::Stopped => {
                eprintln!("error: interrupted, and the ranks had no time to say how far they were");
                eprintln!("help: run the same command again: what is finished is kept");
                return ExitCode::Resumable;
            }
            End::Late => {
                let limit = humantime::format_duration(start_limit);
                eprintln!("error: the ranks did not find one another within {limit} (--start-limit), and were ended");
                let files = Limit::open_files();
                match files.now.is_some_and(|now| now < LAUNCHER_FILES * u64::from(ranks_now).div_ceil(32)) {
                    true => eprintln!("help: {} is too low for a launcher: raise it", files.in_words()),
                    false => eprintln!("help: see what the launcher does by itself, and run `exuvia doctor`"),
                }
                return ExitCode::Environment;
            }
            End::Lost if restarts == RESTARTS => break,
            End::Lost => {}
        }
        let lost = hosts.as_mut().map(|hosts| hosts.drop_lost(|host| answers(host, &told))).unwrap_or_default();
        let again = format!("{} of {RESTARTS}", restarts + 1);
        match (&hosts, &all) {
            (Some(hosts), _) if hosts.names().is_empty() => {
                eprintln!("error: none of the hosts answers any more: {}", lost.join(", "));
                eprintln!("help: when they do, run the same command again: what is finished is kept");
                return ExitCode::Failed;
            }
            (Some(hosts), Some(all)) if !lost.is_empty() => {
                ranks_now = hosts.share_of(ranks, all);
                let (lost, left) = (lost.join(" and "), hosts.names().len());
                eprintln!("note: {lost} was lost; starting {ranks_now} rank(s) again on {left} host(s) ({again})");
            }
            _ => eprintln!("note: the run was lost with its ranks; starting them again ({again})"),
        }
        // What the first of them has cleared away is gone.
        arguments.retain(|argument| argument != "--fresh");
        if let Err(error) = told.begin() {
            return fail(&error, ExitCode::Environment, None);
        }
    }
    eprintln!("error: the ranks of the run were lost {} times", RESTARTS + 1);
    eprintln!(
        "help: look for the cause (out of memory? killed?) and run the same command again: what is finished is kept"
    );
    ExitCode::Failed
}

/// The hosts that a file names, and a folder that all of them see: where the job's outputs go.
fn hosts_of(file: &Path, job: &Path) -> Result<(Hosts, PathBuf), ExitCode> {
    let hosts = Hosts::read(file).map_err(|error| {
        eprintln!("error: {}", text::line(&format!("{}: {error}", file.display())));
        eprintln!("help: name a host a line, as the mpirun of {} takes them", fabric::library());
        ExitCode::Usage
    })?;
    let job = Job::load(job).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let made = std::path::absolute(first_folder(&job)).and_then(|folder| {
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    });
    Ok((hosts, made.map_err(|error| fail(&error, ExitCode::Failed, None))?))
}

/// Whether the program can be started on a host.
fn answers(host: &Hosts, told: &StatusFiles) -> bool {
    let launched = launch(1, Some(host), told, |command| {
        command.arg("--version").stdout(Stdio::null());
    });
    let Ok(mut launched) = launched else { return false };
    let until = Instant::now() + ANSWER;
    while Instant::now() < until {
        match launched.process.try_wait() {
            Ok(None) => std::thread::sleep(GLANCE),
            Ok(Some(status)) => return status.success(),
            Err(_) => return false,
        }
    }
    // Whoever still tries to reach it, too.
    launched.end();
    false
}

/// A launcher and its ranks.
struct Launched {
    process: Child,
    /// Whether ranks are on several hosts.
    is_far: bool,
    /// Closed when all that it has said is passed on.
    heard: Receiver<()>,
}

/// Starts the program; `finish` adds its arguments.
fn launch(
    ranks: u32,
    hosts: Option<&Hosts>,
    told: &StatusFiles,
    finish: impl FnOnce(&mut Command),
) -> Result<Launched, LaunchError> {
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
    if let Some(hosts) = hosts {
        // Each host that is asked alone has a file of its own.
        let names = hosts.names();
        let file = told.folder().join(format!("hosts-{}-{}", names.len(), names.first().unwrap_or(&"")));
        hosts.write(&file).map_err(failed)?;
        command.arg(if fabric::is_open_mpi() { "--hostfile" } else { "-f" }).arg(file);
        if fabric::is_open_mpi() {
            command.args(over_hosts());
        }
    }
    command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().map_err(failed)?);
    told.tell_where(&mut command);
    finish(&mut command);
    // In a group of its own: what the terminal sends to all, launchers answer by killing the ranks.
    let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn().map_err(failed)?;
    let (said, heard) = channel::<()>();
    if let Some(stderr) = process.stderr.take() {
        std::thread::spawn(move || {
            pass_on_errors(stderr);
            drop(said);
        });
    }
    Ok(Launched { process, is_far: hosts.is_some(), heard })
}

/// Options for Open MPI's launcher on several hosts.
fn over_hosts() -> Vec<OsString> {
    let Keepalive { idle_s, interval_s, probes } = Keepalive::DAEMONS;
    let settings = [
        // Where daemons start one another, the loss of one ends the others.
        ("plm_rsh_no_tree_spawn", 1),
        // It would take seven minutes.
        ("oob_tcp_keepalive_time", idle_s),
        ("oob_tcp_keepalive_intvl", interval_s),
        ("oob_tcp_keepalive_probes", probes),
    ];
    let settings =
        settings.into_iter().flat_map(|(name, value)| ["--mca".into(), name.into(), value.to_string().into()]);
    // It does not pass the environment on by itself. What it is not told of by name, `launch` adds.
    let is_ours = |name: &OsString| {
        name.to_str().is_some_and(|name| name.starts_with("EXUVIA_") || ["LD_LIBRARY_PATH", "NO_COLOR"].contains(&name))
    };
    let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| is_ours(name) && name != status_files::FOLDER);
    let passed_on = ours.chain([status_files::FOLDER.into()]).flat_map(|name| ["-x".into(), name]);
    settings.chain(passed_on).collect()
}

fn pass_on_errors(from: impl std::io::Read) {
    let (mut lines, mut quiet) = (BufReader::new(from).split(b'\n'), OutputFilter::default());
    while let Some(Ok(line)) = lines.next() {
        let _ = std::io::stderr().write_all(&quiet.pass(line));
    }
    let _ = std::io::stderr().write_all(&quiet.rest());
}

impl Launched {
    /// Passes on signals until the launcher has ended; ends it where it or ranks wait for some that are gone, where ranks do not
    /// find one another within `start_limit`, and where it does not end though it was asked to.
    fn look_after(&mut self, told: &StatusFiles, signal: &Signal, start_limit: Duration) -> End {
        let (mut passed_on, mut patience) = (0, None);
        let mut ranks: Vec<u32> = Vec::new();
        let (begun, mut ended) = (Instant::now(), None);
        let mut watched = false;
        while !matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
            std::thread::sleep(GLANCE);
            if let Some(grace) = self.pass_on(told, signal, &mut passed_on, watched) {
                patience = Some(Instant::now() + grace);
            }
            if patience.is_some_and(|until| until <= Instant::now()) {
                if fabric::is_open_mpi() {
                    // Its launcher would give them another second.
                    self.ranks_here().into_iter().for_each(|rank| kill(rank, Kill::KILL));
                }
                self.end();
                break;
            }
            let leaving = if self.is_far { LAST_WORDS } else { LEAVE };
            if told.ended().is_some() && ended.get_or_insert_with(Instant::now).elapsed() > leaving {
                self.end();
                break;
            }
            watched = watched || told.is_watched() || told.ended().is_some();
            if !watched {
                // MPI itself waits for all ranks as it starts, for ever if need be.
                let now = self.ranks_here();
                let one_died = ranks.iter().any(|rank| !topology::process_alive(*rank)) && told.ended().is_none();
                let is_late = begun.elapsed() > start_limit;
                if one_died || is_late {
                    now.into_iter().for_each(|rank| kill(rank, Kill::KILL));
                    self.end();
                    if is_late && !self.is_far && passed_on == 0 {
                        return End::Late;
                    }
                    break;
                }
                ranks.extend(now.into_iter().filter(|rank| !ranks.contains(rank)).collect::<Vec<_>>());
            }
        }
        let _ = self.heard.recv_timeout(LAST_WORDS);
        let unsaid = if passed_on > 0 { End::Stopped } else { End::Lost };
        told.ended().map_or(unsaid, End::Status)
    }

    /// The first signal asks the ranks to end, by the one signal that all launchers forward, if they are there to hear it;
    /// another one ends them at once. Returns the time that is left to them, if there was a signal.
    fn pass_on(
        &self,
        told: &StatusFiles,
        signal: &AtomicUsize,
        passed_on: &mut u32,
        watched: bool,
    ) -> Option<Duration> {
        let asked = signal.swap(0, Ordering::Relaxed);
        if asked == 0 {
            return None;
        }
        told.ask(asked as i32);
        *passed_on += 1;
        if *passed_on == 1 && watched {
            kill(self.process.id(), Kill::USR1);
            return Some(GRACE);
        }
        Some(Duration::ZERO)
    }

    /// Daemons on other hosts end what they have started when they miss it.
    fn end(&mut self) {
        kill(self.process.id(), Kill::TERM);
        let until = Instant::now() + CLEAR_UP;
        while Instant::now() < until && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(GLANCE);
        }
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Kill::KILL);
        }
        let _ = self.process.wait();
    }

    /// Its ranks on this machine, some perhaps before they are the program. On others they are children of its daemons; the agents
    /// that start those are its own.
    fn ranks_here(&self) -> Vec<u32> {
        let launcher = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
        let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
        let own = program("self");
        let children = children.unwrap_or_default();
        let is_rank = |pid: &&str| !self.is_far || program(pid).is_some_and(|exe| Some(exe) == own);
        let ranks = children.split_whitespace().filter(is_rank);
        ranks.filter_map(|pid| pid.parse().ok()).collect()
    }
}

fn kill(process: u32, signal: Kill) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
