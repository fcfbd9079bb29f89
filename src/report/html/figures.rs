//! The charts of a run.

use plotters::style::RGBColor;

use crate::report::html::charts::{Axis, Bar, COLOURS, Row, bars, key};
use crate::report::html::page::size;
use crate::report::record::{Counts, RankReport, Report};
use crate::report::render::time;
use crate::report::timeline::{Timeline, WorkerTimeline};

const BASELINE: RGBColor = COLOURS[1];
const OPTIMIZED: RGBColor = COLOURS[0];
/// The parts of a rank's time, from left to right.
const PARTS: [(&str, RGBColor); 5] = [
    ("kernels, baseline code", BASELINE),
    ("kernels, optimized code", OPTIMIZED),
    ("copying, merging", COLOURS[2]),
    ("waiting in stages", RGBColor(0xb0, 0xb0, 0xb0)),
    ("outside stages", RGBColor(0xe4, 0xe4, 0xe4)),
];
/// The distances of transfers.
const DISTANCES: [(&str, RGBColor); 3] =
    [("same rank", RGBColor(0xc9, 0xdb, 0xe8)), ("same node", COLOURS[4]), ("between nodes", COLOURS[3])];

/// The most rows in a chart of ranks; of more ranks, evenly spaced ones are drawn.
const RANKS: usize = 48;
const WORKERS: usize = 96;
/// The number of intervals in the chart of the load of a worker.
const STEPS: f64 = 6.0;
const COLUMNS: usize = 250;

/// The ranks that are drawn, and a sentence if some are left out.
fn drawn(report: &Report, most: usize) -> (Vec<&RankReport>, Option<String>) {
    let all = report.ranks.len();
    let count = all.min(most.max(1));
    let ranks = (0..count).filter_map(|at| report.ranks.get(at * all / count)).collect();
    (ranks, (count < all).then(|| format!("The chart shows {count} of {all} ranks.")))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The time of the run, in seconds.
fn of_run(report: &Report) -> Axis<'static> {
    // Labels are at round numbers and need few digits.
    let label = &|at: f64| match at {
        0.0 => "0".to_owned(),
        at if at < 1e-3 => format!("{} us", (at * 1e9).round() / 1e3),
        at if at < 1.0 => format!("{} ms", (at * 1e6).round() / 1e3),
        at => format!("{} s", (at * 1e3).round() / 1e3),
    };
    Axis { title: "", range: 0.0..seconds(report.wall_ns), logarithmic: false, ticks: Vec::new(), label }
}

/// How an average worker of the rank spent the run, in the order of [`PARTS`], in seconds.
fn parts(report: &Report, rank: &RankReport) -> [f64; 5] {
    let sum = |of: fn(&Counts) -> u64| rank.stages.iter().map(|stage| of(&stage.counts)).sum::<u64>();
    let (baseline, optimized) = (sum(|counts| counts.baseline_ns), sum(|counts| counts.optimized_ns));
    let threads = u64::from(report.environment.threads_per_rank).max(1);
    let in_tasks = sum(|counts| counts.busy_ns).max(baseline + optimized);
    // Stages that run at the same time have workers of their own.
    let in_stages = rank.stages.iter().map(|stage| stage.wall_ns).sum::<u64>().min(report.wall_ns) * threads;
    let waiting = in_stages.saturating_sub(in_tasks);
    let outside = (report.wall_ns * threads).saturating_sub(in_tasks + waiting);
    [baseline, optimized, in_tasks - baseline - optimized, waiting, outside].map(|ns| seconds(ns / threads))
}

/// Consecutive bars, and the end of the last one.
fn one_after_another(parts: &[f64], colours: &[(&str, RGBColor)]) -> (Vec<Bar>, f64) {
    let mut at = 0.0;
    let bar = |(length, (_, colour)): (&f64, &(&str, RGBColor))| {
        let from = at;
        at += length;
        Bar { range: from..at, height: 0.0..1.0, colour: *colour }
    };
    (parts.iter().zip(colours).map(bar).collect(), at)
}

/// A bar for each rank with the parts of its time, and a sentence if some ranks are left out.
pub(super) fn ranks(report: &Report) -> (String, Option<String>) {
    let (ranks, not_all) = drawn(report, RANKS);
    let row = |rank: &&RankReport| {
        let parts = parts(report, rank);
        let (bars, all) = one_after_another(&parts, &PARTS);
        let share = 100.0 * (parts[0] + parts[1]) / all.max(1e-9);
        Row { name: format!("rank {}", rank.rank), bars, note: format!("{share:.0} %"), ..Row::default() }
    };
    let rows: Vec<Row> = ranks.iter().map(row).collect();
    (key(PARTS) + &bars("Time by rank", &of_run(report), true, &rows), not_all)
}

