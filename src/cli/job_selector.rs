//! The selection of submitted jobs by id, name or job file.

use std::path::Path;

use crate::cli::submit::RUNS_FOLDER;
use crate::slurm::{self, Record, SlurmError, State};

/// The records of the jobs that `target` selects: an id, a name or a job file. Without a target, all records.
pub(super) fn records(target: Option<&str>) -> Result<Vec<Record>, SlurmError> {
    let mut records = slurm::records(Path::new(RUNS_FOLDER))?;
    if let Some(target) = target {
        let file = std::path::absolute(target).unwrap_or_default();
        records.retain(|record| record.is(target) || record.name == target || record.job == file);
    }
    Ok(records)
}

/// The states of these jobs in Slurm. If there is no record, those of the jobs that `target` selects.
pub(super) fn states(target: Option<&str>, records: &[Record]) -> Result<Vec<State>, SlurmError> {
    let mut states = match target {
        Some(target) if records.is_empty() && is_id(target) => slurm::states(&[job_of(target).to_owned()])?,
        Some(name) if records.is_empty() => slurm::queue()?.into_iter().filter(|state| state.name == name).collect(),
        _ => slurm::states(&records.iter().map(|record| record.id.clone()).collect::<Vec<_>>())?,
    };
    if let Some(task) = target.filter(|target| target.contains('_') && is_id(target)) {
        // Slurm lists waiting tasks of an array together.
        states.retain(|state| state.id == task || state.id.contains('['));
    }
    states.sort_by_key(|state| (state.job_id().parse::<u64>().ok(), state.id.len(), state.id.clone()));
    Ok(states)
}

/// Returns whether the target is an id, such as `17` or `17_3`.
pub(super) fn is_id(target: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    target.split_once('_').map_or_else(|| number(target), |(job, task)| number(job) && number(task))
}

/// The id of the job that an array task belongs to.
fn job_of(id: &str) -> &str {
    id.split('_').next().unwrap_or(id)
}

/// Prints that there is no such job.
pub(super) fn unknown(target: &str) -> crate::exec::ExitCode {
    eprintln!("error: no job '{target}' in {RUNS_FOLDER}/ or in the queue");
    eprintln!("help: run `exuvia status` in the folder where it was submitted to list all jobs");
    crate::exec::ExitCode::Usage
}
