//! `exuvia check`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::check::{self, CheckError, CheckOptions, CheckReport, Finding, StageCheck};
use crate::cli::output::{Output, fail, print_json};
use crate::cli::run::arguments::compile_limits;
use crate::cli::run::arguments::size;
use crate::engine::{Cache, Tier};
use crate::exec::ExitCode;
use crate::job::Job;
use crate::text::count;

/// Arguments of `exuvia check`.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Job file
    job: PathBuf,
    /// Time for all stages, such as 1min; a compilation or a single call of a kernel may exceed it
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Size limit of the sample of a stage's data
    #[arg(long, default_value = "1MiB", value_parser = size)]
    sample: u64,
    /// Memory for tensors between stages
    #[arg(long, default_value = "1GiB", value_parser = size)]
    memory: u64,
    /// Cache of optimized code and of check results [default: $EXUVIA_CACHE_DIR, or exuvia in the user's cache]
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn check(arguments: &CheckArguments) -> ExitCode {
    let job = match Job::load(&arguments.job) {
        Ok(job) => job,
        Err(error) => return fail(&error, ExitCode::Usage, None),
    };
    let cache = Cache::open(arguments.cache_dir.as_deref());
    let cache = cache.inspect_err(|error| tracing::warn!("the check runs without a cache: {error}")).ok();
    let compile_limits = match compile_limits() {
        Ok(limits) => limits,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::Usage;
        }
    };
    let options = CheckOptions {
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
        record_passed(cache, &report);
    }
    match arguments.output {
        Output::Human => print(&report),
        Output::Json => print_json(&report),
    }
    // A kernel that does not return still runs on a thread of this process, which ends now.
    let all = report.findings.is_empty() && report.stages.iter().all(|stage| stage.samples > 0 || is_empty(stage));
    if all { ExitCode::Done } else { ExitCode::Failed }
}

/// Returns whether the stage has no data.
fn is_empty(stage: &StageCheck) -> bool {
    stage.tasks == 0 && stage.notes.iter().any(|note| note == "it has no elements")
}

/// Records which kernels passed, for `exuvia run`.
fn record_passed(cache: &Cache, report: &CheckReport) {
    // A kernel passes if it passes in all stages that run it.
    let passed = |stage: &StageCheck| {
        let same = |other: &&StageCheck| other.module_hash == stage.module_hash && other.export == stage.export;
        report.stages.iter().filter(same).all(|stage| stage.passed)
    };
    for stage in report.stages.iter().filter(|stage| passed(stage)) {
        if let Err(error) = cache.put_checked(&stage.module_hash, &stage.export) {
            tracing::warn!("cannot record that {} passed the check: {error}", stage.kernel);
        }
    }
}

fn print(report: &CheckReport) {
    let width = |of: fn(&StageCheck) -> &String| report.stages.iter().map(|s| of(s).chars().count()).max().unwrap_or(0);
    let (names, kernels) = (width(|stage| &stage.stage), width(|stage| &stage.kernel));
    for stage in &report.stages {
        let outcome = match report.findings.iter().filter(|finding| finding.stage == stage.stage).count() {
            0 if stage.samples > 0 => "passed",
            0 => "not checked",
            _ => "see below",
        };
        println!(
            "{:names$}  {:kernels$}  {}: {}, {}, {} on {} code: {outcome}",
            stage.stage,
            stage.kernel,
            stage.export,
            count(stage.samples, "sample"),
            count(stage.cuts, "cut"),
            count(stage.tasks, "task"),
            stage.tiers.join(" and "),
        );
        stage.notes.iter().for_each(|note| println!("{:names$}  {note}", ""));
    }
    report.findings.iter().for_each(print_finding);
    if !report.findings.is_empty() {
        println!("\n{}", count(report.findings.len() as u64, "finding"));
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
