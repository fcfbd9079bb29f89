//! `exuvia submit`.

pub mod arguments;
mod estimate;
mod preflight;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::cli::output::{Output, fail, print_json, slurm_failed};
use crate::cli::run::arguments::parse_passed;
use crate::cli::submit::arguments::{SubmitArguments, absolute};
use crate::cli::submit::preflight::{Preflight, check};
use crate::exec::ExitCode;
use crate::fabric;
use crate::slurm::{self, Record, Script, TASK_PLACE};
use crate::text;

/// The folder of the scripts, records, logs and reports of submitted jobs, under the current one like Slurm's own logs.
pub(super) const RUNS_FOLDER: &str = "exuvia-runs";

/// The value that `--output json` prints.
#[derive(Debug, Serialize)]
struct Submission<'a> {
    schema: u32,
    /// `None` with --dry-run.
    record: Option<&'a Record>,
    /// For an array, the estimate of its longest task.
    estimate_ns: Option<u64>,
    /// Set with --dry-run.
    script: Option<String>,
}

impl<'a> Submission<'a> {
    fn new(preflight: &Preflight, record: Option<&'a Record>, script: Option<String>) -> Submission<'a> {
        let estimate_ns = preflight.estimate.as_ref().ok().map(|time| time.as_nanos() as u64);
        Submission { schema: 1, record, estimate_ns, script }
    }
}

pub(super) fn submit(arguments: &SubmitArguments) -> ExitCode {
    try_submit(arguments).unwrap_or_else(|code| code)
}

fn try_submit(arguments: &SubmitArguments) -> Result<ExitCode, ExitCode> {
    let preflight = check_all(arguments)?;
    let job = absolute(&arguments.job);
    let name = arguments.job_name.clone().unwrap_or_else(|| match &arguments.array {
        Some(_) => array_name(&job),
        None => preflight.name.clone(),
    });
    let exuvia = std::env::current_exe().map_err(|error| fail(&error, ExitCode::Environment, None))?;
    let directory = absolute(Path::new(RUNS_FOLDER));
    let script = Script {
        name: &name,
        directory: &directory,
        options: arguments.sbatch_options(),
        is_array: arguments.array.is_some(),
        signal: &arguments.signal,
        pmi: if fabric::library().starts_with("Open MPI") { "pmix" } else { "pmi2" },
        cpus_per_task: arguments.cpus_per_task,
        requeue: arguments.requeue,
        exuvia: &exuvia,
        arguments: &arguments.run,
        job: &job,
    };
    if arguments.dry_run {
        match arguments.output {
            Output::Human => {
                eprintln!("{}", describe_estimate(&preflight));
                print!("{}", script.render());
            }
            Output::Json => print_json(&Submission::new(&preflight, None, Some(script.render()))),
        }
        return Ok(ExitCode::Done);
    }
    let record = submit_script(&script, arguments, &preflight)?;
    match arguments.output {
        Output::Human => print_submission(&record, &preflight),
        Output::Json => print_json(&Submission::new(&preflight, Some(&record), None)),
    }
    Ok(ExitCode::Done)
}

/// Checks the job, or the jobs of all tasks of an array. Warns if the time limit is too short.
fn check_all(arguments: &SubmitArguments) -> Result<Preflight, ExitCode> {
    let run = parse_passed("submit", &arguments.run, &["--report", "REPORT"])?;
    let mut checked = Vec::new();
    for path in jobs(arguments)? {
        checked.push(check(&path, arguments, &run)?);
    }
    let preflight = Preflight::combine(checked).ok_or(ExitCode::Usage)?;
    let limit = arguments.time.as_deref().and_then(slurm::time);
    if let (Ok(time), Some(limit)) = (&preflight.estimate, limit)
        && *time > limit
    {
        let (time, limit) = (short(*time), short(limit));
        tracing::warn!("the job takes about {time}, but its time limit is {limit}");
    }
    Ok(preflight)
}

/// Submits the script and writes the record of the submission.
fn submit_script(script: &Script, arguments: &SubmitArguments, preflight: &Preflight) -> Result<Record, ExitCode> {
    slurm::check(script.pmi).map_err(slurm_failed)?;
    let id = slurm::submit(script).map_err(slurm_failed)?;
    let [log, report] = script.files(&id);
    let record = Record {
        schema: 1,
        script: script.file(&id),
        id,
        name: script.name.to_owned(),
        job: script.job.to_owned(),
        array: arguments.array.clone(),
        nodes: arguments.nodes(),
        ranks: arguments.nodes() * arguments.ranks_per_node(),
        submitted: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        log,
        report,
        outputs: preflight.outputs.iter().cloned().collect(),
    };
    record.write().map_err(slurm_failed)?;
    Ok(record)
}

/// The name of an array: for `sweep/part-%a.toml`, `part`.
fn array_name(job: &Path) -> String {
    let stem = job.file_stem().unwrap_or_default().to_string_lossy().replace(TASK_PLACE, "");
    let name = stem.trim_matches(['-', '_', '.']);
    if name.is_empty() { "array".to_owned() } else { name.to_owned() }
}

/// The job files: one, or one for each task of an array.
fn jobs(arguments: &SubmitArguments) -> Result<Vec<PathBuf>, ExitCode> {
    let Some(array) = &arguments.array else { return Ok(vec![arguments.job.clone()]) };
    let tasks = slurm::array_tasks(array).map_err(slurm_failed)?;
    let path = arguments.job.to_string_lossy();
    if !path.contains(TASK_PLACE) {
        eprintln!("error: all tasks of the array would run {path} and write the same outputs");
        eprintln!(
            "help: write one job file per task and put %a in place of its number: exuvia submit 'part-%a.toml' --array {array}"
        );
        return Err(ExitCode::Usage);
    }
    Ok(tasks.iter().map(|task| path.replace(TASK_PLACE, &task.to_string()).into()).collect())
}

fn short(time: Duration) -> String {
    let rounded = if time.as_secs() < 10 { time.as_millis() as u64 / 100 * 100 } else { time.as_secs() * 1000 };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

fn print_submission(record: &Record, preflight: &Preflight) {
    let here = std::env::current_dir().unwrap_or_default();
    let relative = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    let ranks = text::count(u64::from(record.ranks), "rank");
    let nodes = text::count(u64::from(record.nodes), "node");
    println!("submitted {} as job {}: {ranks} on {nodes}", record.name, record.id);
    println!("    time  {}", describe_estimate(preflight));
    println!("  script  {}", relative(&record.script));
    println!("     log  {}", relative(&record.log));
    println!("  report  {}", relative(&record.report));
    for output in &record.outputs {
        println!("  output  {}", relative(output));
    }
}

fn describe_estimate(preflight: &Preflight) -> String {
    match &preflight.estimate {
        Ok(time) if preflight.is_upper_bound => format!("about {}, if its condition is never met", short(*time)),
        Ok(time) => format!("about {}", short(*time)),
        Err(reason) => reason.clone(),
    }
}
