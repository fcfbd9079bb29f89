//! The charts of the page, as SVG.

use std::fmt::Write;

use super::escape;
use crate::report::timeline::{Timeline, Worker};
use crate::report::{RankReport, Report};

/// What is drawn of a rank's time, from left to right.
pub(super) const PARTS: [(&str, &str); 4] = [
    ("kernels, baseline code", "#e69f00"),
    ("kernels, optimized code", "#0072b2"),
    ("other", "#aaa"),
    ("idle", "#e4e4e4"),
];
/// Distances that bytes have come, and their colours.
pub(super) const DISTANCES: [(&str, &str); 3] =
    [("same rank", "#c9dbe8"), ("same node", "#56a0d0"), ("between nodes", "#d55e00")];

const WIDTH: f64 = 760.0;
/// Where bars begin; what they are of stands before that.
const LEFT: f64 = 110.0;
/// Behind bars there is room for a number.
const RIGHT: f64 = 70.0;
const ROW: f64 = 18.0;
/// Ranks in a chart; of more, these many are drawn, as far apart as they can be.
const RANKS: usize = 48;
/// Steps that the load of a worker is drawn in, in each of the columns of its row.
const STEPS: f64 = 6.0;
const COLUMNS: usize = 290;

/// A chart of so many rows.
struct Chart {
    svg: String,
    rows: usize,
}

impl Chart {
    fn new() -> Chart {
        Chart { svg: String::new(), rows: 0 }
    }

    /// A new row of this name. Returns where its bars are.
    fn row(&mut self, name: &str) -> f64 {
        let y = self.rows as f64 * ROW;
        self.rows += 1;
        let (x, base) = (LEFT - 6.0, y + 13.0);
        let _ = write!(self.svg, r#"<text x="{x}" y="{base}" text-anchor="end">{}</text>"#, escape(name));
        y + 3.0
    }

    fn bar(&mut self, (x, y, width): (f64, f64, f64), colour: &str, title: &str) {
        if width > 0.0 {
            let (height, title) = (ROW - 6.0, escape(title));
            let _ = write!(
                self.svg,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}" fill="{colour}"><title>{title}</title></rect>"#
            );
        }
    }

