//! The charts of a sweep. Each names its baseline and marks oversubscribed points.

use std::collections::BTreeSet;

use bytesize::ByteSize;
use plotters::style::RGBColor;

use crate::report::html::charts::{self, Axis, Bar, COLOURS, bars, key};
use crate::report::html::lines::{Mark, Series, Style, lines};
use crate::report::html::page::Page;
use crate::sweep::point::Point;
use crate::sweep::statistics::{Metg, MetgOf, Rate, Row, Spread, SweepStatistics};
use crate::sweep::timeline::WorkerLoad;
use crate::text;

/// The most settings that have a timeline.
const TIMELINES: usize = 48;
/// The number of intervals of a timeline.
const STEPS: f64 = 6.0;
const TIERS: [(&str, RGBColor); 2] = [("baseline code", COLOURS[1]), ("optimized code", COLOURS[0])];
/// The size from which bandwidth matters more than latency.
const LARGE_BYTES: u64 = 64 << 20;
/// The colour of lines that are not measured.
const IDEAL: usize = 6;

/// The data of the charts.
pub(super) struct SweepCharts<'a> {
    pub figures: &'a SweepStatistics,
    pub cores: u32,
}

impl SweepCharts<'_> {
    /// Adds the heading of a chart with a note on oversubscribed points; returns the title.
    fn heading(&self, page: &mut Page, title: &str) -> String {
        self.heading_with(page, title, "hollow")
    }

    /// Like `heading`, where `look` describes oversubscribed points.
    fn heading_with(&self, page: &mut Page, title: &str, look: &str) -> String {
        let rows = &self.figures.rows;
        let some = rows.iter().any(|row| row.oversubscribed);
        let title = match some {
            true => format!("{title} ({look}: oversubscribed)"),
            false => title.to_owned(),
        };
        page.heading(&title);
        page.light(&match some {
            true => format!(
                "Marks that are {look} are oversubscribed: more threads than the {} cores of a node.",
                self.cores
            ),
            false => "No run was oversubscribed: every thread had its own core.".to_owned(),
        });
        title
    }

    /// A line of `y` for each number of threads.
    fn by_workers(&self, name: &str, colour: usize, y: impl Fn(&Row) -> Option<Spread>) -> Vec<Series> {
        let threads: BTreeSet<u32> = self.figures.rows.iter().map(|row| row.setting.threads).collect();
        let several = threads.len() > 1;
        let series = |(number, threads): (usize, u32)| {
            let rows = self.figures.rows.iter().filter(|row| row.setting.threads == threads);
            let points =
                rows.filter_map(|row| Some(mark(f64::from(row.workers), y(row)?, row.oversubscribed))).collect();
            let each =
                if several { format!(", {} each", text::count(u64::from(threads), "thread")) } else { String::new() };
            let colour = COLOURS[(colour + number) % IDEAL];
            Series { name: format!("{name}{each}"), points, colour, style: Style::Marked }
        };
        threads.into_iter().enumerate().map(series).collect()
    }

    /// The ticks of the axis of workers.
    fn workers(&self) -> Vec<f64> {
        let workers: BTreeSet<u32> = self.figures.rows.iter().map(|row| row.workers).collect();
        workers.into_iter().map(f64::from).collect()
    }

    fn draw_by_workers(&self, page: &mut Page, title: &str, y: (&str, bool), series: &[Series]) {
        let ticks = self.workers();
        let x = Axis { title: "workers: ranks x threads", ..logarithmic(&ticks, &|at| format!("{at}")) };
        let spreads = || series.iter().flat_map(|series| &series.points).map(|mark| &mark.spread);
        let least = spreads().map(|spread| spread.start).fold(1.0, f64::min).max(0.01);
        let most = spreads().map(|spread| spread.end).fold(0.0, f64::max);
        let powers = (-6..32).map(|power| 2f64.powi(power));
        let doubled: Vec<f64> = powers.filter(|at| *at > least / 1.1 && *at < 2.0 * most).collect();
        let y = match y {
            (title, true) => {
                let axis = logarithmic(&doubled, &|at| at.to_string());
                Axis { title, range: least / 1.1..axis.range.end, ..axis }
            }
            (title, false) => Axis {
                title,
                range: 0.0..1.05 * most.max(1e-9),
                logarithmic: false,
                ticks: Vec::new(),
                label: &|at| rounded(at).to_string(),
            },
        };
        page.chart(&lines(title, &x, &y, series));
    }

    pub fn speed_up(&self, page: &mut Page) {
        let title = self.heading(page, &format!("Speed-up relative to {}", self.figures.baseline));
        let workers = self.workers();
        let base = workers.first().copied().unwrap_or(1.0);
        let mut series = vec![dashed("ideal", workers.iter().map(|at| (*at, at / base)))];
        series.extend(self.by_workers("measured", 0, |row| row.speed_up));
        self.draw_by_workers(page, &title, ("speed-up", true), &series);
    }

    pub fn efficiency(&self, page: &mut Page) {
        let title = self.heading(page, &format!("Efficiency relative to {}", self.figures.baseline));
        let mut series = vec![dashed("ideal", self.workers().into_iter().map(|at| (at, 1.0)))];
        series.extend(self.by_workers("measured", 0, |row| row.efficiency));
        self.draw_by_workers(page, &title, ("efficiency", false), &series);
    }

    pub fn seconds(&self, page: &mut Page) {
        let title = self.heading(page, &format!("Time (ideal: that of {})", self.figures.baseline));
        let base = self.figures.rows.first().map_or(0.0, |row| row.seconds.median);
        let mut series = vec![dashed("ideal", self.workers().into_iter().map(|at| (at, base)))];
        series.extend(self.by_workers("measured", 0, |row| Some(row.seconds)));
        self.draw_by_workers(page, &title, ("seconds in stages", false), &series);
    }

    pub fn bytes(&self, page: &mut Page) {
        let title = self.heading(page, "Bytes moved between ranks, relative to the minimum");
        page.light(
            "The bound is that of the plan: the least that any division into as many boxes could move, with every input where it \
             is needed. Baseline: that bound.",
        );
        let most = self.figures.rows.iter().map(|row| row.moved_bytes).fold(0.0, f64::max);
        let (unit, name) = unit(most);
        let exact = |value: f64| Spread { median: value, min: value, max: value };
        let mut series = vec![dashed(
            "bound",
            self.figures
                .rows
                .iter()
                .filter_map(|row| Some((f64::from(row.workers), row.least_moved_bytes? as f64 / unit))),
        )];
        series.extend(self.by_workers("measured", 0, |row| Some(exact(row.moved_bytes / unit))));
        self.draw_by_workers(page, &title, (&format!("{name} moved"), false), &series);
    }

    pub fn rates(&self, page: &mut Page, what: &str, rate: impl Fn(&Row) -> Option<Rate>) {
        let title = self.heading(page, &format!("{what}, compared with one plain stream"));
        let bytes = self.figures.rows.iter().filter_map(&rate).map(|rate| rate.bytes).max();
        let Some(bytes) = bytes else { return page.light("There was no data.") };
        page.line(&format!("{} in each run. Baseline: one plain stream of the same number of bytes.", ByteSize(bytes)));
        if bytes < LARGE_BYTES {
            page.light("This size measures latency rather than bandwidth.");
        }
        let most = self
            .figures
            .rows
            .iter()
            .filter_map(&rate)
            .fold(0.0, |most: f64, rate| most.max(rate.bytes_per_second.max).max(rate.plain_bytes_per_second.max));
        let (unit, name) = unit(most);
        let scaled =
            |spread: Spread| Spread { median: spread.median / unit, min: spread.min / unit, max: spread.max / unit };
        let mut series = self.by_workers("the job", 0, |row| rate(row).map(|rate| scaled(rate.bytes_per_second)));
        series.extend(
            self.by_workers("one plain stream", 3, |row| rate(row).map(|rate| scaled(rate.plain_bytes_per_second))),
        );
        self.draw_by_workers(page, &title, (&format!("{name}/s"), false), &series);
    }

    pub fn metg(&self, page: &mut Page) {
        let title = self.heading(page, &format!("Efficiency by granularity, relative to {}", self.figures.baseline));
        for MetgOf { ranks, threads, metg } in &self.figures.metg {
            page.line(&format!("METG(50 %) on {ranks} x {threads}: {}.", metg.describe()));
        }
        let rows = || self.figures.rows.iter().filter_map(|row| Some((row, row.task_us?, row.efficiency?)));
        let (least, most) = rows()
            .fold((f64::INFINITY, 0.0f64), |(least, most), (_, us, _)| (least.min(us.median), most.max(us.median)));
        let powers = (least.max(1e-3).log10().floor() as i32)..=(most.max(1e-3).log10().ceil() as i32);
        let ticks: Vec<f64> = powers.map(|power| 10f64.powi(power)).collect();
        let x = Axis { title: "granularity: microseconds per task", ..logarithmic(&ticks, &|at| format!("{at}")) };
        let top = rows().map(|(_, _, efficiency)| efficiency.max).fold(1.0, f64::max);
        let y = Axis {
            title: "efficiency",
            range: 0.0..1.05 * top,
            logarithmic: false,
            ticks: Vec::new(),
            label: &|at| rounded(at).to_string(),
        };
        let ends = [x.range.start, x.range.end];
        let mut series = vec![dashed("50 %", ends.map(|at| (at, 0.5)).into_iter())];
        for (number, MetgOf { ranks, threads, metg }) in self.figures.metg.iter().enumerate() {
            let colour = COLOURS[number % IDEAL];
            let of = |fixed: bool| {
                let rows = rows().filter(|(row, ..)| (row.setting.ranks, row.setting.threads) == (*ranks, *threads));
                let rows = rows.filter(|(row, ..)| row.setting.task_slices.is_some() == fixed);
                let mut marks: Vec<Mark> =
                    rows.map(|(row, us, efficiency)| mark(us.median, efficiency, row.oversubscribed)).collect();
                marks.sort_by(|a, b| f64::total_cmp(&a.at.0, &b.at.0));
                marks
            };
            let name = format!("{ranks} x {threads}");
            series.push(Series { name: name.clone(), points: of(true), colour, style: Style::Marked });
            let automatic = format!("{name}, automatic tasks");
            series.push(Series {
                name: automatic,
                points: of(false),
                colour: COLOURS[(number + 3) % IDEAL],
                style: Style::Marked,
            });
            if let Metg::Us(us) = metg {
                series.push(Series { colour, ..dashed("", [(*us, 0.0), (*us, 0.5)].into_iter()) });
            }
        }
        page.chart(&lines(&title, &x, &y, &series));
    }

    pub fn tiers(&self, page: &mut Page) {
        let title = self.heading_with(page, &format!("Time, relative to {}", self.figures.baseline), "thin");
        page.light("Seconds from the start of the program; black lines: minimum and maximum. On the right: speed-up.");
        let most = self.figures.rows.iter().map(|row| row.seconds.max).fold(0.0, f64::max);
        let row = |row: &Row| charts::Row {
            name: label(row),
            bars: vec![Bar {
                range: 0.0..row.seconds.median,
                height: if row.oversubscribed { 0.0..0.3 } else { 0.0..1.0 },
                colour: COLOURS[0],
            }],
            marks: vec![row.seconds.min, row.seconds.max],
            note: row.speed_up.map_or(String::new(), |speed_up| format!("{:.2} x", speed_up.median)),
        };
        page.chart(&bars(&title, &of_seconds(most), true, &self.figures.rows.iter().map(row).collect::<Vec<_>>()));
    }

    /// The tiers of the workers over time, in the median run of each setting.
    pub fn timelines(&self, page: &mut Page, points: &[Point]) {
        page.heading("Tiers over time");
        page.light(
            "How many of the workers were in kernels, and on which code, in the run of median length of each setting; a star: \
             oversubscribed. Compared with no other run.",
        );
        let mut rows = Vec::new();
        for row in self.figures.rows.iter().take(TIMELINES) {
            let mut runs: Vec<&Point> = points.iter().filter(|point| point.setting == row.setting).collect();
            runs.sort_by_key(|run| run.wall_ns);
            let Some(load) = runs.get(runs.len().saturating_sub(1) / 2).and_then(|run| run.load.as_ref()) else {
                continue;
            };
            let star = if row.oversubscribed { " *" } else { "" };
            rows.push(charts::Row {
                name: format!("{}{star}", label(row)),
                bars: of_load(load, f64::from(row.workers)),
                ..charts::Row::default()
            });
        }
        let most = points.iter().map(|point| point.wall_ns).max().unwrap_or(0) as f64 / 1e9;
        page.chart(&key(TIERS));
        page.chart(&bars("Tiers over time", &of_seconds(most), true, &rows));
        let more = self.figures.rows.len().saturating_sub(TIMELINES);
        if more > 0 {
            page.light(&format!("{more} more settings are not drawn."));
        }
    }
}

