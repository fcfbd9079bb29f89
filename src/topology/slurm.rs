/// The resources that Slurm granted to the ranks of the job on this node, and those requested per rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Grant {
    pub cpus: Option<u32>,
    pub cpus_per_task: Option<u32>,
    pub memory_bytes: Option<u64>,
}

impl Grant {
    /// Empty outside Slurm and where Slurm reports nothing.
    pub fn here() -> Grant {
        Grant::read(&|name| std::env::var(name).ok()?.parse().ok().filter(|number| *number > 0))
    }

    /// `number` reads a variable; 0, which in `--mem=0` means everything, counts as unset.
    fn read(number: &dyn Fn(&str) -> Option<u64>) -> Grant {
        let cpu_count = |name| number(name).and_then(|cpus| u32::try_from(cpus).ok());
        // On the nodes only; `salloc` sets the other variables in a shell on the login node too.
        let Some(cpus) = cpu_count("SLURM_CPUS_ON_NODE") else { return Grant::default() };
        let per_cpu = number("SLURM_MEM_PER_CPU").and_then(|megabytes| megabytes.checked_mul(u64::from(cpus)));
        let megabytes = number("SLURM_MEM_PER_NODE").or(per_cpu);
        Grant {
            cpus: Some(cpus),
            cpus_per_task: cpu_count("SLURM_CPUS_PER_TASK"),
            memory_bytes: megabytes.and_then(|megabytes| megabytes.checked_mul(1 << 20)),
        }
    }
}

/// The allocation of a batch script, outside of any step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    pub nodes: u32,
    /// The CPUs of the first node; all nodes are assumed to be equal.
    pub cpus_per_node: u32,
    /// The ranks per node, if requested from Slurm.
    pub tasks_per_node: Option<u32>,
}

impl Allocation {
    /// Returns `None` outside Slurm and in processes that `srun` started.
    pub(super) fn read(env: &dyn Fn(&str) -> Option<String>) -> Option<Allocation> {
        let number = |name: &str| leading_number(&env(name)?);
        // `salloc` and `sbatch` number no step for the shell; a shell that is a step of one task can start others.
        if number("SLURM_STEP_NUM_TASKS").is_some_and(|tasks| tasks > 1) {
            return None;
        }
        Some(Allocation {
            nodes: number("SLURM_JOB_NUM_NODES")?,
            // `4(x2),8`
            cpus_per_node: number("SLURM_JOB_CPUS_PER_NODE")?,
            tasks_per_node: number("SLURM_NTASKS_PER_NODE"),
        })
    }

    /// The CPUs of all nodes.
    pub fn cpus(&self) -> u32 {
        self.nodes * self.cpus_per_node
    }

    /// The number of ranks per node when nodes are filled one after another: the number requested from Slurm, or that
    /// of the CPUs, and more only if the ranks would not fit otherwise.
    pub fn ranks_per_node(&self, ranks: u32, threads: u32) -> u32 {
        let room = self.tasks_per_node.unwrap_or(self.cpus_per_node / threads.max(1)).max(1);
        room.max(ranks.div_ceil(self.nodes.max(1))).min(ranks)
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(variables: &[(&str, u64)]) -> Grant {
        Grant::read(&|name| {
            variables.iter().find(|(key, number)| *key == name && *number > 0).map(|(_, number)| *number)
        })
    }

    #[test]
    fn memory_is_of_the_node_or_of_its_cpus() {
        let node = grant(&[("SLURM_CPUS_ON_NODE", 8), ("SLURM_MEM_PER_NODE", 4000), ("SLURM_CPUS_PER_TASK", 2)]);
        assert_eq!(node, Grant { cpus: Some(8), cpus_per_task: Some(2), memory_bytes: Some(4000 << 20) });
        let cpus = grant(&[("SLURM_CPUS_ON_NODE", 8), ("SLURM_MEM_PER_CPU", 500), ("SLURM_MEM_PER_NODE", 0)]);
        assert_eq!(cpus, Grant { cpus: Some(8), cpus_per_task: None, memory_bytes: Some(4000 << 20) });
    }

    #[test]
    fn a_shell_on_the_login_node_grants_nothing() {
        assert_eq!(grant(&[("SLURM_CPUS_PER_TASK", 2), ("SLURM_MEM_PER_NODE", 4000)]), Grant::default());
        assert_eq!(grant(&[]), Grant::default());
    }

    #[test]
    fn an_allocation_is_filled_node_by_node() {
        let read = |variables: &[(&str, &str)]| {
            Allocation::read(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned()))
        };
        let batch = [("SLURM_JOB_NUM_NODES", "3"), ("SLURM_JOB_CPUS_PER_NODE", "8(x3)")];
        let free = read(&batch).unwrap();
        assert_eq!((free.cpus(), free.tasks_per_node), (24, None));
        let per_node = [(1, 1), (4, 2), (8, 2), (30, 1)].map(|(ranks, threads)| free.ranks_per_node(ranks, threads));
        assert_eq!(per_node, [1, 4, 4, 10]);
        let asked = read(&[&batch[..], &[("SLURM_NTASKS_PER_NODE", "2")]].concat()).unwrap();
        assert_eq!([1, 2, 3, 12].map(|ranks| asked.ranks_per_node(ranks, 1)), [1, 2, 2, 4]);
        assert_eq!(read(&[&batch[..], &[("SLURM_STEP_NUM_TASKS", "6")]].concat()), None);
        assert_eq!(read(&[]), None);
    }
}
