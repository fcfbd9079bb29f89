use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::slurm::error::SlurmError;
use crate::slurm::script::TASK_PLACE;

/// The record of a submission, beside its script: the job, its Slurm id and its files. Slurm forgets finished jobs
/// after minutes if it has no accounting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub id: String,
    pub name: String,
    /// The job file; [`TASK_PLACE`] stands for the task of an array.
    pub job: PathBuf,
    pub array: Option<String>,
    pub nodes: u32,
    pub ranks: u32,
    /// RFC 3339, UTC.
    pub submitted: String,
    pub script: PathBuf,
    /// Contains [`TASK_PLACE`] for an array.
    pub log: PathBuf,
    pub report: PathBuf,
    pub outputs: Vec<PathBuf>,
}

impl Record {
    /// Writes the record beside the script.
    pub fn write(&self) -> Result<(), SlurmError> {
        let path = self.script.with_extension("json");
        let write = || -> std::io::Result<()> {
            // The record is written atomically, and a link in its place is not followed.
            let folder = path.parent().unwrap_or(Path::new("."));
            let permissions = std::fs::Permissions::from_mode(0o666);
            let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.write_all(b"\n")?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| SlurmError::Write { path: path.clone(), source })
    }

    /// Returns whether `id` is the job or one of its tasks.
    pub fn is(&self, id: &str) -> bool {
        id.split('_').next() == Some(self.id.as_str())
    }

    /// The existing logs, each with the id of its job or task.
    pub fn logs(&self) -> Vec<(String, PathBuf)> {
        let pattern = self.log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((before, after)) = pattern.split_once(TASK_PLACE).filter(|_| self.array.is_some()) else {
            let here = self.log.exists().then(|| (self.id.clone(), self.log.clone()));
            return here.into_iter().collect();
        };
        let folder = self.log.parent().and_then(|folder| std::fs::read_dir(folder).ok());
        let task = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let task: u32 = name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()?;
            Some((task, entry.path()))
        };
        let mut logs: Vec<(u32, PathBuf)> = folder.into_iter().flatten().flatten().filter_map(task).collect();
        logs.sort();
        logs.into_iter().map(|(task, path)| (format!("{}_{task}", self.id), path)).collect()
    }
}

/// Reads the records in a folder, in the order of submission; a missing folder has none.
pub fn records(directory: &Path) -> Result<Vec<Record>, SlurmError> {
    let failed =
        |path: &Path, source: std::io::Error| SlurmError::Record { path: path.to_owned(), source: source.into() };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(directory, error)),
    };
    let mut records = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        // NAME-ID.json is a record; NAME-ID.report.json is not.
        let is_record = path.extension().is_some_and(|extension| extension == "json")
            && path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| !stem.ends_with(".report"));
        if is_record {
            let text = std::fs::read(&path).map_err(|error| failed(&path, error))?;
            let record: Record = serde_json::from_slice(&text)
                .map_err(|source| SlurmError::Record { path: path.clone(), source: source.into() })?;
            records.push(record);
        }
    }
    records.sort_by_key(|record| (record.id.parse::<u64>().ok(), record.submitted.clone()));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_again_with_the_logs_of_their_tasks() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let record = |id: &str, array: Option<&str>| Record {
            schema: 1,
            id: id.to_owned(),
            name: "x".to_owned(),
            job: "x-%a.toml".into(),
            array: array.map(str::to_owned),
            nodes: 1,
            ranks: 1,
            submitted: String::new(),
            script: at(&format!("x-{id}.sbatch")),
            log: at(&if array.is_some() { format!("x-{id}_%a.log") } else { format!("x-{id}.log") }),
            report: at("x.report.json"),
            outputs: Vec::new(),
        };
        assert_eq!(records(&at("none")).unwrap(), []);
        let (array, single) = (record("9", Some("0-10")), record("10", None));
        single.write().unwrap();
        std::fs::write(at("precious"), "7").unwrap();
        std::os::unix::fs::symlink(at("precious"), at("x-9.json")).unwrap();
        array.write().unwrap();
        assert_eq!(std::fs::read_to_string(at("precious")).unwrap(), "7", "links are not followed");
        for name in ["x-9_10.log", "x-9_2.log", "x-9_x.log", "x-10.log", "x-9_2.report.json"] {
            std::fs::write(at(name), "").unwrap();
        }
        assert_eq!(records(folder.path()).unwrap(), [array.clone(), single.clone()]);
        let ids = |record: &Record| record.logs().into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!((ids(&array), ids(&single)), (vec!["9_2".to_owned(), "9_10".to_owned()], vec!["10".to_owned()]));
        assert!(array.is("9") && array.is("9_2") && !array.is("90"));
        std::fs::write(at("x-11.json"), "{").unwrap();
        assert!(records(folder.path()).unwrap_err().to_string().contains("x-11.json"));
    }
}
