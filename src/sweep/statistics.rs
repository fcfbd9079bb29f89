//! The statistics of a sweep: medians, spreads and ratios to a baseline.
//!
//! A ratio compares two runs of the same repetition, which ran at about the same time: a temporary slowdown of the
//! machine affects both.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::exec::TierPolicy;
use crate::sweep::point::{Point, Setting, SweepKind};
use crate::text;

/// The efficiency at which tasks are long enough.
const ENOUGH: f64 = 0.5;

/// The median, minimum and maximum of some repetitions.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Returns `None` if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Spread { median: (low + high) / 2.0, min, max })
    }
}

/// All repetitions of a setting.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub setting: Setting,
    pub workers: u32,
    pub repetitions: usize,
    /// Whether some of them were oversubscribed.
    pub oversubscribed: bool,
    /// The time of the stages; in a `tiers` sweep, the time from the start of the process, since tiers differ before
    /// the stages.
    pub seconds: Spread,
    /// The time of the whole command.
    pub command_seconds: Spread,
    /// The time of the baseline divided by this one.
    pub speed_up: Option<Spread>,
    /// The speed-up per worker.
    pub efficiency: Option<Spread>,
    /// The time of all workers divided by the number of tasks.
    pub task_us: Option<Spread>,
    pub first_task_ms: Option<Spread>,
    pub moved_bytes: f64,
    pub least_moved_bytes: Option<u64>,
    /// The rates of reads and writes, with those of a plain stream.
    pub read: Option<Rate>,
    pub written: Option<Rate>,
}

/// The rate at which bytes were read or written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub bytes: u64,
    pub bytes_per_second: Spread,
    pub plain_bytes_per_second: Spread,
    pub ratio: Spread,
}

/// The minimum effective task granularity, at an efficiency of 50 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metg {
    /// Between two settings, in microseconds.
    Us(f64),
    /// The shortest tasks that the job has are longer.
    BelowUs(f64),
    /// No tasks were long enough.
    Unknown,
}

impl Metg {
    pub fn describe(self) -> String {
        match self {
            Metg::Us(us) => format!("{us:.1} us"),
            Metg::BelowUs(us) => format!("below {us:.1} us, the shortest tasks of this job"),
            Metg::Unknown => "not reached: no tasks were long enough".to_owned(),
        }
    }
}

/// The granularity for some numbers of ranks and threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MetgOf {
    pub ranks: u32,
    pub threads: u32,
    pub metg: Metg,
}

/// The results of a sweep.
#[derive(Clone, Debug, Serialize)]
pub struct SweepStatistics {
    pub kind: SweepKind,
    pub job: String,
    /// A description of the baseline.
    pub baseline: String,
    pub rows: Vec<Row>,
    pub metg: Vec<MetgOf>,
}

/// Computes the statistics of the points of a sweep; `None` without points.
pub fn figures(kind: SweepKind, points: &[Point]) -> Option<SweepStatistics> {
    let job = points.first()?.job.clone();
    let settings: BTreeSet<Setting> = points.iter().map(|point| point.setting).collect();
    let workers: BTreeSet<(u32, u32)> = settings.iter().map(|setting| (setting.ranks, setting.threads)).collect();
    // Settings that differ in workers are compared with the fewest, others with those of equal workers.
    let groups: Vec<Vec<Setting>> = match kind {
        SweepKind::Strong | SweepKind::Weak | SweepKind::Io => vec![settings.into_iter().collect()],
        SweepKind::Metg | SweepKind::Tiers => {
            let of = |of: &(u32, u32)| settings.iter().filter(|s| (s.ranks, s.threads) == *of).copied().collect();
            workers.iter().map(of).collect()
        }
    };
    let (mut rows, mut metg, mut baseline) = (Vec::new(), Vec::new(), String::new());
    for group in groups {
        let Some(base) = base_of(kind, points, &group) else { continue };
        baseline = describe_baseline(kind, &base);
        let times: BTreeMap<u32, f64> =
            of(points, base).map(|point| (point.repetition, seconds(kind, point))).collect();
        let of_group: Vec<Row> =
            group.iter().filter_map(|setting| row(kind, points, *setting, (base, &times))).collect();
        if kind == SweepKind::Metg {
            let curve = of_group.iter().filter(|row| row.setting.task_slices.is_some());
            let curve = curve.filter_map(|row| Some((row.task_us?.median, row.efficiency?.median)));
            metg.push(MetgOf { ranks: base.ranks, threads: base.threads, metg: half_efficiency(curve.collect()) });
        }
        rows.extend(of_group);
    }
    rows.sort_by_key(|Row { setting, workers, .. }| {
        let automatic = (setting.tier == TierPolicy::Auto, setting.task_slices.is_none());
        (*workers, setting.threads, automatic, setting.tier, setting.task_slices)
    });
    Some(SweepStatistics { kind, job, baseline, rows, metg })
}

