//! Rank 0's part of a manifest: its folder and header, the completed work of earlier runs that still counts, and the
//! unfinished files that this run continues to write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::engine::Kernel;
use crate::exec::dataset_paths::{destination, first_folder};
use crate::exec::recovery::fingerprint::{Identity, changes, identities};
use crate::exec::recovery::input_fingerprint::{Fingerprints, InputFiles};
use crate::exec::recovery::record::CompletionRecord;
use crate::exec::recovery::snapshot::CheckpointIndex;
use crate::job::Job;
use crate::manifest::{Folder, ManifestError, Records, write_json};
use crate::plan::{Plan, StagePlan};
use crate::store::{OutputLayout, Staging, Storage, Unfinished, is_unfinished, metadata_checksum, real_path};

const HEADER: &str = "header.json";
const INPUTS: &str = "inputs.json";
const CHECKPOINT: &str = "checkpoint.json";
/// How long a run that restarts waits for the fingerprints of its inputs.
const FINGERPRINT_WAIT: Duration = Duration::from_secs(1);
/// Characters of the job file's name in the name of the folder.
const NAME_CHARS: usize = 60;
/// Version of the header and the records. Manifests of other versions are discarded.
const SCHEMA: u32 = 2;

/// The header of a manifest on disk: what the run is, and where its outputs lie.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Header {
    schema: u32,
    exuvia: String,
    /// The job file's real path.
    job: PathBuf,
    /// The number of runs so far.
    generation: u64,
    stages: Vec<Identity>,
    /// By tensor.
    layouts: BTreeMap<String, OutputLayout>,
    /// By final name.
    files: BTreeMap<PathBuf, StagedFile>,
    /// Temporaries of earlier runs that this run only copies from.
    leftovers: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StagedFile {
    #[serde(flatten)]
    unfinished: Unfinished,
    /// Checksum of everything outside the datasets that are written.
    outside: Option<u32>,
}

/// The job of this run, with everything that decides whether completed work still counts.
#[derive(Clone, Copy)]
pub(in crate::exec) struct CurrentJob<'a> {
    pub job: &'a Job,
    pub plan: &'a Plan,
    /// The kernel of each stage.
    pub kernels: &'a [&'a Kernel],
    pub input_files: &'a InputFiles,
}

/// The completed work of earlier runs, as rank 0 broadcasts it.
#[derive(Serialize, Deserialize)]
pub(in crate::exec) struct ResumeState {
    pub path: PathBuf,
    pub generation: u64,
    pub finished: Vec<CompletionRecord>,
    pub layouts: BTreeMap<String, OutputLayout>,
    pub saved: Option<CheckpointIndex>,
}

/// The contents of a manifest's folder before this run.
struct EarlierRun {
    header: Header,
    records: Records<CompletionRecord>,
    checkpoint: Option<CheckpointIndex>,
}

/// The thread that takes fingerprints of the inputs.
struct FingerprintThread {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

/// An earlier run's unfinished file, in this run.
enum Adoption {
    Continued(Box<Staging>),
    /// Its undamaged parts are copied into a new file.
    CopiedFrom,
    Gone,
}

/// A manifest's folder and its header, which rank 0 holds.
pub(in crate::exec) struct ManifestHeader {
    folder: Folder,
    /// A part of the names of all temporaries of this job, and of no other file.
    id: String,
    header: Header,
    /// By tensor, the datasets of earlier runs that this run continues to write.
    pub adopted: BTreeMap<String, OutputLayout>,
    fingerprints: Option<FingerprintThread>,
}

impl ManifestHeader {
    /// Opens the manifest of a job, or makes it. Puts the unfinished files of earlier runs that this run continues into
    /// `stagings`, by final name. `fresh` discards completed work.
    pub fn open(
        current: CurrentJob<'_>,
        fresh: bool,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) -> Result<(ManifestHeader, ResumeState), ManifestError> {
        let CurrentJob { job, plan, kernels, input_files } = current;
        let beside = first_folder(job);
        let job_file = real_path(&job.path).unwrap_or_else(|_| job.path.clone());
        let id = id(&job_file, &beside);
        let name = job_file.file_stem().unwrap_or_default().to_string_lossy();
        let name: String = name.chars().take(NAME_CHARS).collect();
        let folder = Folder::open(&beside.join(format!(".{name}-{id}.exuvia")))?;
        let earlier = EarlierRun::read(&folder, &job_file, &id, fresh)?;
        remove_strays(job, &id, &earlier.header);
        let header = Header {
            schema: SCHEMA,
            exuvia: env!("CARGO_PKG_VERSION").to_owned(),
            job: job_file,
            generation: earlier.header.generation + 1,
            stages: identities(job, plan, kernels),
            leftovers: earlier.header.leftovers.clone(),
            ..Header::default()
        };
        let mut this = ManifestHeader { folder, id, header, adopted: BTreeMap::new(), fingerprints: None };
        let state = match earlier.is_empty() {
            false => this.resume(current, earlier, stagings, notes)?,
            true => {
                this.take_fingerprints(input_files);
                this.resume_state(Vec::new(), BTreeMap::new(), None)
            }
        };
        Ok((this, state))
    }

