//! The manifest of a run, as its ranks keep it: what earlier runs of the job have finished, and what this one does.
//!
//! Rank 0 holds the folder and its header; every rank notes in its own log which boxes it has written. A later run, on any
//! number of ranks, checks the bytes of every such box against the checksum in its record before it counts on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::encode::encode;
use crate::engine::Kernel;
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::options::Resume;
use crate::exec::recovery::completed::CompletedTiles;
use crate::exec::recovery::fingerprint::identities;
use crate::exec::recovery::header::{ManifestHeader, Opening};
use crate::exec::recovery::input_fingerprint::InputFiles;
use crate::exec::recovery::partial_sums::Sums;
use crate::exec::recovery::record::{CompletionRecord, StoredAt};
use crate::exec::recovery::skip::skippable;
use crate::exec::recovery::snapshot::CheckpointIndex;
use crate::exec::transfer::resident::Resident;
use crate::fabric::{Payload, Rank};
use crate::job::Job;
use crate::manifest::{Log, ManifestError, StoredPayload, Syncer, read_payload};
use crate::plan::Plan;
use crate::store::{OutputLayout, Staging, Writer};

/// One rank's side of the manifest. By default it keeps nothing.
#[derive(Default)]
pub(in crate::exec) struct Manifest {
    path: PathBuf,
    /// 0: nothing is noted.
    generation: u64,
    rank: Rank,
    log: Option<Log>,
    /// Begins with the log.
    syncer: Option<Syncer>,
    /// Files that this rank writes to.
    writes: BTreeSet<PathBuf>,
    /// What earlier runs finished, by stage.
    earlier: BTreeMap<String, Vec<CompletionRecord>>,
    done: BTreeMap<String, CompletedTiles>,
    /// Stages that nobody needs to run again.
    skipped: BTreeSet<String>,
    /// The checkpoint to go on from.
    saved: Option<CheckpointIndex>,
    /// Where they wrote it, by tensor.
    layouts: BTreeMap<String, OutputLayout>,
    /// Of rank 0.
    keeper: Option<ManifestHeader>,
}

/// What became of an earlier run's work, for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::exec) struct Resumed {
    /// Bytes of tensors that are finished, or in a checkpoint.
    pub bytes: u64,
    /// Tasks of reductions that need not run: their results are in partial results.
    pub tasks: u64,
    /// Iterations that need not be made again.
    pub iteration: u64,
    /// What is not counted on, and why.
    pub notes: Vec<String>,
}

