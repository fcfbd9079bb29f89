//! `exuvia kernel call`: calls one kernel on given data, without a job file, to test kernels.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::check::{self, CheckOptions, Computed};
use crate::cli::output::{Output, fail, print_json};
use crate::cli::run::arguments::compile_limits;
use crate::engine::Cache;
use crate::exec::ExitCode;
use crate::job::{Job, JobError};
use crate::store::{OutputSpec, Staging, StoreError, Writer};
use crate::tensor::{Boundary, Dtype, Region};

/// The most elements of an output that are printed.
const PRINTED: u64 = 1000;

/// Arguments of `exuvia kernel call`.
#[derive(Debug, Args)]
pub(super) struct CallArguments {
    /// Kernel module
    kernel: PathBuf,
    /// Computation in the notation of job files, such as 'x[n], k[] -> y[n]'
    compute: String,
    /// Tensors. Inputs: NAME=FILE:DATASET, NAME=NUMBER:DTYPE or NAME=[NUMBER,...]:DTYPE (default dtype: f64). Outputs:
    /// NAME=DTYPE to print it, or NAME=FILE:DATASET:DTYPE
    #[arg(value_name = "NAME=PLACE")]
    tensors: Vec<String>,
    /// Exported function [default: the only kernel of the module]
    #[arg(long)]
    export: Option<String>,
    /// Extent of an index that no input has, such as k=10
    #[arg(long = "size", value_name = "INDEX=EXTENT")]
    sizes: Vec<String>,
    /// Boundary condition of inputs with a halo
    #[arg(long, value_enum)]
    boundary: Option<BoundaryArgument>,
    /// Time limit of the call
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Run optimized code instead of baseline code
    #[arg(long)]
    optimized: bool,
    /// Cache of optimized code [default: $EXUVIA_CACHE_DIR, or exuvia in the user's cache]
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BoundaryArgument {
    Clamp,
    Periodic,
    Zero,
    None,
}

impl BoundaryArgument {
    fn name(self) -> &'static str {
        let boundary = match self {
            BoundaryArgument::Clamp => Boundary::Clamp,
            BoundaryArgument::Periodic => Boundary::Periodic,
            BoundaryArgument::Zero => Boundary::Zero,
            BoundaryArgument::None => Boundary::None,
        };
        Boundary::NAMES.iter().find(|(_, kind)| *kind == boundary).map_or("none", |(name, _)| name)
    }
}

/// The file and dataset of an output that is not printed.
struct Destination {
    tensor: String,
    file: PathBuf,
    dataset: String,
}

/// An error in the arguments.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("'{0}' does not describe a tensor; write NAME=PLACE, as in x=in.h5:x, k=5:u32 or y=f64")]
    NoPlace(String),
    #[error("'{tensor}' is an output; write {tensor}=DTYPE to print it, or {tensor}=FILE:DATASET:DTYPE")]
    Output { tensor: String },
    #[error(
        "'{tensor}' is an input; write {tensor}=FILE:DATASET, {tensor}=NUMBER:DTYPE or {tensor}=[NUMBER,...]:DTYPE"
    )]
    Input { tensor: String },
    #[error("'{0}' is not a size; write --size INDEX=EXTENT, as in --size k=10")]
    Size(String),
    #[error(transparent)]
    Job(#[from] JobError),
}

pub(super) fn call(arguments: &CallArguments) -> ExitCode {
    let (job, destinations) = match job(arguments) {
        Ok(made) => made,
        Err(error) => return fail(&error, ExitCode::Usage, None),
    };
    let computed = match compute(job, arguments) {
        Ok(computed) => computed,
        Err(code) => return code,
    };
    let mut printed = Vec::new();
    for output in &computed {
        match destinations.iter().find(|destination| destination.tensor == output.tensor) {
            Some(destination) => {
                if let Err(error) = write(output, destination) {
                    return fail(&error, ExitCode::Failed, None);
                }
            }
            None => printed.push(output),
        }
    }
    match arguments.output {
        Output::Human => printed.iter().for_each(|output| print!("{}", format_tensor(output))),
        Output::Json => {
            let value = |output: &&Computed| {
                let values: Vec<String> = elements(output).collect();
                serde_json::json!({
                    "tensor": output.tensor, "dtype": output.dtype, "shape": output.shape.to_vec(), "values": values,
                })
            };
            let outputs: Vec<_> = printed.iter().map(value).collect();
            print_json(&serde_json::json!({ "schema": 1, "outputs": outputs }));
        }
    }
    ExitCode::Done
}

