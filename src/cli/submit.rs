use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Parser};
use serde::Serialize;

use super::{Output, estimate, fail, plan::layouts, print_json, run::RunArguments, slurm_failed};
use crate::engine::Kernel;
use crate::exec::{ExitCode, RunError};
use crate::job::{Job, Source};
use crate::plan::{Machine, plan as make_plan};
use crate::slurm::{self, Record, Script, TASK_PLACE};
use crate::{fabric, topology};

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
    cpus_per_task: Option<u32>,
    /// Memory of each node, such as 4G
    #[arg(long)]
    mem: Option<String>,
    /// Time limit, as Slurm writes it: MINUTES, HH:MM:SS, DAYS-HH
    #[arg(short, long)]
    time: Option<String>,
    #[arg(short, long)]
    partition: Option<String>,
    #[arg(short = 'A', long)]
    account: Option<String>,
    #[arg(short, long)]
    qos: Option<String>,
    /// Many jobs at once, such as 0-15%4: one for each number
    #[arg(short, long)]
    array: Option<String>,
    /// What must have happened before, such as afterok:17
    #[arg(short, long)]
    dependency: Option<String>,
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

/// To check what the ranks will be started with.
#[derive(Debug, Parser)]
struct RunCommand {
    #[command(flatten)]
    arguments: RunArguments,
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

pub(super) fn submit(arguments: &SubmitArguments) -> ExitCode {
    try_submit(arguments).unwrap_or_else(|code| code)
}

fn try_submit(arguments: &SubmitArguments) -> Result<ExitCode, ExitCode> {
    let run = RunCommand::try_parse_from(
        ["exuvia submit ... --"]
            .map(str::to_owned)
            .into_iter()
            .chain(arguments.run.iter().cloned())
            .chain(["JOB".into()]),
    );
    let run = run.map_err(|error| {
        let _ = error.print();
        ExitCode::Usage
    })?;
    let mut checked = Vec::new();
    for path in jobs(arguments)? {
        checked.push(check(&path, arguments, &run.arguments)?);
    }
    let first = checked.first().ok_or(ExitCode::Usage)?;
    let longest = longest(&checked);
    let limit = arguments.time.as_deref().and_then(slurm::time);
    if let (Ok(estimate), Some(limit)) =
        (&longest, limit.filter(|limit| longest.as_ref().is_ok_and(|time| time > limit)))
    {
        tracing::warn!("it will take about {}, and the time limit is {}", short(*estimate), short(limit));
    }

    let job = absolute(&arguments.job);
    let name = arguments.job_name.clone().unwrap_or_else(|| match &arguments.array {
        Some(_) => job
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .replace(TASK_PLACE, "")
            .trim_matches(['-', '_', '.'])
            .to_owned(),
        None => first.job.name.clone(),
    });
    let exuvia = std::env::current_exe().map_err(|error| fail(&error, ExitCode::Environment, None))?;
    let directory = absolute(Path::new(RUNS));
    let pmi = if fabric::library().starts_with("Open MPI") { "pmix" } else { "pmi2" };
    let script = Script {
        name: &name,
        directory: &directory,
        options: options(arguments),
        is_array: arguments.array.is_some(),
        signal: &arguments.signal,
        pmi,
        cpus_per_task: arguments.cpus_per_task,
        requeue: arguments.requeue,
        exuvia: &exuvia,
        arguments: &arguments.run,
        job: &job,
    };
    let estimate_ns = longest.as_ref().ok().map(|time| time.as_nanos() as u64);
    if arguments.dry_run {
        match arguments.output {
            Output::Human => {
                eprintln!("{}", in_words(first, &longest));
                print!("{}", script.render());
            }
            Output::Json => {
                print_json(&Submission { schema: 1, record: None, estimate_ns, script: Some(script.render()) });
            }
        }
        return Ok(ExitCode::Done);
    }
    slurm::check(pmi).map_err(slurm_failed)?;
    let outputs = checked.iter().flat_map(|checked| outputs(&checked.job)).collect();
    let id = slurm::submit(&script).map_err(slurm_failed)?;
    let [log, report] = script.files(&id);
    let record = Record {
        schema: 1,
        id: id.clone(),
        name: name.clone(),
        job: job.clone(),
        array: arguments.array.clone(),
        nodes: arguments.nodes(),
        ranks: arguments.nodes() * arguments.ranks_per_node(),
        submitted: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        script: script.file(&id),
        log,
        report,
        outputs,
    };
    record.write().map_err(slurm_failed)?;
    match arguments.output {
        Output::Human => print_submission(&record, first, &longest),
        Output::Json => print_json(&Submission { schema: 1, record: Some(&record), estimate_ns, script: None }),
    }
    Ok(ExitCode::Done)
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

/// A job that can run, as far as can be said.
struct Checked {
    job: Job,
    /// How long it takes; or why that is not known.
    estimate: Result<Duration, String>,
}

/// Reads and plans the job and loads its kernels, as rank 0 will; what is wrong has been said.
fn check(path: &Path, arguments: &SubmitArguments, run: &RunArguments) -> Result<Checked, ExitCode> {
    let job = Job::load(path).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let mut kernels = Vec::new();
    for stage in &job.stages {
        let load = || {
            let kernel = Kernel::load(&stage.kernel, stage.export.as_deref())?;
            stage.merge.as_deref().map(|export| kernel.sibling(export)).transpose()?;
            Ok(kernel)
        };
        kernels.push(load().map_err(|source| {
            let kernel = stage.kernel.display().to_string();
            let error = RunError::Engine { kernel, stage: stage.name.clone(), source: Box::new(source) };
            fail(&error, error.code(), None)
        })?);
    }
    let awaited = job.tensors.values().find_map(|decl| match &decl.source {
        Source::File { file, .. } if arguments.dependency.is_some() && !file.exists() => Some(file),
        _ => None,
    });
    if let Some(file) = awaited {
        tracing::warn!("not planned: {} is not there yet; the jobs before this one must make it", file.display());
        return Ok(Checked { job, estimate: Err("no estimate: its input is not there yet".to_owned()) });
    }
    let layouts = layouts(&job)?;
    let ranks_per_node = arguments.ranks_per_node();
    let share = || {
        let asked = arguments.mem.as_deref().and_then(slurm::memory_bytes);
        let node = asked.or_else(|| slurm::node_memory_bytes(arguments.partition.as_deref()));
        node.unwrap_or_else(|| topology::host().memory_bytes) / 5 * 4 / u64::from(ranks_per_node)
    };
    let machine = Machine {
        ranks: arguments.nodes() * ranks_per_node,
        ranks_per_node,
        threads: run.threads.or(arguments.cpus_per_task).unwrap_or(1),
        memory_bytes: run.memory.or(job.memory_bytes).unwrap_or_else(share),
    };
    let plan = make_plan(&job, &layouts, &machine).map_err(|error| fail(&error, ExitCode::Usage, None))?;
    let estimate = estimate::estimate(&job, &plan, &kernels, run.cache_dir.as_deref());
    let estimate = estimate
        .map_err(|kernel| format!("no estimate yet: {kernel} has not run on this machine with tiles like these"));
    Ok(Checked { job, estimate })
}

impl SubmitArguments {
    fn nodes(&self) -> u32 {
        self.nodes.unwrap_or(1)
    }

    fn ranks_per_node(&self) -> u32 {
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

/// The longest of the estimates, if all are known.
fn longest(checked: &[Checked]) -> Result<Duration, String> {
    checked.iter().try_fold(Duration::ZERO, |longest, one| Ok(longest.max(one.estimate.clone()?)))
}

/// The files that the job makes, without `..` where their folders are there.
fn outputs(job: &Job) -> BTreeSet<PathBuf> {
    let clean = |file: &PathBuf| {
        let folder = file.parent()?.canonicalize().ok()?;
        Some(folder.join(file.file_name()?))
    };
    let created = job.tensors.values().filter_map(|decl| match &decl.source {
        Source::Create { file, .. } => Some(clean(file).unwrap_or_else(|| absolute(file))),
        _ => None,
    });
    created.collect()
}

/// How long it will take.
fn in_words(first: &Checked, longest: &Result<Duration, String>) -> String {
    match longest {
        Ok(time) if first.job.iterate.as_ref().is_some_and(|iterate| iterate.until.is_some()) => {
            format!("about {}, if its condition is never met", short(*time))
        }
        Ok(time) => format!("about {}", short(*time)),
        Err(why) => why.clone(),
    }
}

fn short(time: Duration) -> String {
    let rounded = if time.as_secs() < 10 { time.as_millis() as u64 / 100 * 100 } else { time.as_secs() * 1000 };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

fn print_submission(record: &Record, first: &Checked, longest: &Result<Duration, String>) {
    let here = std::env::current_dir().unwrap_or_default();
    let seen = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    println!("{} is job {}: {} rank(s) on {} node(s)", record.name, record.id, record.ranks, record.nodes);
    println!("   takes  {}", in_words(first, longest));
    println!("  script  {}", seen(&record.script));
    println!("     log  {}", seen(&record.log));
    println!("  report  {}", seen(&record.report));
    for output in &record.outputs {
        println!("  writes  {}", seen(output));
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
