//! `exuvia bench`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::cli::open_job::open;
use crate::cli::output::{Output, fail, print_json};
use crate::cli::run::arguments::{TierArgument, parse_passed};
use crate::cli::run::records::write_whole;
use crate::exec::ExitCode;
use crate::exec::Signal;
use crate::exec::TierPolicy;
use crate::job::Job;
use crate::plan::Layout;
use crate::sweep::{
    MetgOf, Point, PointLog, RankLauncher, Setting, Sweep, SweepError, SweepIdentity, SweepKind, SweepStatistics,
    Variant, figures, growth, page, remaining,
};
use crate::{fabric, slurm, text, topology};

/// The folder of sweeps, under the current one like that of submitted jobs.
const FOLDER: &str = "exuvia-bench";

/// Arguments of `exuvia bench`.
#[derive(Debug, Subcommand)]
pub(super) enum BenchVerb {
    /// Strong scaling: speed-up and efficiency of one job on more and more ranks
    Strong(Common),
    /// Weak scaling: efficiency of a job that grows with the number of ranks
    Weak {
        #[command(flatten)]
        common: Common,
        /// Index that grows; inputs that have it are repeated along it
        #[arg(long)]
        index: String,
    },
    /// Minimum effective task granularity: the shortest tasks with an efficiency of 50 %
    Metg {
        #[command(flatten)]
        common: Common,
        /// Slices per task, such as 1,8,64 [default: powers of 4 up to 4096]
        #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
        slices: Vec<u64>,
    },
    /// Compiler tiers: baseline code, optimized code and tier-up, each with a cold cache
    Tiers(Common),
    /// Input and output: bandwidth of the job compared with a plain sequential stream
    Io(Common),
}

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Job file
    job: PathBuf,
    /// Numbers of ranks, such as 1,2,4 [default: powers of 2 up to the number of cores or the allocation; for metg and
    /// tiers, all cores]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Vec<u32>,
    /// Numbers of threads per rank, such as 1,2
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Vec<u32>,
    /// Measurements of each point
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Compiler tier of the kernels (`tiers` measures all)
    #[arg(long, value_enum, default_value_t)]
    tier: TierArgument,
    /// Files to write, without extension: .jsonl for the points, .html for the page [default: exuvia-bench/JOB-SWEEP]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Discard existing points
    #[arg(long)]
    fresh: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Arguments for `exuvia run`
    #[arg(last = true)]
    run: Vec<String>,
}

/// The value that `--output json` prints.
#[derive(Debug, Serialize)]
struct BenchOutput<'a> {
    schema: u32,
    #[serde(flatten)]
    figures: &'a SweepStatistics,
    points: &'a Path,
    page: &'a Path,
}

pub(super) fn bench(verb: &BenchVerb) -> ExitCode {
    let (kind, common, index, slices) = match verb {
        BenchVerb::Strong(common) => (SweepKind::Strong, common, None, &[][..]),
        BenchVerb::Weak { common, index } => (SweepKind::Weak, common, Some(index.as_str()), &[][..]),
        BenchVerb::Metg { common, slices } => (SweepKind::Metg, common, None, &slices[..]),
        BenchVerb::Tiers(common) => (SweepKind::Tiers, common, None, &[][..]),
        BenchVerb::Io(common) => (SweepKind::Io, common, None, &[][..]),
    };
    try_bench(kind, common, index, slices).unwrap_or_else(|code| code)
}

