//! One page about one run: plain HTML with its charts inside, which opens without a network and prints well.

mod charts;

use std::fmt::{Display, Write};

use bytesize::ByteSize;

use super::render::time;
use super::timeline::Timeline;
use super::{Counts, Report};

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;max-width:800px;margin:1.5em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;margin:1.6em 0 .4em;border-bottom:1px solid #ddd}
p{margin:.3em 0}.light{color:#666}
table{border-collapse:collapse;width:100%;font-size:.88em;margin-top:.6em}
th,td{text-align:right;padding:.15em .4em;border-bottom:1px solid #eee;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600}th:first-child,td:first-child{text-align:left}.text th,.text td{text-align:left}
svg{width:100%;height:auto;font:10px system-ui,sans-serif;fill:#222}
.key i{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em;vertical-align:-.1em}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}svg,tr{break-inside:avoid}*{print-color-adjust:exact}}";

/// The page of a run; with a trace it also shows what workers did when.
pub fn html(report: &Report, timeline: Option<&Timeline>) -> String {
    let mut page = Page(String::new());
    let job = escape(&report.job);
    let _ = write!(
        page.0,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{job}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>\n{STYLE}\n</style></head>\n<body>\n<h1>{job}</h1>\n"
    );
    summary(&mut page, report);
    let (_, not_all) = charts::drawn(report);

    page.heading("Time of each rank");
    page.key(&charts::PARTS);
    page.light(match timeline {
        Some(_) => "Of all workers. Other: copying, merging. On the right: in kernels.",
        None => "Of all workers. Other: in stages, not in kernels. Idle: between stages. On the right: in kernels.",
    });
    page.0.push_str(&charts::ranks(report, timeline));
    not_all.iter().for_each(|sentence| page.light(sentence));

    page.heading("Stages and tiers");
    page.light(match timeline {
        Some(_) => "How much of the time workers were in kernels, in the colours above; a black line is a swap.",
        None => "A black line is the swap of a worker. A trace of the run would also show what workers did when.",
    });
    page.0.push_str(&charts::tiers(report, timeline));
    stages(&mut page, report);

    page.heading("Bytes");
    let totals = report.totals();
    page.line(&format!("{} read from files, {} written.", size(totals.read_bytes), size(totals.written_bytes)));
    let moved = charts::moved(report);
    if moved.is_empty() {
        page.light("Nothing was needed that another rank had.");
    } else {
        page.light("What ranks needed of tensors, by reason and by where it was.");
        page.key(&charts::DISTANCES);
        page.0.push_str(&moved);
    }
    kernels(&mut page, report);
    outputs(&mut page, report);
    environment(&mut page, report);
    page.0.push_str("</body></html>\n");
    page.0
}

struct Page(String);

impl Page {
    fn heading(&mut self, text: &str) {
        let _ = writeln!(self.0, "<h2>{}</h2>", escape(text));
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.0, "<p>{}</p>", escape(text));
    }

    fn light(&mut self, text: &str) {
        let _ = writeln!(self.0, "<p class=\"light\">{}</p>", escape(text));
    }

    /// What colours mean.
    fn key(&mut self, colours: &[(&str, &str)]) {
        let one = |(name, colour): &(&str, &str)| format!("<i style=\"background:{colour}\"></i>{}", escape(name));
        let _ = writeln!(self.0, "<p class=\"key\">{}</p>", colours.iter().map(one).collect::<String>());
    }

    fn table(&mut self, class: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let _ = writeln!(self.0, "<table class=\"{class}\"><tr>{}</tr>", cells("th", &mut head.iter().copied()));
        for row in rows {
            let _ = writeln!(self.0, "<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)));
        }
        self.0.push_str("</table>\n");
    }
}

fn summary(page: &mut Page, report: &Report) {
    let (totals, environment) = (report.totals(), &report.environment);
    page.line(&format!(
        "{} in {} on {} rank(s), {} node(s), {} thread(s) each.",
        count(totals.tasks(), "task"),
        time(report.wall_ns),
        environment.ranks,
        environment.nodes,
        environment.threads_per_rank
    ));
    let mut facts = Vec::new();
    facts.extend(report.first_task_ns.map(|ns| format!("First task done after {}", time(ns))));
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
        facts.push(format!("{} taken up from an earlier run", size(report.resumed_bytes)));
    }
    page.line(&format!("{}.", facts.join("; ")));
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
    let row = |stage: &super::StageReport| {
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
    page.table("", &head, report.stages.iter().map(row));
}

fn kernels(page: &mut Page, report: &Report) {
    page.heading("Kernels");
    let head = ["kernel", "bytes", "started on", "compiled in", "optimized in", "compiles", "optimized code"];
    let row = |kernel: &super::KernelReport| {
        vec![
            kernel.kernel.clone(),
            kernel.module_bytes.to_string(),
            kernel.start_compiler.clone(),
            time(kernel.start_compile_ns),
            kernel.optimize_ns.map(time).unwrap_or_default(),
            kernel.optimizing_compiles.to_string(),
            if kernel.cache_hit { "from the cache" } else { "made in this run" }.to_owned(),
        ]
    };
    page.table("", &head, report.kernels.iter().map(row));
    for kernel in &report.kernels {
        let why = kernel.start_reason.iter().chain(&kernel.hints);
        why.for_each(|hint| page.light(&format!("{}: {hint}", kernel.kernel)));
    }
}

fn outputs(page: &mut Page, report: &Report) {
    page.heading("Outputs");
    let row = |output: &super::OutputReport| {
        let shape = format!("{} {:?}", output.dtype, output.shape);
        vec![output.tensor.clone(), output.file.clone(), output.dataset.clone(), shape]
    };
    page.table("text", &["tensor", "file", "dataset", "type and shape"], report.outputs.iter().map(row));
}

fn environment(page: &mut Page, report: &Report) {
    page.heading("Where and with what");
    let environment = &report.environment;
    let mut rows = vec![("exuvia", environment.exuvia.clone()), ("plan", report.plan_hash.clone())];
    rows.push(("tiers", environment.tier_policy.clone()));
    rows.extend(environment.cpus.iter().map(|cpu| ("CPU", cpu.clone())));
    rows.extend(environment.libraries.iter().map(|(name, version)| (name.as_str(), version.trim().to_owned())));
    page.table("text", &["", ""], rows.into_iter().map(|(name, what)| vec![name.to_owned(), what]));
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Text that no part of which is taken for a tag.
fn escape(text: &(impl Display + ?Sized)) -> String {
    let text = text.to_string();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Environment, RankReport, Swap};

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
        assert_eq!(few.matches("<title>swap at ").count(), 6);
        assert_eq!(few.matches(">40 %</text>").count(), 3);
        assert!(!few.contains("ranks are drawn"));
        assert!(page(1000).contains("48 of 1000 ranks are drawn"));
    }
}
