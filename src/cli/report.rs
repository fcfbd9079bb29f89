//! `exuvia report`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::run::records::write_whole;
use crate::exec::ExitCode;
use crate::report::{Report, Timeline, html};
use crate::text;

/// Arguments of `exuvia report`.
#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// Report of the run, written by `exuvia run --report`
    record: PathBuf,
    /// Trace of the run, written by `exuvia run --trace`: adds a timeline of the workers
    #[arg(long)]
    trace: Option<PathBuf>,
    /// HTML page to write
    #[arg(short, long)]
    out: PathBuf,
}

pub(super) fn report(arguments: &ReportArguments) -> ExitCode {
    let write = || -> Result<(), String> {
        let problem = "not the report of a run: create one with `exuvia run JOB --report FILE`";
        let record: Report = parse(&arguments.record, problem, |text| serde_json::from_slice(text))?;
        if record.schema != Report::SCHEMA {
            let (file, schema) = (arguments.record.display(), record.schema);
            return Err(format!("{file} has schema {schema}, but this build reads schema {}", Report::SCHEMA));
        }
        let trace = arguments.trace.as_deref();
        let timeline = trace.map(|file| {
            let problem = "not the trace of a run: create one with `exuvia run JOB --trace FILE`";
            parse(file, problem, Timeline::read)
        });
        let page = html(&record, timeline.transpose()?.as_ref());
        write_whole(&arguments.out, |out| out.write_all(page.as_bytes()))
            .map_err(|error| format!("cannot write {}: {error}", arguments.out.display()))
    };
    match write() {
        Ok(()) => ExitCode::Done,
        Err(error) => {
            eprintln!("error: {}", text::line(&error));
            ExitCode::Failed
        }
    }
}

/// Reads and parses a file; `problem` describes a file that cannot be parsed.
fn parse<T>(file: &Path, problem: &str, parse: impl Fn(&[u8]) -> serde_json::Result<T>) -> Result<T, String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    parse(&text).map_err(|error| format!("{} is {problem} ({error})", file.display()))
}
