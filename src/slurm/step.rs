use std::ffi::OsStr;
use std::process::Command;

/// Ranks to start inside an allocation, as in `slurm/run.sbatch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step<'a> {
    pub ranks: u32,
    /// The number of ranks per node; nodes are filled one after another.
    pub per_node: u32,
    /// The number of threads per rank.
    pub threads: u32,
    /// Whether a node gets more threads than it has CPUs.
    pub overcommit: bool,
    /// The PMI that `srun` offers to the MPI library.
    pub pmi: &'a str,
}

impl Step<'_> {
    /// Returns the `srun` command for this program, without its arguments.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let nodes = self.ranks.div_ceil(self.per_node.max(1));
        let mut command = Command::new("srun");
        // -K1 ends the other ranks when one fails.
        command.args(["-K1", &format!("--mpi={}", self.pmi)]);
        command.args([format!("--nodes={nodes}"), format!("--ntasks={}", self.ranks)]);
        command.args([format!("--ntasks-per-node={}", self.per_node), format!("--cpus-per-task={}", self.threads)]);
        if self.overcommit {
            command.arg("--overcommit");
        }
        // Slurm binds ranks to CPUs, not the MPI library, and waiting ranks yield.
        command.env("OMPI_MCA_hwloc_base_binding_policy", "none").env("OMPI_MCA_mpi_yield_when_idle", "1");
        command.arg(program);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_filled_one_after_another() {
        let step = Step { ranks: 5, per_node: 2, threads: 3, overcommit: false, pmi: "pmix" };
        let command = step.command("exuvia");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        for word in ["-K1", "--mpi=pmix", "--nodes=3", "--ntasks=5", "--ntasks-per-node=2", "--cpus-per-task=3"] {
            assert!(words.iter().any(|other| other == word), "{word} in {words:?}");
        }
        assert_eq!(words.last().map(String::as_str), Some("exuvia"));
    }
}
