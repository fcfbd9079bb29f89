//! `exuvia cancel`.

use clap::Args;

use crate::cli::job_selector;
use crate::cli::output::{Output, print_json, slurm_failed};
use crate::exec::ExitCode;
use crate::slurm::{self, SlurmError};

/// Arguments of `exuvia cancel`.
#[derive(Debug, Args)]
pub(super) struct CancelArguments {
    /// Name, id or file of a job; 17_3 is task 3 of array 17
    job: String,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn cancel(arguments: &CancelArguments) -> ExitCode {
    let target = arguments.job.as_str();
    match active(target) {
        Ok(Some(ids)) if ids.is_empty() => {
            eprintln!("error: '{target}' has already ended");
            ExitCode::Failed
        }
        Ok(Some(ids)) => {
            if let Err(error) = slurm::cancel(&ids) {
                return slurm_failed(error);
            }
            match arguments.output {
                Output::Human => println!("cancelled {}", ids.join(", ")),
                Output::Json => print_json(&serde_json::json!({ "schema": 1, "cancelled": ids })),
            }
            ExitCode::Done
        }
        Ok(None) => job_selector::unknown(target),
        Err(error) => slurm_failed(error),
    }
}

/// The ids of queued and running jobs; `None` if there is no such job.
fn active(target: &str) -> Result<Option<Vec<String>>, SlurmError> {
    let records = job_selector::records(Some(target))?;
    let states = job_selector::states(Some(target), &records)?;
    if states.is_empty() && records.is_empty() {
        return Ok(None);
    }
    let active = states.iter().filter(|state| state.is_active());
    let mut ids: Vec<String> = match job_selector::is_id(target) {
        true => active.map(|_| target.to_owned()).collect(),
        false => active.map(|state| state.job_id().to_owned()).collect(),
    };
    ids.dedup();
    Ok(Some(ids))
}
