//! Figures from points: medians with what the repetitions spread over, and ratios to a baseline.
//!
//! A ratio is between two runs of one repetition, which were made at about the same time: what slows down the machine for a
//! while slows down both.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Kind, Point, Setting};
use crate::exec::TierPolicy;

/// The least efficiency of tasks that count as long enough.
const ENOUGH: f64 = 0.5;

/// The middle of some repetitions, and their extremes.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of nothing.
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
    /// In some of them.
    pub oversubscribed: bool,
    /// From the first stage to the last; with tiers, which differ in what comes before, from the start of the process.
    pub seconds: Spread,
    /// Of the whole command.
    pub command_seconds: Spread,
    /// Of the baseline over this.
    pub speed_up: Option<Spread>,
    /// Of a worker, compared with one of the baseline.
    pub efficiency: Option<Spread>,
    /// Workers' time for each task.
    pub task_us: Option<Spread>,
    pub first_task_ms: Option<Spread>,
    pub moved_bytes: f64,
    pub least_moved_bytes: Option<u64>,
    /// Bytes a second that runs read and wrote, and what one plain stream did there at the time.
    pub read: Option<Rate>,
    pub written: Option<Rate>,
}

/// How fast bytes went to or from files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub bytes: u64,
    pub bytes_per_second: Spread,
    pub plain_bytes_per_second: Spread,
    pub ratio: Spread,
}

/// The least granularity of tasks at which half of the time goes into them.
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
    pub fn in_words(self) -> String {
        match self {
            Metg::Us(us) => format!("{us:.1} us"),
            Metg::BelowUs(us) => format!("below {us:.1} us, the shortest tasks of this job"),
            Metg::Unknown => "not reached: no tasks were long enough".to_owned(),
        }
    }
}

/// The granularity found for some workers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MetgOf {
    pub ranks: u32,
    pub threads: u32,
    pub metg: Metg,
}

/// What a sweep shows.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub kind: Kind,
    pub job: String,
    /// In words.
    pub baseline: String,
    pub rows: Vec<Row>,
    pub metg: Vec<MetgOf>,
}

