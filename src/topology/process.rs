//! Processes of this and of other nodes.

use std::io;

use serde::{Deserialize, Serialize};

/// A process on some node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub hostname: String,
    pub pid_namespace: String,
    pub pid: u32,
    /// In clock ticks since boot.
    pub start_ticks: u64,
}

impl Process {
    /// Returns whether the process is alive; `None` on another node.
    pub fn lives(&self) -> Option<bool> {
        let here = self.hostname == hostname() && self.pid_namespace == pid_namespace();
        here.then(|| same_process_alive(self.pid, self.start_ticks))
    }
}

/// Returns whether a process of this pid namespace is alive. A zombie is not: it never responds again, and without an
/// init that reaps it, its entry stays forever.
pub fn process_alive(pid: u32) -> bool {
    state(pid).is_none_or(|stat| stat.running)
}

/// The start of a process in clock ticks since boot, if known.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    state(pid)?.start_ticks
}

/// Returns whether the process that started at `start_ticks` is alive, and not a later one with the same pid.
pub(super) fn same_process_alive(pid: u32, start_ticks: u64) -> bool {
    state(pid)
        .is_none_or(|stat| stat.running && (start_ticks == 0 || stat.start_ticks.is_none_or(|t| t == start_ticks)))
}

pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(super) fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default()
}

struct Stat {
    running: bool,
    start_ticks: Option<u64>,
}

/// Returns `None` if the state is unknown (no /proc, no permission): a process is never taken for dead without
/// evidence.
fn state(pid: u32) -> Option<Stat> {
    const GONE: Stat = Stat { running: false, start_ticks: None };
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => parse(&text),
        // ESRCH: the process ended between open and read.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Some(GONE),
        Err(e) if e.kind() == io::ErrorKind::NotFound && std::fs::exists("/proc/self/stat").unwrap_or(false) => {
            Some(GONE)
        }
        Err(_) => None,
    }
}

fn parse(text: &str) -> Option<Stat> {
    // The command name in parentheses may contain spaces and parentheses: count fields from its end.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    Some(Stat {
        running: !matches!(state, "Z" | "X" | "x"),
        // Field 22 of proc(5); the state is field 3.
        start_ticks: fields.nth(18).and_then(|ticks| ticks.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_killed_child_is_dead_before_it_is_reaped() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let started = start_ticks(pid).unwrap();
        assert!(process_alive(pid) && same_process_alive(pid, started));
        assert!(!same_process_alive(pid, started + 1));
        child.kill().unwrap();
        let killed = std::time::Instant::now();
        while process_alive(pid) {
            assert!(killed.elapsed().as_secs() < 5, "killed child still counts as alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process_alive(pid));
    }

    #[test]
    fn command_names_may_contain_parentheses() {
        let line = "7 (a) Z (b) S 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        let stat = parse(line).unwrap();
        assert!(stat.running);
        assert_eq!(stat.start_ticks, Some(4242));
        assert!(!parse("7 (x) Z 1").unwrap().running);
    }
}
