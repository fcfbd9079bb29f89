use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::text;

/// In place of a tab.
const TAB: &str = "    ";
/// Most characters that are underlined.
const MARKED: usize = 200;

/// Where in a job file something is wrong: the line as written, a caret under it, and a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    pub path: PathBuf,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub width: usize,
    /// The line as written, without its line break.
    pub text: String,
    /// What to write instead, when that is known.
    pub help: Option<String>,
}

impl Excerpt {
    /// Cuts the line that holds `span` (bytes) out of `source`.
    pub(crate) fn new(path: &Path, source: &str, span: Range<usize>, help: Option<String>) -> Self {
        let (line, column) = position(source, span.start);
        let start = floor(source, span.start);
        let text = source.lines().nth(line - 1).unwrap_or_default();
        let rest_of_line = (text.chars().count() + 1).saturating_sub(column);
        let marked = source.get(start..span.end).unwrap_or_default();
        Excerpt {
            path: path.to_owned(),
            line,
            column,
            width: marked.chars().count().min(rest_of_line).max(1),
            text: text.to_owned(),
            help,
        }
    }

    /// `message` with its place in front and the marked line and the help below.
    pub(crate) fn frame(&self, message: impl fmt::Display) -> String {
        let number = self.line.to_string();
        let message = text::line(&message.to_string());
        let gutter = " ".repeat(number.len());
        // The caret lands below its text whatever a terminal makes of tabs.
        let before: String = self.text.chars().take(self.column - 1).collect();
        let indent = " ".repeat(text::line(&before.replace('\t', TAB)).chars().count());
        let carets = "^".repeat(self.width.min(MARKED));
        let mut framed = format!(
            "{}:{}:{}: {message}\n{gutter} |\n{number} | {}\n{gutter} | {indent}{carets}",
            text::line(&self.path.display().to_string()),
            self.line,
            self.column,
            text::line(&self.text.replace('\t', TAB)),
        );
        if let Some(help) = &self.help {
            framed.push_str("\nhelp: ");
            framed.push_str(&text::line(help));
        }
        framed
    }
}

/// 1-based line and column (in characters) of byte `at` of `source`.
pub(super) fn position(source: &str, at: usize) -> (usize, usize) {
    let before = &source[..floor(source, at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    // Bytes are counted many times as fast as matches are found, and this is asked for each tensor and stage.
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// The last character boundary of `source` at or before byte `at`.
fn floor(source: &str, at: usize) -> usize {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caret_is_under_the_span_whatever_comes_before() {
        let source = "a = 1\n\tü = \"no\"\n";
        let at = source.find("\"no\"").unwrap();
        let excerpt = Excerpt::new(Path::new("x.toml"), source, at..at + 4, None);
        assert_eq!((excerpt.line, excerpt.column, excerpt.width), (2, 6, 4));
        assert_eq!(excerpt.frame("bad"), "x.toml:2:6: bad\n  |\n2 |     ü = \"no\"\n  |         ^^^^");
    }

    #[test]
    fn a_span_past_the_end_or_over_lines_stays_on_one_line() {
        let source = "a = 1\nb";
        let end = Excerpt::new(Path::new("x"), source, 99..120, None);
        assert_eq!((end.line, end.column, end.width), (2, 2, 1));
        let long = Excerpt::new(Path::new("x"), source, 4..7, None);
        assert_eq!((long.line, long.column, long.width), (1, 5, 1));
        let empty = Excerpt::new(Path::new("x"), "", 0..0, None);
        assert_eq!((empty.line, empty.column, empty.width), (1, 1, 1));
    }
}
