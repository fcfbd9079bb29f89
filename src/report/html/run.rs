//! The page of one run.

use crate::report::html::figures;
use crate::report::html::page::{Page, size};
use crate::report::record::{Counts, KernelReport, OutputReport, RankReport, Report, StageReport};
use crate::report::render::time;
use crate::report::timeline::Timeline;
use crate::text::count;

/// Renders the page of a run; with a trace, it contains a timeline of the workers.
pub fn html(report: &Report, timeline: Option<&Timeline>) -> String {
    let mut page = Page::new(&report.job);
    summary(&mut page, report);

    page.heading("Time by rank");
    page.light("The time of an average worker of each rank. On the right: the part inside kernels. Outside stages: start, time between stages, publishing.");
    let (chart, not_all) = figures::ranks(report);
    page.chart(&chart);
    not_all.iter().for_each(|sentence| page.light(sentence));
    ranks(&mut page, report);

    page.heading("Stages and tiers");
    page.light(match timeline {
        Some(_) => "The load of each worker in kernels, in the colours above. A black line marks a swap to optimized code.",
        None => "A black line marks the swap of a worker to optimized code. Add the trace of the run (--trace) to see a timeline of each worker.",
    });
    let (chart, not_all) = figures::tiers(report, timeline);
    page.chart(&chart);
    not_all.iter().for_each(|sentence| page.light(sentence));
    stages(&mut page, report);

    page.heading("Bytes");
    let totals = report.totals();
    page.line(&format!("{} read from files, {} written.", size(totals.read_bytes), size(totals.written_bytes)));
    match figures::moved(report) {
        None => page.light("No rank needed data of another rank."),
        Some(chart) => {
            page.light("Tensor data that ranks needed from memory, by reason and by distance.");
            page.chart(&chart);
        }
    }
    kernels(&mut page, report);
    outputs(&mut page, report);
    environment(&mut page, report);
    page.finish()
}

fn summary(page: &mut Page, report: &Report) {
    let (totals, environment) = (report.totals(), &report.environment);
    page.line(&format!(
        "{} in {} on {}, {}, {} each.",
        count(totals.tasks(), "task"),
        time(report.wall_ns),
        count(u64::from(environment.ranks), "rank"),
        count(u64::from(environment.nodes), "node"),
        count(u64::from(environment.threads_per_rank), "thread")
    ));
    let mut facts = Vec::new();
    facts.extend(report.first_task_ns.map(|ns| format!("first task completed after {}", time(ns))));
    let iterations = report.ranks.first().and_then(|rank| rank.iterations);
    facts.extend(iterations.map(|iterations| count(iterations, "iteration")));
    let swaps = report.ranks.iter().map(|rank| rank.swaps.len() as u64).sum();
    facts.push(count(swaps, "swap"));
    let seconds = (report.wall_ns as f64 / 1e9).max(1e-9);
    facts.push(format!("{}/s through kernels", size((totals.processed_bytes as f64 / seconds) as u64)));
    facts.push(format!("{} moved between ranks", size(totals.moved_bytes())));
    if totals.steals > 0 {
        facts.push(format!("{} slices stolen in {} grants", totals.stolen_slices, totals.steals));
    }
    if report.resumed_bytes > 0 {
        facts.push(format!("{} resumed from an earlier run", size(report.resumed_bytes)));
    }
    if report.resumed_tasks > 0 {
        facts.push(format!("{} resumed from an earlier run", count(report.resumed_tasks, "task")));
    }
    page.line(&format!("{}.", facts.join("; ")));
    for death in &report.deaths {
        let next = death.first_task_ns.and_then(|first| first.checked_sub(death.at_ns));
        let next = next.map(|ns| format!("; the next task completed {} later", time(ns))).unwrap_or_default();
        let (rank, host, at) = (death.rank, &death.hostname, time(death.at_ns));
        page.line(&format!("Rank {rank} on {host} failed after {at}, and the others continued{next}."));
    }
    if !report.deaths.is_empty() {
        page.light("Interrupted stages are counted from then on. Ranks are renumbered.");
    }
}

/// The most ranks in the table.
const RANKS: usize = 64;

fn ranks(page: &mut Page, report: &Report) {
    let head = ["rank", "host", "tasks", "in kernels", "slices stolen", "swaps", "moved", "sent", "received"];
    let row = |rank: &RankReport| {
        let mut counts = Counts::default();
        rank.stages.iter().for_each(|stage| counts.add(&stage.counts));
        let messages = |messages: u64, bytes: u64| format!("{} in {messages}", size(bytes));
        vec![
            rank.rank.to_string(),
            rank.hostname.clone(),
            counts.tasks().to_string(),
            time(counts.baseline_ns + counts.optimized_ns),
            counts.stolen_slices.to_string(),
            rank.swaps.len().to_string(),
            size(counts.moved_bytes()),
            messages(rank.fabric.messages_sent, rank.fabric.bytes_sent),
            messages(rank.fabric.messages_received, rank.fabric.bytes_received),
        ]
    };
    page.numbers(&head, report.ranks.iter().take(RANKS).map(row));
    page.light("Moved: tensor bytes from other ranks. Sent and received: all messages.");
    if report.ranks.len() > RANKS {
        page.light(&format!("The first {RANKS} of {} ranks; the report contains all.", report.ranks.len()));
    }
}

