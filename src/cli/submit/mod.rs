mod estimate;
mod preflight;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::{Output, fail, print_json, run::given, slurm_failed};
use crate::cli::submit::preflight::{Checked, check};
use crate::exec::ExitCode;
use crate::fabric;
use crate::slurm::{self, Record, Script, TASK_PLACE};

/// Where scripts, records, logs and reports of submitted jobs are: under the current folder, as Slurm's own logs are.
pub(super) const RUNS: &str = "exuvia-runs";

/// Arguments of `exuvia submit`.
#[derive(Debug, Args)]
pub(super) struct SubmitArguments {
    /// The job file; with --array, %a in its path stands for the number of the task
    job: PathBuf,
    /// Nodes [default: 1]
    #[arg(short = 'N', long, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// Ranks on each node [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ntasks_per_node: Option<u32>,
    /// CPUs of each rank, which are its threads
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) cpus_per_task: Option<u32>,
    /// Memory of each node, such as 4G
    #[arg(long)]
    pub(super) mem: Option<String>,
    /// Time limit, as Slurm writes it: MINUTES, HH:MM:SS, DAYS-HH
    #[arg(short, long)]
    time: Option<String>,
    #[arg(short, long)]
    pub(super) partition: Option<String>,
    #[arg(short = 'A', long)]
    account: Option<String>,
    #[arg(short, long)]
    qos: Option<String>,
    /// Many jobs at once, such as 0-15%4: one for each number
    #[arg(short, long)]
    array: Option<String>,
    /// What must have happened before, such as afterok:17
    #[arg(short, long)]
    pub(super) dependency: Option<String>,
    /// Name in the queue [default: the job's]
    #[arg(short = 'J', long)]
    job_name: Option<String>,
    /// Put it back into the queue when a node fails, when others go first, and when it stopped early
    #[arg(long)]
    requeue: bool,
    /// What ranks get before the time is over: SIGNAL@SECONDS
    #[arg(long, default_value = "USR1@30")]
    signal: String,
    /// Another option of sbatch, such as --sbatch=--constraint=icelake
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// Check and print the script; submit nothing
    #[arg(long)]
    dry_run: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Arguments for `exuvia run`
    #[arg(last = true)]
    run: Vec<String>,
}

/// What `--output json` prints.
#[derive(Debug, Serialize)]
struct Submission<'a> {
    schema: u32,
    /// None of what was only tried.
    record: Option<&'a Record>,
    /// Of the longest task of an array.
    estimate_ns: Option<u64>,
    /// Of what was only tried.
    script: Option<String>,
}

impl<'a> Submission<'a> {
    fn new(checked: &Checked, record: Option<&'a Record>, script: Option<String>) -> Submission<'a> {
        let estimate_ns = checked.estimate.as_ref().ok().map(|time| time.as_nanos() as u64);
        Submission { schema: 1, record, estimate_ns, script }
    }
}

pub(super) fn submit(arguments: &SubmitArguments) -> ExitCode {
    try_submit(arguments).unwrap_or_else(|code| code)
}

fn try_submit(arguments: &SubmitArguments) -> Result<ExitCode, ExitCode> {
    let run = given("submit", &arguments.run, &["--report", "REPORT"])?;
    let mut checked = Vec::new();
    for path in jobs(arguments)? {
        checked.push(check(&path, arguments, &run)?);
    }
    let checked = Checked::longest(checked).ok_or(ExitCode::Usage)?;
    let limit = arguments.time.as_deref().and_then(slurm::time);
    if let (Ok(time), Some(limit)) = (&checked.estimate, limit)
        && *time > limit
    {
        tracing::warn!("it will take about {}, and the time limit is {}", short(*time), short(limit));
    }
    let job = absolute(&arguments.job);
    let name = arguments.job_name.clone().unwrap_or_else(|| match &arguments.array {
        Some(_) => name_of_array(&job),
        None => checked.name.clone(),
    });
    let exuvia = std::env::current_exe().map_err(|error| fail(&error, ExitCode::Environment, None))?;
    let directory = absolute(Path::new(RUNS));
    let script = Script {
        name: &name,
        directory: &directory,
        options: options(arguments),
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
                eprintln!("{}", in_words(&checked));
                print!("{}", script.render());
            }
            Output::Json => print_json(&Submission::new(&checked, None, Some(script.render()))),
        }
        return Ok(ExitCode::Done);
    }
    slurm::check(script.pmi).map_err(slurm_failed)?;
    let id = slurm::submit(&script).map_err(slurm_failed)?;
    let [log, report] = script.files(&id);
    let record = Record {
        schema: 1,
        script: script.file(&id),
        id,
        name: name.clone(),
        job: job.clone(),
        array: arguments.array.clone(),
        nodes: arguments.nodes(),
        ranks: arguments.nodes() * arguments.ranks_per_node(),
        submitted: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        log,
        report,
        outputs: checked.outputs.iter().cloned().collect(),
    };
    record.write().map_err(slurm_failed)?;
    match arguments.output {
        Output::Human => print_submission(&record, &checked),
        Output::Json => print_json(&Submission::new(&checked, Some(&record), None)),
    }
    Ok(ExitCode::Done)
}