fn compute(job: Job, arguments: &CallArguments) -> Result<Vec<Computed>, ExitCode> {
    let compile_limits = compile_limits().map_err(|message| {
        eprintln!("error: {message}");
        ExitCode::Usage
    })?;
    let options = CheckOptions {
        time: arguments.time,
        sample_bytes: u64::MAX,
        memory_bytes: u64::MAX,
        cache: Cache::open(arguments.cache_dir.as_deref()).ok(),
        helper: std::env::current_exe().ok(),
        compile_limits,
        optimizes: arguments.optimized,
    };
    match check::compute(job, options) {
        Ok(Ok(computed)) => Ok(computed),
        Ok(Err(finding)) => {
            eprintln!("error: {}: {}", finding.task, finding.message);
            Err(ExitCode::Failed)
        }
        Err(error) => {
            let code = if matches!(error, check::CheckError::Plan(_)) { ExitCode::Usage } else { ExitCode::Failed };
            Err(fail(&error, code, Some("run `exuvia check` on a job for more details")))
        }
    }
}

/// Makes a job of one stage from the arguments; also returns the destinations of its outputs.
fn job(arguments: &CallArguments) -> Result<(Job, Vec<Destination>), CallError> {
    let outputs = arguments.compute.split_once("->").map_or("", |(_, outputs)| outputs);
    // The name of a tensor precedes a bracket.
    let is_output = |name: &str| outputs.split('[').any(|part| part.rsplit([',', ' ', ']']).next() == Some(name));
    let (mut text, mut destinations) = ("name = \"call\"\n".to_owned(), Vec::new());
    for argument in &arguments.tensors {
        let no_place = || CallError::NoPlace(argument.clone());
        let (name, place) = argument.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(no_place)?;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "[tensors.{}]", quoted(name));
        text += &match is_output(name) {
            true => output(name, place, &mut destinations)?,
            false => input(name, place)?,
        };
    }
    let _ = writeln!(text, "[[stages]]\nname = \"call\"\nkernel = {}", quoted(&arguments.kernel.to_string_lossy()));
    let _ = writeln!(text, "compute = {}", quoted(&arguments.compute));
    if let Some(export) = &arguments.export {
        let _ = writeln!(text, "export = {}", quoted(export));
    }
    if let Some(boundary) = arguments.boundary {
        let _ = writeln!(text, "boundary = \"{}\"", boundary.name());
    }
    let _ = writeln!(text, "limits = {{ time = \"{}ms\", memory = \"4GiB\" }}", arguments.time.as_millis().max(1));
    if !arguments.sizes.is_empty() {
        let size = |size: &String| {
            let found = size.split_once('=').and_then(|(index, extent)| Some((index, extent.parse::<u64>().ok()?)));
            let (index, extent) = found.ok_or_else(|| CallError::Size(size.clone()))?;
            Ok::<_, CallError>(format!("{} = {extent}", quoted(index)))
        };
        let sizes = arguments.sizes.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let _ = writeln!(text, "sizes = {{ {} }}", sizes.join(", "));
    }
    Ok((Job::parse(&text, Path::new("the command line"))?, destinations))
}

/// The TOML keys of an input.
fn input(tensor: &str, place: &str) -> Result<String, CallError> {
    let is_number = |text: &str| text.starts_with('[') || text.parse::<f64>().is_ok();
    let wrong = || CallError::Input { tensor: tensor.to_owned() };
    let (before, behind) = match place.rsplit_once(':') {
        None if is_number(place) => (place, "f64"),
        found => found.ok_or_else(wrong)?,
    };
    if before.starts_with('[') {
        return Ok(format!("values = {before}\ndtype = {}\n", quoted(behind)));
    }
    if is_number(before) {
        return Ok(format!("value = {before}\ndtype = {}\n", quoted(behind)));
    }
    if before.is_empty() || behind.is_empty() {
        return Err(wrong());
    }
    Ok(format!("file = {}\ndataset = {}\n", quoted(before), quoted(behind)))
}

