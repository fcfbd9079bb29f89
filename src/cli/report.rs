use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::run::write_whole;
use crate::exec::ExitCode;
use crate::report::{Report, Timeline, html};
use crate::text;

/// Arguments of `exuvia report`.
#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// The record of the run, as `exuvia run --report` wrote it
    record: PathBuf,
    /// Its trace, as `exuvia run --trace` wrote it: shows what workers did when
    #[arg(long)]
    trace: Option<PathBuf>,
    /// The page to write
    #[arg(short, long)]
    out: PathBuf,
}

pub(super) fn report(arguments: &ReportArguments) -> ExitCode {
    let made = || -> Result<(), String> {
        let why = "no record of a run: make one with `exuvia run JOB --report FILE`";
        let record: Report = parse(&arguments.record, why, |text| serde_json::from_slice(text))?;
        if record.schema != Report::SCHEMA {
            let (file, schema) = (arguments.record.display(), record.schema);
            return Err(format!("{file} has layout {schema}, and this build reads {}", Report::SCHEMA));
        }
        let trace = arguments.trace.as_deref();
        let timeline = trace.map(|file| {
            let why = "no trace of a run: make one with `exuvia run JOB --trace FILE`";
            parse(file, why, Timeline::read)
        });
        let page = html(&record, timeline.transpose()?.as_ref());
        write_whole(&arguments.out, |out| out.write_all(page.as_bytes()))
            .map_err(|error| format!("{} cannot be written: {error}", arguments.out.display()))
    };
    match made() {
        Ok(()) => ExitCode::Done,
        Err(error) => {
            eprintln!("error: {}", text::line(&error));
            ExitCode::Failed
        }
    }
}

/// `what` a file is that cannot be parsed.
fn parse<T>(file: &Path, what: &str, parse: impl Fn(&[u8]) -> serde_json::Result<T>) -> Result<T, String> {
    let text = std::fs::read(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    parse(&text).map_err(|error| format!("{} is {what} ({error})", file.display()))
}
