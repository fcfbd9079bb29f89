//! The table of a sweep.

use bytesize::ByteSize;

use crate::sweep::point::SweepKind;
use crate::sweep::statistics::{Rate, Row, Spread, SweepStatistics};

impl SweepStatistics {
    /// The column headings and the rows: medians, with minimum and maximum in parentheses.
    pub fn table(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let head = match self.kind {
            SweepKind::Weak => &["size", "seconds", "efficiency", "command, s", "moved", "of minimum"][..],
            SweepKind::Strong => &["seconds", "speed-up", "efficiency", "command, s", "moved", "of minimum"],
            SweepKind::Metg => &["slices", "task, us", "seconds", "efficiency"],
            SweepKind::Tiers => &["code", "seconds", "speed-up", "first task, ms"],
            SweepKind::Io => &["read", "of plain", "written", "of plain", "seconds"],
        };
        let head = ["ranks x threads"].iter().chain(head).chain(&["runs"]).copied().collect();
        (head, self.rows.iter().map(|row| cells(self.kind, row)).collect())
    }

    /// The legend of the marks in the table; `None` if there are none.
    pub fn legend(&self) -> Option<&'static str> {
        let some = self.rows.iter().any(|row| row.oversubscribed);
        some.then_some("* oversubscribed: more threads than cores on a node")
    }
}

fn cells(kind: SweepKind, row: &Row) -> Vec<String> {
    let setting = &row.setting;
    let star = if row.oversubscribed { " *" } else { "" };
    let mut cells = vec![format!("{} x {}{star}", setting.ranks, setting.threads)];
    let some = |value: &Option<Spread>| value.as_ref().map_or("-".to_owned(), spread);
    let bytes = |bytes: f64| ByteSize(bytes as u64).to_string();
    let moved = || {
        let least = row.least_moved_bytes.filter(|least| *least > 0);
        let over = least.map_or("-".to_owned(), |least| number(row.moved_bytes / least as f64));
        [some(&row.efficiency), number(row.command_seconds.median), bytes(row.moved_bytes), over]
    };
    let rate = |rate: &Option<Rate>| match rate {
        Some(rate) => {
            let per_second = bytes(rate.bytes_per_second.median);
            [format!("{} at {per_second}/s", ByteSize(rate.bytes)), spread(&rate.ratio)]
        }
        None => ["-".to_owned(), "-".to_owned()],
    };
    cells.extend(match kind {
        SweepKind::Strong => [&[spread(&row.seconds), some(&row.speed_up)][..], &moved()].concat(),
        SweepKind::Weak => [&[format!("x{}", setting.size), spread(&row.seconds)][..], &moved()].concat(),
        SweepKind::Metg => {
            let slices = setting.task_slices.map_or("auto".to_owned(), |slices| slices.to_string());
            vec![slices, some(&row.task_us), spread(&row.seconds), some(&row.efficiency)]
        }
        SweepKind::Tiers => {
            vec![setting.tier.name().to_owned(), spread(&row.seconds), some(&row.speed_up), some(&row.first_task_ms)]
        }
        SweepKind::Io => [&rate(&row.read)[..], &rate(&row.written), &[spread(&row.seconds)]].concat(),
    });
    cells.push(row.repetitions.to_string());
    cells
}

fn spread(of: &Spread) -> String {
    format!("{} ({}-{})", number(of.median), number(of.min), number(of.max))
}

/// Formats a number with three significant digits, or all digits of its integer part.
fn number(value: f64) -> String {
    let before = if value.abs() >= 1.0 { value.abs().log10().floor() as i32 + 1 } else { 0 };
    let after = usize::try_from(3 - before).unwrap_or(0);
    format!("{value:.after$}")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.0123, 0.9456, 9.876, 123.4, 56789.0].map(number), ["0.012", "0.946", "9.88", "123", "56789"]);
    }
}