/// Bars for optimized code, with baseline code on top.
fn of_load(load: &WorkerLoad, workers: f64) -> Vec<Bar> {
    let step = |share: f64| (share.min(1.0) * STEPS).round() / STEPS;
    let shape =
        |(baseline, optimized): (&f64, &f64)| (step(optimized / workers), step((baseline + optimized) / workers));
    let shapes: Vec<(f64, f64)> = load.baseline.iter().zip(&load.optimized).map(shape).collect();
    let (mut drawn, mut at) = (Vec::new(), 0);
    for alike in shapes.chunk_by(|a, b| a == b) {
        let seconds = |number: usize| number as f64 * load.interval_ns as f64 / 1e9;
        let range = seconds(at)..seconds(at + alike.len());
        let (optimized, both) = alike[0];
        drawn.push(Bar { range: range.clone(), height: 0.0..optimized, colour: TIERS[1].1 });
        drawn.push(Bar { range, height: optimized..both, colour: TIERS[0].1 });
        at += alike.len();
    }
    drawn
}

fn of_seconds(most: f64) -> Axis<'static> {
    Axis {
        title: "",
        range: 0.0..most,
        logarithmic: false,
        ticks: Vec::new(),
        label: &|at| format!("{} s", rounded(at)),
    }
}

fn rounded(at: f64) -> f64 {
    (at * 1000.0).round() / 1000.0
}

