//! The commands in the user documentation print the output shown there, and the files that it names exist.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::rows::{COLUMNS, ROWS, input};
use crate::lab::{EXUVIA, Lab, launch, root, text};

/// The cluster's exit status on a machine that has another Slurm.
const OTHER_SLURM: i32 = 77;

#[test]
fn the_tutorial_shows_what_its_commands_print() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    Page::read("docs/tutorial.md").assert_shows_what_happens(folder.path());
}

#[test]
fn the_readme_shows_what_its_commands_print() {
    let lab = Lab::bare(&["enlarge", "knn"]);
    input(&lab, &[ROWS * COLUMNS]);
    fs::create_dir_all(lab.path("target/kernels")).unwrap();
    fs::create_dir(lab.path("jobs")).unwrap();
    fs::copy(root().join("jobs/digits.toml"), lab.path("jobs/digits.toml")).unwrap();
    for kernel in ["enlarge.wasm", "knn.wasm"] {
        fs::rename(lab.path(kernel), lab.path("target/kernels").join(kernel)).unwrap();
    }
    for shared in ["data", "tests"] {
        symlink(root().join(shared), lab.path(shared)).unwrap();
    }
    Page::read("README.md").assert_shows_what_happens(&lab.path(""));
    let read = |file: &str, dataset: &str| {
        lab.read(file, dataset).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let (x, y) = (read("in.h5", "x"), read("out.h5", "y"));
    assert!(x.len() as u64 == ROWS * COLUMNS && x.iter().map(|x| 2.0 * x).eq(y));
}

#[test]
fn files_that_pages_name_exist() {
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root().join(name)).into();
    pages.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut missing = Vec::new();
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(page).unwrap();
        let words = text.split(|c: char| c.is_whitespace() || "`()[]{},:;*".contains(c));
        let roots = ["src/", "tests/", "docs/", "examples/", "jobs/", "scripts/", "slurm/"];
        let names = words.filter(|word| roots.iter().any(|root| word.starts_with(root)));
        let absent = names.filter(|name| !root().join(name.trim_end_matches(['.', '?'])).exists());
        missing.extend(absent.map(|name| format!("{} names {name}", page.display())));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A Markdown file. Its fenced blocks are transcripts of commands (`console`), commands (`sh`), files to save (the
/// first line is a comment that begins with the name), or other text.
struct Page {
    name: &'static str,
    text: String,
}

/// A part of a page. Parts keep the order of its lines.
enum Part<'a> {
    /// Prose, or a block without files or commands, with its line break.
    Text(&'a str),
    /// A file that the reader saves or appends to.
    File { name: &'a str, adds: bool, content: String },
    /// A command and its shown output.
    Command { line: &'a str, shown: String },
    /// A command without shown output.
    Silent(&'a str),
}

impl Page {
    fn read(name: &'static str) -> Page {
        Page { name, text: fs::read_to_string(root().join(name)).unwrap() }
    }

    /// Follows the instructions of the page in `folder`.
    fn assert_shows_what_happens(&self, folder: &Path) {
        let programs = programs(folder);
        let (mut actual, mut shown_lines, mut actual_lines) = (String::new(), Vec::new(), Vec::new());
        // Sections about Slurm run in a cluster. It exists from the first command of the section to the last.
        for section in split_before(&self.text, |line| line.starts_with("## ")) {
            let parts = parts(section);
            let save = parts.iter().filter_map(|part| match part {
                Part::File { name, adds, content } => Some((name, adds, content)),
                _ => None,
            });
            // The commands of a section may precede or follow the files that they do not need.
            for (name, adds, content) in save {
                let before = if *adds { fs::read_to_string(folder.join(name)).unwrap() + "\n" } else { String::new() };
                fs::write(folder.join(name), before + content).unwrap();
            }
            let lines: Vec<&str> = parts.iter().filter_map(Part::command).collect();
            let in_cluster = section.starts_with("## Slurm");
            let Some(printed) = run(folder, &programs, &lines, in_cluster) else {
                println!("not run, since the machine has another Slurm: {lines:?}");
                actual.push_str(section);
                continue;
            };
            let mut printed = printed.into_iter();
            for part in &parts {
                match part {
                    Part::Text(text) => actual.push_str(text),
                    Part::File { content, .. } => actual.push_str(content),
                    Part::Silent(line) => {
                        printed.next();
                        actual += &format!("{line}\n");
                    }
                    Part::Command { line, shown } => {
                        let output = printed.next().unwrap();
                        actual += &format!("$ {line}\n{output}");
                        shown_lines.extend(steady(line, shown));
                        actual_lines.extend(steady(line, &output));
                    }
                }
            }
        }
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(Path::new(self.name).file_name().unwrap());
        fs::write(&file, actual).unwrap();
        let differs = shown_lines.iter().zip(&actual_lines).position(|(shown, actual)| shown != actual);
        let differs = differs
            .or_else(|| (shown_lines.len() != actual_lines.len()).then(|| actual_lines.len().min(shown_lines.len())));
        if let Some(at) = differs {
            let around = |lines: &[String]| lines[at.saturating_sub(3)..lines.len().min(at + 2)].join("\n");
            let (shown, actual) = (around(&shown_lines), around(&actual_lines));
            panic!("{} shows\n{shown}\n\nwhere its commands print\n{actual}\n\n{} is right", self.name, file.display());
        }
    }
}

impl<'a> Part<'a> {
    fn command(&self) -> Option<&'a str> {
        match self {
            Part::Command { line, .. } | Part::Silent(line) => Some(line),
            _ => None,
        }
    }
}

fn split_before(text: &str, begins: impl Fn(&str) -> bool) -> Vec<&str> {
    let (mut pieces, mut start, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        if begins(line) && at > start {
            pieces.push(&text[start..at]);
            start = at;
        }
        at += line.len();
    }
    pieces.push(&text[start..]);
    pieces
}

fn parts(section: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut lines = section.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        parts.push(Part::Text(line));
        let Some(language) = line.strip_prefix("```").map(str::trim) else { continue };
        let block: Vec<&str> = std::iter::from_fn(|| lines.next_if(|line| !line.starts_with("```"))).collect();
        match (language, block.first().and_then(|first| file_of(first))) {
            ("console", _) => parts.extend(commands(&block)),
            ("sh", _) => parts.extend(block.iter().map(|line| Part::Silent(line.trim_end()))),
            (_, Some((name, adds))) => parts.push(Part::File { name, adds, content: block.concat() }),
            _ => parts.extend(block.into_iter().map(Part::Text)),
        }
        parts.extend(lines.next().map(Part::Text));
    }
    parts
}

/// Returns the name in the comment at the start of a file, and whether the block continues that file.
fn file_of(first: &str) -> Option<(&str, bool)> {
    let comment = first.strip_prefix("# ").or(first.strip_prefix("/* "))?;
    let name = comment.split([':', ',', ' ', '\n']).next()?;
    name.contains('.').then_some((name, comment.contains(", continued")))
}

fn commands<'a>(block: &[&'a str]) -> Vec<Part<'a>> {
    let mut commands = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(line), _) => commands.push(Part::Command { line: line.trim_end(), shown: String::new() }),
            (None, Some(Part::Command { shown, .. })) => shown.push_str(line),
            (None, _) => panic!("a transcript begins with a command, not with {line}"),
        }
    }
    commands
}

