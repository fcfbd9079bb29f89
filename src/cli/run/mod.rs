mod progress;

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Output, fail, print_json};
use crate::engine::CompileLimits;
use crate::exec;
use crate::exec::ExitCode;
use crate::exec::Signal;
use crate::exec::{Options, Resume, TierPolicy};
use crate::fabric;
use crate::launch::{status_files, supervisor};
use crate::live;
use crate::report::{self, Report};
use crate::sched::Granularity;
use crate::store::real_path;
use crate::text;
use crate::topology::{Launcher, launcher};

/// What other ranks may need to leave.
const LAST: Duration = Duration::from_millis(500);

/// Arguments of `exuvia run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The job file
    pub(crate) job: PathBuf,
    /// Ranks to start, on this machine or on the hosts of --hostfile; under mpirun or srun those that there are
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
    /// Hosts to start them on, in the MPI library's own notation
    #[arg(long, requires = "ranks", value_name = "FILE")]
    pub(crate) hostfile: Option<PathBuf>,
    /// Time for the ranks that --ranks starts to find one another, such as 10min
    #[arg(long, default_value = "3min", value_parser = humantime::parse_duration)]
    pub(crate) start_limit: Duration,
    /// Worker threads per rank [default: the node's CPUs shared among its ranks]
    #[arg(long)]
    pub(crate) threads: Option<u32>,
    /// Code that kernels run on
    #[arg(long, value_enum, default_value_t)]
    tier: Tier,
    /// Memory that one rank may use, such as 2GiB [default: the job's, or a share of the node's]
    #[arg(long, value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Leave work with the ranks that the plan gives it to, even if others have none
    #[arg(long)]
    no_steal: bool,
    /// Begin anew, whatever an earlier run of this job has finished
    #[arg(long)]
    fresh: bool,
    /// Keep nothing for a later run
    #[arg(long, hide = true, conflicts_with = "fresh")]
    forgetful: bool,
    /// Time from one checkpoint of iterated stages to the next, such as 5min [default: what their cost and the end of the
    /// allocation call for]
    #[arg(long, value_parser = humantime::parse_duration)]
    checkpoint_every: Option<Duration>,
    /// Slices of every task, where the scheduler would choose
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    task_slices: Option<u64>,
    /// Where optimized code is kept [default: $EXUVIA_CACHE_DIR, or exuvia in the user's cache]
    #[arg(long)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Write the record of the run to this file
    #[arg(long)]
    report: Option<PathBuf>,
    /// Write what every thread of every rank did when to this file, for ui.perfetto.dev
    #[arg(long)]
    trace: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Tier {
    /// Baseline code at once, optimized code as soon as it is there
    #[default]
    Auto,
    /// Baseline code only
    Baseline,
    /// Wait for optimized code
    Optimized,
}

impl Tier {
    pub(super) fn policy(self) -> TierPolicy {
        match self {
            Tier::Auto => TierPolicy::Auto,
            Tier::Baseline => TierPolicy::Baseline,
            Tier::Optimized => TierPolicy::Optimized,
        }
    }
}

/// To check what others will start a run with.
#[derive(Debug, Parser)]
struct RunCommand {
    #[command(flatten)]
    arguments: RunArguments,
}

/// Options for `exuvia run` as it will see them, from behind the `--` of `verb`, which gives `set` itself; what is wrong with
/// them has been said.
pub(super) fn given(verb: &str, options: &[String], set: &[&str]) -> Result<RunArguments, ExitCode> {
    let name = format!("exuvia {verb} ... --");
    let options = options.iter().map(String::as_str);
    let whole = [name.as_str()].into_iter().chain(options).chain(set.iter().copied()).chain(["JOB"]);
    RunCommand::try_parse_from(whole).map(|run| run.arguments).map_err(|error| {
        let _ = error.print();
        ExitCode::Usage
    })
}

/// A size in bytes with its unit.
pub(super) fn size(text: &str) -> Result<u64, String> {
    bytesize::ByteSize::from_str(text).map(|size| size.as_u64()).map_err(|_| "write for example 64MiB".to_owned())
}

