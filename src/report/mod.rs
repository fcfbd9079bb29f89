//! The report of a run: its measurements, their JSON form and their summary.
//!
//! Refuses to do: measuring, or deciding anything from what was measured. Invariant: times are nanoseconds, either
//! durations or since the start of the process of the reporting rank; counters add up over ranks.

pub(crate) mod html;
mod record;
mod render;
mod timeline;
mod trace;
mod traffic;

pub use html::html;
pub use record::{
    Counts, Death, Environment, KernelReport, OutputReport, RankReport, Report, StageReport, Swap, Traffic,
};
pub use render::summary;
pub use timeline::{FileTimes, KernelCall, Timeline, WorkerTimeline};
pub use trace::{Args, RankTrace, Span, Trace, Transfer, nest};
pub use traffic::{Distance, Distances, Moved, Reason};

#[cfg(test)]
mod tests {
    use super::*;

    fn share(rank: u32, tasks: u64, wall_ns: u64, compiles: u32) -> RankReport {
        RankReport {
            rank,
            first_task_ns: Some(100 + u64::from(rank)),
            stages: vec![StageReport {
                stage: "s".into(),
                started_ns: Some(u64::from(rank)),
                wall_ns,
                counts: Counts { baseline_tasks: tasks, read_bytes: 10, ..Counts::default() },
            }],
            kernels: vec![KernelReport {
                kernel: "k".into(),
                optimizing_compiles: compiles,
                ..KernelReport::default()
            }],
            ..RankReport::default()
        }
    }

    #[test]
    fn a_profile_divides_time_by_place() {
        let mut counts = Counts::default();
        counts.add_to_profile(1600, 0..100, 100);
        assert_eq!(counts.profile_ns, [100; record::PARTS]);
        // The last third of the second sixteenth, all of the third, and the first third of the fourth.
        counts.add_to_profile(500, 5..10, 48);
        let expected = [0, 100, 300, 100].map(|ns| 100 + ns);
        assert!(counts.profile_ns[..4] == expected && counts.profile_ns[4..] == [100; 12], "{:?}", counts.profile_ns);
        counts.add_to_profile(5, 47..48, 48);
        assert_eq!(counts.profile_ns[15], 105);
    }

    #[test]
    fn rank_reports_combine_and_survive_json() {
        let ranks = vec![share(0, 3, 50, 1), share(1, 4, 70, 0)];
        let report = Report::join("j".into(), "h".into(), Environment::default(), 99, ranks);
        assert_eq!(report.first_task_ns, Some(100));
        assert_eq!(report.stages.len(), 1);
        assert_eq!(report.stages[0].wall_ns, 70);
        assert_eq!(report.totals().tasks(), 7);
        assert_eq!(report.totals().read_bytes, 20);
        assert_eq!(report.kernels[0].optimizing_compiles, 1);
        let text = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(back.totals(), report.totals());
        assert!(text.starts_with("{\"schema\":1,"));
    }
}