/// Creates a folder for PATH with `exuvia`, the tests' Python, and an mpirun that accepts more ranks than cores.
fn programs(folder: &Path) -> PathBuf {
    let programs = folder.join(".programs");
    fs::create_dir(&programs).unwrap();
    symlink(EXUVIA, programs.join("exuvia")).unwrap();
    let script = |name: &str, text: String| {
        fs::write(programs.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let python = std::env::var("EXUVIA_PYTHON").unwrap_or("/usr/bin/python3".into());
    script("python3", format!("exec '{python}' \"$@\""));
    let launcher = launch::ranks(2, EXUVIA.as_ref());
    let words = |words: &mut dyn Iterator<Item = String>| words.collect::<Vec<_>>().join(" ");
    let variable = |(name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
        format!("{}='{}'", name.display(), value.unwrap_or_default().display())
    };
    let variables = words(&mut launcher.get_envs().map(variable));
    // The last three are `-n 2 exuvia`.
    let options = launcher.get_args().len() - 3;
    let options = words(&mut launcher.get_args().take(options).map(|word| word.display().to_string()));
    script("mpirun", format!("{variables} exec '{}' {options} \"$@\"", launcher.get_program().display()));
    programs
}

/// Runs the commands one after the other in one shell. Returns the output of each, or `None` on a machine that has
/// another Slurm.
fn run(folder: &Path, programs: &Path, commands: &[&str], in_cluster: bool) -> Option<Vec<String>> {
    let printed = |number: usize| folder.join(format!(".printed-{number}"));
    let quoted = |path: &Path| format!("'{}'", path.display());
    let mut script = format!("cd {}\nexport PATH={}:$PATH\n", quoted(folder), quoted(programs));
    for (number, command) in commands.iter().enumerate() {
        script += &format!("{{ {command}\n}} >{} 2>&1 || exit 1\n", quoted(&printed(number)));
    }
    fs::write(folder.join(".commands"), script).unwrap();
    let mut shell = match in_cluster {
        true => Command::new(root().join("tests/slurm/cluster")),
        false => Command::new("bash"),
    };
    if in_cluster {
        shell.args(["-n", "2", "-c", "4", "--", "bash"]);
    }
    let output = shell.arg(folder.join(".commands")).env("EXUVIA_CACHE_DIR", folder.join(".cache"));
    let output = output.stdin(Stdio::null()).output().unwrap();
    if in_cluster && output.status.code() == Some(OTHER_SLURM) {
        return None;
    }
    // A slow machine shows progress; a fast one does not.
    let is_progress = |line: &&str| line.contains(" blocks, ") && line.contains(" ETA ");
    let read = |number| {
        let output = fs::read_to_string(printed(number)).unwrap_or_default();
        output.split_inclusive('\n').filter(|line| !is_progress(line)).collect::<String>()
    };
    let all: Vec<String> = (0..commands.len()).map(read).collect();
    assert!(output.status.success(), "{commands:#?}\n{}\n{}", all.concat(), text(&output));
    Some(all)
}

/// Returns the command and the lines that it printed, without the numbers that differ between runs or machines.
fn steady(command: &str, printed: &str) -> Vec<String> {
    let lines = printed.lines().map(str::trim).filter(|line| !line.is_empty());
    // The machine determines whether workers swap and steal, and the code that kernels start on.
    let varies = |line: &&str| ["tier-up", "stolen", "moved", "hint"].iter().any(|label| line.starts_with(label));
    let mut steady = vec![format!("$ {command}")];
    steady.extend(lines.filter(|line| !varies(line)).map(steady_line));
    steady
}

fn steady_line(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let first = words.first().copied().unwrap_or_default();
    if first.ends_with(".wasm") || first == "takes" {
        return first.to_owned();
    }
    let digits = |word: &str| word.chars().any(|c| c.is_ascii_digit());
    let is_varying = |at: usize| {
        let word = words[at].trim_start_matches('(');
        let next = words.get(at + 1).map_or("", |next| next.trim_end_matches([',', ';', ')']));
        let next_ends = words.get(at + 1).is_some_and(|next| next.ends_with(','));
        let unit = match word.chars().all(|c| c.is_ascii_digit() || c == '.') {
            true => next,
            false => word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'),
        };
        let counted = ["sample", "cut", "task", "thread", "baseline", "optimized", "moved", "GiB"];
        digits(word)
            && (["ns", "us", "ms", "s"].contains(&unit)
                || unit.ends_with("/s")
                || counted.iter().any(|noun| next.starts_with(noun))
                || (word.contains(':') && next == "of")
                || (!next_ends
                    && words.get(at + 2).is_some_and(|next| next.starts_with("moved") || next.starts_with("read")))
                || first == "tasks")
    };
    let word = |at: usize| match words[at] {
        _ if is_varying(at) => "#",
        // Stolen work moves and may be read again.
        "B" | "KiB" | "MiB" if words.get(at + 1).is_some_and(|next| ["read,", "moved,"].contains(next)) => "#",
        "ns" | "us" | "ms" | "s" | "s;" | "ms;" if at > 0 && is_varying(at - 1) => "#",
        word if word.ends_with("/s") => "#",
        // The extent of a task of a check depends on its duration.
        word if word.contains('@') => "@",
        word => word,
    };
    (0..words.len()).map(word).collect::<Vec<_>>().join(" ")
}
