//! Traces of whole runs agree with their reports, and viewers can read them; the page of a run needs no other file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};

use crate::lab::launch::open_mpi;
use crate::lab::slow::{pids, record_bytes, signal, slow_lab};
use crate::lab::{EXUVIA, Lab, text};
use exuvia::exec::{self, ExitCode, Options, Resume, Signal, TierPolicy};
use exuvia::fabric;
use exuvia::report::{Counts, Report};
use serde_json::Value;

/// An interval, in nanoseconds.
#[derive(Clone, Debug)]
struct Span<'a> {
    at: u64,
    end: u64,
    event: &'a Value,
}

struct Trace(Vec<Value>);

impl Trace {
    fn read(bytes: &[u8]) -> Trace {
        let mut read: Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(read["otherData"]["dropped_events"], 0);
        Trace(serde_json::from_value(read["traceEvents"].take()).unwrap())
    }

    fn of_kind(&self, ph: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |event| event["ph"] == ph)
    }

    fn named<'a>(&'a self, ph: &str, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.of_kind(ph).filter(move |event| event["name"] == name)
    }

    fn of_category(&self, category: &str) -> impl Iterator<Item = &Value> {
        self.of_kind("X").filter(move |event| event["cat"] == category)
    }

    /// Returns the sum of a number that events carry.
    fn sum(&self, number: &str) -> u64 {
        self.of_kind("X").filter_map(|event| event["args"][number].as_u64()).sum()
    }

    /// Returns the intervals by process and thread, in the order of the file.
    fn tracks(&self) -> BTreeMap<(u64, u64), Vec<Span<'_>>> {
        let mut tracks: BTreeMap<_, Vec<Span<'_>>> = BTreeMap::new();
        for event in self.of_kind("X") {
            let span = Span { at: ns(&event["ts"]), end: ns(&event["ts"]) + ns(&event["dur"]), event };
            tracks.entry(track(event)).or_default().push(span);
        }
        tracks
    }
}

fn ns(microseconds: &Value) -> u64 {
    (microseconds.as_f64().unwrap() * 1e3).round() as u64
}

fn track(event: &Value) -> (u64, u64) {
    (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap())
}

/// Asserts that every rank has its tracks, and that they can be drawn: intervals nest, tasks lie within stages, and
/// kernels lie within tasks.
fn check_tracks(trace: &Trace, ranks: u32, threads: u32, stages: &[&str]) {
    for rank in 0..u64::from(ranks) {
        let of_rank = |name: &'static str| trace.named("M", name).filter(move |event| event["pid"] == rank + 1);
        let processes: Vec<&str> =
            of_rank("process_name").map(|event| event["args"]["name"].as_str().unwrap()).collect();
        assert!(matches!(processes[..], [name] if name.starts_with(&format!("rank {rank} on "))), "{processes:?}");
        let names: BTreeSet<&str> =
            of_rank("thread_name").map(|event| event["args"]["name"].as_str().unwrap()).collect();
        let workers = (0..threads).map(|worker| format!("worker {worker}"));
        for name in workers.chain(["main thread".to_owned(), "stages".to_owned()]) {
            assert!(names.contains(&*name), "rank {rank} has no {name}: {names:?}");
        }
    }
    let named: BTreeSet<(u64, u64)> = trace.named("M", "thread_name").map(track).collect();
    let tracks = trace.tracks();
    for (track, spans) in &tracks {
        assert!(named.contains(track), "{track:?} has no name");
        let mut open: Vec<&Span<'_>> = Vec::new();
        for pair in spans.windows(2) {
            assert!(pair[0].at <= pair[1].at, "{pair:?}");
        }
        for span in spans {
            open.retain(|outer| outer.end > span.at);
            if let Some(outer) = open.last() {
                assert!(span.end <= outer.end, "{span:?} goes beyond {outer:?}");
                let tasks =
                    [outer, span].iter().all(|span| span.event["cat"] == "task" && span.event["name"] != "merge");
                assert!(!tasks, "{span:?} overlaps {outer:?}");
            }
            if span.event["cat"] == "kernel" {
                assert_eq!(open.last().unwrap().event["args"]["tier"], span.event["name"]);
            }
            open.push(span);
        }
    }
    let spans_of = |category: &'static str| tracks.values().flatten().filter(move |span| span.event["cat"] == category);
    for task in spans_of("task") {
        let stage = task.event["args"].get("stage").unwrap_or(&task.event["name"]);
        assert!(stages.contains(&stage.as_str().unwrap()), "{stage}");
        let around = |outer: &&Span<'_>| {
            let same = outer.event["pid"] == task.event["pid"] && outer.event["name"] == *stage;
            same && outer.at <= task.at && task.end <= outer.end
        };
        assert!(spans_of("stage").any(|outer| around(&outer)), "{task:?} is in no run of its stage");
    }
    assert_eq!(spans_of("kernel").count() + trace.named("X", "merge").count(), spans_of("task").count());
}