fn mark(x: f64, y: Spread, hollow: bool) -> Mark {
    Mark { at: (x, y.median), spread: y.min..y.max, hollow }
}

fn dashed(name: &str, points: impl Iterator<Item = (f64, f64)>) -> Series {
    Series {
        name: name.into(),
        points: points.map(Mark::exact).collect(),
        colour: COLOURS[IDEAL],
        style: Style::Dashed,
    }
}

/// A logarithmic axis with labels at the ticks and margins at both ends.
fn logarithmic<'a>(ticks: &[f64], label: &'a dyn Fn(f64) -> String) -> Axis<'a> {
    let (first, last) = (ticks.first().copied().unwrap_or(1.0), ticks.last().copied().unwrap_or(1.0));
    Axis { title: "", range: first / 1.1..last * 1.1, logarithmic: true, ticks: ticks.to_vec(), label }
}

/// The unit of bytes for numbers up to `most`.
fn unit(most: f64) -> (f64, &'static str) {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let found = units.into_iter().map(|(unit, name)| (unit as f64, name)).find(|(unit, _)| most >= *unit);
    found.unwrap_or((1.0, "bytes"))
}

fn label(row: &Row) -> String {
    format!("{}, {} x {}", row.setting.tier.name(), row.setting.ranks, row.setting.threads)
}
