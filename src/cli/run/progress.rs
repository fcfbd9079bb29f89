//! The progress bar of a run.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use crate::exec::Progress;

/// The interval between lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

struct Display {
    bar: Option<(usize, ProgressBar)>,
    started: Instant,
    last_line: Instant,
}

static SHOWN: Mutex<Option<Display>> = Mutex::new(None);

/// Shows a run's progress: a bar on a terminal, a line from time to time elsewhere.
pub(in crate::cli) fn show(progress: &Progress) {
    let Ok(mut shown) = SHOWN.lock() else { return };
    let now = Instant::now();
    let shown = shown.get_or_insert_with(|| Display { bar: None, started: now, last_line: now });
    let tasks = progress.baseline_tasks + progress.optimized_tasks;
    let optimized_percent = 100 * progress.optimized_tasks / tasks.max(1);
    let seconds = shown.started.elapsed().as_secs_f64().max(1e-3);
    let speed = ByteSize((progress.processed_bytes as f64 / seconds) as u64);
    let message = format!("{tasks} tasks, {optimized_percent} % optimized, {speed}/s");
    if std::io::stderr().is_terminal() {
        if shown.bar.as_ref().is_none_or(|(stage, _)| *stage != progress.stage_index) {
            let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {pos}/{len} blocks, {msg}, ETA {eta}");
            let bar = ProgressBar::new(progress.blocks);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(format!("{} ({}/{})", progress.stage, progress.stage_index + 1, progress.stage_count));
            shown.bar = Some((progress.stage_index, bar));
        }
        if let Some((_, bar)) = &shown.bar {
            bar.set_position(progress.blocks_done);
            bar.set_message(message);
        }
    } else if shown.last_line.elapsed() >= LINE_INTERVAL {
        shown.last_line = now;
        let (done, all) = (progress.blocks_done, progress.blocks);
        let eta = if done == 0 { 0.0 } else { seconds * (all - done.min(all)) as f64 / done as f64 };
        eprintln!("{}: {done}/{all} blocks, {message}, ETA {eta:.0} s", progress.stage);
    }
}

/// Removes the bar from the terminal.
pub(in crate::cli) fn clear() {
    if let Ok(mut shown) = SHOWN.lock()
        && let Some(Display { bar: Some((_, bar)), .. }) = shown.take()
    {
        bar.finish_and_clear();
    }
}
