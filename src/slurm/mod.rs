//! Jobs under Slurm: batch scripts, records of submissions, and the states of jobs.
//!
//! Starts `sbatch`, `squeue`, `sacct`, `scontrol`, `scancel`, `sinfo` and `srun`, and nothing else does. Refuses
//! to do: reading `SLURM_*` (that is `topology`), checking jobs, printing.
//! Invariant: the output of Slurm is requested field by field; its tables for people are never parsed.

mod error;
mod program;
mod queue;
mod record;
mod script;
mod step;
mod units;

pub use error::SlurmError;
pub use queue::{State, cancel, log_file, queue, states};
pub use record::{Record, records};
pub use script::{Script, TASK_PLACE};
pub use step::Step;
pub use units::{array_tasks, memory_bytes, time};

use std::io::Write;

/// Submits a batch script to Slurm and keeps it with the runs; returns the job's id.
pub fn submit(script: &Script<'_>) -> Result<String, SlurmError> {
    let failed = |source| SlurmError::Write { path: script.directory.to_owned(), source };
    std::fs::create_dir_all(script.directory).map_err(failed)?;
    // The name of the script contains the id, which sbatch assigns.
    let mut file = tempfile::Builder::new().suffix(".sbatch").tempfile_in(script.directory).map_err(failed)?;
    file.write_all(script.render().as_bytes()).and_then(|()| file.flush()).map_err(failed)?;
    let said = program::output("sbatch", ["--parsable".as_ref(), file.path().as_os_str()])?;
    let id = job_id(&said)?;
    file.persist(script.file(&id)).map_err(|error| failed(error.error))?;
    Ok(id)
}

/// Parses `ID` or `ID;CLUSTER`.
fn job_id(said: &str) -> Result<String, SlurmError> {
    let id = said.trim().split(';').next().unwrap_or_default();
    match !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(id.to_owned()),
        false => Err(SlurmError::NotUnderstood { program: "sbatch", said: said.to_owned() }),
    }
}

/// Checks that jobs can be submitted, and that `srun` can start ranks with this PMI.
pub fn check(pmi: &str) -> Result<(), SlurmError> {
    program::output("sbatch", ["--version"])?;
    let said = program::output("srun", ["--mpi=list"])?;
    match said.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == pmi) {
        true => Ok(()),
        false => Err(SlurmError::NoPmi { pmi: pmi.to_owned() }),
    }
}

/// Returns the memory of the smallest node of a partition, or of the default partition; `None` if Slurm does not report
/// it.
pub fn node_memory_bytes(partition: Option<&str>) -> Option<u64> {
    let said = program::output("sinfo", ["--noheader", "--format=%P %m"]).ok()?;
    smallest_node_bytes(&said, partition)
}

fn smallest_node_bytes(said: &str, partition: Option<&str>) -> Option<u64> {
    let of_line = |line: &str| {
        let (name, megabytes) = line.split_once(' ')?;
        let (name, default) = name.strip_suffix('*').map_or((name, false), |name| (name, true));
        // `8000+` means that some nodes have more.
        let megabytes: u64 = megabytes.trim().trim_end_matches('+').parse().ok()?;
        partition.map_or(default, |wanted| wanted.split(',').any(|one| one == name)).then_some(megabytes << 20)
    };
    said.lines().filter_map(of_line).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_known_by_its_number() {
        let id = |said| job_id(said).ok();
        assert_eq!((id("17\n"), id("17;east\n")), (Some("17".to_owned()), Some("17".to_owned())));
        assert_eq!((id(""), id("Submitted batch job 17"), id(";east")), (None, None, None));
    }

    #[test]
    fn the_smallest_node_of_the_partition_counts() {
        let said = "main* 8000+\nmain* 4000\nbig 64000\n";
        assert_eq!(smallest_node_bytes(said, None), Some(4000 << 20));
        assert_eq!(smallest_node_bytes(said, Some("big")), Some(64000 << 20));
        assert_eq!(smallest_node_bytes(said, Some("none")), None);
    }
}
