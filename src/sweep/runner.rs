//! The runs of a sweep: `exuvia run` as a user would start it.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Kill, kill_process};

use crate::exec::Signal;
use crate::slurm::Step;
use crate::sweep::error::SweepError;
use crate::sweep::point::Setting;
use crate::topology::Allocation;

const GLANCE: Duration = Duration::from_millis(2);
/// The most output of a failed run that is shown.
const SAID_BYTES: usize = 4000;

/// The launcher of the ranks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RankLauncher {
    /// `exuvia run --ranks`.
    Program,
    /// `srun` inside the allocation, with this PMI.
    Srun { allocation: Allocation, pmi: &'static str },
}

impl RankLauncher {
    /// The name in reports.
    pub fn name(&self) -> String {
        match self {
            RankLauncher::Program => "exuvia run --ranks".to_owned(),
            RankLauncher::Srun { pmi, .. } => format!("srun --mpi={pmi}"),
        }
    }

    fn command(&self, exuvia: &Path, setting: &Setting) -> Command {
        match self {
            RankLauncher::Program => {
                let mut command = Command::new(exuvia);
                command.args(["run", "--ranks", &setting.ranks.to_string()]);
                command
            }
            RankLauncher::Srun { allocation, pmi } => {
                let per_node = allocation.ranks_per_node(setting.ranks, setting.threads);
                let overcommit = per_node * setting.threads > allocation.cpus_per_node;
                let step = Step { ranks: setting.ranks, per_node, threads: setting.threads, overcommit, pmi };
                let mut command = step.command(exuvia);
                command.arg("run");
                command
            }
        }
    }
}

/// The specification of one run.
#[derive(Clone, Debug)]
pub struct RunSpec<'a> {
    pub exuvia: &'a Path,
    pub launcher: &'a RankLauncher,
    pub job: &'a Path,
    pub setting: Setting,
    /// The cache of optimized code.
    pub cache: &'a Path,
    pub report: &'a Path,
    pub trace: Option<&'a Path>,
    /// Additional options of `exuvia run`.
    pub options: &'a [String],
}

impl RunSpec<'_> {
    pub fn command(&self) -> Command {
        let mut command = self.launcher.command(self.exuvia, &self.setting);
        command.args(["--threads", &self.setting.threads.to_string(), "--tier", self.setting.tier.name(), "--fresh"]);
        command.arg("--cache-dir").arg(self.cache).arg("--report").arg(self.report);
        if let Some(slices) = self.setting.task_slices {
            command.args(["--task-slices", &slices.to_string()]);
        }
        if let Some(trace) = self.trace {
            command.arg("--trace").arg(trace);
        }
        command.args(self.options).arg(self.job);
        command
    }
}

/// Runs a command to its end; returns its time, or `None` if `signal` ended it. An error contains its output.
pub fn start_and_await(mut command: Command, signal: &Signal) -> Result<Option<Duration>, SweepError> {
    let program = || -> OsString { command.get_program().to_owned() };
    let name = program().to_string_lossy().into_owned();
    let line = std::iter::once(program()).chain(command.get_args().map(OsString::from));
    let line = line.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    // A process group of its own, so that a signal from the terminal reaches the run only once.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let started = Instant::now();
    let mut child = command.spawn().map_err(|source| SweepError::Start { program: name, source })?;
    let said = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            said
        })
    });
    let (status, asked) = wait(&mut child, signal).map_err(SweepError::io("wait for", Path::new("the run")))?;
    let took = started.elapsed();
    let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if asked {
        return Ok(None);
    }
    if !status.success() {
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(SAID_BYTES)..]).trim_end().to_owned();
        return Err(SweepError::Run { command: line, status: status.to_string(), said });
    }
    Ok(Some(took))
}

/// Waits for the child and forwards signals; returns its status and whether there was a signal.
fn wait(child: &mut Child, signal: &Signal) -> std::io::Result<(ExitStatus, bool)> {
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, asked));
        }
        if signal.swap(0, Ordering::Relaxed) != 0 {
            asked = true;
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Kill::TERM);
            }
        }
        std::thread::sleep(GLANCE);
    }
}