/// The baseline of a group of settings.
fn base_of(kind: SweepKind, points: &[Point], group: &[Setting]) -> Option<Setting> {
    let median = |setting: &Setting| Spread::of(of(points, *setting).map(|point| seconds(kind, point)));
    let base = match kind {
        SweepKind::Strong | SweepKind::Weak | SweepKind::Io => {
            group.iter().min_by_key(|setting| (setting.workers(), setting.ranks))
        }
        // All settings do the same work: the fastest one is the most efficient.
        SweepKind::Metg => group.iter().min_by(|a, b| f64::total_cmp(&middle(median(a)), &middle(median(b)))),
        SweepKind::Tiers => group.iter().find(|setting| setting.tier == TierPolicy::Baseline),
    };
    base.or(group.first()).copied()
}

fn of(points: &[Point], setting: Setting) -> impl Iterator<Item = &Point> {
    points.iter().filter(move |point| point.setting == setting)
}

fn middle(spread: Option<Spread>) -> f64 {
    spread.map_or(f64::INFINITY, |spread| spread.median)
}

/// The time that a sweep of this kind compares, in seconds.
fn seconds(kind: SweepKind, point: &Point) -> f64 {
    let ns = if kind == SweepKind::Tiers { point.wall_ns } else { point.in_stages_ns };
    ns as f64 / 1e9
}

fn describe_baseline(kind: SweepKind, base: &Setting) -> String {
    let count = |number: u32, noun: &str| text::count(u64::from(number), noun);
    let what = match kind {
        SweepKind::Metg => "the fastest setting with the same ranks and threads".to_owned(),
        SweepKind::Tiers => format!("{} code only with the same ranks and threads", base.tier.name()),
        _ => format!("{} x {}", count(base.ranks, "rank"), count(base.threads, "thread")),
    };
    format!("{what}, same binary")
}

fn row(
    kind: SweepKind,
    points: &[Point],
    setting: Setting,
    (base, times): (Setting, &BTreeMap<u32, f64>),
) -> Option<Row> {
    let runs: Vec<&Point> = of(points, setting).collect();
    let ratios = |scale: f64| {
        let ratio = |run: &&Point| Some(scale * times.get(&run.repetition)? / seconds(kind, run));
        Spread::of(runs.iter().filter_map(ratio))
    };
    let workers = setting.workers();
    let share = f64::from(base.workers()) / f64::from(workers);
    let growth = setting.size as f64 / base.size as f64;
    let spread = |value: &dyn Fn(&Point) -> f64| Spread::of(runs.iter().map(|run| value(run)));
    let rate = |bytes: fn(&Point) -> u64, times: fn(&crate::sweep::disk_baseline::DiskTimes) -> (u64, u64)| {
        let rates = |pick: &dyn Fn((u64, u64)) -> f64| {
            Spread::of(runs.iter().filter(|run| bytes(run) > 0).filter_map(|run| Some(pick(times(run.disk.as_ref()?)))))
        };
        let bytes = runs.iter().map(|run| bytes(run)).max()?;
        let per_second = |ns: u64| bytes as f64 * 1e9 / ns.max(1) as f64;
        Some(Rate {
            bytes,
            bytes_per_second: rates(&|(ns, _)| per_second(ns))?,
            plain_bytes_per_second: rates(&|(_, plain)| per_second(plain))?,
            ratio: rates(&|(ns, plain)| plain as f64 / ns.max(1) as f64)?,
        })
    };
    Some(Row {
        setting,
        workers,
        repetitions: runs.len(),
        oversubscribed: runs.iter().any(|run| run.oversubscribed),
        seconds: spread(&|run| seconds(kind, run))?,
        command_seconds: spread(&|run| run.command_ns as f64 / 1e9)?,
        speed_up: ratios(growth),
        efficiency: ratios(growth * share),
        task_us: spread(&|run| seconds(kind, run) * f64::from(workers) * 1e6 / run.tasks() as f64),
        first_task_ms: Spread::of(runs.iter().filter_map(|run| Some(run.first_task_ns? as f64 / 1e6))),
        moved_bytes: spread(&|run| run.moved_bytes as f64)?.median,
        least_moved_bytes: runs.last()?.least_moved_bytes,
        read: rate(|run| run.read_bytes, |disk| (disk.read_ns, disk.plain_read_ns)),
        written: rate(|run| run.written_bytes, |disk| (disk.write_ns, disk.plain_write_ns)),
    })
}

