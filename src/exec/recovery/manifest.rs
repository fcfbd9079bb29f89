//! A rank's manifest of a run: the completed work of earlier runs of the job, and of this one.
//!
//! Rank 0 holds the folder and its header. Every rank records the boxes that it has written in its own log. A later
//! run, on any number of ranks, compares the bytes of each box with the checksum in its record before it uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::options::Resume;
use crate::exec::recovery::completed::CompletedTiles;
use crate::exec::recovery::header::{CurrentJob, ManifestHeader, ResumeState};
use crate::exec::recovery::partial_sums::Sums;
use crate::exec::recovery::record::{CompletionRecord, StoredAt};
use crate::exec::recovery::skip::skippable;
use crate::exec::recovery::snapshot::{CheckpointIndex, ResumePoint};
use crate::exec::transfer::resident::Resident;
use crate::fabric::{Payload, Rank};
use crate::job::Job;
use crate::manifest::{Log, ManifestError, StoredPayload, Syncer, read_payload};
use crate::plan::{Plan, StagePlan};
use crate::store::{OutputLayout, Staging, Writer};

/// A rank's manifest. The default one keeps nothing.
#[derive(Default)]
pub(in crate::exec) struct Manifest {
    path: PathBuf,
    /// The number of this run; 0 if it records nothing.
    generation: u64,
    rank: Rank,
    log: Option<Log>,
    /// Started together with the log.
    syncer: Option<Syncer>,
    /// The files that this rank writes to.
    writes: BTreeSet<PathBuf>,
    /// By stage, the records of earlier runs.
    earlier: BTreeMap<String, Vec<CompletionRecord>>,
    completed: BTreeMap<String, CompletedTiles>,
    /// Stages that need not run.
    skipped: BTreeSet<String>,
    /// The last checkpoint.
    checkpoint: Option<CheckpointIndex>,
    /// By tensor, the datasets that earlier runs wrote to.
    layouts: BTreeMap<String, OutputLayout>,
    /// On rank 0.
    header: Option<ManifestHeader>,
}

/// The work of earlier runs that this run uses, for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::exec) struct Resumed {
    /// Bytes of tensors that are complete or in a checkpoint.
    pub bytes: u64,
    /// Tasks of reductions whose results are in partial sums.
    pub tasks: u64,
    /// Completed iterations.
    pub iteration: u64,
    /// The work that is not used, and why.
    pub notes: Vec<String>,
}

impl Manifest {
    /// Opens the manifest of a job, and verifies the completed work of earlier runs that it records. Puts the
    /// unfinished files that this run continues to write into `stagings`, by final name. Collective.
    pub fn open(
        comm: &mut Communicator,
        current: CurrentJob<'_>,
        resume: Resume,
        stagings: &mut BTreeMap<PathBuf, Staging>,
    ) -> Result<(Manifest, Resumed), RunError> {
        let mut manifest = Manifest { rank: comm.rank(), ..Manifest::default() };
        let (mut resumed, mut encoded) = (Resumed::default(), None);
        if resume == Resume::Never {
            return Ok((manifest, resumed));
        }
        if comm.rank() == 0 {
            let state = manifest.open_header(current, resume, stagings, &mut resumed.notes)?;
            encoded = Some(Payload::from(encode(&state)?));
        }
        let state: Option<ResumeState> = serde_json::from_slice(&comm.broadcast(encoded)?)
            .map_err(|_| RunError::Protocol { rank: 0, what: "the completed work of earlier runs" })?;
        let Some(state) = state else { return Ok((manifest, resumed)) };
        (manifest.path, manifest.generation, manifest.layouts) = (state.path, state.generation, state.layouts);
        if let Some(saved) = state.saved {
            manifest.take_checkpoint(comm, saved, &mut resumed)?;
        }
        let (sound, damaged) = manifest.verify(comm, current.plan, state.finished)?;
        if damaged > 0 {
            resumed.notes.push(format!("{damaged} completed parts of outputs are damaged and will be computed again"));
        }
        for record in sound {
            manifest.earlier.entry(record.stage.clone()).or_default().push(record);
        }
        for stage in &current.plan.stages {
            manifest.take_completed(comm, stage, &mut resumed);
        }
        let iterated = current.job.iterate.as_ref().map_or(0..0, |iterate| iterate.stages.clone());
        manifest.skipped = skippable(current.plan, iterated, &manifest.completed, manifest.checkpoint.as_ref());
        Ok((manifest, resumed))
    }