    fn resume_state(
        &self,
        finished: Vec<CompletionRecord>,
        layouts: BTreeMap<String, OutputLayout>,
        saved: Option<CheckpointIndex>,
    ) -> ResumeState {
        let (path, generation) = (self.folder.path().to_owned(), self.header.generation);
        ResumeState { path, generation, finished, layouts, saved }
    }

    /// Determines which completed work still counts, and writes the header of this run.
    fn resume(
        &mut self,
        current: CurrentJob<'_>,
        mut earlier: EarlierRun,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) -> Result<ResumeState, ManifestError> {
        let CurrentJob { job, plan, input_files, .. } = current;
        // Without fingerprints of its inputs no completed work counts.
        let prints: Fingerprints = self.folder.read(INPUTS).unwrap_or_default();
        let changed_inputs = input_files.changed(&prints);
        let mut changed = changes(job, &earlier.header.stages, &self.header.stages, &changed_inputs);
        self.adopt_files(current, &mut earlier.header, &mut changed, stagings, notes);
        for (stage, why) in &changed {
            if earlier.records.records.iter().any(|record| record.stage == *stage) {
                notes.push(format!("stage '{stage}' is computed again: {why}"));
            }
        }
        // A checkpoint counts as long as all stages before it do.
        if let Some(checkpoint) = earlier.checkpoint.take_if(|saved| !is_current(saved, job, plan, &changed)) {
            let _ = fs::remove_file(checkpoint.file);
            let _ = fs::remove_file(self.folder.path().join(CHECKPOINT));
            notes.push("the last checkpoint is ignored: the job or its inputs have changed since".to_owned());
        }
        if earlier.records.damaged > 0 {
            notes.push(format!("ignored {} damaged records of completed work", earlier.records.damaged));
        }
        let EarlierRun { header, records, checkpoint } = earlier;
        let finished = current_records(records.records, &header.stages, &changed);
        let unchanged = plan.stages.iter().filter(|stage| !changed.contains_key(&stage.name));
        let tensors: BTreeSet<&String> =
            unchanged.flat_map(|stage| stage.outputs().map(|output| &stage.operands[output].tensor)).collect();
        let layouts: BTreeMap<String, OutputLayout> =
            header.layouts.into_iter().filter(|(tensor, _)| tensors.contains(tensor)).collect();
        self.adopted.retain(|tensor, _| tensors.contains(tensor));
        self.header.layouts = layouts.clone();
        let targets: Vec<PathBuf> = self.header.files.keys().cloned().collect();
        targets.iter().for_each(|target| self.record_outside(target));
        self.folder.write(HEADER, &self.header)?;
        if !changed_inputs.is_empty() {
            self.take_fingerprints(input_files);
        }
        Ok(self.resume_state(finished, layouts, checkpoint))
    }

    /// The part of the names of temporaries by which a later run recognizes those of this run.
    pub fn tag(&self) -> String {
        format!("{}-{}", self.id, self.header.generation)
    }