fn stages(page: &mut Page, report: &Report) {
    let head = [
        "stage",
        "began",
        "took",
        "baseline tasks",
        "optimized tasks",
        "in kernels",
        "read",
        "moved",
        "written",
        "stolen slices",
    ];
    let row = |stage: &StageReport| {
        let counts: &Counts = &stage.counts;
        vec![
            stage.stage.clone(),
            stage.started_ns.map(time).unwrap_or_default(),
            time(stage.wall_ns),
            counts.baseline_tasks.to_string(),
            counts.optimized_tasks.to_string(),
            time(counts.baseline_ns + counts.optimized_ns),
            size(counts.read_bytes),
            size(counts.moved_bytes()),
            size(counts.written_bytes),
            counts.stolen_slices.to_string(),
        ]
    };
    page.numbers(&head, report.stages.iter().map(row));
}

fn kernels(page: &mut Page, report: &Report) {
    page.heading("Kernels");
    let head = ["kernel", "bytes", "started on", "compiled in", "optimized in", "compiles", "optimized code"];
    let row = |kernel: &KernelReport| {
        vec![
            kernel.kernel.clone(),
            kernel.module_bytes.to_string(),
            kernel.start_compiler.clone(),
            if kernel.start_compile_ns > 0 { time(kernel.start_compile_ns) } else { "-".to_owned() },
            kernel.optimize_ns.map_or("-".to_owned(), time),
            kernel.optimizing_compiles.to_string(),
            if kernel.cache_hit { "from the cache" } else { "compiled in this run" }.to_owned(),
        ]
    };
    page.numbers(&head, report.kernels.iter().map(row));
    for kernel in &report.kernels {
        let why = kernel.start_reason.iter().chain(&kernel.hints);
        why.for_each(|hint| page.light(&format!("{}: {hint}", kernel.kernel)));
    }
}

fn outputs(page: &mut Page, report: &Report) {
    page.heading("Outputs");
    let row = |output: &OutputReport| {
        let shape = format!("{} {:?}", output.dtype, output.shape);
        vec![output.tensor.clone(), output.file.clone(), output.dataset.clone(), shape]
    };
    page.words(&["tensor", "file", "dataset", "type and shape"], report.outputs.iter().map(row));
}

fn environment(page: &mut Page, report: &Report) {
    page.heading("Environment");
    let environment = &report.environment;
    let mut rows = vec![("exuvia", environment.exuvia.clone()), ("plan", report.plan_hash.clone())];
    rows.push(("tiers", environment.tier_policy.clone()));
    rows.extend(environment.cpus.iter().map(|cpu| ("CPU", cpu.clone())));
    rows.extend(environment.libraries.iter().map(|(name, version)| (name.as_str(), version.trim().to_owned())));
    page.words(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::record::{Environment, RankReport, Swap};

    #[test]
    fn a_page_is_whole_even_of_an_empty_run_and_names_are_no_tags() {
        let report = Report::join("<b>&\"".into(), "h".into(), Environment::default(), 0, Vec::new());
        let page = html(&report, None);
        assert!(page.contains("<h1>&lt;b&gt;&amp;&quot;</h1>") && !page.contains("<b>"));
        assert!(page.ends_with("</body></html>\n") && !page.contains("NaN"));
    }

    #[test]
    fn every_swap_and_every_rank_is_drawn() {
        let rank = |rank| {
            let swap = Swap { stage: "s".into(), worker: 0, at_ns: 5_000, held_ns: 1, after_tasks: 1 };
            let mut share = RankReport { rank, swaps: vec![swap; 2], ..RankReport::default() };
            share.stage("s").wall_ns = 9_000;
            share.stage("s").counts.optimized_ns = 4_000;
            share
        };
        let environment = || Environment { threads_per_rank: 1, ..Environment::default() };
        let page = |ranks| {
            html(&Report::join("j".into(), "h".into(), environment(), 10_000, (0..ranks).map(rank).collect()), None)
        };
        let few = page(3);
        assert_eq!(few.matches("stroke=\"#000000\"").count(), 6);
        assert_eq!(few.matches("40 %").count(), 3);
        assert!(!few.contains("The chart shows"));
        assert!(page(1000).contains("The chart shows 48 of 1000 ranks"));
    }
}
