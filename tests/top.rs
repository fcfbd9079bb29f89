//! Shows that `exuvia top` displays runs in progress and no others.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::lab::slow::{pids, signal, slow_lab};
use crate::lab::{EXUVIA, Lab, text};
use exuvia::live::Snapshot;

/// A run, and the folder where it announces itself.
struct Watched<'a> {
    lab: &'a Lab,
    child: Child,
}

fn state(lab: &Lab) -> PathBuf {
    lab.path("state")
}

fn start(lab: &Lab, ranks: u32) -> Watched<'_> {
    let mut command = lab.command(ranks, &["--threads", "1", "--fresh"]);
    command.env("XDG_STATE_HOME", state(lab)).stdout(Stdio::null()).stderr(Stdio::null());
    Watched { lab, child: command.spawn().unwrap() }
}

fn top(lab: &Lab, arguments: &[&str]) -> Output {
    Command::new(EXUVIA).arg("top").args(arguments).env("XDG_STATE_HOME", state(lab)).output().unwrap()
}

fn runs(lab: &Lab) -> Vec<Snapshot> {
    #[derive(serde::Deserialize)]
    struct Top {
        runs: Vec<Snapshot>,
    }
    let output = top(lab, &["--output", "json"]);
    match output.status.code() {
        Some(0) => serde_json::from_slice::<Top>(&output.stdout).unwrap().runs,
        code => {
            assert!(code == Some(2) && text(&output).contains("none of your jobs is running"), "{}", text(&output));
            Vec::new()
        }
    }
}

fn files(lab: &Lab) -> Vec<String> {
    let entries = std::fs::read_dir(state(lab).join("exuvia/live")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

impl Watched<'_> {
    /// Waits until the only run satisfies `looks`.
    fn until(&mut self, looks: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            match <[Snapshot; 1]>::try_from(runs(self.lab)) {
                Ok([run]) if looks(&run) => return run,
                Err(others) if !others.is_empty() => panic!("{others:?}"),
                _ => assert!(self.child.try_wait().unwrap().is_none(), "it has ended"),
            }
        }
    }
}