pub(super) fn run(arguments: &RunArguments) -> ExitCode {
    status_files::tell_of_panics();
    fabric::install_panic_hook();
    if arguments.threads == Some(0) {
        eprintln!("error: --threads must be at least 1");
        return ExitCode::Usage;
    }
    let signal = Signal::default();
    let asks = arguments.hostfile.is_some() || arguments.ranks.is_some_and(|ranks| ranks > 1);
    let supervises = asks && matches!(launcher(), Launcher::None);
    if let Err(error) = catch_signals(&signal, supervises) {
        tracing::warn!("signals cannot be caught: {error}");
    }
    if let (Some(ranks), true) = (arguments.ranks, supervises) {
        return supervisor::supervise(ranks, arguments, &signal);
    }
    let fabric = match fabric::connect() {
        Ok(fabric) => fabric,
        Err(error) => {
            status_files::ended(ExitCode::Environment);
            return fail(&error, ExitCode::Environment, Some("run `exuvia doctor` for more"));
        }
    };
    let (rank, size) = (fabric.rank(), fabric.size());
    // Hosts may have been lost since.
    if let Some(ranks) = arguments.ranks.filter(|ranks| *ranks != size && !status_files::is_supervised()) {
        if rank == 0 {
            eprintln!("error: --ranks is {ranks}, but the launcher has started {size}");
            eprintln!("help: leave out --ranks under mpirun and srun");
        }
        return ExitCode::Usage;
    }
    let compile_limits = match compile_limits() {
        Ok(limits) => limits,
        Err(wrong) => {
            if rank == 0 {
                eprintln!("error: {wrong}");
            }
            return ExitCode::Usage;
        }
    };
    let options = Options {
        threads: arguments.threads,
        tier: arguments.tier.policy(),
        cache_dir: arguments.cache_dir.clone(),
        memory_bytes: arguments.memory,
        granularity: arguments.task_slices.map_or(Granularity::Adaptive, Granularity::Fixed),
        steal: !arguments.no_steal,
        helper: std::env::current_exe().ok(),
        compile_limits,
        resume: match (arguments.fresh, arguments.forgetful) {
            (_, true) => Resume::Never,
            (true, false) => Resume::Fresh,
            (false, false) => Resume::GoOn,
        },
        checkpoint_every: arguments.checkpoint_every,
        trace: arguments.trace.is_some(),
        print_error: Some(print_error),
        note: Some(note),
        // In a batch nobody reads it in time.
        suggest_check: std::io::stderr().is_terminal(),
        progress: Some(progress::show),
        live: live::folder(),
        watched: Some(status_files::watched),
        ..Options::default()
    };
    let rank = fabric.rank();
    let mut code = ExitCode::Done;
    let result = exec::run(fabric, &arguments.job, &options, signal, |report| {
        progress::clear();
        code = conclude(arguments, report);
        status_files::ended(code);
        code
    });
    progress::clear();
    match result {
        Ok(_) => code,
        Err(failure) => {
            // A death is what whoever started the ranks can help: by starting them again.
            if !failure.died && (rank == 0 || failure.text.is_some()) {
                status_files::ended(failure.code);
            }
            if let Some(text) = failure.text {
                print_error(&text);
            }
            // Workers may be in a kernel that never returns, and MPI may have lost ranks: leave without asking them.
            std::process::exit(leave(rank, failure.code) as i32);
        }
    }
}

/// What a compile may take: `EXUVIA_COMPILE_TIME` and `EXUVIA_COMPILE_MEMORY`, or what is usual.
pub(super) fn compile_limits() -> Result<CompileLimits, String> {
    let usual = CompileLimits::default();
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let time = variable("EXUVIA_COMPILE_TIME").map(|value| {
        humantime::parse_duration(&value).map_err(|error| format!("EXUVIA_COMPILE_TIME is '{value}': {error}"))
    });
    let memory = variable("EXUVIA_COMPILE_MEMORY")
        .map(|value| size(&value).map_err(|error| format!("EXUVIA_COMPILE_MEMORY is '{value}': {error}")));
    Ok(CompileLimits {
        time: time.transpose()?.unwrap_or(usual.time),
        memory_bytes: memory.transpose()?.unwrap_or(usual.memory_bytes),
    })
}

/// Signals that ask the run to end set `signal`. Who presses Ctrl-C twice wants no more waiting: where no launcher and no
/// supervisor stands between the terminal and this process, the second one ends it as if nobody had caught it.
fn catch_signals(signal: &Signal, supervises: bool) -> std::io::Result<()> {
    if matches!(launcher(), Launcher::None) && !supervises {
        let pressed = Arc::new(AtomicBool::new(false));
        // In this order: the first time there is nothing to end it yet.
        signal_hook::flag::register_conditional_default(SIGINT, pressed.clone())?;
        signal_hook::flag::register(SIGINT, pressed)?;
    }
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
    }
    supervisor::forward_usr1(signal)
}

