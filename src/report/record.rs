//! The record of a run, as its JSON carries it.

use crate::report::trace::Trace;
use crate::report::traffic::Moved;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The report of one run, as `--report FILE` writes it. `docs/report.md` describes every field.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The schema version.
    pub schema: u32,
    pub job: String,
    /// Hash of the plan that every rank agreed on, in hexadecimal.
    pub plan_hash: String,
    pub environment: Environment,
    /// The time from the start of rank 0's process to the end of the last stage.
    pub wall_ns: u64,
    /// The bytes of outputs that an earlier run completed.
    #[serde(default)]
    pub resumed_bytes: u64,
    /// The tasks of reductions whose partial results an earlier run left.
    #[serde(default)]
    pub resumed_tasks: u64,
    /// The ranks that failed during the run.
    #[serde(default)]
    pub deaths: Vec<Death>,
    /// The time from the start of the process to the end of its first task; the earliest over ranks.
    pub first_task_ns: Option<u64>,
    pub kernels: Vec<KernelReport>,
    pub stages: Vec<StageReport>,
    pub ranks: Vec<RankReport>,
    pub outputs: Vec<OutputReport>,
    /// The trace, if recorded; it is written to its own file.
    #[serde(skip)]
    pub trace: Option<Trace>,
}

/// A failed rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Its number at the start of the run. The surviving ranks are renumbered.
    pub rank: u32,
    pub hostname: String,
    /// The time when the others agreed on the failure; the earliest over ranks.
    pub at_ns: u64,
    /// The end of the first task after the failure; the earliest over ranks.
    pub first_task_ns: Option<u64>,
}

/// The environment of the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Environment {
    pub exuvia: String,
    /// The versions of the linked libraries: MPI, HDF5, wasmer, LLVM.
    pub libraries: BTreeMap<String, String>,
    pub ranks: u32,
    pub nodes: u32,
    pub threads_per_rank: u32,
    pub cpus: Vec<String>,
    pub tier_policy: String,
}

/// The compilation of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelReport {
    pub kernel: String,
    pub module_hash: String,
    pub module_bytes: u64,
    /// The compiler of the code that the first task ran on, with the reason if it is not the default one.
    pub start_compiler: String,
    pub start_reason: Option<String>,
    /// The longest over ranks.
    pub start_compile_ns: u64,
    /// The number of optimizing compilations: at most one per CPU class, 0 if the artifact was in the cache.
    pub optimizing_compiles: u32,
    pub optimize_ns: Option<u64>,
    pub artifact_bytes: Option<u64>,
    pub cache_hit: bool,
    /// The measured cost of a slice, in nanoseconds, by export, sizes of a slice (base-2 logarithms of bytes), tier and
    /// CPU; the longest over ranks.
    pub ns_per_slice: BTreeMap<String, f64>,
    /// Hints to make this kernel faster.
    pub hints: Vec<String>,
}

/// One stage, summed over all ranks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StageReport {
    pub stage: String,
    /// The time of its first start; the earliest over ranks. Independent stages run at the same time.
    pub started_ns: Option<u64>,
    /// The longest over ranks.
    pub wall_ns: u64,
    pub counts: Counts,
}

/// The number of parts of a profile.
pub(super) const PARTS: usize = 16;

pub(super) fn is_flat(profile_ns: &[u64; PARTS]) -> bool {
    *profile_ns == [0; PARTS]
}

/// Counters of tasks and bytes, which add up over stages and ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub baseline_tasks: u64,
    pub optimized_tasks: u64,
    /// The time inside kernels.
    pub baseline_ns: u64,
    pub optimized_ns: u64,
    /// The time inside optimized kernels, by equal parts of the first split index of the stage.
    #[serde(default, skip_serializing_if = "is_flat")]
    pub profile_ns: [u64; PARTS],
    /// The time of workers in tasks: in kernels, copies for them, and merges.
    #[serde(default)]
    pub busy_ns: u64,
    /// The bytes read from files.
    pub read_bytes: u64,
    /// The tensor bytes needed from memory, by reason and distance.
    pub moved: Moved,
    /// The bytes that were still in transit when this rank's first task of the stage began.
    pub overlapped_bytes: u64,
    /// The bytes written to files.
    pub written_bytes: u64,
    /// The bytes of split operands that kernels consumed and produced.
    pub processed_bytes: u64,
    /// The number of grants of stolen work, and the number of stolen slices.
    pub steals: u64,
    pub stolen_slices: u64,
}

impl Counts {
    /// Adds other counters to these.
    pub fn add(&mut self, other: &Counts) {
        self.baseline_tasks += other.baseline_tasks;
        self.optimized_tasks += other.optimized_tasks;
        self.baseline_ns += other.baseline_ns;
        self.optimized_ns += other.optimized_ns;
        self.profile_ns.iter_mut().zip(other.profile_ns).for_each(|(mine, theirs)| *mine += theirs);
        self.busy_ns += other.busy_ns;
        self.read_bytes += other.read_bytes;
        self.moved.add(&other.moved);
        self.overlapped_bytes += other.overlapped_bytes;
        self.written_bytes += other.written_bytes;
        self.processed_bytes += other.processed_bytes;
        self.steals += other.steals;
        self.stolen_slices += other.stolen_slices;
    }