impl Manifest {
    /// Takes up what an earlier run of the job left, if it is to; puts the files that it left into
    /// `stagings`, by final name. Collective.
    pub fn open(
        comm: &mut Communicator,
        (job, plan, sources): (&Job, &Plan, &InputFiles),
        kernels: &[&Kernel],
        resume: Resume,
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(Manifest, Resumed), RunError> {
        let mut manifest = Manifest { rank: comm.rank(), ..Manifest::default() };
        let (mut resumed, mut encoded) = (Resumed::default(), None);
        if resume == Resume::Never {
            return Ok((manifest, resumed));
        }
        if comm.rank() == 0 {
            let stages = identities(job, plan, kernels);
            let opened = match ManifestHeader::open(
                job,
                plan,
                (stages, sources),
                resume == Resume::Fresh,
                stagings,
                &mut resumed.notes,
            ) {
                Ok((keeper, opening)) => {
                    manifest.keeper = Some(keeper);
                    Some(opening)
                }
                Err(busy @ ManifestError::Busy { .. }) => return Err(RunError::Manifest(busy)),
                Err(error) => {
                    tracing::warn!("what this run finishes will not outlive it: {error}");
                    None
                }
            };
            encoded = Some(Payload::from(encode(&opened)?));
        }
        let opening: Option<Opening> = serde_json::from_slice(&comm.broadcast(encoded)?)
            .map_err(|_| RunError::Protocol { rank: 0, what: "what earlier runs finished" })?;
        let Some(opening) = opening else { return Ok((manifest, resumed)) };
        (manifest.path, manifest.generation, manifest.layouts) = (opening.path, opening.generation, opening.layouts);
        if let Some(saved) = opening.saved {
            let sound = saved.is_sound(comm.rank() as usize, comm.size() as usize);
            if comm.allgather(vec![u8::from(sound)])?.iter().all(|sound| *sound == [1]) {
                resumed.bytes += saved.tensors.iter().map(|tensor| tensor.layout.bytes()).sum::<u64>();
                resumed.iteration = saved.iteration;
                manifest.saved = Some(saved);
            } else {
                resumed.notes.push(format!("the checkpoint {} is damaged, and ignored", saved.file.display()));
            }
        }
        let (sound, damaged) = manifest.verify(comm, plan, opening.finished)?;
        if damaged > 0 {
            resumed.notes.push(format!("{damaged} finished parts of outputs are damaged, and computed again"));
        }
        for finished in sound {
            manifest.earlier.entry(finished.stage.clone()).or_default().push(finished);
        }
        for stage in &plan.stages {
            let Some(finished) = manifest.earlier.get_mut(&stage.name) else { continue };
            let sums = Sums::new(stage, finished);
            finished.retain(|finished| finished.leaves.is_none());
            let mut done = CompletedTiles::new(finished.iter().map(|finished| finished.tile.clone()).collect());
            done.sums = sums;
            if comm.rank() == 0 && !done.sums.is_empty() {
                let blocks = (0..comm.size()).flat_map(|rank| stage.blocks(rank));
                let left = blocks.filter(|block| !done.has_cell_of(stage, block));
                resumed.tasks += left.flat_map(|block| done.sums.leaves(stage, &block)).sum::<u64>();
            }
            let outputs = || stage.outputs().map(|output| (output, stage.operands[output].dtype.size_bytes() as u64));
            let bytes =
                |tile| outputs().map(|(output, size)| stage.region(output, tile).elements() * size).sum::<u64>();
            resumed.bytes += done.tiles().iter().map(bytes).sum::<u64>();
            manifest.done.insert(stage.name.clone(), done);
        }
        let iterated = job.iterate.as_ref().map_or(0..0, |iterate| iterate.stages.clone());
        manifest.skipped = skippable(plan, iterated, &manifest.done, manifest.saved.as_ref());
        Ok((manifest, resumed))
    }

    /// Each rank reads its share of what is said to be finished; all learn what is as it should be, in the order of the
    /// records, and how much is not. Collective.
    fn verify(
        &self,
        comm: &mut Communicator,
        plan: &Plan,
        finished: Vec<CompletionRecord>,
    ) -> Result<(Vec<CompletionRecord>, usize), RunError> {
        if finished.is_empty() {
            return Ok((finished, 0));
        }
        let mine = (0..finished.len()).skip(comm.rank() as usize).step_by(comm.size() as usize);
        let (mut writers, mut bad) = (Writers::default(), Vec::new());
        for at in mine {
            comm.look()?;
            if !self.is_sound(plan, &finished[at], &mut writers) {
                bad.push(at);
            }
        }
        let all = comm.allgather(encode(&bad)?)?;
        let mut damaged = vec![false; finished.len()];
        for (rank, bytes) in (0..).zip(&all) {
            let wrong = || RunError::Protocol { rank, what: "which parts of outputs are damaged" };
            for at in serde_json::from_slice::<Vec<usize>>(bytes).map_err(|_| wrong())? {
                *damaged.get_mut(at).ok_or_else(wrong)? = true;
            }
        }
        let count = damaged.iter().filter(|damaged| **damaged).count();
        let sound = finished.into_iter().zip(damaged).filter(|(_, damaged)| !damaged).map(|(finished, _)| finished);
        Ok((sound.collect(), count))
    }

    /// Whether the bytes of which it speaks are there and what they were.
    fn is_sound(&self, plan: &Plan, finished: &CompletionRecord, writers: &mut Writers) -> bool {
        let Some(stage) = plan.stages.iter().find(|stage| stage.name == finished.stage) else { return false };
        let outputs: Vec<usize> = stage.outputs().collect();
        let inside = finished.tile.0.rank() == stage.split.len()
            && (0..stage.split.len()).all(|axis| finished.tile.0.end(axis) <= stage.extent(axis));
        let sound = |(output, stored): (&usize, &StoredAt)| match stored {
            StoredAt::Beside(payload) => read_payload(&self.path, payload).is_some(),
            StoredAt::InPlace(checksum) => {
                let bytes = self
                    .layouts
                    .get(&stage.operands[*output].tensor)
                    .and_then(|layout| writers.get(layout)?.read(&stage.region(*output, &finished.tile)).ok());
                bytes.is_some_and(|bytes| crc32fast::hash(&bytes) == *checksum)
            }
        };
        inside && outputs.len() == finished.outputs.len() && outputs.iter().zip(&finished.outputs).all(sound)
    }

    /// What of a stage is finished.
    pub fn done(&self, stage: &str) -> CompletedTiles {
        self.done.get(stage).cloned().unwrap_or_default()
    }

    /// The records of it.
    pub fn earlier(&self, stage: &str) -> &[CompletionRecord] {
        self.earlier.get(stage).map_or(&[], Vec::as_slice)
    }

    /// Where the bytes of a tensor are that earlier runs finished in place.
    pub fn earlier_layout(&self, tensor: &str) -> Option<&OutputLayout> {
        self.layouts.get(tensor)
    }

    /// Compressed chunks that earlier runs made.
    pub fn payload(&self, payload: &StoredPayload) -> Option<Vec<u8>> {
        read_payload(&self.path, payload)
    }

    /// Whether nobody needs what the stage would do.
    pub fn skips(&self, stage: &str) -> bool {
        self.skipped.contains(stage)
    }

    /// Puts what the checkpoint has of this rank's into its memory; says which stage comes next, and after how many iterations.
    pub fn load(&self, plan: &Plan, resident: &mut Resident) -> Result<Option<(usize, u64)>, RunError> {
        let Some(saved) = &self.saved else { return Ok(None) };
        saved.load(plan, self.rank, resident)?;
        let next = plan.stages.iter().position(|stage| stage.name == saved.stage);
        Ok(next.map(|next| (next, saved.iteration)))
    }

    /// Whether what is noted outlives the run.
    pub fn lasts(&self) -> bool {
        self.generation > 0
    }

    /// Where the checkpoint of this number of this run goes.
    pub fn checkpoint_file(&self, number: u64) -> PathBuf {
        self.path.join(format!("checkpoint-{}-{number}.h5", self.generation))
    }

    /// A checkpoint is complete: it is in place of the one before. On rank 0.
    pub fn note_checkpoint(&mut self, saved: CheckpointIndex) {
        let Some(keeper) = &mut self.keeper else { return };
        if let Err(error) = keeper.note_checkpoint(&saved) {
            return self.give_up(&error);
        }
        if let Some(before) = self.saved.replace(saved) {
            let _ = fs::remove_file(before.file);
        }
    }

    /// A name for the temporary files of this run, that another run finds again.
    pub fn tag(&self) -> String {
        match &self.keeper {
            Some(keeper) => keeper.tag(),
            None => format!("{}", std::process::id()),
        }
    }

    /// The dataset of an earlier run that this one writes on.
    pub fn adopted(&self, tensor: &str) -> Option<&OutputLayout> {
        self.keeper.as_ref()?.adopted.get(tensor)
    }

    /// This rank is going to write to this file.
    pub fn writes_to(&mut self, file: &Path) {
        if self.writes.insert(file.to_owned())
            && let Some(syncer) = &self.syncer
        {
            syncer.add(file);
        }
    }

    /// What is noted from now on lies beside the log alone.
    pub fn begin_noting(&mut self) {
        if let Some(keeper) = &mut self.keeper
            && let Err(error) = keeper.begin_noting()
        {
            self.give_up(&error);
        }
    }

    /// Notes where the outputs of a stage lie that is about to write them. On rank 0.
    pub fn begin_writing(&mut self, staging: &Staging, tensor: &str, layout: &OutputLayout) {
        if let Some(keeper) = &mut self.keeper
            && let Err(error) = keeper.begin_writing(staging, tensor, layout)
        {
            self.give_up(&error);
        }
    }

    /// The datasets of a file are in another temporary from now on. On rank 0.
    pub fn note_moved(&mut self, job: &Job, staging: &Staging) {
        if let Some(keeper) = &mut self.keeper
            && let Err(error) = keeper.note_moved(job, staging)
        {
            self.give_up(&error);
        }
    }

    /// Puts compressed chunks where a later run finds them; `None` if that cannot be.
    pub fn store(&mut self, bytes: &[u8]) -> Option<StoredAt> {
        let stored = self.log()?.store(bytes);
        self.heed(stored).map(StoredAt::Beside)
    }

    /// Notes what this rank has written.
    pub fn note(&mut self, finished: &CompletionRecord) {
        if let Some(log) = self.log() {
            let noted = log.append(finished);
            self.heed(noted);
        }
    }

    /// From time to time: what has been noted goes into the log.
    pub fn flush_if_due(&mut self) {
        if let Some(log) = &mut self.log {
            let tended = log.flush_if_due();
            self.heed(tended);
        }
    }

    /// All that has been noted goes into the log: this process may end now.
    pub fn flush(&mut self) {
        if let Some(log) = &mut self.log {
            let flushed = log.flush();
            self.heed(flushed);
        }
    }

    /// Made when it is first needed.
    fn log(&mut self) -> Option<&mut Log> {
        if self.log.is_none() && self.generation > 0 {
            let log = Log::create(&self.path, self.generation, self.rank);
            self.log = self.heed(log);
            let syncer = Syncer::start();
            let files = self.log.iter().flat_map(Log::files).chain(self.writes.iter().cloned());
            files.for_each(|file| syncer.add(&file));
            self.syncer = Some(syncer);
        }
        self.log.as_mut()
    }

    fn heed<T>(&mut self, result: Result<T, ManifestError>) -> Option<T> {
        result.map_err(|error| self.give_up(&error)).ok()
    }

    /// The run goes on, but what it finishes from now on will not outlive it.
    fn give_up(&mut self, error: &ManifestError) {
        tracing::warn!("what this rank finishes from now on will not outlive the run: {error}");
        (self.log, self.generation) = (None, 0);
    }

    /// The outputs are in place: nothing is left to resume. On rank 0.
    pub fn conclude(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        if let Err(error) = keeper.remove() {
            tracing::warn!("{error}");
        }
    }

    /// The run is about to begin again: lets go of the folder.
    pub fn suspend(&mut self) {
        self.flush();
        if let Some(mut keeper) = self.keeper.take() {
            keeper.await_fingerprints();
            keeper.stop();
        }
    }

    /// The run failed. Says whether there is something for a later one to go on with; if not, nothing is left. On rank 0.
    pub fn abandon(&mut self) -> bool {
        self.flush();
        let Some(mut keeper) = self.keeper.take() else { return false };
        keeper.stop();
        if keeper.has_finished() {
            return true;
        }
        let _ = keeper.remove();
        false
    }
}

/// Open files, by dataset.
#[derive(Default)]
struct Writers(BTreeMap<(PathBuf, String), Option<Writer>>);

impl Writers {
    fn get(&mut self, layout: &OutputLayout) -> Option<&Writer> {
        let key = (layout.temporary.clone(), layout.dataset.clone());
        self.0.entry(key).or_insert_with(|| Writer::open(layout).ok()).as_ref()
    }
}
