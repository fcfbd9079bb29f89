use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// The launcher of this process, according to the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// No launcher: run as one rank, without MPI (whose start takes 0.05 to 1 s).
    None,
    /// A launcher of ranks: use MPI.
    Mpi {
        /// The number of ranks according to the launcher.
        size_hint: Option<u32>,
        /// The rank of this process according to the launcher, to choose the rank that prints if MPI does not work.
        rank_hint: Option<u32>,
        /// The name for messages: `mpirun (Open MPI)`, `srun --mpi=pmix`, ...
        name: &'static str,
    },
}

/// Reads the environment variables of launchers, the most specific first, since launchers nest: `mpirun` inside a Slurm
/// batch job shows both `OMPI_*` and `SLURM_*`, and only the former describe the ranks.
///
/// Slurm sets `SLURM_PROCID`, `SLURM_NTASKS` and `SLURM_JOB_ID` in the batch script itself too, where no rank was
/// started: they are not evidence. A process started by `srun` has `SLURM_STEP_NUM_TASKS`, which a batch script does
/// not have. A step of one task without a PMI (an `salloc` shell, `srun --pty bash`) is not a launch of ranks either. A
/// step of several tasks without a PMI is one that MPI will not recognise: it is reported as a launch, so that
/// [`crate::fabric::mpi`] finds the mismatch instead of every task running the whole job alone.
pub fn launcher() -> Launcher {
    detect(&|name| std::env::var(name).ok())
}

/// The number of tasks of the allocation if no ranks were started on them (`exuvia run` in a batch script without
/// `srun`): a number above 1 is worth a warning.
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

/// Returns whether the launcher keeps the other ranks when one fails: Open MPI's mpirun, with the right option.
pub fn launcher_outlives_ranks() -> bool {
    number(&|name| std::env::var(name).ok(), "OMPI_MCA_orte_enable_recovery") == Some(1)
}

/// The addresses by which other nodes reach this one, as found by Open MPI's launcher.
pub fn node_addresses() -> Vec<IpAddr> {
    addresses(&|name| std::env::var(name).ok())
}

/// Parses the address of the daemon of this node: `NUMBER;tcp://ADDRESS,ADDRESS:PORT;tcp6://[ADDRESS]:PORT`.
fn addresses(env: Environment) -> Vec<IpAddr> {
    let daemon = env("OMPI_MCA_orte_local_daemon_uri").unwrap_or_default();
    let places = daemon.split(';').find_map(|part| part.strip_prefix("tcp://")?.rsplit_once(':'));
    places.map_or_else(Vec::new, |(addresses, _)| addresses.split(',').filter_map(|text| text.parse().ok()).collect())
}

/// The id of the Slurm job of this process; for an array, with the number of its task.
pub fn slurm_job() -> Option<String> {
    let number = |name| number(&|name| std::env::var(name).ok(), name);
    match (number("SLURM_ARRAY_JOB_ID"), number("SLURM_ARRAY_TASK_ID")) {
        (Some(job), Some(task)) => Some(format!("{job}_{task}")),
        _ => number("SLURM_JOB_ID").map(|job| job.to_string()),
    }
}

/// The end of the allocation of this process, if known.
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
