use std::ffi::OsStr;
use std::process::Command;

/// Ranks to be started inside an allocation, as `slurm/run.sbatch` does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step<'a> {
    pub ranks: u32,
    /// On each node, nodes one after another.
    pub per_node: u32,
    /// Of each rank.
    pub threads: u32,
    /// More of them on a node than it has CPUs.
    pub overcommit: bool,
    /// How `srun` talks to the MPI library.
    pub pmi: &'a str,
}

impl Step<'_> {
    /// `srun` for this program, whose arguments follow.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let nodes = self.ranks.div_ceil(self.per_node.max(1));
        let mut command = Command::new("srun");
        // -K1: when one rank dies, the others are ended.
        command.args(["-K1", &format!("--mpi={}", self.pmi)]);
        command.args([format!("--nodes={nodes}"), format!("--ntasks={}", self.ranks)]);
        command.args([format!("--ntasks-per-node={}", self.per_node), format!("--cpus-per-task={}", self.threads)]);
        if self.overcommit {
            command.arg("--overcommit");
        }
        // Which CPUs a rank may use is for Slurm to say, not for the MPI library; and ranks that wait give way.
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
