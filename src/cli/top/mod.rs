//! `exuvia top`.

mod terminal;

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};
use console::measure_text_width;
use serde::Serialize;

use crate::cli::job_selector;
use crate::cli::output::{Output, print_json};
use crate::cli::top::terminal::{Screen, TerminalSize};
use crate::exec::ExitCode;
use crate::live::{self, RankSnapshot, Snapshot};
use crate::slurm::Record;
use crate::text::{self, count};

/// The refresh interval.
const REFRESH: Duration = Duration::from_millis(500);
/// A rank without a report for so long is between stages or waits in a collective operation.
const SILENT_NS: u64 = 3_000_000_000;

/// Arguments of `exuvia top`.
#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// Name, job file, Slurm id or submission record of a running job [default: all your running jobs]
    job: Option<String>,
    /// Print the state once and exit
    #[arg(long)]
    once: bool,
    /// Output format; json prints the state once
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The value that `--output json` prints.
#[derive(Debug, Serialize)]
struct Top<'a> {
    schema: u32,
    runs: &'a [Snapshot],
}

pub(super) fn top(arguments: &TopArguments) -> ExitCode {
    let Some(folder) = live::folder() else {
        eprintln!("error: neither XDG_STATE_HOME nor HOME is set, so running jobs cannot be found");
        return ExitCode::Environment;
    };
    let target = arguments.job.as_deref();
    let ids = target.map(submitted).unwrap_or_default();
    let list = || {
        let mut runs = live::list(&folder);
        runs.retain(|run| target.is_none_or(|target| matches(run, target, &ids)));
        runs
    };
    let runs = list();
    let on_terminal = std::io::stdout().is_terminal();
    match arguments.output {
        _ if runs.is_empty() => return no_runs(target, &folder),
        Output::Json => print_json(&Top { schema: 1, runs: &runs }),
        Output::Human if arguments.once || !on_terminal => {
            print!("{}", render(&runs, TerminalSize::UNLIMITED));
        }
        Output::Human => match watch(list) {
            Ok(true) => {}
            Ok(false) => println!("All jobs have ended."),
            Err(error) => {
                eprintln!("error: cannot draw on the terminal: {error}");
                return ExitCode::Failed;
            }
        },
    }
    ExitCode::Done
}

/// Draws the runs until there are none or a key is pressed; returns whether runs are left.
fn watch(list: impl Fn() -> Vec<Snapshot>) -> std::io::Result<bool> {
    let screen = Screen::open()?;
    loop {
        let runs = list();
        if runs.is_empty() {
            return Ok(false);
        }
        screen.draw(&render(&runs, screen.size()))?;
        if !screen.wait(REFRESH)? {
            return Ok(true);
        }
    }
}

/// The Slurm ids of the submissions that `target` names, or of the record at this path.
fn submitted(target: &str) -> Vec<String> {
    let record = std::fs::read(target).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    let records = job_selector::records(Some(target)).unwrap_or_default();
    record.into_iter().chain(records).map(|record| record.id).collect()
}

fn matches(run: &Snapshot, target: &str, ids: &[String]) -> bool {
    let of_job = |id: &str| run.slurm_job.as_deref().is_some_and(|job| job == id || job.split('_').next() == Some(id));
    let file = std::path::absolute(target).unwrap_or_default();
    run.job == target || run.file == file || of_job(target) || ids.iter().any(|id| of_job(id))
}

fn no_runs(target: Option<&str>, folder: &Path) -> ExitCode {
    match target {
        Some(target) => eprintln!("error: no running job '{target}'"),
        None => eprintln!("error: none of your jobs is running"),
    }
    eprintln!(
        "help: a run appears half a second after its start, on nodes that share {}; `exuvia status` lists submitted jobs",
        folder.display()
    );
    ExitCode::Usage
}

/// Formats one run with as many of its ranks as fit, or several runs with one line each.
fn render(runs: &[Snapshot], room: TerminalSize) -> String {
    text::lines(&match runs {
        [run] => details(run, room),
        runs => overview(runs, room),
    })
}

