use std::path::{Path, PathBuf};

/// What is wrong with a job file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    #[error("cannot read the job file {}{}", path.display(), suggestion(nearest.as_deref()))]
    Read { path: PathBuf, nearest: Option<String>, source: std::io::Error },
    /// Something in the text, shown with the line it is in.
    #[error("{}:{line}:{column}: {message}\n{excerpt}", path.display())]
    Text { path: PathBuf, line: usize, column: usize, message: String, excerpt: String },
}

/// A place in a job file's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

impl Spot<'_> {
    /// An error at a byte offset.
    pub fn error(&self, at: usize, message: impl Into<String>) -> JobError {
        let at = at.min(self.text.len());
        let (line, column) = position(self.text, at);
        let content = self.text.lines().nth(line - 1).unwrap_or_default();
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let caret = " ".repeat(column - 1);
        let excerpt = format!("{margin} |\n{number} | {content}\n{margin} | {caret}^");
        JobError::Text { path: self.path.to_owned(), line, column, message: message.into(), excerpt }
    }
}

/// Line and column, both from 1, of a byte offset.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The candidate most like `name`, if any is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let similarity = |candidate: &&str| strsim::jaro_winkler(name, candidate);
    let best = candidates.into_iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&best) > 0.7).then(|| best.to_owned())
}

/// `; did you mean 'x'?`, or nothing.
pub(super) fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default()
}

/// The file in the same folder whose name is most like the missing one's.
pub(super) fn nearest_file(path: &Path) -> Option<String> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> =
        std::fs::read_dir(folder).ok()?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    nearest(&path.file_name()?.to_string_lossy(), names.iter().map(String::as_str))
}