    /// Opens the folder and its header on rank 0. Returns `None` if that fails: the run then works without a manifest.
    fn open_header(
        &mut self,
        current: CurrentJob<'_>,
        resume: Resume,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) -> Result<Option<ResumeState>, RunError> {
        match ManifestHeader::open(current, resume == Resume::Fresh, stagings, notes) {
            Ok((header, state)) => {
                self.header = Some(header);
                Ok(Some(state))
            }
            Err(busy @ ManifestError::Busy { .. }) => Err(RunError::Manifest(busy)),
            Err(error) => {
                tracing::warn!("this run cannot be resumed: {error}");
                Ok(None)
            }
        }
    }

    /// Takes over the checkpoint of an earlier run, if the ranks together find all of it undamaged. Collective.
    fn take_checkpoint(
        &mut self,
        comm: &mut Communicator,
        saved: CheckpointIndex,
        resumed: &mut Resumed,
    ) -> Result<(), RunError> {
        let sound = saved.is_sound(comm.rank() as usize, comm.size() as usize);
        if comm.allgather(vec![u8::from(sound)])?.iter().all(|sound| *sound == [1]) {
            resumed.bytes += saved.tensors.iter().map(|tensor| tensor.layout.bytes()).sum::<u64>();
            resumed.iteration = saved.iteration;
            self.checkpoint = Some(saved);
        } else {
            resumed.notes.push(format!("ignored the damaged checkpoint {}", saved.file.display()));
        }
        Ok(())
    }

    /// Takes over the completed work of a stage.
    fn take_completed(&mut self, comm: &Communicator, stage: &StagePlan, resumed: &mut Resumed) {
        let Some(records) = self.earlier.get_mut(&stage.name) else { return };
        let sums = Sums::new(stage, records);
        records.retain(|record| record.leaves.is_none());
        let mut completed = CompletedTiles::new(records.iter().map(|record| record.tile.clone()).collect());
        completed.sums = sums;
        if comm.rank() == 0 && !completed.sums.is_empty() {
            let blocks = (0..comm.size()).flat_map(|rank| stage.blocks(rank));
            let left = blocks.filter(|block| !completed.has_cell_of(stage, block));
            resumed.tasks += left.flat_map(|block| completed.sums.leaves(stage, &block)).sum::<u64>();
        }
        let outputs = || stage.outputs().map(|output| (output, stage.operands[output].dtype.size_bytes() as u64));
        let bytes = |tile| outputs().map(|(output, size)| stage.region(output, tile).elements() * size).sum::<u64>();
        resumed.bytes += completed.tiles().iter().map(bytes).sum::<u64>();
        self.completed.insert(stage.name.clone(), completed);
    }

    /// Verifies the bytes of all records; each rank reads a part of them. Returns the sound records, in their order,
    /// and the number of damaged ones. Collective.
    fn verify(
        &self,
        comm: &mut Communicator,
        plan: &Plan,
        records: Vec<CompletionRecord>,
    ) -> Result<(Vec<CompletionRecord>, usize), RunError> {
        if records.is_empty() {
            return Ok((records, 0));
        }
        let mine = (0..records.len()).skip(comm.rank() as usize).step_by(comm.size() as usize);
        let (mut writers, mut bad) = (Writers::default(), Vec::new());
        for at in mine {
            comm.check_interrupts()?;
            if !self.is_sound(plan, &records[at], &mut writers) {
                bad.push(at);
            }
        }
        let all = comm.allgather(encode(&bad)?)?;
        let mut damaged = vec![false; records.len()];
        for (rank, bytes) in (0..).zip(&all) {
            let wrong = || RunError::Protocol { rank, what: "which parts of outputs are damaged" };
            for at in serde_json::from_slice::<Vec<usize>>(bytes).map_err(|_| wrong())? {
                *damaged.get_mut(at).ok_or_else(wrong)? = true;
            }
        }
        let count = damaged.iter().filter(|damaged| **damaged).count();
        let sound = records.into_iter().zip(damaged).filter(|(_, damaged)| !damaged).map(|(record, _)| record);
        Ok((sound.collect(), count))
    }

