//! The HTML page of a sweep.

use std::collections::BTreeSet;

use crate::report::html::page::Page;
use crate::sweep::charts::SweepCharts;
use crate::sweep::point::{Point, SweepKind};
use crate::sweep::statistics::SweepStatistics;
use crate::text;

/// Renders a page with charts and a table of all points of a sweep.
pub fn page(figures: &SweepStatistics, points: &[Point]) -> String {
    let mut page = Page::new(&format!("{}: {}", figures.job, figures.kind.title()));
    let Some(first) = points.first() else { return page.finish() };
    about(&mut page, figures, points, first);
    let sheet = SweepCharts { figures, cores: first.identity.cores };
    match figures.kind {
        SweepKind::Strong => {
            sheet.speed_up(&mut page);
            sheet.efficiency(&mut page);
            sheet.bytes(&mut page);
        }
        SweepKind::Weak => {
            sheet.efficiency(&mut page);
            sheet.seconds(&mut page);
            sheet.bytes(&mut page);
        }
        SweepKind::Metg => sheet.metg(&mut page),
        SweepKind::Tiers => {
            sheet.tiers(&mut page);
            sheet.timelines(&mut page, points);
        }
        SweepKind::Io => {
            sheet.rates(&mut page, "Reading inputs", |row| row.read);
            sheet.rates(&mut page, "Writing outputs", |row| row.written);
        }
    }
    table(&mut page, figures);
    environment(&mut page, first);
    page.finish()
}

fn about(page: &mut Page, figures: &SweepStatistics, points: &[Point], first: &Point) {
    let (cores, cpu) = (first.identity.cores, &first.identity.cpu);
    let hosts: BTreeSet<&String> = points.iter().flat_map(|point| &point.hosts).collect();
    page.line(&format!(
        "{} on {} of {cores} cores ({cpu}).",
        text::count(points.len() as u64, "run"),
        text::count(hosts.len() as u64, "node")
    ));
    page.line(&format!("Baseline: {}.", figures.baseline));
    page.light(figures.kind.description());
    if let Some(index) = &first.identity.index {
        page.light(&format!(
            "The job grows along index {index}: inputs that have it are repeated along it, so that every rank has the same amount \
             of work as in the baseline."
        ));
    }
    page.light("Marks are medians; bars span the minimum to the maximum of all repetitions.");
}

impl SweepKind {
    fn title(self) -> &'static str {
        match self {
            SweepKind::Strong => "strong scaling",
            SweepKind::Weak => "weak scaling",
            SweepKind::Metg => "minimum effective task granularity",
            SweepKind::Tiers => "tiers",
            SweepKind::Io => "input and output",
        }
    }

    fn description(self) -> &'static str {
        match self {
            SweepKind::Strong | SweepKind::Weak => {
                "Times span the start of the first stage to the end of the last one, with outputs on disk. They exclude the start of \
                 MPI and of the program, which the table shows. Optimized code is in the cache."
            }
            SweepKind::Metg => {
                "Granularity is the time of all workers divided by the number of tasks. Efficiency is the shortest time divided by \
                 the time. Optimized code is in the cache."
            }
            SweepKind::Tiers => "Times span the start of the program to the end of the last stage. The cache is cold.",
            SweepKind::Io => {
                "Rates are those of the slowest rank: reads include decompression, and writes end when the data is on disk. For \
                 comparison, one process streams the same number of bytes in the folder of the outputs after each run. Inputs are \
                 evicted from this node's page cache before each run."
            }
        }
    }
}

fn table(page: &mut Page, figures: &SweepStatistics) {
    page.heading(&format!("Results, relative to {}", figures.baseline));
    let (head, rows) = figures.table();
    page.numbers(&head, rows);
    if let Some(legend) = figures.legend() {
        page.light(legend);
    }
}

fn environment(page: &mut Page, first: &Point) {
    page.heading("Environment");
    let identity = &first.identity;
    let mut rows = vec![("CPU", identity.cpu.clone()), ("launcher", identity.launcher.clone())];
    rows.push(("program", identity.program_hash.clone()));
    rows.push(("job", identity.job_hash.clone()));
    if !identity.options.is_empty() {
        rows.push(("options", identity.options.join(" ")));
    }
    rows.extend(first.versions.iter().map(|(name, version)| (name.as_str(), version.trim().to_owned())));
    page.words(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
}
