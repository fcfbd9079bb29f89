use std::fs::read_to_string;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::topology::cpu::CpuClass;
use crate::topology::process::{Process, hostname, pid_namespace, start_ticks};
use crate::topology::slurm::Grant;

/// The machine of one rank. The hosts of all ranks make a [`Topology`](super::Topology).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub hostname: String,
    /// The pid namespace (`/proc/self/ns/pid`), within which pids of other ranks are valid.
    pub pid_namespace: String,
    pub pid: u32,
    /// The start of the process in clock ticks since boot, which distinguishes it from a later process with the same
    /// pid.
    pub start_ticks: u64,
    pub cpu: CpuClass,
    /// The CPUs that this rank may run on (its affinity mask).
    pub cpus_allowed: Vec<u32>,
    /// The number of CPUs that the ranks of the node may use together: that of the mask, or less if a cgroup quota or
    /// Slurm limits it.
    pub cores: u32,
    /// The CPUs per rank, if requested from Slurm.
    pub cpus_per_task: Option<u32>,
    /// The memory that the ranks of the node may use together: that of the machine, or less if a cgroup or Slurm limits
    /// it.
    pub memory_bytes: u64,
    /// The addresses of its [`LivenessListener`](super::LivenessListener), if it has one.
    pub door: Vec<SocketAddr>,
}

/// Describes this process. Values that cannot be read are empty, 0 or those of the machine, never an error.
pub fn host() -> Host {
    let pid = std::process::id();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let grant = Grant::here();
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let mut cpus_allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .and_then(parse_cpu_list)
        .unwrap_or_default();
    if cpus_allowed.is_empty() {
        cpus_allowed = (0..cores).collect();
    }
    Host {
        hostname: hostname(),
        pid_namespace: pid_namespace(),
        pid,
        start_ticks: start_ticks(pid).unwrap_or(0),
        cpu: CpuClass::here(),
        cpus_allowed,
        // Slurm does not change the mask if it does not bind.
        cores: cores.min(grant.cpus.unwrap_or(u32::MAX)),
        cpus_per_task: grant.cpus_per_task,
        memory_bytes: memory_bytes().min(grant.memory_bytes.unwrap_or(u64::MAX)),
        door: Vec::new(),
    }
}

impl Host {
    /// The process of the rank.
    pub fn process(&self) -> Process {
        let (hostname, pid_namespace) = (self.hostname.clone(), self.pid_namespace.clone());
        Process { hostname, pid_namespace, pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// Parses the kernel's list format: `0-3,8,10-11`.
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(cpus)
}

fn memory_bytes() -> u64 {
    let installed = read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    let limits = cgroup_limit_files();
    let limits = limits.iter().filter_map(|file| read_to_string(file).ok()?.trim().parse().ok());
    limits.chain(installed).min().unwrap_or(0)
}

/// The files that may limit the memory of this process: those of its cgroup and of all ancestors, in versions 1 and 2.
fn cgroup_limit_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let groups = Path::new(group.trim_start_matches('/')).ancestors();
        files.extend(groups.map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_parse() {
        assert_eq!(parse_cpu_list("\t0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_cpu_list("5"), Some(vec![5]));
        assert_eq!(parse_cpu_list("x"), None);
    }

    #[test]
    fn this_host_is_plausible_and_survives_json() {
        let here = host();
        assert!(here.memory_bytes > 1 << 26, "{here:?}");
        assert!(here.cores >= 1 && !here.cpus_allowed.is_empty());
        assert!(!here.hostname.is_empty() && here.start_ticks > 0);
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&text).unwrap(), here);
    }
}