/// The status that this rank leaves with. Where one rank fails, `srun -K` ends the others and forgets the status; of a run that
/// stopped early rank 0 alone tells it, and as the last one.
fn leave(rank: fabric::Rank, code: ExitCode) -> ExitCode {
    let by_srun = matches!(launcher(), Launcher::Mpi { name, .. } if name.starts_with("srun"));
    match (code, rank) {
        (ExitCode::Resumable, 0) if by_srun => std::thread::sleep(LAST),
        (ExitCode::Resumable, _) if by_srun => return ExitCode::Done,
        _ => {}
    }
    code
}

fn print_error(error: &str) {
    progress::clear();
    eprintln!("{error}");
}

fn note(text: &str) {
    progress::clear();
    eprintln!("note: {}", text::line(text));
}

fn conclude(arguments: &RunArguments, report: &Report) -> ExitCode {
    if let Err((what, file, error)) = write_records(arguments, report) {
        let file = text::line(&file.display().to_string());
        eprintln!("error: the job is done, but its {what} cannot be written to {file}: {error}");
        return ExitCode::Failed;
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

/// Writes what was asked for of the run; says which file cannot be written.
fn write_records<'a>(
    arguments: &'a RunArguments,
    report: &Report,
) -> Result<(), (&'static str, &'a Path, std::io::Error)> {
    if let Some(file) = &arguments.report {
        let write = |out: &mut BufWriter<&File>| {
            serde_json::to_writer_pretty(&mut *out, report)?;
            out.write_all(b"\n")
        };
        write_whole(file, write).map_err(|error| ("report", file.as_path(), error))?;
    }
    if let Some(file) = &arguments.trace {
        let trace = report.trace.as_ref().ok_or_else(|| std::io::Error::other("ranks could not be asked for it"));
        let written = trace.and_then(|trace| write_whole(file, |out| trace.write(&report.job, out)));
        written.map_err(|error| ("trace", file.as_path(), error))?;
        if let Some(dropped) = report.trace.as_ref().map(|trace| trace.dropped).filter(|dropped| *dropped > 0) {
            note(&format!("{dropped} events are not in {}, which was full", file.display()));
        }
    }
    Ok(())
}

/// Writes a file whole or not at all. Links stay and lead to it; terminals, pipes and the like are written to.
pub(super) fn write_whole(
    file: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let there = std::fs::metadata(file).ok();
    let is_stream =
        ["/dev", "/proc"].iter().any(|streams| std::path::absolute(file).is_ok_and(|f| f.starts_with(streams)));
    if there.as_ref().is_some_and(|there| is_stream || !there.is_file()) {
        let opened = File::options().append(true).open(file)?;
        let mut out = BufWriter::new(&opened);
        write(&mut out)?;
        return out.flush();
    }
    let file = real_path(file)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let permissions = std::fs::Permissions::from_mode(0o666);
    let temporary = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
    let mut out = BufWriter::new(temporary.as_file());
    write(&mut out)?;
    out.flush()?;
    drop(out);
    if let Some(there) = there {
        temporary.as_file().set_permissions(there.permissions())?;
    }
    temporary.persist(file).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_modes_and_devices_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let lab = tempfile::tempdir().unwrap();
        let at = |name: &str| lab.path().join(name);
        let put = |name: &str| write_whole(&at(name), |out| out.write_all(b"all")).unwrap();
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        std::fs::write(at("secret"), "before").unwrap();
        std::fs::set_permissions(at("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink("secret", at("latest")).unwrap();
        symlink("new/report", at("dangling")).unwrap();
        put("latest");
        put("dangling");
        assert!(at("latest").is_symlink() && at("dangling").is_symlink());
        assert_eq!(std::fs::read_to_string(at("secret")).unwrap(), "all");
        assert_eq!(std::fs::read_to_string(at("new/report")).unwrap(), "all");
        assert_eq!(mode("secret"), 0o600);
        symlink("/dev/null", at("null")).unwrap();
        put("null");
        write_whole(Path::new("/dev/null"), |out| out.write_all(b"all")).unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let left = std::fs::read_dir(lab.path()).unwrap().count();
        assert_eq!(left, 5, "no temporary");
    }
}
