use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Output, fail, print_json};
use crate::check::{self, CheckError, Finding, Options, Report, StageReport};
use crate::engine::{Cache, Tier};
use crate::exec::ExitCode;
use crate::job::Job;

/// Arguments of `exuvia check`.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The job file
    job: PathBuf,
    /// Time for all stages together, such as 1min; a compile and one call of a kernel may take longer
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Bytes that a sample of a stage's data may have
    #[arg(long, default_value = "1MiB", value_parser = super::run::size)]
    sample: u64,
    /// Memory for tensors that stages make for others
    #[arg(long, default_value = "1GiB", value_parser = super::run::size)]
    memory: u64,
    /// Where optimized code is kept, and which kernels passed [default: $EXUVIA_CACHE_DIR, or exuvia in the user's cache]
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn check(arguments: &CheckArguments) -> ExitCode {
    let job = match Job::load(&arguments.job) {
        Ok(job) => job,
        Err(error) => return fail(&error, ExitCode::Usage, None),
    };
    let cache = Cache::open(arguments.cache_dir.as_deref());
    let cache = cache.inspect_err(|error| tracing::warn!("checking without a cache: {error}")).ok();
    let compile_limits = match super::run::compile_limits() {
        Ok(limits) => limits,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::Usage;
        }
    };
    let options = Options {
        time: arguments.time,
        sample_bytes: arguments.sample,
        memory_bytes: arguments.memory,
        cache: cache.clone(),
        helper: std::env::current_exe().ok(),
        compile_limits,
        optimizes: true,
    };
    let report = match check::check(job, options) {
        Ok(report) => report,
        Err(error) => {
            let code = if matches!(error, CheckError::Plan(_)) { ExitCode::Usage } else { ExitCode::Failed };
            return fail(&error, code, None);
        }
    };
    if let Some(cache) = &cache {
        remember(cache, &report);
    }
    match arguments.output {
        Output::Human => print(&report),
        Output::Json => print_json(&report),
    }
    // A kernel that does not return runs on, on a thread of this process, which ends now.
    let all = report.findings.is_empty() && report.stages.iter().all(|stage| stage.samples > 0 || is_empty(stage));
    if all { ExitCode::Done } else { ExitCode::Failed }
}

/// Whether there was nothing to look at.
fn is_empty(stage: &StageReport) -> bool {
    stage.tasks == 0 && stage.notes.iter().any(|note| note == "it has no elements")
}

/// Notes which kernels passed, for `exuvia run`.
fn remember(cache: &Cache, report: &Report) {
    // Of a kernel that several stages run, all have to pass.
    let passed = |stage: &StageReport| {
        let same = |other: &&StageReport| other.module_hash == stage.module_hash && other.export == stage.export;
        report.stages.iter().filter(same).all(|stage| stage.passed)
    };
    for stage in report.stages.iter().filter(|stage| passed(stage)) {
        if let Err(error) = cache.put_checked(&stage.module_hash, &stage.export) {
            tracing::warn!("nobody will know that {} was checked: {error}", stage.kernel);
        }
    }
}

fn print(report: &Report) {
    let width =
        |of: fn(&StageReport) -> &String| report.stages.iter().map(|s| of(s).chars().count()).max().unwrap_or(0);
    let (names, kernels) = (width(|stage| &stage.stage), width(|stage| &stage.kernel));
    for stage in &report.stages {
        let outcome = match report.findings.iter().filter(|finding| finding.stage == stage.stage).count() {
            0 if stage.samples > 0 => "nothing found",
            0 => "not checked",
            _ => "see below",
        };
        println!(
            "{:names$}  {:kernels$}  {}: {} sample(s), {} cut(s), {} task(s) on {} code: {outcome}",
            stage.stage,
            stage.kernel,
            stage.export,
            stage.samples,
            stage.cuts,
            stage.tasks,
            stage.tiers.join(" and "),
        );
        stage.notes.iter().for_each(|note| println!("{:names$}  {note}", ""));
    }
    report.findings.iter().for_each(print_finding);
    match report.findings.len() {
        0 => {}
        1 => println!("\n1 finding"),
        count => println!("\n{count} findings"),
    }
}

fn print_finding(finding: &Finding) {
    let code = match finding.tier {
        Tier::Baseline => "baseline",
        Tier::Optimized => "optimized",
    };
    println!("\nfinding in kernel {} of {}, task {}, {code} code:", finding.export, finding.kernel, finding.task);
    println!("  {}", finding.message);
}
