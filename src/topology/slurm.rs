/// What Slurm granted to all of the job's ranks on this node, and what it was asked for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Grant {
    pub cpus: Option<u32>,
    pub cpus_per_task: Option<u32>,
    pub memory_bytes: Option<u64>,
}

impl Grant {
    /// Nothing outside Slurm, and where Slurm does not say.
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
}
