use std::path::PathBuf;

use serde::Serialize;

use crate::slurm::error::SlurmError;
use crate::slurm::program::output;

/// The fields of a line. The name is last, since only it may contain the separator.
const SQUEUE_FIELDS: &str =
    "--Format=JobArrayID:0|,State:0|,exit_code:0|,TimeUsed:0|,TimeLimit:0|,ReasonList:0|,Name:0";
const SACCT_FIELDS: &str = "--format=JobID,State,ExitCode,Elapsed,Timelimit,NodeList,JobName";

/// The final states. In all other states, jobs wait, run or are about to end.
const FINAL: [&str; 10] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

/// The state of a job, or of a task of an array.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct State {
    /// `17`, `17_3` for a task, or `17_[4-9]` for waiting tasks.
    pub id: String,
    pub name: String,
    /// Slurm's name of the state: `PENDING`, `RUNNING`, `COMPLETED`, ...
    pub state: String,
    /// The exit code of the script after its end.
    pub exit_code: Option<u32>,
    /// The signal that ended the script, if any.
    pub signal: Option<u32>,
    pub time_used: String,
    pub time_limit: String,
    /// The nodes, or in parentheses the reason why the job waits.
    pub place: String,
}

impl State {
    /// Returns whether the job is waiting or running.
    pub fn is_active(&self) -> bool {
        !FINAL.contains(&self.state.as_str())
    }

    /// The id of the whole job.
    pub fn job_id(&self) -> &str {
        self.id.split('_').next().unwrap_or_default()
    }
}

/// Returns all jobs of this user that the controller knows: waiting and running ones, and for a few minutes those that
/// ended.
pub fn queue() -> Result<Vec<State>, SlurmError> {
    let user = format!("--user={}", rustix::process::getuid().as_raw());
    let said = output("squeue", ["--noheader", "--states=all", &user, SQUEUE_FIELDS])?;
    read("squeue", &said, wait_status)
}

/// Exit code and signal, from the status of wait(2).
fn wait_status(exit: &str) -> Option<(u32, u32)> {
    let status: u32 = exit.parse().ok()?;
    Some((status >> 8 & 0xff, status & 0x7f))
}

/// Exit code and signal, from `CODE:SIGNAL`.
fn code_and_signal(exit: &str) -> Option<(u32, u32)> {
    let (code, signal) = exit.split_once(':')?;
    Some((code.parse().ok()?, signal.parse().ok()?))
}

/// Returns the states of these jobs, from the controller and from the accounting data, if there is any.
pub fn states(ids: &[String]) -> Result<Vec<State>, SlurmError> {
    let mut found: Vec<State> =
        queue()?.into_iter().filter(|state| ids.iter().any(|id| id == state.job_id())).collect();
    let rest: Vec<&str> =
        ids.iter().map(String::as_str).filter(|id| !found.iter().any(|state| state.job_id() == *id)).collect();
    if !rest.is_empty() {
        let jobs = format!("--jobs={}", rest.join(","));
        let ask = |source| output("sacct", [source, "--noheader", "--parsable2", &jobs, SACCT_FIELDS]);
        // Without a database, there may be a file of completed jobs; without both, the job is unknown.
        let said = ask("--allocations").or_else(|_| ask("--completion"));
        found.extend(read("sacct", &said.unwrap_or_default(), code_and_signal)?);
    }
    Ok(found)
}

/// Cancels jobs and tasks of arrays.
pub fn cancel(ids: &[String]) -> Result<(), SlurmError> {
    output("scancel", ids).map(drop)
}

/// Returns the log file of a job that the controller knows.
pub fn log_file(id: &str) -> Result<Option<PathBuf>, SlurmError> {
    let said = output("scontrol", ["show", "job", id])?;
    Ok(said.lines().find_map(|line| line.trim().strip_prefix("StdOut=")).map(PathBuf::from))
}

fn read(program: &'static str, said: &str, exit: fn(&str) -> Option<(u32, u32)>) -> Result<Vec<State>, SlurmError> {
    let of_line = |line: &str| {
        let wrong = || SlurmError::NotUnderstood { program, said: line.to_owned() };
        let fields: Vec<&str> = line.splitn(7, '|').map(str::trim).collect();
        let &[id, state, exited, time_used, time_limit, place, name] = &fields[..] else { return Err(wrong()) };
        let mut found = State {
            id: id.to_owned(),
            name: name.to_owned(),
            // `CANCELLED by 1000`
            state: state.split_whitespace().next().unwrap_or_default().to_owned(),
            exit_code: None,
            signal: None,
            time_used: time_used.to_owned(),
            time_limit: time_limit.to_owned(),
            place: place.to_owned(),
        };
        if !found.is_active() {
            let (code, signal) = exit(exited).ok_or_else(wrong)?;
            (found.exit_code, found.signal) = (Some(code), (signal > 0).then_some(signal));
        }
        Ok(found)
    };
    said.lines().filter(|line| !line.trim().is_empty()).map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_field_by_field() {
        let said = "1|FAILED|768|0:01|1:00|(NonZeroExitCode)|a,b|c\n2_[1-4%2]|PENDING|0|0:00|1:00|(Priority)|x\n";
        let states = read("squeue", said, wait_status).unwrap();
        assert_eq!((states[0].name.as_str(), states[0].exit_code, states[0].signal), ("a,b|c", Some(3), None));
        assert!(!states[0].is_active());
        assert_eq!((states[1].job_id(), states[1].exit_code, states[1].is_active()), ("2", None, true));
        let said = "4|CANCELLED by 0|0:9|00:00:00|1-00:00:00|n1|wrap\n";
        let states = read("sacct", said, code_and_signal).unwrap();
        assert_eq!((states[0].state.as_str(), states[0].exit_code, states[0].signal), ("CANCELLED", Some(0), Some(9)));
        assert!(matches!(read("squeue", "slurm", wait_status), Err(SlurmError::NotUnderstood { .. })));
    }
}
