use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;

use super::Report;

/// The end of a run in a few lines for a person in directory `here`.
pub fn summary(report: &Report, here: &Path) -> String {
    let mut text = String::new();
    let totals = report.totals();
    let seconds = report.wall_ns as f64 / 1e9;
    let environment = &report.environment;
    line(
        &mut text,
        "ranks",
        format!(
            "{} on {} node(s), {} thread(s) each",
            environment.ranks, environment.nodes, environment.threads_per_rank
        ),
    );
    let tiers = format!("{} baseline + {} optimized", totals.baseline_tasks, totals.optimized_tasks);
    line(&mut text, "tasks", format!("{} ({tiers}) in {}", totals.tasks(), time(report.wall_ns)));
    if report.resumed_bytes + report.resumed_tasks > 0 {
        let size = ByteSize::b(report.resumed_bytes).display().iec();
        let tasks = match report.resumed_tasks {
            0 => String::new(),
            tasks => format!(" and the partial results of {tasks} tasks"),
        };
        line(&mut text, "resumed", format!("{size} of tensors{tasks} from an earlier run"));
    }
    for death in &report.deaths {
        let went_on = match death.first_task_ns.and_then(|first| first.checked_sub(death.at_ns)) {
            Some(ns) => format!(", the next task was done {} later", time(ns)),
            None => String::new(),
        };
        line(
            &mut text,
            "died",
            format!("rank {} on {} after {}{went_on}", death.rank, death.hostname, time(death.at_ns)),
        );
    }
    if let Some(iterations) = report.ranks.first().and_then(|rank| rank.iterations) {
        line(&mut text, "iterated", format!("{iterations} time(s)"));
    }
    if let Some(first) = report.first_task_ns {
        line(&mut text, "first task", format!("done {} after the process started", time(first)));
    }
    for kernel in &report.kernels {
        let mut what = match kernel.start_compile_ns {
            0 => "started on optimized code".to_owned(),
            ns => format!("{} in {}", kernel.start_compiler, time(ns)),
        };
        if let Some(reason) = &kernel.start_reason {
            let _ = write!(what, " ({reason})");
        }
        match (kernel.cache_hit, kernel.optimize_ns) {
            (true, _) => what.push_str(", from the cache"),
            (false, Some(ns)) => {
                let _ = write!(what, ", optimized in {} ({} compile(s))", time(ns), kernel.optimizing_compiles);
            }
            (false, None) => {}
        }
        line(&mut text, &kernel.kernel, what);
        for hint in &kernel.hints {
            line(&mut text, "hint", hint.clone());
        }
    }
    let swaps: Vec<_> = report.ranks.iter().flat_map(|rank| &rank.swaps).collect();
    if let (Some(first), Some(longest)) = (swaps.iter().map(|s| s.at_ns).min(), swaps.iter().map(|s| s.held_ns).max()) {
        let held = format!("{} worker(s), the first {} in, held {} at most", swaps.len(), time(first), time(longest));
        line(&mut text, "swapped", held);
    }
    line(
        &mut text,
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
        line(&mut text, "moved", format!("{}; {between} between nodes", reasons.join(", ")));
    }
    if totals.steals > 0 {
        let what = format!("{} time(s) by ranks without work, {} slices", totals.steals, totals.stolen_slices);
        line(&mut text, "stolen", what);
    }
    for output in &report.outputs {
        let file = Path::new(&output.file);
        let file = file.strip_prefix(here).unwrap_or(file).display();
        let what = format!("{file}:{} {} {:?}", output.dataset, output.dtype, output.shape);
        line(&mut text, "wrote", what);
    }
    text
}

fn line(text: &mut String, label: &str, what: String) {
    let _ = writeln!(text, "{label:>10}  {what}");
}

/// Nanoseconds in three significant digits and the unit that suits them.
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