/// Sums up the points of one sweep; none of no points.
pub fn figures(kind: Kind, points: &[Point]) -> Option<Figures> {
    let job = points.first()?.job.clone();
    let settings: BTreeSet<Setting> = points.iter().map(|point| point.setting).collect();
    let workers: BTreeSet<(u32, u32)> = settings.iter().map(|setting| (setting.ranks, setting.threads)).collect();
    // What differs in ranks is compared with the fewest, what differs in something else with what has as many.
    let groups: Vec<Vec<Setting>> = match kind {
        Kind::Strong | Kind::Weak | Kind::Io => vec![settings.into_iter().collect()],
        Kind::Metg | Kind::Tiers => {
            let of = |of: &(u32, u32)| settings.iter().filter(|s| (s.ranks, s.threads) == *of).copied().collect();
            workers.iter().map(of).collect()
        }
    };
    let (mut rows, mut metg, mut baseline) = (Vec::new(), Vec::new(), String::new());
    for group in groups {
        let Some(base) = base_of(kind, points, &group) else { continue };
        baseline = in_words(kind, &base);
        let times: BTreeMap<u32, f64> =
            of(points, base).map(|point| (point.repetition, seconds(kind, point))).collect();
        let of_group: Vec<Row> =
            group.iter().filter_map(|setting| row(kind, points, *setting, (base, &times))).collect();
        if kind == Kind::Metg {
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
    Some(Figures { kind, job, baseline, rows, metg })
}

/// What the settings of a group are compared with.
fn base_of(kind: Kind, points: &[Point], group: &[Setting]) -> Option<Setting> {
    let median = |setting: &Setting| Spread::of(of(points, *setting).map(|point| seconds(kind, point)));
    let base = match kind {
        Kind::Strong | Kind::Weak | Kind::Io => group.iter().min_by_key(|setting| (setting.workers(), setting.ranks)),
        // The same work in each: what took least time had most use of it.
        Kind::Metg => group.iter().min_by(|a, b| f64::total_cmp(&middle(median(a)), &middle(median(b)))),
        Kind::Tiers => group.iter().find(|setting| setting.tier == TierPolicy::Baseline),
    };
    base.or(group.first()).copied()
}

fn of(points: &[Point], setting: Setting) -> impl Iterator<Item = &Point> {
    points.iter().filter(move |point| point.setting == setting)
}

fn middle(spread: Option<Spread>) -> f64 {
    spread.map_or(f64::INFINITY, |spread| spread.median)
}

/// The time that a sweep of this kind compares.
fn seconds(kind: Kind, point: &Point) -> f64 {
    let ns = if kind == Kind::Tiers { point.wall_ns } else { point.in_stages_ns };
    ns as f64 / 1e9
}

fn in_words(kind: Kind, base: &Setting) -> String {
    let count = |number: u32, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let what = match kind {
        Kind::Metg => "the fastest setting of as many ranks and threads".to_owned(),
        Kind::Tiers => format!("{} code only, of as many ranks and threads", base.tier.name()),
        _ => format!("{} x {}", count(base.ranks, "rank"), count(base.threads, "thread")),
    };
    format!("{what}, of the same binary")
}

fn row(kind: Kind, points: &[Point], setting: Setting, (base, times): (Setting, &BTreeMap<u32, f64>)) -> Option<Row> {
    let runs: Vec<&Point> = of(points, setting).collect();
    let ratios = |scale: f64| {
        let ratio = |run: &&Point| Some(scale * times.get(&run.repetition)? / seconds(kind, run));
        Spread::of(runs.iter().filter_map(ratio))
    };
    let workers = setting.workers();
    let share = f64::from(base.workers()) / f64::from(workers);
    let growth = setting.size as f64 / base.size as f64;
    let spread = |value: &dyn Fn(&Point) -> f64| Spread::of(runs.iter().map(|run| value(run)));
    let rate = |bytes: fn(&Point) -> u64, times: fn(&crate::sweep::disk_baseline::Disk) -> (u64, u64)| {
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

/// The granularity at which efficiency falls below one half, from (granularity, efficiency) in the order of slices, on a
/// logarithmic scale between the two settings around it. Of long tasks too few are there for all workers: what they lose at the
/// other end does not count.
fn half_efficiency(curve: Vec<(f64, f64)>) -> Metg {
    let Some(found) = curve.iter().position(|(_, efficiency)| *efficiency >= ENOUGH) else { return Metg::Unknown };
    let (long, enough) = curve[found];
    let Some((short, little)) = found.checked_sub(1).map(|before| curve[before]) else { return Metg::BelowUs(long) };
    let part = (ENOUGH - little) / (enough - little);
    Metg::Us(short * (long / short).powf(part))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Identity;
    use super::*;
    use crate::sweep::disk_baseline::Disk;

    pub fn identity() -> Identity {
        Identity {
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

    /// On so many ranks, so many seconds in stages.
    pub fn point(ranks: u32, repetition: u32, seconds: f64) -> Point {
        let ns = (seconds * 1e9) as u64;
        Point {
            schema: Point::SCHEMA,
            sweep: Kind::Strong,
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
    fn spreads_have_the_middle_and_the_extremes() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[f64::NAN]), None);
    }

    #[test]
    fn ratios_are_between_runs_of_one_repetition() {
        // The machine was half as fast during the second one: no ratio minds. The third has no baseline.
        let times = [(1, 1, 8.0), (2, 1, 4.0), (4, 1, 4.0), (4, 2, 8.0), (2, 2, 8.0), (1, 2, 16.0), (2, 3, 1.0)];
        let points: Vec<Point> = times.iter().map(|(ranks, round, seconds)| point(*ranks, *round, *seconds)).collect();
        let figures = figures(Kind::Strong, &points).unwrap();
        assert_eq!(figures.baseline, "1 rank x 1 thread, of the same binary");
        let same = |value| Some(Spread { median: value, min: value, max: value });
        let found: Vec<_> =
            figures.rows.iter().map(|row| (row.setting.ranks, row.repetitions, row.speed_up, row.efficiency)).collect();
        let expected = [(1, 2, same(1.0), same(1.0)), (2, 3, same(2.0), same(1.0)), (4, 2, same(2.0), same(0.5))];
        assert_eq!(found, expected);
        assert_eq!(figures.rows.iter().map(|row| row.oversubscribed).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn a_job_that_grows_with_its_ranks_should_take_as_long() {
        let grown = |ranks, seconds| {
            let point = point(ranks, 1, seconds);
            Point { setting: Setting { size: u64::from(ranks), ..point.setting }, ..point }
        };
        let figures = figures(Kind::Weak, &[grown(1, 2.0), grown(2, 2.5)]).unwrap();
        assert_eq!(figures.rows[1].efficiency.unwrap().median, 0.8);
        assert_eq!(figures.rows[1].speed_up.unwrap().median, 1.6);
    }

    #[test]
    fn half_efficiency_is_between_two_settings() {
        // Half way between 20 % and 80 %: the mean of the logarithms of 10 and 1000.
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
        // On one rank the same, in twice the time: a curve of its own.
        let alone = points.iter().cloned().map(|point| Point {
            setting: Setting { ranks: 1, ..point.setting },
            in_stages_ns: 2 * point.in_stages_ns,
            ..point
        });
        let figures = figures(Kind::Metg, &alone.chain(points.clone()).collect::<Vec<_>>()).unwrap();
        let rows: Vec<_> = figures.rows.iter().map(|row| (row.setting.task_slices, row.efficiency)).collect();
        let same = |value| Some(Spread { median: value, min: value, max: value });
        for of in [&rows[..4], &rows[4..]] {
            assert_eq!(of[..3], [(Some(1), same(0.25)), (Some(10), same(0.8)), (Some(100), same(1.0))]);
            assert_eq!(of[3].0, None);
        }
        // Tasks of 80 us of two workers have a quarter, those of 250 us four fifths.
        let [alone, both] = &figures.metg[..] else { panic!("{:?}", figures.metg) };
        assert_eq!((alone.ranks, alone.metg, both.ranks), (1, both.metg, 2));
        assert!(matches!(both.metg, Metg::Us(us) if us > 80.0 && us < 250.0), "{both:?}");
    }

    #[test]
    fn tiers_are_compared_on_as_many_ranks() {
        let of = |ranks, tier, seconds| {
            let point = point(ranks, 1, seconds);
            Point { setting: Setting { tier, ..point.setting }, wall_ns: (seconds * 1e9) as u64, ..point }
        };
        let points = [of(1, TierPolicy::Auto, 2.0), of(1, TierPolicy::Baseline, 8.0), of(2, TierPolicy::Baseline, 4.0)];
        let figures = figures(Kind::Tiers, &points).unwrap();
        let rows: Vec<_> = figures.rows.iter().map(|row| (row.setting.ranks, row.speed_up.unwrap().median)).collect();
        assert_eq!(rows, [(1, 1.0), (1, 4.0), (2, 1.0)]);
        assert!(figures.baseline.starts_with("baseline code only"), "{}", figures.baseline);
    }

    #[test]
    fn rates_are_beside_those_of_a_plain_stream() {
        let disk =
            Disk { read_ns: 2_000_000, plain_read_ns: 1_000_000, write_ns: 4_000_000, plain_write_ns: 4_000_000 };
        let points = [Point { disk: Some(disk), ..point(1, 1, 1.0) }];
        let row = figures(Kind::Io, &points).unwrap().rows.remove(0);
        let (read, written) = (row.read.unwrap(), row.written.unwrap());
        assert_eq!((read.ratio.median, written.ratio.median), (0.5, 1.0));
        assert_eq!(read.plain_bytes_per_second.median, f64::from(1 << 20) * 1000.0);
        assert!(figures(Kind::Strong, &[point(1, 1, 1.0)]).unwrap().rows[0].read.is_none());
        assert!(figures(Kind::Io, &[]).is_none());
    }
}