    /// Whether the bytes of a record are there and unchanged.
    fn is_sound(&self, plan: &Plan, record: &CompletionRecord, writers: &mut Writers) -> bool {
        let Some(stage) = plan.stages.iter().find(|stage| stage.name == record.stage) else { return false };
        let outputs: Vec<usize> = stage.outputs().collect();
        let inside = record.tile.0.rank() == stage.split.len()
            && (0..stage.split.len()).all(|axis| record.tile.0.end(axis) <= stage.extent(axis));
        let sound = |(output, stored): (&usize, &StoredAt)| match stored {
            StoredAt::Beside(payload) => read_payload(&self.path, payload).is_some(),
            StoredAt::InPlace(checksum) => {
                let bytes = self
                    .layouts
                    .get(&stage.operands[*output].tensor)
                    .and_then(|layout| writers.get(layout)?.read(&stage.region(*output, &record.tile)).ok());
                bytes.is_some_and(|bytes| crc32fast::hash(&bytes) == *checksum)
            }
        };
        inside && outputs.len() == record.outputs.len() && outputs.iter().zip(&record.outputs).all(sound)
    }

    /// Returns the completed work of a stage.
    pub fn completed(&self, stage: &str) -> CompletedTiles {
        self.completed.get(stage).cloned().unwrap_or_default()
    }

    /// Returns the records of earlier runs of a stage.
    pub fn earlier(&self, stage: &str) -> &[CompletionRecord] {
        self.earlier.get(stage).map_or(&[], Vec::as_slice)
    }

    /// Returns the dataset that earlier runs wrote a tensor to.
    pub fn earlier_layout(&self, tensor: &str) -> Option<&OutputLayout> {
        self.layouts.get(tensor)
    }

    /// Reads bytes that earlier runs stored beside their log.
    pub fn payload(&self, payload: &StoredPayload) -> Option<Vec<u8>> {
        read_payload(&self.path, payload)
    }

    /// Whether a stage need not run.
    pub fn skips(&self, stage: &str) -> bool {
        self.skipped.contains(stage)
    }

    /// Loads this rank's part of the last checkpoint into its memory. Returns where the run continues.
    pub fn load(&self, plan: &Plan, resident: &mut Resident) -> Result<Option<ResumePoint>, RunError> {
        let Some(saved) = &self.checkpoint else { return Ok(None) };
        saved.load(plan, self.rank, resident)?;
        let next = plan.stages.iter().position(|stage| stage.name == saved.stage);
        Ok(next.map(|stage| ResumePoint { stage, iteration: saved.iteration }))
    }

    /// Whether recorded work outlives the run.
    pub fn lasts(&self) -> bool {
        self.generation > 0
    }

    /// Returns the file of the `number`th checkpoint of this run.
    pub fn checkpoint_file(&self, number: u64) -> PathBuf {
        self.path.join(format!("checkpoint-{}-{number}.h5", self.generation))
    }

    /// Records a complete checkpoint, which replaces the one before. On rank 0.
    pub fn record_checkpoint(&mut self, saved: CheckpointIndex) {
        let Some(header) = &mut self.header else { return };
        if let Err(error) = header.record_checkpoint(&saved) {
            return self.give_up(&error);
        }
        if let Some(before) = self.checkpoint.replace(saved) {
            let _ = fs::remove_file(before.file);
        }
    }

    /// Returns the part of the names of temporaries by which a later run recognizes those of this run.
    pub fn tag(&self) -> String {
        match &self.header {
            Some(header) => header.tag(),
            None => format!("{}", std::process::id()),
        }
    }

    /// Returns the dataset of an earlier run that this run continues to write.
    pub fn adopted(&self, tensor: &str) -> Option<&OutputLayout> {
        self.header.as_ref()?.adopted.get(tensor)
    }