fn overview(runs: &[Snapshot], room: TerminalSize) -> String {
    let head = ["JOB", "SLURM", "HOST", "RANKS", "TIME", "STAGE", "DONE", "RATE", "MEMORY"];
    let row = |run: &Snapshot| {
        let (stage, done) = match run.stages.first() {
            Some(stage) => (stage.stage.clone(), percent(stage.processed_bytes, stage.bytes)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        [
            run.job.clone(),
            run.slurm_job.clone().unwrap_or_else(|| "-".to_owned()),
            run.rank_0.hostname.clone(),
            run.ranks.len().to_string(),
            seconds(run.elapsed_ns),
            stage,
            done,
            rate(run.ranks.iter().map(|rank| rank.bytes_per_s).sum()),
            size(run.ranks.iter().map(|rank| rank.share.memory_bytes).sum()),
        ]
    };
    table(&head, &[0, 1, 2, 5], &[2, 8, 1, 7, 3, 5], room, runs.iter().map(row))
        + "exuvia top JOB shows one job in detail\n"
}

fn details(run: &Snapshot, room: TerminalSize) -> String {
    let sum = |of: fn(&RankSnapshot) -> u64| run.ranks.iter().map(of).sum::<u64>();
    let slurm = run.slurm_job.as_ref().map(|id| format!(" (Slurm {id})")).unwrap_or_default();
    let ranks = count(run.ranks.len() as u64, "rank");
    let mut header = vec![
        format!("{}{slurm}: {ranks} on {}", run.job, count(u64::from(run.nodes), "node")),
        format!("{} each", count(u64::from(run.threads_per_rank), "thread")),
    ];
    header.extend((run.deaths > 0).then(|| format!("{} failed", run.deaths)));
    header.push(seconds(run.elapsed_ns));
    let iteration =
        run.iteration.map(|iteration| format!("iteration {} of at most {}", iteration.done + 1, iteration.most));
    let stage = |stage: &live::StageSnapshot| {
        format!("{} {} of {}", stage.stage, percent(stage.processed_bytes, stage.bytes), count(stage.blocks, "block"))
    };
    let mut current: Vec<String> = iteration.into_iter().chain(run.stages.iter().map(stage)).collect();
    if current.is_empty() {
        current.push("between stages".to_owned());
    }
    let tasks = sum(|rank| rank.share.baseline_tasks + rank.share.optimized_tasks);
    let optimized = percent(sum(|rank| rank.share.optimized_tasks), tasks);
    let so_far = [
        format!("{} ({optimized} on optimized code)", count(tasks, "task")),
        format!("{} through kernels now", rate(run.ranks.iter().map(|rank| rank.bytes_per_s).sum())),
        format!("{} read", size(sum(|rank| rank.share.read_bytes))),
        format!("{} moved", size(sum(|rank| rank.share.moved_bytes))),
        format!("{} written", size(sum(|rank| rank.share.written_bytes))),
        format!("{} in memory", size(sum(|rank| rank.share.memory_bytes))),
    ];
    let text = [&header[..], &current, &so_far].map(|parts| wrapped(parts, room.columns)).concat() + "\n";
    // The ranks get at least half of a small window.
    let mut text: String = text.split_inclusive('\n').take(room.lines / 2).collect();
    let head = ["RANK", "HOST", "BLOCKS", "QUEUE", "TIER", "TASKS", "STOLEN", "RATE", "MOVED", "MEMORY", ""];
    let lines = room.lines.saturating_sub(text.lines().count() + 1);
    let shown = if run.ranks.len() <= lines { run.ranks.len() } else { lines.saturating_sub(1) };
    let rows = run.ranks.iter().take(shown).map(|rank| row(rank, run.elapsed_ns));
    text += &table(&head, &[1, 4, 10], &[1, 8, 6, 3, 9, 5, 2, 4], room, rows);
    if run.ranks.len() > shown {
        text += &format!("and {}\n", count((run.ranks.len() - shown) as u64, "more rank"));
    }
    text
}

/// Joins the parts into lines of at most `columns` columns; a longer part has its own line.
fn wrapped(parts: &[String], columns: usize) -> String {
    let (mut text, mut width) = (String::new(), 0);
    for part in parts {
        let wanted = measure_text_width(part);
        if text.is_empty() {
            width = wanted;
        } else if width + 3 + wanted <= columns {
            text += ", ";
            width += 2 + wanted;
        } else {
            text += ",\n";
            width = wanted;
        }
        text += part;
    }
    text + "\n"
}

fn row(rank: &RankSnapshot, now_ns: u64) -> [String; 11] {
    let share = &rank.share;
    let sum = |of: fn(&live::StageShare) -> u64| share.stages.iter().map(of).sum::<u64>();
    let (done, blocks) = (sum(|stage| stage.blocks_done), sum(|stage| stage.blocks));
    // Blocks in memory, and blocks still to be fetched.
    let in_memory = sum(|stage| stage.blocks_in_memory);
    let waiting = blocks.saturating_sub(done + in_memory);
    let tier = match share.stages.iter().filter(|stage| stage.optimized).count() {
        _ if share.stages.is_empty() => "-",
        0 => "baseline",
        optimized if optimized == share.stages.len() => "optimized",
        _ => "both",
    };
    let silent_ns = now_ns.saturating_sub(share.at_ns);
    [
        rank.rank.to_string(),
        rank.hostname.clone(),
        format!("{done}/{blocks}"),
        format!("{in_memory}+{waiting}"),
        tier.to_owned(),
        (share.baseline_tasks + share.optimized_tasks).to_string(),
        share.stolen_slices.to_string(),
        rate(rank.bytes_per_s),
        size(share.moved_bytes),
        size(share.memory_bytes),
        if silent_ns > SILENT_NS { format!("silent for {}", seconds(silent_ns)) } else { String::new() },
    ]
}

/// Formats a table. All columns but the `left` ones are numbers, aligned right. If the table is too wide, columns are
/// hidden in the order of `spare`.
fn table<const N: usize>(
    head: &[&str; N],
    left: &[usize],
    spare: &[usize],
    room: TerminalSize,
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut().filter(|column| !left.contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.trim_fmt();
    for number in spare {
        if text.lines().all(|line| measure_text_width(line) <= room.columns) {
            break;
        }
        if let Some(column) = table.column_mut(*number) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
        text = table.trim_fmt();
    }
    text + "\n"
}

fn percent(part: u64, whole: u64) -> String {
    (100 * part).checked_div(whole).map_or("-".to_owned(), |percent| format!("{percent} %"))
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", ByteSize(bytes_per_s as u64))
}

fn seconds(ns: u64) -> String {
    humantime::format_duration(Duration::from_secs(ns / 1_000_000_000)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Share, StageShare, StageSnapshot};

    fn run(ranks: u32) -> Snapshot {
        let rank = |rank: u32| {
            let stage = StageShare { blocks_done: 3, blocks: 10, blocks_in_memory: 2, ..StageShare::default() };
            let at_ns = if rank == 0 { 9_500_000_000 } else { 1_000_000_000 };
            let share =
                Share { at_ns, baseline_tasks: 30, optimized_tasks: 10, stages: vec![stage], ..Share::default() };
            RankSnapshot { rank, hostname: "node".to_owned(), bytes_per_s: 2048.0, share }
        };
        Snapshot {
            job: "heat".to_owned(),
            file: "/a/heat.toml".into(),
            slurm_job: Some("7_2".to_owned()),
            elapsed_ns: 10_000_000_000,
            nodes: 1,
            threads_per_rank: 1,
            stages: vec![StageSnapshot { stage: "step".to_owned(), blocks: 20, bytes: 100, processed_bytes: 30 }],
            ranks: (0..ranks).map(rank).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_run_is_shown_with_its_ranks() {
        let text = details(&run(2), TerminalSize::UNLIMITED);
        for part in [
            "heat (Slurm 7_2): 2 ranks on 1 node, 1 thread each, 10s",
            "step 30 % of 20 blocks",
            "80 tasks (25 % on optimized code), 4.0 KiB/s through kernels now",
            "3/10    2+5  baseline",
            "silent for 9s",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(text.matches("silent").count(), 1);
        assert!(render(&[run(1), run(2)], TerminalSize::UNLIMITED).contains("exuvia top JOB"));
    }

    #[test]
    fn a_small_window_shows_the_most_important_columns() {
        let mut iterated = run(100);
        iterated.iteration = Some(live::Iteration { done: 41, most: 1_000_000 });
        for (columns, lines) in [(120, 40), (80, 24), (40, 10)] {
            for text in [
                details(&iterated, TerminalSize { columns, lines }),
                overview(&[run(1), run(2)], TerminalSize { columns, lines }),
            ] {
                assert!(text.lines().all(|line| measure_text_width(line) <= columns), "{columns}:\n{text}");
                assert!(text.lines().count() <= lines, "{lines}:\n{text}");
            }
        }
        let text = details(&iterated, TerminalSize { columns: 40, lines: 12 });
        for part in ["heat (Slurm 7_2): 100 ranks on 1 node,\n", "2.0 KiB/s  silent for 9s\n", "and 96 more ranks"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        // All ranks are shown if they fit.
        assert_eq!(details(&run(3), TerminalSize { columns: 120, lines: 10 }).matches("3/10").count(), 3);
    }

    #[test]
    fn a_run_matches_its_name_its_file_and_its_id() {
        let run = run(1);
        for target in ["heat", "/a/heat.toml", "7", "7_2"] {
            assert!(matches(&run, target, &[]), "{target}");
        }
        assert!(matches(&run, "sweep", &["7".to_owned()]));
        for target in ["hea", "/a/b.toml", "2", "7_1"] {
            assert!(!matches(&run, target, &["70".to_owned()]), "{target}");
        }
    }
}
