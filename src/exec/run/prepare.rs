//! The start of a run on one rank: the job, its plan and kernels, and the completed work of earlier runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::engine::{Cache, Cpu, Engine, Kernel, Pipeline};
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::TierSetup;
use crate::exec::options::Options;
use crate::exec::recovery::header::CurrentJob;
use crate::exec::recovery::manifest::{Manifest, Resumed};
use crate::exec::recovery::staging::Stagings;
use crate::exec::run::startup::{JobSetup, LoadedKernels, agree_on_plan, load_kernels, machine, open_job};
use crate::exec::run::state::{ResumedWork, RunState};
use crate::fabric::Rank;
use crate::job::Job;
use crate::plan::{Machine, Plan, plan};
use crate::topology::Topology;

/// A job that all ranks agree on, ready to run.
pub(super) struct Prepared {
    /// The time at which this part of the run started: the process's start, or the time at which the run shrank.
    pub started: Instant,
    path: PathBuf,
    pub topology: Topology,
    pub setup: JobSetup,
    pub job: Job,
    pub machine: Machine,
    pub plan: Arc<Plan>,
    /// The ranks whose CPU is like this rank's.
    cpu_class: Vec<Rank>,
    pub loaded: LoadedKernels,
    pub cache: Option<Cache>,
}

impl Prepared {
    /// Reads and plans the job at `path`. Collective.
    pub fn new(
        comm: &mut Communicator,
        path: &Path,
        options: &Options,
        state: &mut RunState,
    ) -> Result<Prepared, RunError> {
        let started = if state.resumed.is_some() { Instant::now() } else { state.process_start };
        let topology = comm.topology()?;
        comm.watch(&topology);
        if let Some(on_started) = options.on_started {
            on_started();
        }
        let (setup, job) = open_job(comm, path, options, &mut state.setup)?;
        let machine = machine(&topology, &setup, &job);
        let plan = Arc::new(plan(&job, &setup.layouts, &machine).map_err(Box::new)?);
        let cpu_class = agree_on_plan(comm, &plan)?;
        let loaded = load_kernels(comm, &job, &mut state.modules)?;
        let (path, cache) = (path.to_owned(), open_cache(options));
        Ok(Prepared { started, path, topology, setup, job, machine, plan, cpu_class, loaded, cache })
    }

    /// Takes up, or clears, the completed work of earlier runs, and tells the user. Collective.
    pub fn open_manifest(
        &self,
        comm: &mut Communicator,
        options: &Options,
        state: &mut RunState,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let kernels = &self.loaded.kernels;
        let of_stages: Vec<&Kernel> = self.loaded.of_stage.iter().map(|kernel| &kernels[*kernel]).collect();
        let has_shrunk = state.resumed.is_some();
        let resume = if has_shrunk { options.resume.after_shrink() } else { options.resume };
        let current =
            CurrentJob { job: &self.job, plan: &self.plan, kernels: &of_stages, input_files: &self.setup.sources };
        let opened = Manifest::open(comm, current, resume, &mut stagings.files);
        // The files are an earlier run's, and stay so until this run has taken them up.
        let (manifest, resumed) = opened.inspect_err(|_| stagings.leave())?;
        stagings.manifest = manifest;
        state.resumed.get_or_insert(ResumedWork { bytes: resumed.bytes, tasks: resumed.tasks });
        if comm.rank() == 0 {
            options.notify(&resume_notes(&resumed, has_shrunk));
            if !has_shrunk {
                let undecided = self.plan.stages.iter().filter_map(|stage| Some((&stage.name, stage.undecided()?)));
                let notes = undecided.map(|(name, note)| format!("stage '{name}': {note}"));
                options.notify(&notes.collect::<Vec<_>>());
            }
            if options.suggest_check && !has_shrunk {
                options.notify(unchecked(kernels, self.cache.as_ref(), &self.path).as_slice());
            }
        }
        Ok(())
    }

    pub fn tier_setup(&self, options: &Options) -> TierSetup {
        TierSetup {
            engine: Engine::new(Cpu::host(), Pipeline::Full),
            policy: options.tier,
            cache: self.cache.clone(),
            helper: options.helper.clone(),
            limits: options.compile_limits,
            threads: self.machine.threads as usize,
            class: self.cpu_class.clone(),
        }
    }
}

/// Without a usable cache the run works all the same, only it compiles again.
fn open_cache(options: &Options) -> Option<Cache> {
    match Cache::open(options.cache_dir.as_deref()) {
        Ok(cache) => Some(cache),
        Err(error) => {
            tracing::warn!("running without a cache: {error}");
            None
        }
    }
}

/// A note about kernels that `exuvia check` has not passed.
fn unchecked(kernels: &[Kernel], cache: Option<&Cache>, job: &Path) -> Option<String> {
    let unchecked = kernels.iter().filter(|kernel| !cache.is_some_and(|cache| cache.is_checked(kernel)));
    let named: Vec<String> = unchecked.map(|kernel| format!("{} of {}", kernel.export(), kernel.name())).collect();
    let verb = if named.len() == 1 { "has" } else { "have" };
    (!named.is_empty())
        .then(|| format!("{} {verb} not been checked here; try `exuvia check {}`", named.join(", "), job.display()))
}

/// Notes about the completed work that this run takes up, from an earlier run or from before it shrank.
fn resume_notes(resumed: &Resumed, has_shrunk: bool) -> Vec<String> {
    let mut what = format!("{} of tensors", bytesize::ByteSize::b(resumed.bytes).display().iec());
    if resumed.tasks > 0 {
        what += &format!(", the partial results of {} tasks", resumed.tasks);
    }
    let taken_up = (resumed.bytes + resumed.tasks > 0).then(|| match resumed.iteration {
        _ if has_shrunk => format!("{what} are complete and are not computed again"),
        0 => format!("resuming an earlier run, which completed {what}"),
        iteration => format!("resuming an earlier run after iteration {iteration}, with {what}"),
    });
    taken_up.into_iter().chain(resumed.notes.iter().cloned()).collect()
}