    /// Continues with the unfinished files of the run before. Stages whose files are gone count as changed. A change of
    /// the file that an output will replace does no harm.
    fn adopt_files(
        &mut self,
        current: CurrentJob<'_>,
        before: &mut Header,
        changed: &mut BTreeMap<String, String>,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) {
        let CurrentJob { job, plan, .. } = current;
        for (target, file) in &before.files {
            let (name, temporary) = (target.display(), &file.unfinished.temporary);
            let written = before.layouts.iter().filter(|(_, layout)| layout.temporary == *temporary);
            let (tensors, mut layouts): (Vec<String>, Vec<OutputLayout>) =
                written.map(|(tensor, layout)| (tensor.clone(), layout.clone())).unzip();
            // HDF5 may not have finished writing its index of chunks, and a file with datasets that the job no longer
            // has must not be published: such a file is made anew from its parts.
            let must_copy = tensors.iter().zip(&layouts).any(|(tensor, layout)| {
                matches!(layout.storage, Storage::Compressed { .. })
                    || destination(job, tensor) != (target.clone(), layout.dataset.clone())
            });
            let staging = match self.adopt_file(target, file, &mut layouts, must_copy) {
                Adoption::Continued(staging) => *staging,
                Adoption::CopiedFrom => {
                    if !must_copy {
                        notes.push(format!(
                            "the unfinished {name} is damaged; its undamaged parts are copied into a new file"
                        ));
                    }
                    self.header.leftovers.insert(temporary.clone());
                    continue;
                }
                Adoption::Gone => {
                    let _ = fs::remove_file(temporary);
                    let stages = stages_that_write(job, plan, target);
                    changed.extend(stages.map(|stage| (stage, format!("the unfinished {name} is gone"))));
                    continue;
                }
            };
            let datasets: Vec<(String, OutputLayout)> = tensors.into_iter().zip(layouts).collect();
            before.layouts.extend(datasets.iter().cloned());
            if must_copy {
                self.header.leftovers.insert(staging.temporary().to_owned());
                staging.leave();
                continue;
            }
            self.header.files.insert(target.clone(), StagedFile { unfinished: staging.unfinished(), outside: None });
            stagings.insert(target.clone(), staging);
            self.adopted.extend(datasets);
        }
    }

    /// Continues with one unfinished file. `layouts` are its datasets, which may move to another temporary.
    fn adopt_file(&self, target: &Path, file: &StagedFile, layouts: &mut [OutputLayout], must_copy: bool) -> Adoption {
        let temporary = &file.unfinished.temporary;
        if file.unfinished.is_at(target) {
            // The run before has published it.
            return Staging::begin_again(target, &self.tag(), layouts)
                .map_or(Adoption::Gone, |staging| Adoption::Continued(Box::new(staging)));
        }
        if !file.unfinished.is_at(temporary) {
            return Adoption::Gone;
        }
        let layouts: Vec<&OutputLayout> = layouts.iter().collect();
        if must_copy || metadata_checksum(temporary, &layouts) != file.outside {
            return Adoption::CopiedFrom;
        }
        Staging::adopt(target, &self.tag(), &file.unfinished, &layouts)
            .map_or(Adoption::CopiedFrom, |staging| Adoption::Continued(Box::new(staging)))
    }

    /// Records where the dataset of a tensor lies that this run is about to write.
    pub fn begin_writing(
        &mut self,
        staging: &Staging,
        tensor: &str,
        layout: &OutputLayout,
    ) -> Result<(), ManifestError> {
        self.header.layouts.insert(tensor.to_owned(), layout.clone());
        self.record_file(staging)
    }

    /// Records that the datasets of a file are in another temporary from now on.
    pub fn note_moved(&mut self, job: &Job, staging: &Staging) -> Result<(), ManifestError> {
        for (tensor, layout) in &mut self.header.layouts {
            let (file, dataset) = destination(job, tensor);
            if file == staging.target()
                && let Some(moved) = staging.layouts().find(|moved| moved.dataset == dataset)
            {
                layout.clone_from(moved);
            }
        }
        self.record_file(staging)
    }

    fn record_file(&mut self, staging: &Staging) -> Result<(), ManifestError> {
        let file = StagedFile { unfinished: staging.unfinished(), outside: None };
        self.header.files.insert(staging.target().to_owned(), file);
        self.record_outside(staging.target());
        self.folder.write(HEADER, &self.header)
    }

