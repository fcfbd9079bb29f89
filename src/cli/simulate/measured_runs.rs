//! The reports of measured runs, converted for the simulator.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::job::Job;
use crate::plan::{self, Layout};
use crate::report::Report;
use crate::simulate::{Iterations, Measured, MeasuredStage};

/// The runs, with figures of the whole program.
pub(in crate::cli) struct MeasuredRuns {
    pub runs: Vec<Measured>,
    /// The time from the start of the program to the first stage, in the median run.
    pub start_ns: u64,
    /// The number of iterations.
    pub iterations: Option<u64>,
    /// The compile time, if a run waited for it.
    pub optimize_ns: u64,
}

/// Parses the path of a report, with the number of cores per node of its run: `FILE` or `FILE@CORES`.
pub(in crate::cli) fn report(text: &str) -> Result<(PathBuf, Option<u32>), String> {
    let Some((file, cores)) = text.rsplit_once('@') else { return Ok((text.into(), None)) };
    match cores.parse() {
        Ok(cores) if cores > 0 => Ok((file.into(), Some(cores))),
        _ => Err("expected a number of cores such as report.json@2: the run had 2 cores per node".to_owned()),
    }
}

/// Reads the reports of runs of `job`.
pub(in crate::cli) fn read(
    files: &[(PathBuf, Option<u32>)],
    job: &Job,
    layouts: &BTreeMap<String, Layout>,
    memory_bytes: u64,
) -> anyhow::Result<MeasuredRuns> {
    let mut measured = MeasuredRuns { runs: Vec::new(), start_ns: 0, iterations: None, optimize_ns: 0 };
    let mut starts = Vec::new();
    for (file, cores_per_node) in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("{} is not the report of a run", file.display()))?;
        if report.job != job.name {
            bail!("{} is the report of a run of '{}', not of '{}'", file.display(), report.job, job.name);
        }
        let environment = &report.environment;
        let machine = plan::Machine {
            ranks: environment.ranks.max(1),
            ranks_per_node: environment.ranks.div_ceil(environment.nodes.max(1)).max(1),
            threads: environment.threads_per_rank.max(1),
            memory_bytes,
        };
        let iterations = report.ranks.first().and_then(|rank| rank.iterations);
        measured.iterations = measured.iterations.max(iterations);
        let compiled = report.kernels.iter().filter(|kernel| kernel.optimizing_compiles > 0);
        measured.optimize_ns = measured.optimize_ns.max(compiled.filter_map(|kernel| kernel.optimize_ns).sum());
        let in_stages: u64 = report.stages.iter().map(|stage| stage.wall_ns).sum();
        starts.push(report.wall_ns.saturating_sub(in_stages));
        measured.runs.push(Measured {
            plan: plan::plan(job, layouts, &machine)?,
            cores_per_node: *cores_per_node,
            iterations,
            stole: report.totals().steals > 0,
            stages: report
                .stages
                .iter()
                .map(|stage| (stage.stage.clone(), measured_stage(&report, &stage.stage)))
                .collect(),
        });
    }
    starts.sort_unstable();
    measured.start_ns = starts.get(starts.len() / 2).copied().unwrap_or(0);
    Ok(measured)
}

fn measured_stage(report: &Report, name: &str) -> MeasuredStage {
    let shares = || report.ranks.iter().flat_map(|rank| &rank.stages).filter(|stage| stage.stage == name);
    let whole = report.stages.iter().find(|stage| stage.stage == name);
    MeasuredStage {
        wall_ns: whole.map_or(0, |stage| stage.wall_ns),
        profile_ns: whole.map_or_else(Vec::new, |stage| stage.counts.profile_ns.to_vec()),
        kernel_ns: shares().map(|stage| [stage.counts.baseline_ns, stage.counts.optimized_ns]).collect(),
        tasks: whole.map_or([0, 0], |stage| [stage.counts.baseline_tasks, stage.counts.optimized_tasks]),
    }
}

/// The iterations of `job`: `count`, or the maximum of the job.
pub(in crate::cli) fn iterations(job: &Job, count: Option<u64>) -> Option<Iterations> {
    let iterate = job.iterate.as_ref()?;
    let exchange = iterate.exchange.iter().map(|pair| (pair.read.clone(), pair.written.clone()));
    Some(Iterations {
        stages: iterate.stages.clone(),
        count: count.unwrap_or(iterate.count),
        exchange: exchange.collect(),
        until: iterate.until.as_ref().map(|until| until.tensor.clone()),
    })
}
