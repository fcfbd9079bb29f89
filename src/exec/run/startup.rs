//! The job of a run and its kernels, which rank 0 reads, and the plan that all ranks agree on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::encode::{self, encode};
use crate::engine::{Cpu, EngineError, Kernel};
use crate::exec::comm::communicator::Communicator;
use crate::exec::dataset::target_files::{RealPath, real_outputs};
use crate::exec::error::RunError;
use crate::exec::options::Options;
use crate::exec::recovery::input_fingerprint::InputFiles;
use crate::fabric::{Payload, Rank};
use crate::job::{Job, Source, Stage};
use crate::plan::{Layout, Machine, Plan};
use crate::store::{self, Catalog, DatasetInfo, StoreError};
use crate::topology::Topology;

/// The fraction of a node's memory that its ranks may plan with.
const MEMORY_SHARE: f64 = 0.8;

/// The job and its datasets as rank 0 found them.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::exec) struct JobSetup {
    #[serde(with = "encode::path")]
    path: PathBuf,
    text: String,
    /// By tensor, the real path of an output.
    outputs: BTreeMap<String, RealPath>,
    pub layouts: BTreeMap<String, Layout>,
    pub sources: InputFiles,
    threads: Option<u32>,
    memory_bytes: Option<u64>,
    pub trace: bool,
}

/// The facts of a rank that the others compare with theirs.
#[derive(Serialize, Deserialize)]
struct Introduction {
    plan_hash: [u8; 32],
    cpu: Cpu,
}

/// Reads the job and its datasets on rank 0, and returns them on every rank. Collective.
pub(in crate::exec) fn open_job(
    comm: &mut Communicator,
    path: &Path,
    options: &Options,
    kept: &mut Option<JobSetup>,
) -> Result<(JobSetup, Job), RunError> {
    let mut encoded = None;
    if comm.rank() == 0 {
        let setup = match kept.take() {
            Some(setup) => setup,
            None => read(path, options)?,
        };
        encoded = Some(Payload::from(encode(&setup)?));
    }
    let encoded = comm.broadcast(encoded)?;
    let setup: JobSetup =
        serde_json::from_slice(&encoded).map_err(|_| RunError::Protocol { rank: 0, what: "the job" })?;
    let mut job = Job::parse(&setup.text, &setup.path).map_err(Box::new)?;
    job.move_outputs(setup.outputs.iter().map(|(tensor, path)| (tensor.as_str(), path.as_ref())));
    *kept = Some(setup.clone());
    Ok((setup, job))
}

/// Returns the layouts of the datasets that a job reads.
pub fn layouts(job: &Job) -> Result<BTreeMap<String, Layout>, StoreError> {
    Ok(datasets(job)?.iter().map(|(name, info)| (name.clone(), layout(info))).collect())
}

fn layout(info: &DatasetInfo) -> Layout {
    Layout { dtype: info.dtype, shape: info.shape.clone(), chunk: info.chunk.clone() }
}

/// Returns the datasets that a job reads, by tensor. Opens each file once.
fn datasets(job: &Job) -> Result<BTreeMap<String, DatasetInfo>, StoreError> {
    let read = job.tensors.values().filter_map(|decl| match &decl.source {
        Source::File { file, dataset } => Some((file, dataset, &decl.name)),
        _ => None,
    });
    let mut read: Vec<_> = read.collect();
    read.sort_unstable();
    let mut catalog = Catalog::default();
    let look =
        |(file, dataset, name): (&PathBuf, &String, &String)| Ok((name.clone(), catalog.describe(file, dataset)?));
    read.into_iter().map(look).collect()
}

/// Checks that the output datasets of a job can be created, before anything is computed.
pub fn check_outputs(job: &Job) -> Result<(), StoreError> {
    job.tensors.values().try_for_each(|decl| match &decl.source {
        Source::Create { file, dataset, .. } => store::may_create(file, dataset),
        _ => Ok(()),
    })
}

fn read(path: &Path, options: &Options) -> Result<JobSetup, RunError> {
    let job = Job::load(path).map_err(Box::new)?;
    let outputs = real_outputs(&job)?;
    let datasets = datasets(&job)?;
    let layouts = datasets.iter().map(|(name, info)| (name.clone(), layout(info))).collect();
    let sources = InputFiles::of(&datasets)?;
    check_outputs(&job)?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = job.text().to_owned();
    let (threads, memory_bytes) = (options.threads, options.memory_bytes);
    Ok(JobSetup { path, text, outputs, layouts, sources, threads, memory_bytes, trace: options.trace })
}

