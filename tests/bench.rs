//! Real sweeps: they are interrupted, continued, and shown.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::lab::slow::{signal, slow_lab};
use crate::lab::{EXUVIA, Lab, text};
use serde_json::Value;

/// The time after which the test gives up on anything. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);
/// The exit status of a run that stopped early.
const RESUMABLE: i32 = 75;

fn bench(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(EXUVIA);
    command.arg("bench").args(arguments).current_dir(lab.path("")).stdin(Stdio::null());
    command
}

fn run(lab: &Lab, arguments: &[&str]) -> Output {
    let output = bench(lab, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    output
}

/// Returns the points of a sweep.
fn lines(lab: &Lab, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(lab.path(file)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Asserts that a page loads nothing from elsewhere.
fn assert_stands_alone(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</body></html>\n"));
    for other in ["http:", "https:", "src=", "href=", "<script", "<link", "@import", "url(", "NaN", "inf "] {
        assert!(!page.contains(other), "the page has {other}");
    }
}

fn nothing_left_behind(lab: &Lab) {
    let left = fs::read_dir(lab.path("")).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.starts_with(".exuvia-bench") || name.ends_with("out.h5")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_sweep_that_was_interrupted_measures_only_what_is_missing() {
    let lab = slow_lab(20_000);
    let cores = std::thread::available_parallelism().unwrap().get() as u32;
    let threads = format!("1,{}", 2 * cores);
    let sweep = ["strong", "job.toml", "--ranks", "1,2", "--threads", &threads, "--repeat", "3"];
    let file = "exuvia-bench/job-strong.jsonl";
    let mut child = bench(&lab, &sweep).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while lines_of_whole_file(&lab, file) < 3 {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "the sweep has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&[child.id()], "-INT");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(RESUMABLE), "{}", text(&ended));
    let before = fs::read_to_string(lab.path(file)).unwrap();
    let count = before.lines().count();
    assert!((3..12).contains(&count), "{count} points");
    nothing_left_behind(&lab);

    let output = run(&lab, &sweep);
    assert!(text(&output).contains(&format!("{count} of 12 points are already in")), "{}", text(&output));
    let after = fs::read_to_string(lab.path(file)).unwrap();
    assert!(after.starts_with(&before), "points that were there have changed");
    let points = lines(&lab, file);
    let key = |point: &Value| ["ranks", "threads", "repetition"].map(|name| point[name].as_u64().unwrap());
    let keys: Vec<_> = points.iter().map(key).collect();
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 12, "{keys:?}");
    // Every setting has its first run before any setting has its second.
    assert!(keys.iter().map(|[_, _, repetition]| repetition).is_sorted(), "{keys:?}");
    for point in &points {
        let oversubscribed = point["ranks"].as_u64().unwrap() * point["threads"].as_u64().unwrap() > u64::from(cores);
        assert_eq!(point["oversubscribed"].as_bool(), Some(oversubscribed), "{point}");
        assert_eq!(point["schema"], 1);
        assert!(point["in_stages_ns"].as_u64().unwrap() > 0 && point["optimized_tasks"].as_u64().unwrap() > 0);
        assert!(point["in_stages_ns"].as_u64() < point["wall_ns"].as_u64());
    }
    nothing_left_behind(&lab);

    let page = fs::read_to_string(lab.path("exuvia-bench/job-strong.html")).unwrap();
    assert_stands_alone(&page);
    assert_eq!(page.matches("<svg").count(), 3, "speed-up, efficiency, bytes");
    for words in ["ideal", "1 rank x 1 thread, same binary", "oversubscribed", "hollow"] {
        assert!(page.contains(words), "no '{words}'");
    }

    // No work remains, and the same results are shown.
    let output = run(&lab, &[&sweep[..], &["--output", "json"]].concat());
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["rows"].as_array().unwrap().len(), 4);
    assert_eq!(fs::read_to_string(lab.path(file)).unwrap(), after);
    // Results that are not comparable are not mixed.
    let refused = bench(&lab, &[&sweep[..], &["--", "--no-steal"]].concat()).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("other options of exuvia run") && text(&refused).contains("--fresh"));
    assert_eq!(fs::read_to_string(lab.path(file)).unwrap(), after);
}

/// Returns the number of lines that are completely written.
fn lines_of_whole_file(lab: &Lab, file: &str) -> usize {
    fs::read(lab.path(file)).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn every_kind_of_sweep_has_its_points_and_its_page() {
    let lab = slow_lab(2000);
    let page = |kind: &str| {
        let page = fs::read_to_string(lab.path(&format!("exuvia-bench/job-{kind}.html"))).unwrap();
        assert_stands_alone(&page);
        page
    };
    let sweep = |kind: &str, ranks: &str, more: &[&str]| {
        run(&lab, &[&[kind, "job.toml", "--repeat", "1", "--ranks", ranks], more].concat());
        lines(&lab, &format!("exuvia-bench/job-{kind}.jsonl"))
    };

    let weak = sweep("weak", "1,2", &["--index", "n"]);
    let read = |point: &Value| (point["size"].as_u64().unwrap(), point["written_bytes"].as_u64().unwrap());
    let [(1, once), (2, twice)] = [&weak[0], &weak[1]].map(read) else { panic!("{weak:?}") };
    // Compressed and padded chunks are not exactly twice as large.
    assert!(twice > 19 * once / 10 && twice < 21 * once / 10, "{once} {twice}");
    assert!(page("weak").contains("along index n"));

    let metg = sweep("metg", "1", &["--slices", "1,100"]);
    assert_eq!(metg.len(), 3);
    let tasks = |point: &Value| point["baseline_tasks"].as_u64().unwrap() + point["optimized_tasks"].as_u64().unwrap();
    assert!(tasks(&metg[0]) > 20 * tasks(&metg[1]), "{metg:?}");
    assert!(page("metg").contains("METG(50 %)"));

    let tiers = sweep("tiers", "2", &[]);
    let [baseline, optimized, _] = &tiers[..] else { panic!("{tiers:?}") };
    assert_eq!((&baseline["tier"], baseline["optimized_tasks"].as_u64()), (&Value::from("baseline"), Some(0)));
    assert_eq!((&optimized["tier"], optimized["baseline_tasks"].as_u64()), (&Value::from("optimized"), Some(0)));
    assert!(baseline["load"]["baseline"].as_array().unwrap().iter().any(|workers| workers.as_f64() > Some(0.5)));
    assert!(page("tiers").contains("Tiers over time"));

    let io = sweep("io", "1,2", &[]);
    for point in &io {
        for time in ["read_ns", "write_ns", "plain_read_ns", "plain_write_ns"] {
            assert!(point["disk"][time].as_u64() > Some(0), "{point}");
        }
    }
    assert!(page("io").contains("one plain stream"));
    nothing_left_behind(&lab);
}

#[test]
fn what_cannot_be_swept_is_said_before_anything_runs() {
    let lab = slow_lab(2000);
    let refused = |arguments: &[&str], words: &str| {
        let output = bench(&lab, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(words), "no '{words}': {}", text(&output));
    };
    refused(&["weak", "job.toml", "--index", "q"], "no stage of the job has an index 'q'; it has d, n");
    refused(&["strong", "job.toml", "--", "--threads", "4"], "--threads");
    refused(&["weak", "job.toml", "--index", "n", "--ranks", "2,3"], "not a multiple of 2");
    assert!(!lab.path("exuvia-bench").exists());
}