    /// Records the checksum of a file outside the datasets that this run writes.
    fn record_outside(&mut self, target: &Path) {
        let Some(file) = self.header.files.get_mut(target) else { return };
        let temporary = &file.unfinished.temporary;
        let layouts: Vec<&OutputLayout> =
            self.header.layouts.values().filter(|layout| layout.temporary == *temporary).collect();
        let is_compressed = layouts.iter().any(|layout| matches!(layout.storage, Storage::Compressed { .. }));
        file.outside = if is_compressed { None } else { metadata_checksum(temporary, &layouts) };
    }

    /// Writes the header, without which records do not count.
    pub fn write_header(&self) -> Result<(), ManifestError> {
        self.folder.write(HEADER, &self.header)
    }

    /// Takes fingerprints of the inputs on a thread of its own. Until they are taken, no run can resume this one.
    fn take_fingerprints(&mut self, sources: &InputFiles) {
        let (sources, folder) = (sources.clone(), self.folder.path().to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let take = move || {
            let prints = sources.prints(&stopped);
            if let Some(Err(error)) = prints.map(|prints| write_json(&folder, INPUTS, &prints)) {
                tracing::warn!("this run cannot be resumed: {error}");
            }
        };
        self.fingerprints = Some(FingerprintThread { thread: std::thread::spawn(take), stop });
    }

    /// Records a complete checkpoint.
    pub fn record_checkpoint(&self, saved: &CheckpointIndex) -> Result<(), ManifestError> {
        // As long as the run has no datasets, nothing else has written the header.
        self.write_header()?;
        self.folder.write(CHECKPOINT, saved)
    }

    /// Whether there is completed work that a later run can use.
    pub fn has_completed_work(&self) -> bool {
        let is_record = |entry: fs::DirEntry| {
            let path = entry.path();
            let is_checkpoint = path.file_name().is_some_and(|name| name == CHECKPOINT);
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            (is_log || is_checkpoint) && entry.metadata().is_ok_and(|metadata| metadata.len() > 0)
        };
        fs::read_dir(self.folder.path()).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(is_record)))
    }

