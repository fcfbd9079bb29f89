//! The summary of a run as text.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;

use crate::report::record::{Counts, KernelReport, Report};
use crate::text::count;

/// Summarizes a run in a few lines, with paths relative to `here`.
pub fn summary(report: &Report, here: &Path) -> String {
    let mut text = String::new();
    let totals = report.totals();
    let environment = &report.environment;
    let nodes = count(u64::from(environment.nodes), "node");
    let threads = count(u64::from(environment.threads_per_rank), "thread");
    line(&mut text, "ranks", format!("{} on {nodes}, {threads} each", environment.ranks));
    let tiers = format!("{} baseline + {} optimized", totals.baseline_tasks, totals.optimized_tasks);
    line(&mut text, "tasks", format!("{} ({tiers}) in {}", totals.tasks(), time(report.wall_ns)));
    progress(&mut text, report);
    report.kernels.iter().for_each(|kernel| describe_kernel(&mut text, kernel));
    let swaps: Vec<_> = report.ranks.iter().flat_map(|rank| &rank.swaps).collect();
    if let (Some(first), Some(longest)) = (swaps.iter().map(|s| s.at_ns).min(), swaps.iter().map(|s| s.held_ns).max()) {
        let workers = count(swaps.len() as u64, "worker");
        line(
            &mut text,
            "tier-up",
            format!("{workers}, the first after {}, longest pause {}", time(first), time(longest)),
        );
    }
    transfers(&mut text, report, &totals);
    if totals.steals > 0 {
        let (grants, slices) = (count(totals.steals, "grant"), count(totals.stolen_slices, "slice"));
        line(&mut text, "stolen", format!("{slices} in {grants}"));
    }
    for output in &report.outputs {
        let file = Path::new(&output.file);
        let file = file.strip_prefix(here).unwrap_or(file).display();
        line(&mut text, "output", format!("{file}:{} {} {:?}", output.dataset, output.dtype, output.shape));
    }
    text
}

/// Resumed work, failed ranks, iterations and the first task.
fn progress(text: &mut String, report: &Report) {
    if report.resumed_bytes + report.resumed_tasks > 0 {
        let size = ByteSize::b(report.resumed_bytes).display().iec();
        let tasks = match report.resumed_tasks {
            0 => String::new(),
            tasks => format!(" and the partial results of {}", count(tasks, "task")),
        };
        line(text, "resumed", format!("{size} of tensors{tasks} from an earlier run"));
    }
    for death in &report.deaths {
        let continued = match death.first_task_ns.and_then(|first| first.checked_sub(death.at_ns)) {
            Some(ns) => format!(", next task completed {} later", time(ns)),
            None => String::new(),
        };
        line(
            text,
            "failed",
            format!("rank {} on {} after {}{continued}", death.rank, death.hostname, time(death.at_ns)),
        );
    }
    if let Some(iterations) = report.ranks.first().and_then(|rank| rank.iterations) {
        line(text, "iterations", iterations.to_string());
    }
    if let Some(first) = report.first_task_ns {
        line(text, "first task", format!("completed {} after process start", time(first)));
    }
}

fn describe_kernel(text: &mut String, kernel: &KernelReport) {
    let mut description = match kernel.start_compile_ns {
        0 => "started on optimized code".to_owned(),
        ns => format!("{} in {}", kernel.start_compiler, time(ns)),
    };
    if let Some(reason) = &kernel.start_reason {
        let _ = write!(description, " ({reason})");
    }
    match (kernel.cache_hit, kernel.optimize_ns) {
        (true, _) => description.push_str(", from the cache"),
        (false, Some(ns)) => {
            let compiles = count(u64::from(kernel.optimizing_compiles), "compilation");
            let _ = write!(description, ", optimized in {} ({compiles})", time(ns));
        }
        (false, None) => {}
    }
    line(text, &kernel.kernel, description);
    for hint in &kernel.hints {
        line(text, "hint", hint.clone());
    }
}

fn transfers(text: &mut String, report: &Report, totals: &Counts) {
    let seconds = report.wall_ns as f64 / 1e9;
    line(
        text,
        "bytes",
        format!(
            "{} read, {} moved, {} written; {}/s through kernels",
            ByteSize(totals.read_bytes),
            ByteSize(totals.moved_bytes()),
            ByteSize(totals.written_bytes),
            ByteSize((totals.processed_bytes as f64 / seconds.max(1e-9)) as u64),
        ),
    );
    if totals.moved_bytes() > 0 {
        let reasons = totals.moved.by_reason().into_iter().filter(|(_, bytes)| bytes.moved() > 0);
        let reasons: Vec<_> = reasons.map(|(reason, bytes)| format!("{} {reason}", ByteSize(bytes.moved()))).collect();
        let between = ByteSize(totals.moved.total().network);
        line(text, "moved", format!("{}; {between} between nodes", reasons.join(", ")));
    }
}

fn line(text: &mut String, label: &str, value: String) {
    let _ = writeln!(text, "{label:>10}  {value}");
}

/// Formats nanoseconds with three significant digits in a suitable unit.
pub(super) fn time(ns: u64) -> String {
    let (value, unit) = match Duration::from_nanos(ns) {
        d if d >= Duration::from_secs(1) => (d.as_secs_f64(), "s"),
        d if d >= Duration::from_millis(1) => (d.as_secs_f64() * 1e3, "ms"),
        d => (d.as_secs_f64() * 1e6, "us"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_show_three_digits() {
        assert_eq!(time(1_234_567_890), "1.23 s");
        assert_eq!(time(45_678_900), "45.7 ms");
        assert_eq!(time(999), "1.00 us");
        assert_eq!(time(123_456_000_000), "123 s");
    }
}
