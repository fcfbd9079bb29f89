use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Who started this process, as the environment tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody who starts ranks: run as one rank, without MPI (whose start costs 0.05 to 1 s).
    None,
    /// A launcher of ranks: call MPI.
    Mpi {
        /// How many ranks it says it started.
        size_hint: Option<u32>,
        /// Which of them this process is, as it says; for choosing who prints when MPI itself does not work.
        rank_hint: Option<u32>,
        /// As a person would call it: `mpirun (Open MPI)`, `srun --mpi=pmix`, ...
        name: &'static str,
    },
}

/// Reads what launchers leave in the environment, the most specific first, since they nest: `mpirun` inside a Slurm
/// batch job shows both `OMPI_*` and `SLURM_*`, and only the former speaks of the ranks.
///
/// Slurm sets `SLURM_PROCID`, `SLURM_NTASKS` and `SLURM_JOB_ID` in the batch script itself too, where no rank was
/// started: they prove nothing. A process started by `srun` has `SLURM_STEP_NUM_TASKS`, which a batch script has not.
/// A step of one task without a PMI (an `salloc` shell, `srun --pty bash`) is no launch of ranks either, and a step
/// of several tasks without a PMI is one that MPI will not recognise: it is reported as a launch, so that
/// [`crate::fabric::mpi`] finds the mismatch instead of every task running the whole job alone.
pub fn launcher() -> Launcher {
    detect(&|name| std::env::var(name).ok())
}

/// How many tasks Slurm holds for this job when nobody started ranks on them (`exuvia run` in a batch script without
/// `srun`): worth a warning when above 1.
pub fn allocated_tasks() -> Option<u32> {
    number(&|name| std::env::var(name).ok(), "SLURM_NTASKS")
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn number(env: Environment, name: &str) -> Option<u32> {
    env(name)?.parse().ok()
}

fn detect(env: Environment) -> Launcher {
    let number = |name: &str| number(env, name);
    let step_size = number("SLURM_STEP_NUM_TASKS");
    let launched = |name, size_hint, rank_hint| Launcher::Mpi { size_hint, rank_hint, name };
    if let Some(size) = number("OMPI_COMM_WORLD_SIZE") {
        return launched("mpirun (Open MPI)", Some(size), number("OMPI_COMM_WORLD_RANK"));
    }
    if let Some(rank) = number("PMI_RANK") {
        let size = number("PMI_SIZE");
        // Hydra (MPICH, Intel MPI, MVAPICH) may itself run in a Slurm step, one task per node.
        let hydra = env("MPI_LOCALNRANKS").is_some() || step_size.is_none();
        let name = if hydra { "mpiexec (Hydra)" } else { "srun --mpi=pmi2" };
        return launched(name, size, Some(rank));
    }
    if let Some(rank) = number("PMIX_RANK") {
        let slurm = env("PMIX_NAMESPACE").is_some_and(|space| space.starts_with("slurm."));
        return match slurm {
            true => launched("srun --mpi=pmix", step_size, Some(rank)),
            false => launched("a PMIx launcher", None, Some(rank)),
        };
    }
    match step_size {
        Some(size) if size > 1 => launched("srun without PMI", Some(size), number("SLURM_PROCID")),
        _ => Launcher::None,
    }
}

/// Whether the launcher leaves the other ranks alone when one dies: Open MPI's mpirun, if it was asked to.
pub fn launcher_outlives_ranks() -> bool {
    number(&|name| std::env::var(name).ok(), "OMPI_MCA_orte_enable_recovery") == Some(1)
}

/// Addresses of this node by which others reach it, as Open MPI's launcher has found.
pub fn node_addresses() -> Vec<IpAddr> {
    addresses(&|name| std::env::var(name).ok())
}

/// From `NUMBER;tcp://ADDRESS,ADDRESS:PORT;tcp6://[ADDRESS]:PORT`, which is where the daemon of this node is.
fn addresses(env: Environment) -> Vec<IpAddr> {
    let daemon = env("OMPI_MCA_orte_local_daemon_uri").unwrap_or_default();
    let places = daemon.split(';').find_map(|part| part.strip_prefix("tcp://")?.rsplit_once(':'));
    places.map_or_else(Vec::new, |(addresses, _)| addresses.split(',').filter_map(|text| text.parse().ok()).collect())
}

/// Id of the Slurm job that this process belongs to, with the number of its task if that is an array.
pub fn slurm_job() -> Option<String> {
    let number = |name| number(&|name| std::env::var(name).ok(), name);
    match (number("SLURM_ARRAY_JOB_ID"), number("SLURM_ARRAY_TASK_ID")) {
        (Some(job), Some(task)) => Some(format!("{job}_{task}")),
        _ => number("SLURM_JOB_ID").map(|job| job.to_string()),
    }
}

/// When the allocation that this process is in ends, if Slurm says so.
pub fn allocation_end() -> Option<SystemTime> {
    let seconds = number(&|name| std::env::var(name).ok(), "SLURM_JOB_END_TIME")?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(variables: &[(&str, &str)]) -> Launcher {
        detect(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn mpi(name: &'static str, size: u32, rank: u32) -> Launcher {
        Launcher::Mpi { size_hint: Some(size), rank_hint: Some(rank), name }
    }

    const BATCH: [(&str, &str); 3] = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")];
    const STEP: [(&str, &str); 2] = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "8")];

    #[test]
    fn a_plain_process_and_a_batch_script_are_nobody() {
        assert_eq!(says(&[]), Launcher::None);
        assert_eq!(says(&BATCH), Launcher::None);
        let shell = [("SLURM_STEP_ID", "4294967290"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(says(&[&BATCH[..], &shell].concat()), Launcher::None);
    }

    #[test]
    fn srun_is_told_by_its_pmi() {
        let step = [&BATCH[..], &STEP].concat();
        assert_eq!(says(&step), mpi("srun without PMI", 8, 0));
        let pmi2 = [("PMI_RANK", "3"), ("PMI_SIZE", "8")];
        assert_eq!(says(&[&step[..], &pmi2].concat()), mpi("srun --mpi=pmi2", 8, 3));
        let pmix = [("PMIX_RANK", "3"), ("PMIX_NAMESPACE", "slurm.pmix.7.0")];
        assert_eq!(says(&[&step[..], &pmix].concat()), mpi("srun --mpi=pmix", 8, 3));
    }

    #[test]
    fn a_node_has_the_addresses_of_its_daemon() {
        let says = |uri: &'static str| addresses(&move |_| Some(uri.to_owned()));
        let two = says("542769152.1;tcp://192.0.2.2,10.121.0.254:40855;tcp6://[fd00::2]:36693");
        assert_eq!(two, [IpAddr::from([192, 0, 2, 2]), IpAddr::from([10, 121, 0, 254])]);
        assert!(says("1.0;tcp6://[fd00::2]:36693").is_empty() && says("").is_empty());
    }

    #[test]
    fn mpirun_inside_slurm_speaks_for_itself() {
        let orted = [("SLURM_STEP_NUM_TASKS", "2"), ("PMIX_RANK", "5")];
        let ompi = [("OMPI_COMM_WORLD_SIZE", "16"), ("OMPI_COMM_WORLD_RANK", "5")];
        assert_eq!(says(&[&orted[..], &ompi].concat()), mpi("mpirun (Open MPI)", 16, 5));
        let hydra = [("SLURM_STEP_NUM_TASKS", "2"), ("PMI_RANK", "5"), ("PMI_SIZE", "16"), ("MPI_LOCALNRANKS", "8")];
        assert_eq!(says(&hydra), mpi("mpiexec (Hydra)", 16, 5));
    }
}