    fn note(&mut self, x: f64, y: f64, text: &str) {
        let _ = write!(self.svg, r#"<text x="{x:.1}" y="{:.1}">{}</text>"#, y + 10.0, escape(text));
    }

    /// An axis of time below all rows.
    fn axis(&mut self, length_ns: f64) {
        let y = self.rows as f64 * ROW + 3.0;
        let step_ns = step(length_ns);
        let mut at_ns = 0.0;
        while at_ns <= length_ns {
            let (x, below) = (position(at_ns, length_ns), y + 14.0);
            let label = if at_ns > 0.0 { super::time(at_ns as u64) } else { "0".to_owned() };
            let _ = write!(self.svg, r##"<path d="M{x:.1},0V{y:.1}" stroke="#ddd" stroke-width="0.5"/>"##);
            let _ = write!(self.svg, r#"<text x="{x:.1}" y="{below:.1}" text-anchor="middle">{label}</text>"#);
            at_ns += step_ns;
        }
        self.rows += 1;
    }

    fn finish(self, title: &str) -> String {
        let height = self.rows as f64 * ROW + 4.0;
        let title = escape(title);
        format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">{}</svg>"#, self.svg) + "\n"
    }
}

fn position(ns: f64, length_ns: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * ns / length_ns.max(1.0)
}

/// 1, 2 or 5 times a power of ten, five to ten of which are in it.
fn step(length: f64) -> f64 {
    let rough = (length / 8.0).max(1.0);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough).unwrap_or(rough)
}

/// The ranks that are drawn, and a sentence if they are not all.
pub(super) fn drawn(report: &Report) -> (Vec<&RankReport>, Option<String>) {
    let all = report.ranks.len();
    let count = all.min(RANKS);
    let ranks = (0..count).filter_map(|at| report.ranks.get(at * all / count)).collect();
    (ranks, (count < all).then(|| format!("{count} of {all} ranks are drawn.")))
}

/// How the workers of a rank spent the run, in the order of [`PARTS`].
fn parts(report: &Report, rank: &RankReport, workers: Option<Vec<&Worker>>) -> [f64; 4] {
    let sum =
        |of: fn(&crate::report::Counts) -> u64| rank.stages.iter().map(|stage| of(&stage.counts)).sum::<u64>() as f64;
    let (baseline, optimized) = (sum(|counts| counts.baseline_ns), sum(|counts| counts.optimized_ns));
    let threads = f64::from(report.environment.threads_per_rank);
    let all = threads * report.wall_ns as f64;
    let in_stages = match workers {
        Some(workers) => workers.iter().map(|worker| worker.busy_ns).sum(),
        None => threads * rank.stages.iter().map(|stage| stage.wall_ns).sum::<u64>().min(report.wall_ns) as f64,
    };
    let other = (in_stages - baseline - optimized).max(0.0);
    [baseline, optimized, other, (all - baseline - optimized - other).max(0.0)]
}

/// A bar for each rank: what its workers did with their time.
pub(super) fn ranks(report: &Report, timeline: Option<&Timeline>) -> String {
    let of_rank = |rank: &RankReport| {
        let workers = timeline.and_then(|timeline| timeline.0.get(&u64::from(rank.rank)));
        parts(report, rank, workers.map(|workers| workers.values().collect()))
    };
    let (ranks, _) = drawn(report);
    let longest = ranks.iter().map(|rank| of_rank(rank).iter().sum()).fold(1.0, f64::max);
    let mut chart = Chart::new();
    for rank in ranks {
        let (y, mut x) = (chart.row(&format!("rank {}", rank.rank)), LEFT);
        let parts = of_rank(rank);
        for (ns, (name, colour)) in parts.into_iter().zip(PARTS) {
            let width = (WIDTH - LEFT - RIGHT) * ns / longest;
            chart.bar((x, y, width), colour, &format!("{name}: {}", super::time(ns as u64)));
            x += width;
        }
        let busy = 100.0 * (parts[0] + parts[1]) / parts.iter().sum::<f64>().max(1.0);
        chart.note(WIDTH - RIGHT + 6.0, y, &format!("{busy:.0} %"));
    }
    chart.finish("Time of each rank")
}

/// Stages, and below them the workers of each rank with their swaps; from a trace also what they ran when.
pub(super) fn tiers(report: &Report, timeline: Option<&Timeline>) -> String {
    let length_ns = report.wall_ns as f64;
    let mut chart = Chart::new();
    for stage in &report.stages {
        let (y, start) = (chart.row(&stage.stage), stage.started_ns.unwrap_or(0) as f64);
        let (x, end) = (position(start, length_ns), position(start + stage.wall_ns as f64, length_ns));
        chart.bar((x, y, (end - x).max(0.5)), "#8d8d8d", &format!("{}: {}", stage.stage, super::time(stage.wall_ns)));
    }
    let (ranks, _) = drawn(report);
    for rank in ranks {
        match timeline.and_then(|timeline| timeline.0.get(&u64::from(rank.rank))) {
            Some(workers) => {
                for (number, worker) in workers.values().enumerate() {
                    let y = chart.row(&format!("rank {}, worker {number}", rank.rank));
                    load(&mut chart, worker, y, length_ns);
                    worker.swaps_ns.iter().for_each(|at_ns| swap(&mut chart, *at_ns, y, length_ns));
                }
            }
            None => {
                let y = chart.row(&format!("rank {}", rank.rank));
                chart.bar((LEFT, y, WIDTH - LEFT - RIGHT), "#f0f0f0", "");
                rank.swaps.iter().for_each(|one| swap(&mut chart, one.at_ns as f64, y, length_ns));
            }
        }
    }
    chart.axis(length_ns);
    chart.finish("Stages and tiers over time")
}

fn swap(chart: &mut Chart, at_ns: f64, y: f64, length_ns: f64) {
    let (x, end, title) = (position(at_ns, length_ns), y + ROW - 6.0, super::time(at_ns as u64));
    let _ = write!(
        chart.svg,
        r##"<path d="M{x:.1},{y:.1}V{end:.1}" stroke="#000" stroke-width="1.5"><title>swap at {title}</title></path>"##
    );
}

/// How much of each moment a worker was in kernels, on which code.
fn load(chart: &mut Chart, worker: &Worker, y: f64, length_ns: f64) {
    let column_ns = length_ns / COLUMNS as f64;
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
    let (height, width) = (ROW - 6.0, (WIDTH - LEFT - RIGHT) / COLUMNS as f64);
    chart.bar((LEFT, y, WIDTH - LEFT - RIGHT), "#f0f0f0", "");
    let steps = |share: f64| (share.min(1.0) * STEPS).ceil() / STEPS * height;
    // Optimized code from below, baseline code on top of it.
    for (tier, (_, colour)) in PARTS.iter().enumerate().take(2) {
        let mut path = String::new();
        let shape = |[baseline, optimized]: &[f64; 2]| {
            let (low, high) = (steps(*optimized), steps(baseline + optimized));
            if tier == 0 { (low, high) } else { (0.0, low) }
        };
        let mut at = 0;
        for run in columns.chunk_by(|a, b| shape(a) == shape(b)) {
            let (low, high) = shape(&run[0]);
            if high > low {
                let (x, length) = (LEFT + at as f64 * width, run.len() as f64 * width);
                let _ =
                    write!(path, "M{x:.1},{:.1}h{length:.1}V{:.1}h-{length:.1}z", y + height - low, y + height - high);
            }
            at += run.len();
        }
        if !path.is_empty() {
            let _ = write!(chart.svg, r#"<path d="{path}" fill="{colour}"/>"#);
        }
    }
}

/// A bar for each reason why bytes were needed, by where they were.
pub(super) fn moved(report: &Report) -> String {
    let reasons =
        report.totals().moved.by_reason().map(|(name, bytes)| (name, [bytes.rank, bytes.node, bytes.network]));
    let reasons = || reasons.iter().filter(|(_, bytes)| bytes.iter().sum::<u64>() > 0);
    let most = reasons().map(|(_, bytes)| bytes.iter().sum::<u64>()).max().unwrap_or(0);
    let mut chart = Chart::new();
    for (name, bytes) in reasons() {
        let (y, mut x) = (chart.row(name), LEFT);
        for (bytes, (distance, colour)) in bytes.iter().zip(DISTANCES) {
            let width = (WIDTH - LEFT - RIGHT) * *bytes as f64 / most as f64;
            chart.bar((x, y, width), colour, &format!("{name}, {distance}: {}", super::size(*bytes)));
            x += width;
        }
        chart.note(x + 6.0, y, &super::size(bytes.iter().sum()));
    }
    if most == 0 { String::new() } else { chart.finish("Bytes by reason and distance") }
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn axes_have_round_steps() {
        assert_eq!([7.0, 80.0, 81.0, 1e9, 1.7e9].map(step), [1.0, 10.0, 20.0, 2e8, 5e8]);
    }
}