#[test]
fn a_run_is_seen_while_it_lasts_and_its_ranks_get_on() {
    for ranks in [2, 3] {
        let lab = slow_lab(400_000);
        let mut run = start(&lab, ranks);
        let done = |run: &Snapshot| -> Vec<u64> { run.ranks.iter().map(|rank| rank.share.processed_bytes).collect() };
        let first = run.until(|run| run.ranks.len() == ranks as usize && done(run).iter().all(|bytes| *bytes > 0));
        let later = run.until(|run| done(run).iter().zip(done(&first)).all(|(now, then)| *now > then));
        // The run does not end while it is observed.
        let ranks_here = pids(&lab);
        signal(&ranks_here, "-STOP");
        assert_eq!((later.job.as_str(), &later.file), ("job", &lab.path("job.toml")));
        for rank in &later.ranks {
            let [stage] = &rank.share.stages[..] else { panic!("{rank:?}") };
            assert!(rank.bytes_per_s > 0.0 && rank.share.memory_bytes > 0 && stage.blocks > 0, "{rank:?}");
            let tasks = (rank.share.baseline_tasks, rank.share.optimized_tasks);
            assert!(tasks > (0, 0) && (stage.optimized || tasks.1 == 0), "{rank:?}");
        }
        let by_file = lab.path("job.toml").display().to_string();
        for target in ["job", &by_file] {
            let output = top(&lab, &["--once", target]);
            let text = text(&output);
            assert!(output.status.success() && text.contains(&format!("job: {ranks} ranks on 1 node")), "{text}");
            assert_eq!(text.lines().count(), 5 + ranks as usize, "{text}");
        }
        let output = top(&lab, &["--once", "another"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains("error: no running job 'another'"), "{}", text(&output));
        signal(&ranks_here, "-CONT");
        assert!(run.child.wait().unwrap().success());
        assert!(runs(&lab).is_empty() && files(&lab).is_empty(), "{:?}", files(&lab));
    }
}

#[test]
fn a_killed_run_is_not_seen() {
    let lab = slow_lab(20_000_000);
    let mut run = start(&lab, 2);
    run.until(|run| run.ranks.len() == 2);
    signal(&pids(&lab), "-KILL");
    run.child.wait().unwrap();
    assert_eq!(files(&lab).len(), 1);
    assert!(runs(&lab).is_empty() && files(&lab).is_empty(), "{:?}", files(&lab));
}

#[test]
fn a_run_that_is_asked_to_end_takes_its_file_along() {
    let lab = slow_lab(2_000_000);
    let mut run = start(&lab, 2);
    run.until(|run| run.ranks.len() == 2);
    signal(&pids(&lab), "-TERM");
    run.child.wait().unwrap();
    assert!(files(&lab).is_empty(), "{:?}", files(&lab));
}

/// `exuvia top` on a terminal that `script` provides, and the terminal's later settings.
struct OnTerminal {
    child: Child,
    columns: usize,
    drawn: Vec<u8>,
}

impl OnTerminal {
    fn start(lab: &Lab, (lines, columns): (usize, usize)) -> OnTerminal {
        let line = format!("stty rows {lines} cols {columns}; '{EXUVIA}' top; echo \"status $?\"; stty -a");
        let mut command = Command::new("script");
        command.args(["-qc", &line, "/dev/null"]).env("XDG_STATE_HOME", state(lab)).env("TERM", "xterm");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        OnTerminal { child: command.spawn().unwrap(), columns, drawn: Vec::new() }
    }

    /// Waits until `top` has drawn this text in `times` pictures.
    fn await_text(&mut self, text: &str, times: usize) {
        while String::from_utf8_lossy(&self.drawn).matches(text).count() < times {
            let mut more = [0; 4096];
            let count = self.child.stdout.as_mut().unwrap().read(&mut more).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&self.drawn));
            self.drawn.extend_from_slice(&more[..count]);
        }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Returns the contents of the terminal after `top` ended, when its settings are restored.
    fn left(mut self) -> String {
        self.await_text("status", 1);
        self.child.stdout.as_mut().unwrap().read_to_end(&mut self.drawn).unwrap();
        self.child.wait().unwrap();
        let all = String::from_utf8(self.drawn).unwrap();
        let (drawn, left) = all.split_once("\x1b[?1049l").unwrap();
        assert!(drawn.contains("\x1b[?1049h\x1b[?25l") && drawn.ends_with("\x1b[?25h"), "{drawn:?}");
        for line in drawn.lines() {
            assert!(console::measure_text_width(line.rsplit('\r').next().unwrap()) <= self.columns, "{line:?}");
        }
        for mode in ["icanon", "isig", "echo"] {
            assert!(left.split_whitespace().any(|word| word == mode), "{left:?}");
        }
        left.to_owned()
    }
}

#[test]
fn a_terminal_is_left_as_it_was() {
    let lab = slow_lab(20_000_000);
    let mut run = start(&lab, 2);
    run.until(|run| run.ranks.len() == 2);
    let mut terminals = [(24, 80), (10, 40), (40, 120)].map(|size| OnTerminal::start(&lab, size));
    for terminal in &mut terminals {
        terminal.await_text("RANK", 2);
    }
    let [mut first, mut second, third] = terminals;
    // An arrow key has no effect.
    first.type_keys(b"\x1b[A");
    first.await_text("RANK", 4);
    first.type_keys(b"q");
    second.type_keys(b"\x03");
    for ended in [first.left(), second.left()] {
        assert!(ended.starts_with("status 0"), "{ended:?}");
    }
    signal(&pids(&lab), "-KILL");
    run.child.wait().unwrap();
    let ended = third.left();
    assert!(ended.starts_with("All jobs have ended.\r\nstatus 0"), "{ended:?}");
}
