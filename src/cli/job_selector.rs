//! Which submitted jobs a person means.

use std::path::Path;

use super::submit::RUNS;
use crate::slurm::{self, Record, SlurmError, State};

/// The records of the jobs that `target` means: an id, a name or a job file; all of them, if there is none.
pub(super) fn records(target: Option<&str>) -> Result<Vec<Record>, SlurmError> {
    let mut records = slurm::records(Path::new(RUNS))?;
    if let Some(target) = target {
        let file = std::path::absolute(target).unwrap_or_default();
        records.retain(|record| record.is(target) || record.name == target || record.job == file);
    }
    Ok(records)
}

/// What Slurm says of these jobs, and of those that `target` means and that have no record here.
pub(super) fn states(target: Option<&str>, records: &[Record]) -> Result<Vec<State>, SlurmError> {
    let mut states = match target {
        Some(target) if records.is_empty() && is_id(target) => slurm::states(&[whole(target).to_owned()])?,
        Some(name) if records.is_empty() => slurm::queue()?.into_iter().filter(|state| state.name == name).collect(),
        _ => slurm::states(&records.iter().map(|record| record.id.clone()).collect::<Vec<_>>())?,
    };
    if let Some(task) = target.filter(|target| target.contains('_') && is_id(target)) {
        // A task that waits with others is not listed by itself.
        states.retain(|state| state.id == task || state.id.contains('['));
    }
    states.sort_by_key(|state| (state.job_id().parse::<u64>().ok(), state.id.len(), state.id.clone()));
    Ok(states)
}

/// `17` or `17_3`.
pub(super) fn is_id(target: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    target.split_once('_').map_or_else(|| number(target), |(job, task)| number(job) && number(task))
}

/// The id of the job that a task belongs to.
fn whole(id: &str) -> &str {
    id.split('_').next().unwrap_or(id)
}

/// Says that nobody knows the job.
pub(super) fn unknown(target: &str) -> crate::exec::ExitCode {
    eprintln!("error: there is no job '{target}', neither in {RUNS}/ nor in the queue");
    eprintln!("help: `exuvia status`, in the folder where it was submitted, lists all");
    crate::exec::ExitCode::Usage
}
