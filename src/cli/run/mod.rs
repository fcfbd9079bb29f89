//! `exuvia run`.

pub mod arguments;
mod progress;
pub mod records;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::output::{Output, fail, print_json};
use crate::cli::run::arguments::{RunArguments, compile_limits};
use crate::exec;
use crate::exec::ExitCode;
use crate::exec::Signal;
use crate::exec::{Options, Resume};
use crate::fabric::{self, Fabric};
use crate::launch::signal::forward_usr1;
use crate::launch::status_files;
use crate::launch::supervisor::{LaunchRequest, supervise};
use crate::live;
use crate::report::{self, Report};
use crate::sched::Granularity;
use crate::text;
use crate::topology::{Launcher, launcher};

/// The time for the other ranks to leave before rank 0 ends with the exit status of the run.
const LEAVE: Duration = Duration::from_millis(500);

pub(super) fn run(arguments: &RunArguments) -> ExitCode {
    status_files::report_panics();
    fabric::install_panic_hook();
    if arguments.threads == Some(0) {
        eprintln!("error: --threads must be at least 1");
        return ExitCode::Usage;
    }
    let signal = Signal::default();
    let wants_ranks = arguments.hostfile.is_some() || arguments.ranks.is_some_and(|ranks| ranks > 1);
    let supervises = wants_ranks && matches!(launcher(), Launcher::None);
    if let Err(error) = catch_signals(&signal, supervises) {
        tracing::warn!("cannot catch signals: {error}");
    }
    match arguments.ranks {
        Some(ranks) if supervises => launch_ranks(ranks, arguments, &signal),
        _ => run_rank(arguments, signal),
    }
}

fn launch_ranks(ranks: u32, arguments: &RunArguments, signal: &Signal) -> ExitCode {
    let request = LaunchRequest {
        ranks,
        hostfile: arguments.hostfile.as_deref(),
        job: &arguments.job,
        start_limit: arguments.start_limit,
        note: print_note,
    };
    supervise(&request, signal).unwrap_or_else(|error| fail(&error, error.code(), error.help().as_deref()))
}

fn run_rank(arguments: &RunArguments, signal: Signal) -> ExitCode {
    let fabric = match fabric::connect() {
        Ok(fabric) => fabric,
        Err(error) => {
            status_files::report_exit(ExitCode::Environment);
            return fail(&error, ExitCode::Environment, Some("run `exuvia doctor` to check the MPI installation"));
        }
    };
    let rank = fabric.rank();
    match options(arguments, fabric.size()) {
        Ok(options) => execute(arguments, fabric, &options, signal),
        Err(message) => {
            if rank == 0 {
                eprintln!("error: {message}");
            }
            ExitCode::Usage
        }
    }
}

/// The options of the run, or what is wrong with the arguments.
fn options(arguments: &RunArguments, size: u32) -> Result<Options, String> {
    // A supervisor may have restarted fewer ranks, without the hosts that failed.
    if let Some(ranks) = arguments.ranks.filter(|ranks| *ranks != size && !status_files::is_supervised()) {
        let help = "omit --ranks under mpirun and srun";
        return Err(format!("--ranks is {ranks}, but the launcher has started {size}\nhelp: {help}"));
    }
    Ok(Options {
        threads: arguments.threads,
        tier: arguments.tier.policy(),
        cache_dir: arguments.cache_dir.clone(),
        memory_bytes: arguments.memory,
        granularity: arguments.task_slices.map_or(Granularity::Adaptive, Granularity::Fixed),
        steal: !arguments.no_steal,
        helper: std::env::current_exe().ok(),
        compile_limits: compile_limits()?,
        resume: match (arguments.fresh, arguments.forgetful) {
            (_, true) => Resume::Never,
            (true, false) => Resume::Fresh,
            (false, false) => Resume::GoOn,
        },
        checkpoint_every: arguments.checkpoint_every,
        trace: arguments.trace.is_some(),
        print_error: Some(print_error),
        note: Some(print_note),
        // Nobody reads a suggestion in time in a batch job.
        suggest_check: std::io::stderr().is_terminal(),
        progress: Some(progress::show),
        live: live::folder(),
        on_started: Some(status_files::report_detecting),
        ..Options::default()
    })
}

fn execute(arguments: &RunArguments, fabric: Box<dyn Fabric>, options: &Options, signal: Signal) -> ExitCode {
    let rank = fabric.rank();
    let mut code = ExitCode::Done;
    let result = exec::run(fabric, &arguments.job, options, signal, |report| {
        progress::clear();
        code = conclude(arguments, report);
        status_files::report_exit(code);
        code
    });
    progress::clear();
    match result {
        Ok(_) => code,
        Err(failure) => {
            // After a rank failure, the supervisor restarts the ranks: it must not see an exit status.
            if !failure.died && (rank == 0 || failure.text.is_some()) {
                status_files::report_exit(failure.code);
            }
            if let Some(text) = failure.text {
                print_error(&text);
            }
            // Workers may be in a kernel that never returns, and MPI may have lost ranks: leave without waiting for
            // them.
            std::process::exit(leave(rank, failure.code) as i32);
        }
    }
}

/// Makes signals that ask the run to end set `signal`. Where no launcher and no supervisor stands between the terminal
/// and this process, a second Ctrl-C ends it at once.
fn catch_signals(signal: &Signal, supervises: bool) -> std::io::Result<()> {
    if matches!(launcher(), Launcher::None) && !supervises {
        let pressed = Arc::new(AtomicBool::new(false));
        // The order matters: at the first signal the condition is not set yet.
        signal_hook::flag::register_conditional_default(SIGINT, pressed.clone())?;
        signal_hook::flag::register(SIGINT, pressed)?;
    }
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
    }
    forward_usr1(signal)
}

/// Returns the exit status of this rank. When one rank fails, `srun -K` ends the others and forgets the status: for a
/// run that stopped early, only rank 0 returns the status, and as the last one.
fn leave(rank: fabric::Rank, code: ExitCode) -> ExitCode {
    let by_srun = matches!(launcher(), Launcher::Mpi { name, .. } if name.starts_with("srun"));
    match (code, rank) {
        (ExitCode::Resumable, 0) if by_srun => std::thread::sleep(LEAVE),
        (ExitCode::Resumable, _) if by_srun => return ExitCode::Done,
        _ => {}
    }
    code
}

fn print_error(error: &str) {
    progress::clear();
    eprintln!("{error}");
}

fn print_note(note: &str) {
    progress::clear();
    eprintln!("note: {}", text::line(note));
}

/// Writes the report and the trace, and prints the result.
fn conclude(arguments: &RunArguments, report: &Report) -> ExitCode {
    match records::write(arguments, report) {
        Ok(0) => {}
        Ok(dropped) => print_note(&format!("the trace is incomplete: {dropped} events did not fit")),
        Err(error) => return fail(&error, ExitCode::Failed, None),
    }
    match arguments.output {
        Output::Human => {
            let here = std::env::current_dir().unwrap_or_default();
            print!("{}", text::lines(&report::summary(report, &here)));
        }
        Output::Json => print_json(report),
    }
    ExitCode::Done
}
