//! The arguments of `exuvia submit`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::output::Output;

/// Arguments of `exuvia submit`.
#[derive(Debug, Args)]
pub(in crate::cli) struct SubmitArguments {
    /// Job file; with --array, %a in its path stands for the number of the array task
    pub job: PathBuf,
    /// Number of nodes [default: 1]
    #[arg(short = 'N', long, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// Ranks per node [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ntasks_per_node: Option<u32>,
    /// CPUs, and so threads, of each rank
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus_per_task: Option<u32>,
    /// Memory of each node, such as 4G
    #[arg(long)]
    pub mem: Option<String>,
    /// Time limit in Slurm's format: MINUTES, HH:MM:SS, DAYS-HH
    #[arg(short, long)]
    pub time: Option<String>,
    /// Partition to submit to
    #[arg(short, long)]
    pub partition: Option<String>,
    /// Account to charge
    #[arg(short = 'A', long)]
    account: Option<String>,
    /// Quality of service
    #[arg(short, long)]
    qos: Option<String>,
    /// Submit an array of jobs, one for each number, such as 0-15%4
    #[arg(short, long)]
    pub array: Option<String>,
    /// Start only after this condition, such as afterok:17
    #[arg(short, long)]
    pub dependency: Option<String>,
    /// Name in the queue [default: the job's name]
    #[arg(short = 'J', long)]
    pub job_name: Option<String>,
    /// Requeue the job when a node fails, when it is preempted, and when it stopped before the end
    #[arg(long)]
    pub requeue: bool,
    /// Signal to the ranks before the time limit: SIGNAL@SECONDS
    #[arg(long, default_value = "USR1@30")]
    pub signal: String,
    /// Additional option of sbatch, such as --sbatch=--constraint=icelake
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// Check the job and print the script, but do not submit it
    #[arg(long)]
    pub dry_run: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Arguments for `exuvia run`
    #[arg(last = true)]
    pub run: Vec<String>,
}

impl SubmitArguments {
    pub fn nodes(&self) -> u32 {
        self.nodes.unwrap_or(1)
    }

    pub fn ranks_per_node(&self) -> u32 {
        self.ntasks_per_node.unwrap_or(1)
    }

    /// The options of sbatch that the user set.
    pub fn sbatch_options(&self) -> Vec<String> {
        // Slurm ignores the number of ranks per node without a number of nodes.
        let nodes = self.nodes.or(self.ntasks_per_node.map(|_| 1));
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let valued = [
            ("nodes", number(nodes)),
            ("ntasks-per-node", number(self.ntasks_per_node)),
            ("cpus-per-task", number(self.cpus_per_task)),
            ("mem", self.mem.clone()),
            ("time", self.time.clone()),
            ("partition", self.partition.clone()),
            ("account", self.account.clone()),
            ("qos", self.qos.clone()),
            ("array", self.array.clone()),
            ("dependency", self.dependency.clone()),
        ];
        let valued = valued.into_iter().filter_map(|(option, value)| Some(format!("--{option}={}", value?)));
        let requeue = self.requeue.then(|| "--requeue".to_owned());
        valued.chain(requeue).chain(self.sbatch.iter().cloned()).collect()
    }
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