/// Asserts that arrows have both ends in order and the bytes of the report, and that counts of files, tasks, swaps and
/// steals agree.
fn check_counts(trace: &Trace, report: &Report) {
    let ends = |ph| trace.of_kind(ph).map(|event| (event["id"].as_str().unwrap(), event)).collect::<BTreeMap<_, _>>();
    let (sent, received) = (ends("s"), ends("f"));
    assert_eq!(sent.len(), trace.of_kind("s").count());
    assert!(sent.keys().eq(received.keys()), "{} of {} arrows", sent.len(), received.len());
    for (id, from) in &sent {
        let to = received[id];
        assert!(from["pid"] != to["pid"] && ns(&from["ts"]) <= ns(&to["ts"]), "{from} {to}");
        assert_eq!(from["name"], to["name"]);
    }
    let totals: Counts = report.totals();
    for (reason, bytes) in totals.moved.by_reason() {
        for end in ["send", "receive"] {
            let of_reason = trace.named("X", end).filter(|event| event["args"]["reason"] == reason);
            assert_eq!(
                of_reason.map(|event| event["args"]["bytes"].as_u64().unwrap()).sum::<u64>(),
                bytes.moved(),
                "{reason}"
            );
        }
    }
    assert_eq!(trace.of_category("transfer").count(), sent.len() + received.len());
    assert_eq!((trace.sum("read_bytes"), trace.sum("written_bytes")), (totals.read_bytes, totals.written_bytes));
    let tasks = |tier: &str| -> u64 {
        let on = trace.of_category("task").filter(|event| event["args"]["tier"] == tier);
        on.map(|event| event["args"]["times"].as_u64().unwrap_or(1)).sum()
    };
    assert_eq!((tasks("baseline"), tasks("optimized")), (totals.baseline_tasks, totals.optimized_tasks));
    let kernels = |tier: &str| -> u64 {
        trace.of_category("kernel").filter(|event| event["name"] == tier).map(|event| ns(&event["dur"])).sum()
    };
    assert_eq!((kernels("baseline"), kernels("optimized")), (totals.baseline_ns, totals.optimized_ns));
    let swaps =
        report.ranks.iter().flat_map(|rank| rank.swaps.iter().map(|swap| (rank.rank, swap.after_tasks, swap.held_ns)));
    let number = |event: &Value, name: &str| event["args"][name].as_u64().unwrap();
    let traced = trace.named("i", "swap").map(|event| {
        let rank = event["pid"].as_u64().unwrap() as u32 - 1;
        (rank, number(event, "after_tasks"), number(event, "held_ns"))
    });
    assert_eq!(BTreeSet::from_iter(traced), BTreeSet::from_iter(swaps));
    assert_eq!(trace.named("i", "steal").map(|event| number(event, "slices")).sum::<u64>(), totals.stolen_slices);
    let runs = |event: &&Value| event["name"].as_str().unwrap().starts_with("iteration ");
    let iterations: u64 = report.ranks.iter().filter_map(|rank| rank.iterations).sum();
    assert_eq!(trace.of_category("iteration").filter(runs).count() as u64, iterations);
}

#[test]
fn traces_say_what_reports_say() {
    let lab = Lab::new(&["heat", "variance", "unbalanced", "enlarge", "knn"]);
    let jobs: [(&str, &[&str]); 4] = [
        ("heat2d", &["step", "residual"]),
        ("variance", &["moments", "variance"]),
        ("unbalanced", &["mandelbrot"]),
        ("digits", &["enlarge", "classify"]),
    ];
    for (name, stages) in jobs {
        lab.job(name, |job| job.replace("count = 1000", "count = 20"));
        for (ranks, threads) in [(2, 2), (3, 1)] {
            let file = lab.path("trace.json");
            let arguments = ["--threads", &*threads.to_string(), "--trace", file.to_str().unwrap()];
            let report = lab.run(ranks, &arguments);
            let trace = Trace::read(&fs::read(&file).unwrap());
            println!("{name} on {ranks} ranks: {} events", trace.0.len());
            check_tracks(&trace, ranks, threads, stages);
            check_counts(&trace, &report);
            fs::remove_file(&file).unwrap();
        }
    }
}

