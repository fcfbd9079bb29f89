//! Slurm's formats of times, memory sizes and lists of array tasks.

use std::time::Duration;

use crate::slurm::error::SlurmError;

/// `MINUTES`, `MINUTES:SECONDS`, `HOURS:MINUTES:SECONDS`, `DAYS-HOURS`, `DAYS-HOURS:MINUTES[:SECONDS]`; `None` for
/// anything else, such as `UNLIMITED`.
pub fn time(text: &str) -> Option<Duration> {
    let numbers = |text: &str| text.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<u64>>>();
    let seconds = match text.split_once('-') {
        Some((days, rest)) => {
            let rest = numbers(rest)?;
            let rest = match rest[..] {
                [hours] => 3600 * hours,
                [hours, minutes] => 3600 * hours + 60 * minutes,
                [hours, minutes, seconds] => 3600 * hours + 60 * minutes + seconds,
                _ => return None,
            };
            86_400 * days.parse::<u64>().ok()? + rest
        }
        None => match numbers(text)?[..] {
            [minutes] => 60 * minutes,
            [minutes, seconds] => 60 * minutes + seconds,
            [hours, minutes, seconds] => 3600 * hours + 60 * minutes + seconds,
            _ => return None,
        },
    };
    Some(Duration::from_secs(seconds))
}

/// `4G`, `500M`, or a number of MiB; `None` for 0, which means all memory of a node, and for invalid sizes.
pub fn memory_bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[end..].to_ascii_uppercase().trim_end_matches('B') {
        "K" => 10,
        "" | "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let bytes = text[..end].parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes > 0).then_some(bytes)
}

/// The tasks of an array: `0-15`, `1,3,7`, `0-99:10%4`.
pub fn array_tasks(text: &str) -> Result<Vec<u32>, SlurmError> {
    /// Slurm's own limit is far lower on most clusters (`MaxArraySize`).
    const MOST: u32 = 4_000_000;
    let wrong = || SlurmError::Array { text: text.to_owned() };
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= MOST).ok_or_else(wrong);
    let (list, at_once) = text.split_once('%').map_or((text, None), |(list, at_once)| (list, Some(at_once)));
    if let Some(at_once) = at_once {
        number(at_once)?;
    }
    let mut tasks = Vec::new();
    for part in list.split(',') {
        let (range, step) = part.split_once(':').map_or((part, "1"), |(range, step)| (range, step));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last, step) = (number(first)?, number(last)?, number(step)?);
        if step == 0 || last < first {
            return Err(wrong());
        }
        tasks.extend((first..=last).step_by(step as usize));
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_slurm_reads_them() {
        let seconds = |text| time(text).map(|time| time.as_secs());
        assert_eq!(seconds("1"), Some(60));
        assert_eq!(seconds("1:30"), Some(90));
        assert_eq!(seconds("02:00:01"), Some(7201));
        assert_eq!(seconds("1-2"), Some(93_600));
        assert_eq!(seconds("1-00:10"), Some(87_000));
        assert_eq!((seconds("UNLIMITED"), seconds("1:2:3:4"), seconds("")), (None, None, None));
    }

    #[test]
    fn memory_is_in_megabytes_unless_it_says_so() {
        assert_eq!(memory_bytes("500"), Some(500 << 20));
        assert_eq!(
            (memory_bytes("4G"), memory_bytes("4gb"), memory_bytes("8K")),
            (Some(4 << 30), Some(4 << 30), Some(8192))
        );
        assert_eq!((memory_bytes("0"), memory_bytes("G"), memory_bytes("3X")), (None, None, None));
    }

    #[test]
    fn arrays_are_lists_of_ranges() {
        assert_eq!(array_tasks("0-6:3,9%2").unwrap(), [0, 3, 6, 9]);
        for wrong in ["", "1-", "5-2", "1-4:0", "x", "1%", "1-99999999"] {
            assert!(array_tasks(wrong).is_err(), "{wrong}");
        }
    }
}
