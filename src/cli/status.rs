//! `exuvia status`.

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::job_selector;
use crate::cli::output::{Output, print_json, slurm_failed};
use crate::exec::ExitCode;
use crate::slurm::{Record, State};
use crate::text;

/// Arguments of `exuvia status`.
#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// Name, id or file of a job [default: all jobs submitted from this folder]
    job: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The value that `--output json` prints.
#[derive(Debug, Serialize)]
struct Status<'a> {
    schema: u32,
    /// Sorted by id; one entry for each task of an array.
    jobs: &'a [State],
    /// The submissions from this folder.
    records: &'a [Record],
}

pub(super) fn status(arguments: &StatusArguments) -> ExitCode {
    let target = arguments.job.as_deref();
    let found =
        job_selector::records(target).and_then(|records| Ok((job_selector::states(target, &records)?, records)));
    let (states, records) = match found {
        Ok(found) => found,
        Err(error) => return slurm_failed(error),
    };
    if let (Some(target), [], []) = (target, &states[..], &records[..]) {
        return job_selector::unknown(target);
    }
    match arguments.output {
        Output::Json => print_json(&Status { schema: 1, jobs: &states, records: &records }),
        Output::Human => print_states(&states, &records),
    }
    ExitCode::Done
}

fn print_states(states: &[State], records: &[Record]) {
    let forgotten = records.iter().filter(|record| !states.iter().any(|state| record.is(&state.id)));
    let mut rows: Vec<[String; 5]> = forgotten
        .map(|record| {
            let note = format!("no longer known to Slurm, submitted {}", record.submitted);
            [record.id.clone(), record.name.clone(), "-".to_owned(), "-".to_owned(), note]
        })
        .collect();
    rows.extend(states.iter().map(|state| {
        let time = format!("{} of {}", state.time_used, state.time_limit);
        [state.id.clone(), state.name.clone(), describe(state), time, state.place.clone()]
    }));
    if rows.is_empty() {
        println!("no jobs were submitted from this folder");
        return;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["ID", "NAME", "STATE", "TIME", "WHERE"]);
    table.add_rows(rows);
    println!("{}", text::lines(&table.trim_fmt()));
}

/// The state, with the exit code or signal of a failed job.
fn describe(state: &State) -> String {
    match (state.exit_code, state.signal) {
        (_, Some(signal)) => format!("{} (signal {signal})", state.state),
        (Some(code), None) if code > 0 => format!("{} (exit {code})", state.state),
        _ => state.state.clone(),
    }
}