    /// Waits a moment for the fingerprints of the inputs, without which no completed work of this run counts.
    pub fn await_fingerprints(&self) {
        let until = Instant::now() + FINGERPRINT_WAIT;
        while self.fingerprints.as_ref().is_some_and(|taking| !taking.thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the thread that takes fingerprints.
    pub fn stop(&mut self) {
        if let Some(FingerprintThread { thread, stop }) = self.fingerprints.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }

    /// Removes the manifest and the temporaries of earlier runs.
    pub fn remove(mut self) -> Result<(), ManifestError> {
        self.stop();
        for leftover in &self.header.leftovers {
            let _ = fs::remove_file(leftover);
        }
        self.folder.remove()
    }
}

/// Returns the records of stages that have not changed, one of each part: the last one, as the part may have been
/// computed again.
fn current_records(
    records: Vec<CompletionRecord>,
    before: &[Identity],
    changed: &BTreeMap<String, String>,
) -> Vec<CompletionRecord> {
    let counts = |record: &CompletionRecord| {
        !changed.contains_key(&record.stage) && before.iter().any(|stage| stage.stage == record.stage)
    };
    let by_part: BTreeMap<_, _> = records
        .into_iter()
        .filter(counts)
        .map(|record| {
            let CompletionRecord { stage, tile, leaves, .. } = &record;
            ((stage.clone(), tile.0.offset.clone(), tile.0.extent.clone(), *leaves), record)
        })
        .collect();
    by_part.into_values().collect()
}

/// Returns the names of the stages that write to a file.
fn stages_that_write(job: &Job, plan: &Plan, target: &Path) -> impl Iterator<Item = String> {
    let writes = |stage: &&StagePlan| {
        stage.outputs().any(|output| destination(job, &stage.operands[output].tensor).0 == *target)
    };
    plan.stages.iter().filter(writes).map(|stage| stage.name.clone())
}

/// Whether a checkpoint was taken of the stages as they are now. Stages after its next stage do not matter, unless they
/// are iterated with it.
fn is_current(saved: &CheckpointIndex, job: &Job, plan: &Plan, changed: &BTreeMap<String, String>) -> bool {
    let Some(next) = plan.stages.iter().position(|stage| stage.name == saved.stage) else { return false };
    let iterated = job.iterate.as_ref().map_or(0..0, |iterate| iterate.stages.clone());
    let end = if iterated.contains(&next) { iterated.end } else { next };
    let tensors_are = saved.tensors.iter().all(|saved| {
        let stage = plan.stages.iter().find(|stage| stage.name == saved.stage);
        let operand = stage.and_then(|stage| stage.operands.get(saved.operand));
        operand.is_some_and(|o| o.dtype == saved.layout.dtype && o.shape == saved.layout.shape)
    });
    tensors_are && plan.stages[..end].iter().all(|stage| !changed.contains_key(&stage.name))
}

impl EarlierRun {
    /// Reads the folder. Clears it if it is of another version or job, if nothing is to be kept, or if no completed
    /// work is in it.
    fn read(folder: &Folder, job_file: &Path, id: &str, fresh: bool) -> Result<EarlierRun, ManifestError> {
        let mut header: Header = folder.read(HEADER).unwrap_or_default();
        let mut checkpoint: Option<CheckpointIndex> = folder.read(CHECKPOINT);
        header.confine(id);
        checkpoint.iter_mut().for_each(|saved| saved.move_to(folder.path()));
        let mut records: Records<CompletionRecord> = Records::read(folder.path())?;
        let is_known = header.schema == SCHEMA && header.exuvia == env!("CARGO_PKG_VERSION") && header.job == *job_file;
        if !is_known || fresh || (records.records.is_empty() && checkpoint.is_none()) {
            clear(folder)?;
            header = Header { generation: header.generation, ..Header::default() };
            (records.records, records.damaged, checkpoint) = (Vec::new(), 0, None);
        }
        Ok(EarlierRun { header, records, checkpoint })
    }

    fn is_empty(&self) -> bool {
        self.records.records.is_empty() && self.checkpoint.is_none()
    }
}

impl Header {
    /// Drops files that are not unfinished files of this job beside their targets: whatever a header says, no other
    /// file is opened or removed.
    fn confine(&mut self, id: &str) {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let here = |target: &Path, temporary: &Path| {
            let name = name(temporary).filter(|name| is_unfinished(name, id))?;
            Some(target.parent()?.join(name))
        };
        let files = std::mem::take(&mut self.files).into_iter().filter_map(|(target, mut file)| {
            file.unfinished.temporary = here(&target, &file.unfinished.temporary)?;
            Some((target, file))
        });
        self.files = files.collect();
        self.leftovers.retain(|leftover| name(leftover).is_some_and(|name| is_unfinished(&name, id)));
        let known = |temporary: &PathBuf| {
            self.leftovers.contains(temporary)
                || self.files.values().any(|file| file.unfinished.temporary == *temporary)
        };
        let layouts = std::mem::take(&mut self.layouts).into_iter().filter(|(_, layout)| known(&layout.temporary));
        self.layouts = layouts.collect();
    }
}

/// Returns the identity of a job: the real path of its file, the folder of its first output, and the user, who could
/// not continue with the files of another user.
fn id(job: &Path, beside: &Path) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("exuvia manifest 1");
    for part in [job, beside] {
        let bytes = part.as_os_str().as_bytes();
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hasher.update(&rustix::process::geteuid().as_raw().to_le_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Removes unfinished files of this job that the manifest does not know. This run holds the manifest, so no other
/// process writes to them.
fn remove_strays(job: &Job, id: &str, before: &Header) {
    let targets = job.tensors.keys().map(|tensor| destination(job, tensor).0);
    let folders: BTreeSet<PathBuf> = targets.filter_map(|target| Some(target.parent()?.to_owned())).collect();
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let path = entry.path();
        let is_known =
            before.leftovers.contains(&path) || before.files.values().any(|file| file.unfinished.temporary == path);
        if !is_known && is_unfinished(&entry.file_name().to_string_lossy(), id) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes everything that earlier runs left in the folder.
fn clear(folder: &Folder) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Io { path: folder.path().to_owned(), what: "clear", source };
    for entry in fs::read_dir(folder.path()).map_err(failed)?.flatten() {
        if entry.file_name() != "lock" {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