fn try_bench(kind: SweepKind, common: &Common, index: Option<&str>, slices: &[u64]) -> Result<ExitCode, ExitCode> {
    let set = ["--ranks", "1", "--threads", "1", "--tier", "auto", "--cache-dir", "C", "--report", "R", "--fresh"];
    parse_passed("bench", &common.run, &[&set[..], &["--trace", "T"]].concat())?;
    let (job, layouts) = open(&common.job)?;
    let growth = index.map(|index| growth(&job, index)).transpose().map_err(failed)?;
    let launcher = launcher();
    let identity = identity(&job, &layouts, common, &launcher, index)?;
    let settings = settings(kind, common, slices, &launcher)?;
    let stem = common.out.clone().unwrap_or_else(|| Path::new(FOLDER).join(format!("{}-{}", job.name, kind.name())));
    let files = ["jsonl", "html"].map(|ending| PathBuf::from(format!("{}.{ending}", stem.display())));
    let (mut log, mut points) = PointLog::open(&files[0], kind, &identity, common.fresh).map_err(failed)?;
    let left = remaining(&settings, common.repeat, &points);
    let all = settings.len() * common.repeat as usize;
    if left.len() < all {
        eprintln!("{} of {all} points are already in {}", all - left.len(), files[0].display());
    }
    let signal = Signal::default();
    for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGUSR1] {
        if let Err(error) = signal_hook::flag::register_usize(number, signal.clone(), number as usize) {
            tracing::warn!("cannot catch signal {number}: {error}");
        }
    }
    let mut bench = Sweep {
        kind,
        identity,
        launcher,
        exuvia: std::env::current_exe().map_err(|error| fail(&error, ExitCode::Environment, None))?,
        variant: Variant::new(job).map_err(failed)?,
        growth,
        memory_bytes: topology::host().memory_bytes / 5 * 4,
        signal,
        measured: 0,
    };
    let ended = measure(&mut bench, &left, &mut log, &mut points);
    drop(bench);
    if let Some(figures) = figures(kind, &points) {
        let page = page(&figures, &points);
        write_whole(&files[1], |out| out.write_all(page.as_bytes()))
            .map_err(|source| failed(SweepError::Io { what: "write", path: files[1].clone(), source }))?;
        match common.output {
            Output::Human => {
                print_figures(&figures);
                println!("points  {}\n  page  {}", files[0].display(), files[1].display());
            }
            Output::Json => {
                print_json(&BenchOutput { schema: 1, figures: &figures, points: &files[0], page: &files[1] });
            }
        }
    }
    match ended {
        Ok(true) => Ok(ExitCode::Done),
        Ok(false) => {
            eprintln!("note: interrupted; run the same command again to measure the missing points");
            Ok(ExitCode::Resumable)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Measures the missing points; returns false if it was interrupted.
fn measure(
    bench: &mut Sweep,
    left: &[(Setting, u32)],
    log: &mut PointLog,
    points: &mut Vec<Point>,
) -> Result<bool, SweepError> {
    // `tiers` measures with a cold cache.
    if let (Some((first, _)), true) = (left.first(), bench.kind != SweepKind::Tiers) {
        eprintln!("warming up");
        if !bench.warm_up(*first)? {
            return Ok(false);
        }
    }
    for (number, (setting, repetition)) in left.iter().enumerate() {
        let Some(point) = bench.measure(*setting, *repetition)? else { return Ok(false) };
        log.append(&point)?;
        let seconds = point.in_stages_ns as f64 / 1e9;
        let over = if point.oversubscribed { ", oversubscribed" } else { "" };
        eprintln!(
            "{}/{}: {}, repetition {repetition}: {seconds:.3} s in stages{over}",
            number + 1,
            left.len(),
            describe(setting)
        );
        points.push(point);
    }
    Ok(true)
}

fn print_figures(figures: &SweepStatistics) {
    println!("{} of {}, baseline: {}", figures.kind.name(), figures.job, figures.baseline);
    println!("medians (minimum-maximum)");
    let (head, rows) = figures.table();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.iter().map(|head| head.to_uppercase()));
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.add_rows(rows);
    println!("{}", table.trim_fmt());
    if let Some(legend) = figures.legend() {
        println!("{legend}");
    }
    for MetgOf { ranks, threads, metg } in &figures.metg {
        println!("METG(50 %) on {ranks} x {threads}: {}", metg.describe());
    }
}

fn describe(setting: &Setting) -> String {
    let ranks = text::count(u64::from(setting.ranks), "rank");
    let mut words = format!("{ranks} x {}", text::count(u64::from(setting.threads), "thread"));
    if setting.size > 1 {
        words += &format!(", {} times the job", setting.size);
    }
    if let Some(slices) = setting.task_slices {
        words += &format!(", {} per task", text::count(slices, "slice"));
    }
    if setting.tier != TierPolicy::Auto {
        words += &format!(", {} code", setting.tier.name());
    }
    words
}

/// Ranks are started as users start them: in an allocation with `srun` if it supports this MPI library, else by `exuvia
/// run
/// --ranks`.
fn launcher() -> RankLauncher {
    let pmi = if fabric::is_open_mpi() { "pmix" } else { "pmi2" };
    match topology::allocation() {
        Some(allocation) if slurm::check(pmi).is_ok() => RankLauncher::Srun { allocation, pmi },
        _ => RankLauncher::Program,
    }
}

fn identity(
    job: &Job,
    layouts: &BTreeMap<String, Layout>,
    common: &Common,
    launcher: &RankLauncher,
    index: Option<&str>,
) -> Result<SweepIdentity, ExitCode> {
    let read = |what, path: &Path| {
        std::fs::read(path).map_err(|source| failed(SweepError::Io { what, path: path.to_owned(), source }))
    };
    let mut hasher = blake3::Hasher::new_derive_key("exuvia bench 1");
    hasher.update(&job.hash());
    for stage in &job.stages {
        hasher.update(blake3::hash(&read("read the kernel", &stage.kernel)?).as_bytes());
    }
    hasher.update(format!("{layouts:?}").as_bytes());
    let exuvia = std::env::current_exe().map_err(|error| fail(&error, ExitCode::Environment, None))?;
    let host = topology::host();
    Ok(SweepIdentity {
        job_hash: hasher.finalize().to_hex().to_string(),
        program_hash: blake3::hash(&read("read", &exuvia)?).to_hex().to_string(),
        cpu: host.cpu.name,
        cores: host.cores,
        launcher: launcher.name(),
        options: common.run.clone(),
        index: index.map(str::to_owned),
    })
}

/// The distinct settings of the sweep, in the order of their workers.
fn settings(
    kind: SweepKind,
    common: &Common,
    slices: &[u64],
    launcher: &RankLauncher,
) -> Result<Vec<Setting>, ExitCode> {
    let tier = common.tier.policy();
    let mut settings = Vec::new();
    for &threads in &common.threads {
        let cpus = match launcher {
            RankLauncher::Program => topology::host().cores,
            RankLauncher::Srun { allocation, .. } => allocation.cpus(),
        };
        let most = match launcher {
            RankLauncher::Srun { allocation, .. } => allocation.tasks_per_node.map(|tasks| tasks * allocation.nodes),
            RankLauncher::Program => None,
        };
        let most = most.unwrap_or(cpus / threads).max(1);
        let ranks = match (&common.ranks[..], kind) {
            ([], SweepKind::Metg | SweepKind::Tiers) => vec![most],
            ([], _) => (0..).map(|power| 1 << power).take_while(|ranks| *ranks < most).chain([most]).collect(),
            (given, _) => given.to_vec(),
        };
        settings.extend(ranks.into_iter().map(|ranks| Setting { ranks, threads, size: 1, task_slices: None, tier }));
    }
    match kind {
        SweepKind::Weak => {
            let least = settings.iter().map(Setting::workers).min().unwrap_or(1);
            for setting in &mut settings {
                if !setting.workers().is_multiple_of(least) {
                    let workers = setting.workers();
                    eprintln!(
                        "error: {workers} workers are not a multiple of {least}, the unit by which the job grows"
                    );
                    eprintln!("help: choose other --ranks or --threads");
                    return Err(ExitCode::Usage);
                }
                setting.size = u64::from(setting.workers() / least);
            }
        }
        SweepKind::Metg => {
            let slices =
                if slices.is_empty() { (0..7).map(|power| 1 << (2 * power)).collect() } else { slices.to_vec() };
            let with = |setting: Setting| {
                let fixed = slices.iter().map(move |slices| Setting { task_slices: Some(*slices), ..setting });
                fixed.chain([setting]).collect::<Vec<_>>()
            };
            settings = settings.into_iter().flat_map(with).collect();
        }
        SweepKind::Tiers => {
            let tiers = [TierPolicy::Baseline, TierPolicy::Optimized, TierPolicy::Auto];
            settings = settings.into_iter().flat_map(|s| tiers.map(|tier| Setting { tier, ..s })).collect();
        }
        SweepKind::Strong | SweepKind::Io => {}
    }
    settings.sort_by_key(|setting| (setting.workers(), setting.threads));
    let mut once = Vec::new();
    settings.into_iter().for_each(|setting| {
        if !once.contains(&setting) {
            once.push(setting)
        }
    });
    Ok(once)
}

fn failed(error: SweepError) -> ExitCode {
    let code = match &error {
        SweepError::Run { .. } | SweepError::Io { .. } | SweepError::Report { .. } | SweepError::RankFailed => {
            ExitCode::Failed
        }
        SweepError::Start { .. } => ExitCode::Environment,
        _ => ExitCode::Usage,
    };
    fail(&error, code, error.help())
}