/// The TOML keys of an output, which is a scratch tensor of the job.
fn output(tensor: &str, place: &str, destinations: &mut Vec<Destination>) -> Result<String, CallError> {
    let wrong = || CallError::Output { tensor: tensor.to_owned() };
    let dtype = match place.rsplit_once(':') {
        None => place,
        Some((place, dtype)) => {
            let (file, dataset) =
                place.rsplit_once(':').filter(|(f, d)| !f.is_empty() && !d.is_empty()).ok_or_else(wrong)?;
            let (tensor, file, dataset) = (tensor.to_owned(), PathBuf::from(file), dataset.to_owned());
            destinations.push(Destination { tensor, file, dataset });
            dtype
        }
    };
    dtype.parse::<Dtype>().map_err(|_| wrong())?;
    Ok(format!("dtype = \"{dtype}\"\n"))
}

/// A TOML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write(output: &Computed, destination: &Destination) -> Result<(), StoreError> {
    let mut staging = Staging::begin(&destination.file, &format!("call-{}", std::process::id()))?;
    let spec = OutputSpec {
        dataset: destination.dataset.clone(),
        dtype: output.dtype,
        shape: output.shape.clone(),
        chunk: None,
        deflate: None,
    };
    for layout in staging.create(&[spec])? {
        Writer::open(&layout)?.write(&Region::whole(&output.shape), &output.bytes)?;
    }
    staging.publish()
}

fn elements(output: &Computed) -> impl Iterator<Item = String> {
    output.bytes.chunks_exact(output.dtype.size_bytes()).map(|element| check::value(output.dtype, element))
}

/// A tensor as text: its name, then a line for each row of its last dimension.
fn format_tensor(output: &Computed) -> String {
    let mut text = format!("{} {} {}\n", output.tensor, output.dtype, output.shape);
    let row = output.shape.last().copied().unwrap_or(1).max(1);
    let mut line = Vec::new();
    for (number, element) in (1..=PRINTED).zip(elements(output)) {
        line.push(element);
        if number % row == 0 {
            text += &format!("  {}\n", line.join(" "));
            line.clear();
        }
    }
    if output.shape.elements() > PRINTED {
        line.push(format!("... ({} elements in all)", output.shape.elements()));
    }
    if !line.is_empty() {
        text += &format!("  {}\n", line.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct CallCommand {
        #[command(flatten)]
        arguments: CallArguments,
    }

    fn parse_call(words: &[&str]) -> Result<(Job, Vec<Destination>), CallError> {
        let words = ["call", "k.wasm"].into_iter().chain(words.iter().copied());
        job(&CallCommand::try_parse_from(words).unwrap().arguments)
    }

    #[test]
    fn arguments_make_a_job_of_one_stage() {
        let words =
            ["x[n~1], k[], w[m]->y[n],z[n,c]", "x=a b.h5:g/x", "k=-5:i32", "w=[1,2]:u8", "y=f32", "z=o.h5:z:f64"];
        let options = ["--size", "c=3", "--boundary", "clamp", "--export", "f"];
        let (job, destinations) = parse_call(&[&words[..], &options[..]].concat()).unwrap();
        assert_eq!(job.tensors.len(), 5);
        assert_eq!((job.stages[0].sizes["c"], job.stages[0].export.as_deref()), (3, Some("f")));
        let [z] = &destinations[..] else { panic!("one output goes to a file") };
        assert_eq!((z.tensor.as_str(), z.file.as_path(), z.dataset.as_str()), ("z", Path::new("o.h5"), "z"));
    }

    #[test]
    fn errors_show_the_right_notation() {
        let error = |words: &[&str]| parse_call(words).err().unwrap().to_string();
        assert!(error(&["x[n] -> y[n]", "x=in.h5", "y=f64"]).contains("x=FILE:DATASET"));
        assert!(error(&["x[n] -> y[n]", "x=in.h5:x", "y=o.h5:y"]).contains("y=FILE:DATASET:DTYPE"));
        assert!(error(&["x[n] -> y[n]", "x"]).contains("NAME=PLACE"));
        assert!(error(&["x[n] -> y[n]", "x=1:f64", "y=f64", "--size", "n"]).contains("INDEX=EXTENT"));
        assert!(error(&["x[n] -> y[n]", "x=in.h5:x"]).contains("'y'"), "it is not declared");
    }
}
