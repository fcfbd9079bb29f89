//! The page of a sweep.

use std::collections::BTreeSet;

use super::{Kind, Point};
use crate::report::html::page::Page;
use crate::sweep::charts::SweepCharts;
use crate::sweep::statistics::Figures;

/// A page with charts and figures of one sweep, of all the points that there are.
pub fn page(figures: &Figures, points: &[Point]) -> String {
    let mut page = Page::new(&format!("{}: {}", figures.job, figures.kind.title()));
    let Some(first) = points.first() else { return page.finish() };
    about(&mut page, figures, points, first);
    let sheet = SweepCharts { figures, cores: first.identity.cores };
    match figures.kind {
        Kind::Strong => {
            sheet.speed_up(&mut page);
            sheet.efficiency(&mut page);
            sheet.bytes(&mut page);
        }
        Kind::Weak => {
            sheet.efficiency(&mut page);
            sheet.seconds(&mut page);
            sheet.bytes(&mut page);
        }
        Kind::Metg => sheet.metg(&mut page),
        Kind::Tiers => {
            sheet.tiers(&mut page);
            sheet.timelines(&mut page, points);
        }
        Kind::Io => {
            sheet.rates(&mut page, "Reading inputs", |row| row.read);
            sheet.rates(&mut page, "Writing outputs", |row| row.written);
        }
    }
    table(&mut page, figures);
    environment(&mut page, first);
    page.finish()
}

fn about(page: &mut Page, figures: &Figures, points: &[Point], first: &Point) {
    let (cores, cpu) = (first.identity.cores, &first.identity.cpu);
    let hosts: BTreeSet<&String> = points.iter().flat_map(|point| &point.hosts).collect();
    page.line(&format!("{} runs on {} node(s) of {cores} cores ({cpu}).", points.len(), hosts.len()));
    page.line(&format!("Baseline: {}.", figures.baseline));
    page.light(figures.kind.what());
    if let Some(index) = &first.identity.index {
        page.light(&format!(
            "The job grows along index {index}: inputs that have it are repeated along it, so that every rank has as much to do \
             as the baseline."
        ));
    }
    page.light("Marks are medians, bars from the least to the most of all repetitions.");
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Kind::Strong => "strong scaling",
            Kind::Weak => "weak scaling",
            Kind::Metg => "how short tasks may be",
            Kind::Tiers => "tiers",
            Kind::Io => "reading and writing",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Kind::Strong | Kind::Weak => {
                "Times are from the beginning of the first stage to the end of the last, outputs on disk; the start of MPI and of \
                 the program is left out (the table has it). Optimized code is in the cache."
            }
            Kind::Metg => {
                "Granularity is the time of all workers over the number of tasks; efficiency is the least time over the time. \
                 Optimized code is in the cache."
            }
            Kind::Tiers => "Times are from the start of the program to the end of the last stage; the cache is cold.",
            Kind::Io => {
                "Rates are of the rank that took longest: reading with decompression, writing until it is on disk. Beside them is \
                 one plain stream of as many bytes, by one process, right after the run, in the folder of the outputs. Inputs are \
                 taken out of this node's page cache before each run."
            }
        }
    }
}

fn table(page: &mut Page, figures: &Figures) {
    page.heading(&format!("Figures, over {}", figures.baseline));
    let (head, rows) = figures.table();
    page.numbers(&head, rows);
    if let Some(legend) = figures.legend() {
        page.light(legend);
    }
}

fn environment(page: &mut Page, first: &Point) {
    page.heading("Where and with what");
    let identity = &first.identity;
    let mut rows = vec![("CPU", identity.cpu.clone()), ("ranks are started by", identity.launcher.clone())];
    rows.push(("program", identity.program_hash.clone()));
    rows.push(("job", identity.job_hash.clone()));
    if !identity.options.is_empty() {
        rows.push(("options", identity.options.join(" ")));
    }
    rows.extend(first.versions.iter().map(|(name, version)| (name.as_str(), version.trim().to_owned())));
    page.words(&[], rows.into_iter().map(|(name, what)| vec![name.to_owned(), what]));
}
