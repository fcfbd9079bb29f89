//! Names as messages show them: those that come from files, modules and jobs may hold anything, also what a terminal
//! obeys or what looks like a message of this program. And limits of the system, as messages name them.
//!
//! Refuses to do: printing. Invariant: what comes out is one line without control characters, escape sequences and marks that
//! turn the direction of text; [`name`] cuts as well.

mod limits;
mod suggestion;

pub use limits::{Limit, advice};
pub(crate) use suggestion::{nearest, suggest};

/// Characters of a name that are shown.
const NAME: usize = 100;
/// Names of a list that are shown.
const LIST: usize = 30;
/// Characters of a message that are shown: more than any sentence has.
const LINE: usize = 4_000;

/// A name, short and harmless.
pub fn name(text: &str) -> String {
    cut(text, NAME)
}

/// Names in a row, not too many.
pub fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(LIST).map(|text| name(text.as_ref())).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A message on one line.
pub fn line(text: &str) -> String {
    cut(text, LINE)
}

/// Lines that are meant to be several, each harmless, and as long as it is.
pub fn lines(text: &str) -> String {
    let whole: Vec<String> = text.split('\n').map(|line| cut(line, usize::MAX)).collect();
    whole.join("\n")
}

fn cut(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for (count, character) in text.chars().enumerate() {
        if count == most {
            shown.push('…');
            break;
        }
        match character {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push(' '),
            _ if is_obeyed(character) => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
    }
    shown
}

/// Whether a terminal does something else than show it: control characters, line separators, invisible marks and those that
/// turn the direction of what follows.
fn is_obeyed(character: char) -> bool {
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
    fn names_are_one_short_line_that_a_terminal_only_shows() {
        assert_eq!(name("tensor/α β"), "tensor/α β");
        assert_eq!(name("\u{1b}[2J\u{9b}31m\r\u{7f}"), "\\u{1b}[2J\\u{9b}31m\\u{d}\\u{7f}");
        assert_eq!(name("a\nerror: forged"), "a\\nerror: forged");
        assert_eq!(name("x\u{202e}y\u{2066}z\u{200b}"), "x\\u{202e}y\\u{2066}z\\u{200b}");
        assert_eq!(name(&"é".repeat(5_000)), format!("{}…", "é".repeat(100)));
        assert_eq!(line(&"é".repeat(5_000)).chars().count(), LINE + 1);
        assert_eq!(lines("a\u{7}\nb"), "a\\u{7}\nb");
        assert_eq!(list(["a", "b\n"]), "a, b\\n");
        assert_eq!(list(vec!["k"; LIST + 2]).split(", ").last(), Some("k and 2 more"));
    }
}
