//! `exuvia kernel call`: one kernel on given data, without a job file: for tests of kernels.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Output, fail, print_json};
use crate::check::{self, Computed, Options};
use crate::engine::Cache;
use crate::exec::ExitCode;
use crate::job::{Job, JobError};
use crate::store::{OutputSpec, Staging, StoreError, Writer};
use crate::tensor::{Boundary, Dtype, Region};

/// More elements than these are not all printed.
const PRINTED: u64 = 1000;

/// Arguments of `exuvia kernel call`.
#[derive(Debug, Args)]
pub(super) struct CallArguments {
    /// The kernel module
    kernel: PathBuf,
    /// What it computes, in the notation of job files, such as 'x[n], k[] -> y[n]'
    compute: String,
    /// Where each tensor is: an input is NAME=FILE:DATASET, NAME=NUMBER:DTYPE or NAME=[NUMBER,...]:DTYPE (a number alone is an
    /// f64), an output NAME=DTYPE, which is printed, or NAME=FILE:DATASET:DTYPE
    #[arg(value_name = "NAME=PLACE")]
    tensors: Vec<String>,
    /// The exported function [default: the only kernel of the module]
    #[arg(long)]
    export: Option<String>,
    /// Extent of an index that no input has, such as k=10
    #[arg(long = "size", value_name = "INDEX=EXTENT")]
    sizes: Vec<String>,
    /// What lies beyond the edge of inputs with a halo
    #[arg(long, value_enum)]
    boundary: Option<Beyond>,
    /// Time that the call may take
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// On optimized code, in place of baseline code
    #[arg(long)]
    optimized: bool,
    /// Where optimized code is kept [default: $EXUVIA_CACHE_DIR, or exuvia in the user's cache]
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Beyond {
    Clamp,
    Periodic,
    Zero,
    None,
}

impl Beyond {
    fn name(self) -> &'static str {
        let boundary = match self {
            Beyond::Clamp => Boundary::Clamp,
            Beyond::Periodic => Boundary::Periodic,
            Beyond::Zero => Boundary::Zero,
            Beyond::None => Boundary::None,
        };
        Boundary::NAMES.iter().find(|(_, kind)| *kind == boundary).map_or("none", |(name, _)| name)
    }
}

/// Where an output goes that is not printed.
struct Destination {
    tensor: String,
    file: PathBuf,
    dataset: String,
}

/// Why the arguments make no job.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("'{0}' says nothing of a tensor; write NAME=PLACE, as in x=in.h5:x, k=5:u32 or y=f64")]
    NoPlace(String),
    #[error("'{tensor}' is an output; write {tensor}=DTYPE to have it printed, or {tensor}=FILE:DATASET:DTYPE")]
    Output { tensor: String },
    #[error(
        "'{tensor}' is an input; write {tensor}=FILE:DATASET, {tensor}=NUMBER:DTYPE or {tensor}=[NUMBER,...]:DTYPE"
    )]
    Input { tensor: String },
    #[error("'{0}' is no size; write --size INDEX=EXTENT, as in --size k=10")]
    Size(String),
    #[error(transparent)]
    Job(#[from] JobError),
}

pub(super) fn call(arguments: &CallArguments) -> ExitCode {
    let (job, destinations) = match job(arguments) {
        Ok(made) => made,
        Err(error) => return fail(&error, ExitCode::Usage, None),
    };
    let compile_limits = match super::run::compile_limits() {
        Ok(limits) => limits,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::Usage;
        }
    };
    let options = Options {
        time: arguments.time,
        sample_bytes: u64::MAX,
        memory_bytes: u64::MAX,
        cache: Cache::open(arguments.cache_dir.as_deref()).ok(),
        helper: std::env::current_exe().ok(),
        compile_limits,
        optimizes: arguments.optimized,
    };
    let computed = match check::compute(job, options) {
        Ok(Ok(computed)) => computed,
        Ok(Err(finding)) => {
            eprintln!("error: {}: {}", finding.task, finding.message);
            return ExitCode::Failed;
        }
        Err(error) => {
            let code = if matches!(error, check::CheckError::Plan(_)) { ExitCode::Usage } else { ExitCode::Failed };
            return fail(&error, code, Some("`exuvia check` says more of a kernel in a job"));
        }
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
        Output::Human => printed.iter().for_each(|output| print!("{}", shown(output))),
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

/// The arguments as a job of one stage, and where its outputs go.
fn job(arguments: &CallArguments) -> Result<(Job, Vec<Destination>), CallError> {
    let outputs = arguments.compute.split_once("->").map_or("", |(_, outputs)| outputs);
    // A tensor is a word before a bracket.
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

/// The keys of an input.
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

/// The keys of an output, which is scratch to the job.
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
fn shown(output: &Computed) -> String {
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
    struct Call {
        #[command(flatten)]
        arguments: CallArguments,
    }

    fn made(words: &[&str]) -> Result<(Job, Vec<Destination>), CallError> {
        let words = ["call", "k.wasm"].into_iter().chain(words.iter().copied());
        job(&Call::try_parse_from(words).unwrap().arguments)
    }

    #[test]
    fn arguments_are_a_job_of_one_stage() {
        let words =
            ["x[n~1], k[], w[m]->y[n],z[n,c]", "x=a b.h5:g/x", "k=-5:i32", "w=[1,2]:u8", "y=f32", "z=o.h5:z:f64"];
        let options = ["--size", "c=3", "--boundary", "clamp", "--export", "f"];
        let (job, destinations) = made(&[&words[..], &options[..]].concat()).unwrap();
        assert_eq!(job.tensors.len(), 5);
        assert_eq!((job.stages[0].sizes["c"], job.stages[0].export.as_deref()), (3, Some("f")));
        let [z] = &destinations[..] else { panic!("one goes to a file") };
        assert_eq!((z.tensor.as_str(), z.file.as_path(), z.dataset.as_str()), ("z", Path::new("o.h5"), "z"));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_right_way() {
        let error = |words: &[&str]| made(words).err().unwrap().to_string();
        assert!(error(&["x[n] -> y[n]", "x=in.h5", "y=f64"]).contains("x=FILE:DATASET"));
        assert!(error(&["x[n] -> y[n]", "x=in.h5:x", "y=o.h5:y"]).contains("y=FILE:DATASET:DTYPE"));
        assert!(error(&["x[n] -> y[n]", "x"]).contains("NAME=PLACE"));
        assert!(error(&["x[n] -> y[n]", "x=1:f64", "y=f64", "--size", "n"]).contains("INDEX=EXTENT"));
        assert!(error(&["x[n] -> y[n]", "x=in.h5:x"]).contains("'y'"), "it is declared nowhere");
    }
}