    /// Adds the time of an optimized kernel for `places` of an index of `extent` elements.
    pub fn add_to_profile(&mut self, ns: u64, places: Range<u64>, extent: u64) {
        let part = |place: u64| place as f64 / extent.max(1) as f64 * PARTS as f64;
        let (from, to) = (part(places.start), part(places.end).min(PARTS as f64));
        for at in from as usize..to.ceil() as usize {
            let common = to.min(at as f64 + 1.0) - from.max(at as f64);
            self.profile_ns[at] += (ns as f64 * common / (to - from)).round() as u64;
        }
    }

    /// The tensor bytes received from other ranks, without control messages.
    pub fn moved_bytes(&self) -> u64 {
        self.moved.total().moved()
    }

    /// The number of tasks on both tiers.
    pub fn tasks(&self) -> u64 {
        self.baseline_tasks + self.optimized_tasks
    }
}

/// The report of one rank.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RankReport {
    pub rank: u32,
    pub hostname: String,
    pub first_task_ns: Option<u64>,
    /// The failed ranks that this one survived, in the order of agreement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deaths: Vec<Death>,
    /// The number of iterations; `None` in a job without iterated stages.
    pub iterations: Option<u64>,
    /// The counters of the fabric until the end of the last stage, for tensors and control messages.
    pub fabric: Traffic,
    pub swaps: Vec<Swap>,
    pub stages: Vec<StageReport>,
    pub kernels: Vec<KernelReport>,
}

impl RankReport {
    /// Returns the entry of a stage, and creates it if needed.
    pub fn stage(&mut self, name: &str) -> &mut StageReport {
        let at = self.stages.iter().position(|stage| stage.stage == name).unwrap_or(self.stages.len());
        if at == self.stages.len() {
            self.stages.push(StageReport { stage: name.to_owned(), ..StageReport::default() });
        }
        &mut self.stages[at]
    }
}

/// The messages and bytes of the fabric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub messages_sent: u64,
    pub bytes_sent: u64,
    pub messages_received: u64,
    pub bytes_received: u64,
}

/// The swap of a worker to optimized code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    pub stage: String,
    pub worker: u32,
    /// The time of the swap.
    pub at_ns: u64,
    /// The pause of the worker.
    pub held_ns: u64,
    /// The number of tasks that this worker had completed in the stage.
    pub after_tasks: u64,
}

/// A dataset that the run wrote.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputReport {
    pub tensor: String,
    pub file: String,
    pub dataset: String,
    pub dtype: String,
    pub shape: Vec<u64>,
}

impl Report {
    /// The schema version that this build writes.
    pub const SCHEMA: u32 = 1;

    /// Combines the reports of all ranks, with sums for stages and kernels.
    pub fn join(
        job: String,
        plan_hash: String,
        environment: Environment,
        wall_ns: u64,
        ranks: Vec<RankReport>,
    ) -> Self {
        let mut stages: Vec<StageReport> = Vec::new();
        let mut kernels: Vec<KernelReport> = Vec::new();
        for rank in &ranks {
            for share in &rank.stages {
                match stages.iter_mut().find(|s| s.stage == share.stage) {
                    Some(whole) => {
                        whole.started_ns = [whole.started_ns, share.started_ns].into_iter().flatten().min();
                        whole.wall_ns = whole.wall_ns.max(share.wall_ns);
                        whole.counts.add(&share.counts);
                    }
                    None => stages.push(share.clone()),
                }
            }
            for share in &rank.kernels {
                match kernels.iter_mut().find(|k| k.kernel == share.kernel && k.module_hash == share.module_hash) {
                    Some(whole) => {
                        whole.start_compile_ns = whole.start_compile_ns.max(share.start_compile_ns);
                        whole.optimizing_compiles += share.optimizing_compiles;
                        whole.optimize_ns = whole.optimize_ns.max(share.optimize_ns);
                        whole.artifact_bytes = whole.artifact_bytes.max(share.artifact_bytes);
                        whole.cache_hit |= share.cache_hit;
                        for (key, ns) in &share.ns_per_slice {
                            let longest = whole.ns_per_slice.entry(key.clone()).or_default();
                            *longest = longest.max(*ns);
                        }
                    }
                    None => kernels.push(share.clone()),
                }
            }
        }
        let first_task_ns = ranks.iter().filter_map(|r| r.first_task_ns).min();
        // A rank may not know every hostname, but knows every failure.
        let mut deaths = ranks.first().map(|rank| rank.deaths.clone()).unwrap_or_default();
        for death in &mut deaths {
            for other in ranks.iter().flat_map(|rank| &rank.deaths).filter(|other| other.rank == death.rank) {
                death.at_ns = death.at_ns.min(other.at_ns);
                death.first_task_ns = [death.first_task_ns, other.first_task_ns].into_iter().flatten().min();
                if death.hostname.is_empty() {
                    death.hostname = other.hostname.clone();
                }
            }
        }
        Report {
            schema: Report::SCHEMA,
            job,
            plan_hash,
            environment,
            wall_ns,
            resumed_bytes: 0,
            resumed_tasks: 0,
            deaths,
            first_task_ns,
            kernels,
            stages,
            ranks,
            outputs: Vec::new(),
            trace: None,
        }
    }

    /// The counters of the whole run.
    pub fn totals(&self) -> Counts {
        let mut totals = Counts::default();
        for stage in &self.stages {
            totals.add(&stage.counts);
        }
        totals
    }
}
