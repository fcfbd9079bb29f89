use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::live::snapshot::Snapshot;

/// The age up to which a file of another node counts as that of a running process, since the process itself cannot be
/// checked. Runs write every two seconds, and the clocks of nodes differ by less than this.
const LATELY: Duration = Duration::from_secs(15);
/// The age from which a file is removed.
const OLD: Duration = Duration::from_secs(24 * 3600);
/// The suffix of a file that is being written.
pub(super) const PART: &str = "part";

/// The folder of live snapshots: `$XDG_STATE_HOME/exuvia/live` or `~/.local/state/exuvia/live`, which the nodes of a
/// cluster share if they share home folders.
pub fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("exuvia/live"))
}

/// Returns the running jobs, oldest first. Removes the files of ended runs.
pub fn list(folder: &Path) -> Vec<Snapshot> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let now = SystemTime::now();
    let mut runs: Vec<Snapshot> = entries.filter_map(|entry| look(&entry.path(), now)).collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run.elapsed_ns));
    runs
}

fn look(file: &Path, now: SystemTime) -> Option<Snapshot> {
    let since = |then: SystemTime| now.duration_since(then).unwrap_or_default();
    let age = since(fs::metadata(file).ok()?.modified().ok()?);
    let remove = || drop(fs::remove_file(file));
    if age > OLD || (file.extension().is_some_and(|extension| extension == PART) && age > LATELY) {
        remove();
    }
    // Files of other versions of the program are ignored.
    let run: Snapshot = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    if run.schema != Snapshot::SCHEMA || file.extension().is_none_or(|extension| extension != "json") {
        return None;
    }
    match run.rank_0.lives() {
        Some(true) => Some(run),
        Some(false) => {
            remove();
            None
        }
        None => {
            let written = SystemTime::UNIX_EPOCH + Duration::from_millis(run.written_ms);
            (since(written) < LATELY).then_some(run)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Process, host};

    fn put(folder: &Path, name: &str, rank_0: Process, age: Duration) {
        let written = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - age;
        let run = Snapshot {
            schema: Snapshot::SCHEMA,
            job: name.to_owned(),
            rank_0,
            written_ms: written.as_millis() as u64,
            ..Snapshot::default()
        };
        fs::write(folder.join(format!("{name}.json")), serde_json::to_vec(&run).unwrap()).unwrap();
    }

    #[test]
    fn runs_of_dead_processes_are_not_listed_and_go_and_those_of_other_nodes_count_while_they_write() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let here = host().process();
        put(folder, "alive", here.clone(), Duration::from_secs(3600));
        put(folder, "dead", Process { pid: dead.id(), ..here.clone() }, Duration::ZERO);
        // Another process has this pid now.
        put(folder, "replaced", Process { start_ticks: here.start_ticks + 1, ..here.clone() }, Duration::ZERO);
        let elsewhere = Process { hostname: "elsewhere".to_owned(), ..here.clone() };
        put(folder, "elsewhere", elsewhere.clone(), Duration::ZERO);
        put(folder, "silent", elsewhere, Duration::from_secs(60));
        fs::write(folder.join("torn.json"), "{").unwrap();
        let mut names: Vec<String> = list(folder).into_iter().map(|run| run.job).collect();
        names.sort();
        assert_eq!(names, ["alive", "elsewhere"]);
        let mut left: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["alive.json", "elsewhere.json", "silent.json", "torn.json"]);
        assert!(list(&folder.join("nothing")).is_empty());
    }
}