    /// Takes note that this rank is going to write to a file.
    pub fn writes_to(&mut self, file: &Path) {
        if self.writes.insert(file.to_owned())
            && let Some(syncer) = &self.syncer
        {
            syncer.add(file);
        }
    }

    /// Prepares for records of a stage without datasets: their bytes lie beside the log. On rank 0.
    pub fn write_header(&mut self) {
        if let Some(header) = &mut self.header
            && let Err(error) = header.write_header()
        {
            self.give_up(&error);
        }
    }

    /// Records where an output lies that a stage is about to write. On rank 0.
    pub fn begin_writing(&mut self, staging: &Staging, tensor: &str, layout: &OutputLayout) {
        if let Some(header) = &mut self.header
            && let Err(error) = header.begin_writing(staging, tensor, layout)
        {
            self.give_up(&error);
        }
    }

    /// Records that the datasets of a file are in another temporary from now on. On rank 0.
    pub fn note_moved(&mut self, job: &Job, staging: &Staging) {
        if let Some(header) = &mut self.header
            && let Err(error) = header.note_moved(job, staging)
        {
            self.give_up(&error);
        }
    }

    /// Stores bytes beside the log, where a later run finds them. Returns `None` if that fails.
    pub fn store(&mut self, bytes: &[u8]) -> Option<StoredAt> {
        let stored = self.log()?.store(bytes);
        self.check(stored).map(StoredAt::Beside)
    }

    /// Records outputs that this rank has written.
    pub fn record(&mut self, record: &CompletionRecord) {
        if let Some(log) = self.log() {
            let appended = log.append(record);
            self.check(appended);
        }
    }

    /// Writes the records to the log, if the last time is long ago.
    pub fn flush_if_due(&mut self) {
        if let Some(log) = &mut self.log {
            let flushed = log.flush_if_due();
            self.check(flushed);
        }
    }

    /// Writes all records to the log. After that this process may end.
    pub fn flush(&mut self) {
        if let Some(log) = &mut self.log {
            let flushed = log.flush();
            self.check(flushed);
        }
    }

    /// Returns the log, which is created when it is first needed.
    fn log(&mut self) -> Option<&mut Log> {
        if self.log.is_none() && self.generation > 0 {
            let log = Log::create(&self.path, self.generation, self.rank);
            self.log = self.check(log);
            let syncer = Syncer::start();
            let files = self.log.iter().flat_map(Log::files).chain(self.writes.iter().cloned());
            files.for_each(|file| syncer.add(&file));
            self.syncer = Some(syncer);
        }
        self.log.as_mut()
    }

    /// Gives up recording if `result` is an error.
    fn check<T>(&mut self, result: Result<T, ManifestError>) -> Option<T> {
        result.map_err(|error| self.give_up(&error)).ok()
    }

    /// Stops recording. The run continues.
    fn give_up(&mut self, error: &ManifestError) {
        tracing::warn!("a later run cannot use the work of this rank from now on: {error}");
        (self.log, self.generation) = (None, 0);
    }

    /// Removes the manifest once the outputs are in place. On rank 0.
    pub fn conclude(&mut self) {
        let Some(header) = self.header.take() else { return };
        if let Err(error) = header.remove() {
            tracing::warn!("{error}");
        }
    }

    /// Releases the folder before the run restarts.
    pub fn suspend(&mut self) {
        self.flush();
        if let Some(mut header) = self.header.take() {
            header.await_fingerprints();
            header.stop();
        }
    }

    /// Closes the manifest of a failed run. Returns whether a later run can use completed work; if not, the manifest is
    /// removed. On rank 0.
    pub fn abandon(&mut self) -> bool {
        self.flush();
        let Some(mut header) = self.header.take() else { return false };
        header.stop();
        if header.has_completed_work() {
            return true;
        }
        let _ = header.remove();
        false
    }
}

/// Open datasets.
#[derive(Default)]
struct Writers(BTreeMap<(PathBuf, String), Option<Writer>>);

impl Writers {
    fn get(&mut self, layout: &OutputLayout) -> Option<&Writer> {
        let key = (layout.temporary.clone(), layout.dataset.clone());
        self.0.entry(key).or_insert_with(|| Writer::open(layout).ok()).as_ref()
    }
}