/// Stages, and below them the ranks with the swaps of their workers; with a trace, the load of each worker over time.
pub(super) fn tiers(report: &Report, timeline: Option<&Timeline>) -> (String, Option<String>) {
    let mut rows = Vec::new();
    for stage in &report.stages {
        let from = seconds(stage.started_ns.unwrap_or(0));
        // A short stage is still visible.
        let to = from + seconds(stage.wall_ns).max(seconds(report.wall_ns) / 1000.0);
        let bar = Bar { range: from..to, height: 0.0..1.0, colour: COLOURS[6] };
        rows.push(Row { name: stage.stage.clone(), bars: vec![bar], note: time(stage.wall_ns), ..Row::default() });
    }
    // After a rank failure, the surviving ranks are renumbered in the same order.
    let in_order: Vec<_> = timeline.iter().flat_map(|timeline| timeline.0.values()).collect();
    let workers_of = |rank: &RankReport| in_order.get(rank.rank as usize);
    let most_workers = report.ranks.iter().filter_map(|rank| workers_of(rank).map(|workers| workers.len())).max();
    let (ranks, not_all) = drawn(report, most_workers.map_or(RANKS, |workers| WORKERS / workers.max(1)));
    for rank in ranks {
        let name = format!("rank {}", rank.rank);
        match workers_of(rank) {
            Some(workers) => rows.extend(workers.values().enumerate().map(|(number, worker)| Row {
                name: format!("{name}, worker {number}"),
                bars: load(worker, report.wall_ns as f64),
                marks: worker.swaps_ns.iter().map(|ns| ns / 1e9).collect(),
                note: String::new(),
            })),
            None => {
                let marks = rank.swaps.iter().map(|swap| seconds(swap.at_ns)).collect();
                rows.push(Row { name, marks, ..Row::default() });
            }
        }
    }
    (bars("Stages and tiers over time", &of_run(report), true, &rows), not_all)
}

/// The load of a worker over time: optimized code, with baseline code on top.
fn load(worker: &WorkerTimeline, length_ns: f64) -> Vec<Bar> {
    let column_ns = (length_ns / COLUMNS as f64).max(1.0);
    let mut columns = vec![[0.0f64; 2]; COLUMNS];
    for call in &worker.calls {
        let end_ns = call.at_ns + call.ns;
        let first = (call.at_ns / column_ns) as usize;
        for (number, column) in columns.iter_mut().enumerate().skip(first) {
            let from_ns = number as f64 * column_ns;
            if from_ns >= end_ns {
                break;
            }
            let within = end_ns.min(from_ns + column_ns) - call.at_ns.max(from_ns);
            column[usize::from(call.optimized)] += within / column_ns;
        }
    }
    let step = |share: f64| (share.min(1.0) * STEPS).ceil() / STEPS;
    let shape = |[baseline, optimized]: &[f64; 2]| (step(*optimized), step(baseline + optimized));
    let (mut bars, mut at) = (Vec::new(), 0);
    for alike in columns.chunk_by(|a, b| shape(a) == shape(b)) {
        let (optimized, both) = shape(&alike[0]);
        let range = at as f64 * column_ns / 1e9..(at + alike.len()) as f64 * column_ns / 1e9;
        bars.push(Bar { range: range.clone(), height: 0.0..optimized, colour: OPTIMIZED });
        bars.push(Bar { range, height: optimized..both, colour: BASELINE });
        at += alike.len();
    }
    bars
}

/// A bar for each reason for transfers, divided by distance; `None` without transfers.
pub(super) fn moved(report: &Report) -> Option<String> {
    let reasons = report.totals().moved.by_reason().map(|(name, of)| (name, [of.rank, of.node, of.network]));
    let row = |(name, bytes): &(&'static str, [u64; 3])| {
        let (bars, all) = one_after_another(&bytes.map(|bytes| bytes as f64), &DISTANCES);
        (all, Row { name: (*name).to_owned(), bars, note: size(all as u64), ..Row::default() })
    };
    let (all, rows): (Vec<f64>, Vec<Row>) = reasons.iter().map(row).filter(|(all, _)| *all > 0.0).unzip();
    let most = all.into_iter().reduce(f64::max)?;
    let axis =
        Axis { title: "", range: 0.0..most, logarithmic: false, ticks: Vec::new(), label: &|at| size(at as u64) };
    Some(key(DISTANCES) + &bars("Bytes by reason and distance", &axis, false, &rows))
}