#[test]
fn swaps_and_merges_are_on_the_tracks_of_their_workers() {
    let lab = Lab::new(&["variance"]);
    let job = lab.job("variance", |job| job);
    let options = |trace| Options {
        threads: Some(2),
        tier: TierPolicy::Auto,
        cache_dir: Some(lab.path("cache")),
        swap_before_task: Some(2),
        resume: Resume::Fresh,
        trace,
        ..Options::default()
    };
    let run = |trace| {
        exec::run(fabric::solo(), &job, &options(trace), Signal::default(), |_| ExitCode::Done).unwrap().unwrap()
    };
    let report = run(true);
    let mut bytes = Vec::new();
    report.trace.as_ref().unwrap().write("variance", &mut bytes).unwrap();
    let trace = Trace::read(&bytes);
    check_tracks(&trace, 1, 2, &["moments", "variance"]);
    check_counts(&trace, &report);
    assert!(trace.named("i", "swap").count() > 0 && trace.named("X", "merge").count() > 0);
    for swap in trace.named("i", "swap") {
        // Its worker was on baseline code until then.
        let later = |event: &&Value| track(event) == track(swap) && ns(&event["ts"]) > ns(&swap["ts"]);
        let next = trace.of_category("kernel").find(later).unwrap();
        assert_eq!(next["name"], "optimized");
    }
    assert!(run(false).trace.is_none());
}

#[test]
fn a_trace_goes_on_after_a_death() {
    if !open_mpi() {
        println!("only Open MPI lets ranks go on");
        return;
    }
    let lab = slow_lab(100_000);
    let file = lab.path("trace.json");
    let mut command = Command::new(EXUVIA);
    command.args(["run", "--ranks", "3", "--threads", "1", "--trace"]).arg(&file).arg("--report");
    command.arg(lab.path("report.json")).arg(lab.path("job.toml")).env("EXUVIA_CACHE_DIR", lab.path("cache"));
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while record_bytes(&lab) == 0 {
        std::thread::yield_now();
    }
    let ranks: Vec<u32> = pids(&lab).into_iter().filter(|pid| *pid != run.id()).collect();
    signal(&ranks[1..2], "-KILL");
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: Report = serde_json::from_slice(&fs::read(lab.path("report.json")).unwrap()).unwrap();
    let [death] = &report.deaths[..] else { panic!("{:?}", report.deaths) };
    let trace = Trace::read(&fs::read(&file).unwrap());
    let processes: BTreeSet<u64> =
        trace.named("M", "process_name").map(|event| event["pid"].as_u64().unwrap()).collect();
    let left = (1..=3).filter(|process| *process != u64::from(death.rank) + 1);
    assert_eq!(processes, left.collect::<BTreeSet<_>>());
    let died = format!("rank {} died", death.rank);
    for process in processes {
        let of = |ph, name: &str| trace.named(ph, name).filter(|event| event["pid"] == process).count();
        assert_eq!((of("i", &died), of("X", "start")), (1, 2), "process {process}");
        assert!(trace.of_category("kernel").any(|event| event["pid"] == process));
    }
    let ends = |ph| trace.of_kind(ph).map(|event| event["id"].as_str().unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(ends("s"), ends("f"));
}

#[test]
fn the_page_of_a_run_stands_alone() {
    let lab = Lab::new(&["unbalanced"]);
    lab.job("unbalanced", |job| job);
    let (trace, record, page) = (lab.path("trace.json"), lab.path("report.json"), lab.path("pages/run.html"));
    let report = lab.run(2, &["--trace", trace.to_str().unwrap()]);
    let make = |arguments: &[&std::path::Path]| {
        let mut command = Command::new(EXUVIA);
        command.arg("report").args(arguments).arg("-o").arg(&page).output().unwrap()
    };
    for arguments in [&[&*record][..], &[&*record, "--trace".as_ref(), &*trace]] {
        let output = make(arguments);
        assert!(output.status.success(), "{}", text(&output));
        let page = fs::read_to_string(&page).unwrap();
        for outside in ["http", "src=", "<script", "<link", "url(", "NaN"] {
            assert!(!page.contains(outside), "{outside}");
        }
        let swaps: usize = report.ranks.iter().map(|rank| rank.swaps.len()).sum();
        assert_eq!(page.matches("stroke=\"#000000\"").count(), swaps);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        for part in ["mandelbrot", "rank 0", "rank 1", &*report.plan_hash, "unbalanced.h5"] {
            assert!(page.contains(part), "{part}");
        }
    }
    for (arguments, what) in [
        (&[&*trace][..], "not the report of a run"),
        (&[&*record, "--trace".as_ref(), &*record], "not the trace of a run"),
    ] {
        let output = make(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(what), "{}", text(&output));
    }
}
