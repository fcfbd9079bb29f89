//! Text for messages. Names from files, modules and jobs may contain anything: control sequences of a terminal, or text
//! that imitates a message of this program. This module makes them harmless, and describes the limits of the system.
//!
//! Refuses to do: printing. Invariant: the result is one line without control characters, escape sequences and marks
//! that change the direction of text; [`name`] truncates as well.

mod limits;
mod suggestion;

pub use limits::{Limit, advice};
pub(crate) use suggestion::{nearest, suggest};

/// The longest name that is shown, in characters.
const NAME: usize = 100;
/// The most names of a list that are shown.
const LIST: usize = 30;
/// The longest message that is shown, in characters: longer than any sentence.
const LINE: usize = 4_000;

/// A name, truncated and harmless.
pub fn name(text: &str) -> String {
    truncated(text, NAME)
}

/// A list of names, truncated.
pub fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(LIST).map(|text| name(text.as_ref())).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A message, on one line.
pub fn line(text: &str) -> String {
    truncated(text, LINE)
}

/// A text of several lines, each harmless and of any length.
pub fn lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| truncated(line, usize::MAX)).collect();
    lines.join("\n")
}

/// A number with its noun, such as `1 rank` or `2 ranks`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn truncated(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for (count, character) in text.chars().enumerate() {
        if count == most {
            shown.push('…');
            break;
        }
        match character {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push(' '),
            _ if is_control(character) => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
    }
    shown
}

/// Returns whether a terminal acts on a character instead of showing it: control characters, line separators, invisible
/// marks and marks that change the direction of text.
fn is_control(character: char) -> bool {
    let invisible = ['\u{61c}', '\u{ad}', '\u{180e}', '\u{feff}', '\u{fff9}', '\u{fffa}', '\u{fffb}'];
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(character, '\u{e0000}'..='\u{e007f}')
        || invisible.contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_short_line_without_control_characters() {
        assert_eq!(name("tensor/α β"), "tensor/α β");
        assert_eq!(name("\u{1b}[2J\u{9b}31m\r\u{7f}"), "\\u{1b}[2J\\u{9b}31m\\u{d}\\u{7f}");
        assert_eq!(name("a\nerror: forged"), "a\\nerror: forged");
        assert_eq!(name("x\u{202e}y\u{2066}z\u{200b}"), "x\\u{202e}y\\u{2066}z\\u{200b}");
        assert_eq!(name(&"é".repeat(5_000)), format!("{}…", "é".repeat(100)));
        assert_eq!(line(&"é".repeat(5_000)).chars().count(), LINE + 1);
        assert_eq!(lines("a\u{7}\nb"), "a\\u{7}\nb");
        assert_eq!((count(1, "rank"), count(2, "rank")), ("1 rank".to_owned(), "2 ranks".to_owned()));
        assert_eq!(list(["a", "b\n"]), "a, b\\n");
        assert_eq!(list(vec!["k"; LIST + 2]).split(", ").last(), Some("k and 2 more"));
    }
}