/// Of `sweep/part-%a.toml`: `part`.
fn name_of_array(job: &Path) -> String {
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
            "help: make a job for each, and put %a where the number is: exuvia submit 'part-%a.toml' --array {array}"
        );
        return Err(ExitCode::Usage);
    }
    Ok(tasks.iter().map(|task| path.replace(TASK_PLACE, &task.to_string()).into()).collect())
}

impl SubmitArguments {
    pub(super) fn nodes(&self) -> u32 {
        self.nodes.unwrap_or(1)
    }

    pub(super) fn ranks_per_node(&self) -> u32 {
        self.ntasks_per_node.unwrap_or(1)
    }
}

/// What the user asked for, as `#SBATCH` lines say it.
fn options(arguments: &SubmitArguments) -> Vec<String> {
    // Ranks on a node mean nothing to Slurm without a number of nodes.
    let nodes = arguments.nodes.or(arguments.ntasks_per_node.map(|_| 1));
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let valued = [
        ("nodes", number(nodes)),
        ("ntasks-per-node", number(arguments.ntasks_per_node)),
        ("cpus-per-task", number(arguments.cpus_per_task)),
        ("mem", arguments.mem.clone()),
        ("time", arguments.time.clone()),
        ("partition", arguments.partition.clone()),
        ("account", arguments.account.clone()),
        ("qos", arguments.qos.clone()),
        ("array", arguments.array.clone()),
        ("dependency", arguments.dependency.clone()),
    ];
    let valued = valued.into_iter().filter_map(|(option, value)| Some(format!("--{option}={}", value?)));
    let requeue = arguments.requeue.then(|| "--requeue".to_owned());
    valued.chain(requeue).chain(arguments.sbatch.iter().cloned()).collect()
}

fn short(time: Duration) -> String {
    let rounded = if time.as_secs() < 10 { time.as_millis() as u64 / 100 * 100 } else { time.as_secs() * 1000 };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

fn print_submission(record: &Record, checked: &Checked) {
    let here = std::env::current_dir().unwrap_or_default();
    let seen = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    println!("{} is job {}: {} rank(s) on {} node(s)", record.name, record.id, record.ranks, record.nodes);
    println!("   takes  {}", in_words(checked));
    println!("  script  {}", seen(&record.script));
    println!("     log  {}", seen(&record.log));
    println!("  report  {}", seen(&record.report));
    for output in &record.outputs {
        println!("  writes  {}", seen(output));
    }
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// How long it will take.
fn in_words(checked: &Checked) -> String {
    match &checked.estimate {
        Ok(time) if checked.is_bound => format!("about {}, if its condition is never met", short(*time)),
        Ok(time) => format!("about {}", short(*time)),
        Err(why) => why.clone(),
    }
}