/// The granularity at which efficiency falls below one half, interpolated on a logarithmic scale. `curve` holds
/// granularity and efficiency in the order of slices. Very long tasks are inefficient too, because there are too few
/// for all workers: this end of the curve does not count.
fn half_efficiency(curve: Vec<(f64, f64)>) -> Metg {
    let Some(found) = curve.iter().position(|(_, efficiency)| *efficiency >= ENOUGH) else { return Metg::Unknown };
    let (long, enough) = curve[found];
    let Some((short, little)) = found.checked_sub(1).map(|before| curve[before]) else { return Metg::BelowUs(long) };
    let part = (ENOUGH - little) / (enough - little);
    Metg::Us(short * (long / short).powf(part))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sweep::disk_baseline::DiskTimes;
    use crate::sweep::point::SweepIdentity;

    pub fn identity() -> SweepIdentity {
        SweepIdentity {
            job_hash: "j".into(),
            program_hash: "p".into(),
            cpu: "c".into(),
            cores: 2,
            launcher: "mpirun".into(),
            options: vec!["--no-steal".into()],
            index: None,
        }
    }

    pub fn setting(ranks: u32) -> Setting {
        Setting { ranks, threads: 1, size: 1, task_slices: None, tier: TierPolicy::Auto }
    }

    /// A point with this number of ranks and seconds in stages.
    pub fn point(ranks: u32, repetition: u32, seconds: f64) -> Point {
        let ns = (seconds * 1e9) as u64;
        Point {
            schema: Point::SCHEMA,
            sweep: SweepKind::Strong,
            job: "job".into(),
            identity: identity(),
            setting: setting(ranks),
            repetition,
            ended: "2026-01-01T00:00:00Z".into(),
            hosts: vec!["here".into()],
            oversubscribed: ranks > 2,
            command_ns: ns + 500_000_000,
            wall_ns: ns + 100_000_000,
            in_stages_ns: ns,
            first_task_ns: Some(110_000_000),
            baseline_tasks: 0,
            optimized_tasks: 1000,
            baseline_ns: 0,
            optimized_ns: ns,
            read_bytes: 1 << 20,
            written_bytes: 1 << 20,
            moved_bytes: 4096,
            least_moved_bytes: Some(4000),
            disk: None,
            load: None,
            versions: BTreeMap::new(),
        }
    }

    #[test]
    fn a_spread_has_median_minimum_and_maximum() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[f64::NAN]), None);
    }

    #[test]
    fn ratios_are_between_runs_of_one_repetition() {
        // The machine is half as fast during the second repetition, which affects no ratio. The third has no baseline.
        let times = [(1, 1, 8.0), (2, 1, 4.0), (4, 1, 4.0), (4, 2, 8.0), (2, 2, 8.0), (1, 2, 16.0), (2, 3, 1.0)];
        let points: Vec<Point> = times.iter().map(|(ranks, round, seconds)| point(*ranks, *round, *seconds)).collect();
        let figures = figures(SweepKind::Strong, &points).unwrap();
        assert_eq!(figures.baseline, "1 rank x 1 thread, same binary");
        let same = |value| Some(Spread { median: value, min: value, max: value });
        let found: Vec<_> =
            figures.rows.iter().map(|row| (row.setting.ranks, row.repetitions, row.speed_up, row.efficiency)).collect();
        let expected = [(1, 2, same(1.0), same(1.0)), (2, 3, same(2.0), same(1.0)), (4, 2, same(2.0), same(0.5))];
        assert_eq!(found, expected);
        assert_eq!(figures.rows.iter().map(|row| row.oversubscribed).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn weak_scaling_compares_equal_times() {
        let grown = |ranks, seconds| {
            let point = point(ranks, 1, seconds);
            Point { setting: Setting { size: u64::from(ranks), ..point.setting }, ..point }
        };
        let figures = figures(SweepKind::Weak, &[grown(1, 2.0), grown(2, 2.5)]).unwrap();
        assert_eq!(figures.rows[1].efficiency.unwrap().median, 0.8);
        assert_eq!(figures.rows[1].speed_up.unwrap().median, 1.6);
    }

    #[test]
    fn half_efficiency_is_between_two_settings() {
        // 50 % is half way between 20 % and 80 %: at the mean of the logarithms of 10 and 1000.
        let curve = vec![(10.0, 0.2), (1000.0, 0.8), (1e4, 1.0), (1e5, 0.4)];
        let found = half_efficiency(curve);
        assert!(matches!(found, Metg::Us(us) if (us - 100.0).abs() < 1e-9), "{found:?}");
        assert_eq!(half_efficiency(vec![(50.0, 0.9), (500.0, 1.0)]), Metg::BelowUs(50.0));
        assert_eq!(half_efficiency(vec![(50.0, 0.1)]), Metg::Unknown);
    }

    #[test]
    fn the_fastest_task_length_is_the_baseline_of_the_others() {
        let of = |slices, seconds, tasks| {
            let point = point(2, 1, seconds);
            let setting = Setting { task_slices: slices, ..point.setting };
            Point { setting, optimized_tasks: tasks, ..point }
        };
        let points =
            [of(Some(1), 4.0, 100_000), of(Some(10), 1.25, 10_000), of(Some(100), 1.0, 1000), of(None, 1.1, 900)];
        // One rank takes twice the time and has its own curve.
        let alone = points.iter().cloned().map(|point| Point {
            setting: Setting { ranks: 1, ..point.setting },
            in_stages_ns: 2 * point.in_stages_ns,
            ..point
        });
        let figures = figures(SweepKind::Metg, &alone.chain(points.clone()).collect::<Vec<_>>()).unwrap();
        let rows: Vec<_> = figures.rows.iter().map(|row| (row.setting.task_slices, row.efficiency)).collect();
        let same = |value| Some(Spread { median: value, min: value, max: value });
        for of in [&rows[..4], &rows[4..]] {
            assert_eq!(of[..3], [(Some(1), same(0.25)), (Some(10), same(0.8)), (Some(100), same(1.0))]);
            assert_eq!(of[3].0, None);
        }
        // With two workers, tasks of 80 us have an efficiency of 25 %, and tasks of 250 us one of 80 %.
        let [alone, both] = &figures.metg[..] else { panic!("{:?}", figures.metg) };
        assert_eq!((alone.ranks, alone.metg, both.ranks), (1, both.metg, 2));
        assert!(matches!(both.metg, Metg::Us(us) if us > 80.0 && us < 250.0), "{both:?}");
    }

    #[test]
    fn tiers_are_compared_on_equal_ranks() {
        let of = |ranks, tier, seconds| {
            let point = point(ranks, 1, seconds);
            Point { setting: Setting { tier, ..point.setting }, wall_ns: (seconds * 1e9) as u64, ..point }
        };
        let points = [of(1, TierPolicy::Auto, 2.0), of(1, TierPolicy::Baseline, 8.0), of(2, TierPolicy::Baseline, 4.0)];
        let figures = figures(SweepKind::Tiers, &points).unwrap();
        let rows: Vec<_> = figures.rows.iter().map(|row| (row.setting.ranks, row.speed_up.unwrap().median)).collect();
        assert_eq!(rows, [(1, 1.0), (1, 4.0), (2, 1.0)]);
        assert!(figures.baseline.starts_with("baseline code only"), "{}", figures.baseline);
    }

    #[test]
    fn rates_are_compared_with_a_plain_stream() {
        let disk =
            DiskTimes { read_ns: 2_000_000, plain_read_ns: 1_000_000, write_ns: 4_000_000, plain_write_ns: 4_000_000 };
        let points = [Point { disk: Some(disk), ..point(1, 1, 1.0) }];
        let row = figures(SweepKind::Io, &points).unwrap().rows.remove(0);
        let (read, written) = (row.read.unwrap(), row.written.unwrap());
        assert_eq!((read.ratio.median, written.ratio.median), (0.5, 1.0));
        assert_eq!(read.plain_bytes_per_second.median, f64::from(1 << 20) * 1000.0);
        assert!(figures(SweepKind::Strong, &[point(1, 1, 1.0)]).unwrap().rows[0].read.is_none());
        assert!(figures(SweepKind::Io, &[]).is_none());
    }
}
