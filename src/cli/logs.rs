//! `exuvia logs`.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cli::job_selector;
use crate::cli::output::{Output, fail, print_json, slurm_failed};
use crate::exec::ExitCode;
use crate::slurm::{self, SlurmError, State};

/// The interval between two reads of a log that is followed.
const READ_INTERVAL: Duration = Duration::from_millis(200);
/// The interval between two queries of the state of its job.
const STATE_INTERVAL: Duration = Duration::from_secs(2);

/// Arguments of `exuvia logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArguments {
    /// Name, id or file of a job (the last one of this name); 17_3 is task 3 of array 17
    job: String,
    /// Print new output until the job ends
    #[arg(short, long, conflicts_with = "output")]
    follow: bool,
    /// Output format; json prints the paths of the logs
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn logs(arguments: &LogsArguments) -> ExitCode {
    let target = arguments.job.as_str();
    let logs = match find(target) {
        Ok(Some(logs)) => logs,
        Ok(None) => return job_selector::unknown(target),
        Err(error) => return slurm_failed(error),
    };
    if let ([log], true) = (&logs[..], arguments.follow) {
        return follow(log);
    }
    if arguments.follow {
        let ids: Vec<&str> = logs.iter().map(|log| log.id.as_str()).collect();
        eprintln!("error: '{target}' is an array; follow one of its tasks: {}", ids.join(", "));
        return ExitCode::Usage;
    }
    if arguments.output == Output::Json {
        print_json(&serde_json::json!({ "schema": 1, "logs": logs }));
        return ExitCode::Done;
    }
    let named = logs.len() > 1;
    for log in &logs {
        if named {
            println!("==> {} <==", log.id);
        }
        let copied = std::fs::File::open(&log.path).and_then(|mut file| print(&mut file));
        match copied {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return no_log(log),
            Err(error) => return unreadable(&log.path, &error),
        }
    }
    ExitCode::Done
}

#[derive(Debug, Serialize)]
struct JobLog {
    /// The id of the job, or of the task of an array.
    id: String,
    path: PathBuf,
}

/// The logs of the last job that `target` selects: several, if it is an array.
fn find(target: &str) -> Result<Option<Vec<JobLog>>, SlurmError> {
    let task = target.split_once('_').filter(|_| job_selector::is_id(target)).map(|(_, task)| task);
    if let Some(record) = job_selector::records(Some(target))?.pop() {
        let log = |(id, path)| JobLog { id, path };
        let path = |task| PathBuf::from(record.log.to_string_lossy().replace(slurm::TASK_PLACE, task));
        return Ok(Some(match task {
            Some(task) => vec![JobLog { id: target.to_owned(), path: path(task) }],
            None if record.array.is_none() => vec![JobLog { id: record.id.clone(), path: record.log.clone() }],
            None => record.logs().into_iter().map(log).collect(),
        }));
    }
    let Some(state) = job_selector::states(Some(target), &[])?.pop() else { return Ok(None) };
    let id = if task.is_some() { target } else { state.job_id() };
    Ok(slurm::log_file(id)?.map(|path| vec![JobLog { id: id.to_owned(), path }]))
}

/// Prints the log as it grows, until the job has ended.
fn follow(log: &JobLog) -> ExitCode {
    let mut file = None;
    let mut printed = 0;
    let mut queried: Option<Instant> = None;
    loop {
        // The state is queried before the log is read, so that all output before the end is printed.
        let is_due = queried.is_none_or(|queried| queried.elapsed() >= STATE_INTERVAL);
        let state = match is_due.then(|| state(&log.id)).transpose() {
            Ok(state) => state,
            Err(error) => return slurm_failed(error),
        };
        if is_due {
            queried = Some(Instant::now());
        }
        if file.is_none() {
            file = std::fs::File::open(&log.path).ok();
        }
        if let Some(file) = &mut file {
            let length = file.metadata().map_or(printed, |metadata| metadata.len());
            // A requeued script without --open-mode=append has truncated the log.
            let from = if length < printed { 0 } else { printed };
            match file.seek(SeekFrom::Start(from)).and_then(|_| print(file)) {
                Ok(bytes) => printed = from + bytes,
                Err(error) => return unreadable(&log.path, &error),
            }
        }
        match state {
            Some(Some(state)) if state.is_active() => {}
            Some(_) if file.is_some() => return ExitCode::Done,
            Some(_) => return no_log(log),
            None => {}
        }
        std::thread::sleep(READ_INTERVAL);
    }
}

/// The state of the job or task; `None` if Slurm no longer knows it.
fn state(id: &str) -> Result<Option<State>, SlurmError> {
    let mut states = job_selector::states(Some(id), &[])?;
    Ok(states.pop())
}

fn print(file: &mut impl Read) -> std::io::Result<u64> {
    let mut out = std::io::stdout().lock();
    let copied = std::io::copy(file, &mut out)?;
    out.flush()?;
    Ok(copied)
}

fn no_log(log: &JobLog) -> ExitCode {
    let state = state(&log.id).ok().flatten();
    let state =
        state.map_or_else(|| "Slurm no longer knows it".to_owned(), |state| format!("{} {}", state.state, state.place));
    eprintln!("error: job {} has no log: {state}", log.id);
    eprintln!("help: the log will be {}", log.path.display());
    ExitCode::Failed
}

fn unreadable(path: &Path, error: &std::io::Error) -> ExitCode {
    let help = format!("check the permissions of {}", path.display());
    fail(error, ExitCode::Failed, Some(&help))
}