/// Returns the machine to plan for, which is the same on every rank.
pub(in crate::exec) fn machine(topology: &Topology, setup: &JobSetup, job: &Job) -> Machine {
    let ranks = 0..topology.size();
    let on_node = |rank: Rank| topology.ranks_on_node(rank).len() as u32;
    let ranks_per_node = ranks.clone().map(on_node).max().unwrap_or(1);
    let threads =
        setup.threads.unwrap_or_else(|| ranks.clone().map(|r| topology.default_threads(r)).min().unwrap_or(1));
    let share = |rank: Rank| {
        let node = topology.host(rank).memory_bytes as f64 * MEMORY_SHARE;
        (node / f64::from(on_node(rank))) as u64
    };
    let memory_bytes = setup.memory_bytes.or(job.memory_bytes).or_else(|| ranks.map(share).min()).unwrap_or(u64::MAX);
    Machine { ranks: topology.size(), ranks_per_node, threads: threads.max(1), memory_bytes }
}

/// Checks that all ranks have made the same plan. Returns the ranks whose CPU is like this rank's. Collective.
pub(in crate::exec) fn agree_on_plan(comm: &mut Communicator, plan: &Plan) -> Result<Vec<Rank>, RunError> {
    let mine = Introduction { plan_hash: plan.hash(), cpu: Cpu::host() };
    let all = comm.allgather(encode(&mine)?)?;
    let mut introductions = Vec::new();
    for (rank, bytes) in (0..).zip(&all) {
        let one: Introduction =
            serde_json::from_slice(bytes).map_err(|_| RunError::Protocol { rank, what: "its plan" })?;
        introductions.push(one);
    }
    let ranks = || (0..).zip(&introductions);
    let differing: Vec<Rank> =
        ranks().filter(|(_, i)| i.plan_hash != introductions[0].plan_hash).map(|(rank, _)| rank).collect();
    if !differing.is_empty() {
        return Err(RunError::PlanDisagreement { ranks: differing });
    }
    Ok(ranks().filter(|(_, i)| i.cpu == mine.cpu).map(|(rank, _)| rank).collect())
}

/// Reads the kernel of a stage, and checks that its merging export exists, so that rank 0 reports a missing one.
pub fn load_kernel(stage: &Stage) -> Result<Kernel, RunError> {
    let failed = engine_error(stage);
    let kernel = Kernel::load(&stage.kernel, stage.export.as_deref()).map_err(&failed)?;
    stage.merge.as_deref().map(|export| kernel.sibling(export)).transpose().map_err(&failed)?;
    Ok(kernel)
}

fn engine_error(stage: &Stage) -> impl Fn(EngineError) -> RunError {
    |source| RunError::Engine {
        kernel: stage.kernel.display().to_string(),
        stage: stage.name.clone(),
        source: Box::new(source),
    }
}

/// The kernels of a job.
#[derive(Default)]
pub(in crate::exec) struct LoadedKernels {
    /// The distinct kernels that compute tiles.
    pub kernels: Vec<Kernel>,
    /// By stage, the index of its kernel.
    pub of_stage: Vec<usize>,
    /// By stage, the kernel that merges its partial results, if it has one.
    pub merges: Vec<Option<Kernel>>,
}

/// Reads each module once on rank 0 and sends it to the others, so that all run the same bytes. After the run has
/// shrunk, uses the modules that were `kept`, by stage. Collective.
pub(in crate::exec) fn load_kernels(
    comm: &mut Communicator,
    job: &Job,
    kept: &mut Vec<Payload>,
) -> Result<LoadedKernels, RunError> {
    let mut loaded = LoadedKernels::default();
    let LoadedKernels { kernels, of_stage, merges } = &mut loaded;
    for (index, stage) in job.stages.iter().enumerate() {
        let failed = engine_error(stage);
        let mut bytes = None;
        if comm.rank() == 0 && index < kept.len() {
            bytes = Some(kept[index].clone());
        } else if comm.rank() == 0 {
            bytes = Some(Payload::from(load_kernel(stage)?.bytes().to_vec()));
        }
        let bytes = comm.broadcast(bytes)?;
        if index == kept.len() {
            kept.push(bytes.clone());
        }
        let name = stage.kernel.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let kernel = Kernel::from_bytes(&name, &bytes, stage.export.as_deref()).map_err(&failed)?;
        merges.push(stage.merge.as_deref().map(|export| kernel.sibling(export)).transpose().map_err(&failed)?);
        let same = |other: &Kernel| other.hash() == kernel.hash() && other.export() == kernel.export();
        of_stage.push(kernels.iter().position(same).unwrap_or(kernels.len()));
        if !kernels.iter().any(same) {
            kernels.push(kernel);
        }
    }
    Ok(loaded)
}
