//! The results and errors that all commands print.

use clap::ValueEnum;

use crate::exec::{ExitCode, render};
use crate::slurm::SlurmError;

/// The format of the results.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(in crate::cli) enum Output {
    /// Text for people
    #[default]
    Human,
    /// One JSON value
    Json,
}

/// Prints an error with its causes and advice.
pub(in crate::cli) fn fail(error: &(dyn std::error::Error + 'static), code: ExitCode, help: Option<&str>) -> ExitCode {
    eprintln!("{}", render(error, help));
    code
}

/// Prints an error of Slurm.
pub(in crate::cli) fn slurm_failed(error: SlurmError) -> ExitCode {
    let code = if error.is_environment() { ExitCode::Environment } else { ExitCode::Failed };
    fail(&error, code, error.help())
}

/// Prints a JSON value as the only result of the command.
pub(in crate::cli) fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("error: cannot write the result as JSON: {error}"),
    }
}
