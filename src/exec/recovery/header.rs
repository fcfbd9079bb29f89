//! Rank 0's side of a manifest: the folder and its header, what of an earlier run still counts, and which of its files are gone on
//! with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::exec::dataset_paths::{destination, first_folder};
use crate::exec::recovery::fingerprint::{Identity, changes};
use crate::exec::recovery::input_fingerprint::{Fingerprints, InputFiles};
use crate::exec::recovery::record::CompletionRecord;
use crate::exec::recovery::snapshot::CheckpointIndex;
use crate::job::Job;
use crate::manifest::{Folder, ManifestError, Records, write_whole};
use crate::plan::{Plan, StagePlan};
use crate::store::{OutputLayout, Staging, Storage, Unfinished, is_unfinished, metadata_checksum, real_path};

const HEADER: &str = "header.json";
const INPUTS: &str = "inputs.json";
const CHECKPOINT: &str = "checkpoint.json";
/// How long a run that begins again waits for them.
const FINGERPRINTS: Duration = Duration::from_secs(1);
/// Of the job file's name in that of the folder.
const NAME_CHARS: usize = 60;
/// Of the header and the records. Others are no use.
const SCHEMA: u32 = 2;

/// What the run is and where its outputs lie; rank 0 keeps it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Header {
    schema: u32,
    exuvia: String,
    /// The job file's real path.
    job: PathBuf,
    /// Runs so far.
    generation: u64,
    stages: Vec<Identity>,
    /// By tensor.
    layouts: BTreeMap<String, OutputLayout>,
    /// By final name.
    files: BTreeMap<PathBuf, StagedFile>,
    /// Temporaries of earlier runs that are not written on, but copied from.
    leftovers: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StagedFile {
    #[serde(flatten)]
    unfinished: Unfinished,
    /// Checksum of all that lies outside of the datasets that are written.
    outside: Option<u32>,
}

/// What rank 0 tells the others.
#[derive(Serialize, Deserialize)]
pub(in crate::exec) struct Opening {
    pub path: PathBuf,
    pub generation: u64,
    pub finished: Vec<CompletionRecord>,
    pub layouts: BTreeMap<String, OutputLayout>,
    pub saved: Option<CheckpointIndex>,
}

/// Whoever holds a manifest's folder.
pub(in crate::exec) struct ManifestHeader {
    folder: Folder,
    /// In the names of all that this job leaves, and of nothing else.
    id: String,
    header: Header,
    /// Datasets of earlier runs that are written on.
    pub adopted: BTreeMap<String, OutputLayout>,
    fingerprints: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
}

impl ManifestHeader {
    pub fn open(
        job: &Job,
        plan: &Plan,
        (stages, sources): (Vec<Identity>, &InputFiles),
        fresh: bool,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) -> Result<(ManifestHeader, Opening), ManifestError> {
        let beside = first_folder(job);
        let path = real_path(&job.path).unwrap_or_else(|_| job.path.clone());
        let id = id(&path, &beside);
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let name: String = name.chars().take(NAME_CHARS).collect();
        let folder = Folder::open(&beside.join(format!(".{name}-{id}.exuvia")))?;
        let mut before: Header = folder.read(HEADER).unwrap_or_default();
        let mut saved: Option<CheckpointIndex> = folder.read(CHECKPOINT);
        before.stay_here(&id);
        saved.iter_mut().for_each(|saved| saved.move_to(folder.path()));
        let mut records: Records<CompletionRecord> = Records::read(folder.path())?;
        let known = before.schema == SCHEMA && before.exuvia == env!("CARGO_PKG_VERSION") && before.job == path;
        if !known || fresh || (records.records.is_empty() && saved.is_none()) {
            saved = None;
            clear(&folder)?;
            before = Header { generation: before.generation, ..Header::default() };
            (records.records, records.damaged) = (Vec::new(), 0);
        }
        remove_strays(job, &id, &before);
        let header = Header {
            schema: SCHEMA,
            exuvia: env!("CARGO_PKG_VERSION").to_owned(),
            job: path,
            generation: before.generation + 1,
            stages,
            leftovers: before.leftovers.clone(),
            ..Header::default()
        };
        let mut keeper = ManifestHeader { folder, id, header, adopted: BTreeMap::new(), fingerprints: None };
        let (path, generation) = (keeper.folder.path().to_owned(), keeper.header.generation);
        if records.records.is_empty() && saved.is_none() {
            keeper.take_fingerprints(sources);
            let (finished, layouts) = (Vec::new(), BTreeMap::new());
            return Ok((keeper, Opening { path, generation, finished, layouts, saved }));
        }
        // Without them nothing counts.
        let prints: Fingerprints = keeper.folder.read(INPUTS).unwrap_or_default();
        let changed_inputs = sources.changed(&prints);
        let mut changed = changes(job, &before.stages, &keeper.header.stages, &changed_inputs);
        keeper.adopt_files(job, plan, &mut before, &mut changed, stagings, notes);
        for (stage, why) in &changed {
            if records.records.iter().any(|finished| finished.stage == *stage) {
                notes.push(format!("stage '{stage}' is computed again: {why}"));
            }
        }
        // It counts as long as all that came before it does.
        if let Some(checkpoint) = saved.take_if(|saved| !counts_still(saved, job, plan, &changed)) {
            let _ = fs::remove_file(checkpoint.file);
            let _ = fs::remove_file(path.join(CHECKPOINT));
            notes.push("the last checkpoint is of what has changed, and ignored".to_owned());
        }
        if records.damaged > 0 {
            notes.push(format!("{} records of finished work are torn or damaged, and ignored", records.damaged));
        }
        let counts = |finished: &CompletionRecord| {
            !changed.contains_key(&finished.stage) && before.stages.iter().any(|stage| stage.stage == finished.stage)
        };
        // A part that was computed again counts as it is now.
        let finished: BTreeMap<_, _> = records
            .records
            .into_iter()
            .filter(counts)
            .map(|finished| {
                let CompletionRecord { stage, tile, leaves, .. } = &finished;
                ((stage.clone(), tile.0.offset.clone(), tile.0.extent.clone(), *leaves), finished)
            })
            .collect();
        let tensors: BTreeSet<&String> = plan
            .stages
            .iter()
            .filter(|stage| !changed.contains_key(&stage.name))
            .flat_map(|s| s.outputs().map(|o| &s.operands[o].tensor))
            .collect();
        let layouts: BTreeMap<String, OutputLayout> =
            before.layouts.into_iter().filter(|(tensor, _)| tensors.contains(tensor)).collect();
        keeper.adopted.retain(|tensor, _| tensors.contains(tensor));
        keeper.header.layouts = layouts.clone();
        let targets: Vec<PathBuf> = keeper.header.files.keys().cloned().collect();
        targets.iter().for_each(|target| keeper.look_outside(target));
        keeper.folder.write(HEADER, &keeper.header)?;
        if !changed_inputs.is_empty() {
            keeper.take_fingerprints(sources);
        }
        let finished = finished.into_values().collect();
        Ok((keeper, Opening { path, generation, finished, layouts, saved }))
    }

    pub fn tag(&self) -> String {
        format!("{}-{}", self.id, self.header.generation)
    }

    /// Goes on with the files that the run before has left. What is lost is to be computed again. That somebody has changed the file
    /// which is going to be replaced does no harm.
    fn adopt_files(
        &mut self,
        job: &Job,
        plan: &Plan,
        before: &mut Header,
        changed: &mut BTreeMap<String, String>,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) {
        for (target, file) in &before.files {
            let (name, temporary) = (target.display(), &file.unfinished.temporary);
            let written = before.layouts.iter().filter(|(_, layout)| layout.temporary == *temporary);
            let (tensors, mut layouts): (Vec<String>, Vec<OutputLayout>) =
                written.map(|(tensor, layout)| (tensor.clone(), layout.clone())).unzip();
            // HDF5 may not have finished writing what it keeps about chunks, and a file with datasets that the job no longer has must
            // not be published: such a file is made anew from the parts.
            let is_anew = tensors.iter().zip(&layouts).any(|(tensor, layout)| {
                matches!(layout.storage, Storage::Compressed { .. })
                    || destination(job, tensor) != (target.clone(), layout.dataset.clone())
            });
            // It may have got its name already.
            let published =
                file.unfinished.is_at(target).then(|| Staging::begin_again(target, &self.tag(), &mut layouts));
            let adopted = match published {
                Some(again) => again.ok(),
                None if !file.unfinished.is_at(temporary) => None,
                None => {
                    let references: Vec<&OutputLayout> = layouts.iter().collect();
                    let is_sound = !is_anew && metadata_checksum(temporary, &references) == file.outside;
                    let adopt = || Staging::adopt(target, &self.tag(), &file.unfinished, &references).ok();
                    let adopted = is_sound.then(adopt).flatten();
                    if adopted.is_none() {
                        if !is_anew {
                            notes.push(format!(
                                "the unfinished {name} is damaged, and made anew from what is sound of it"
                            ));
                        }
                        self.header.leftovers.insert(temporary.clone());
                        continue;
                    }
                    adopted
                }
            };
            let Some(staging) = adopted else {
                let _ = fs::remove_file(temporary);
                let writes = |stage: &&StagePlan| {
                    stage.outputs().any(|output| destination(job, &stage.operands[output].tensor).0 == *target)
                };
                let stages = plan.stages.iter().filter(writes).map(|stage| stage.name.clone());
                changed.extend(stages.map(|stage| (stage, format!("the unfinished {name} is gone"))));
                continue;
            };
            let made: Vec<(String, OutputLayout)> = tensors.into_iter().zip(layouts).collect();
            before.layouts.extend(made.iter().cloned());
            if is_anew {
                self.header.leftovers.insert(staging.temporary().to_owned());
                staging.leave();
                continue;
            }
            self.header.files.insert(target.clone(), StagedFile { unfinished: staging.unfinished(), outside: None });
            stagings.insert(target.clone(), staging);
            self.adopted.extend(made);
        }
    }

    pub fn begin_writing(
        &mut self,
        staging: &Staging,
        tensor: &str,
        layout: &OutputLayout,
    ) -> Result<(), ManifestError> {
        self.header.layouts.insert(tensor.to_owned(), layout.clone());
        self.note_file(staging)
    }

    /// Datasets of a file are in another temporary from now on.
    pub fn note_moved(&mut self, job: &Job, staging: &Staging) -> Result<(), ManifestError> {
        for (tensor, layout) in &mut self.header.layouts {
            let (file, dataset) = destination(job, tensor);
            if file == staging.target()
                && let Some(moved) = staging.layouts().find(|moved| moved.dataset == dataset)
            {
                layout.clone_from(moved);
            }
        }
        self.note_file(staging)
    }

    fn note_file(&mut self, staging: &Staging) -> Result<(), ManifestError> {
        let file = StagedFile { unfinished: staging.unfinished(), outside: None };
        self.header.files.insert(staging.target().to_owned(), file);
        self.look_outside(staging.target());
        self.folder.write(HEADER, &self.header)
    }

    /// Notes what a file is like that this run writes, but for what it writes there.
    fn look_outside(&mut self, target: &Path) {
        let Some(file) = self.header.files.get_mut(target) else { return };
        let temporary = &file.unfinished.temporary;
        let layouts: Vec<&OutputLayout> =
            self.header.layouts.values().filter(|layout| layout.temporary == *temporary).collect();
        let is_compressed = layouts.iter().any(|layout| matches!(layout.storage, Storage::Compressed { .. }));
        file.outside = if is_compressed { None } else { metadata_checksum(temporary, &layouts) };
    }

    /// Without a header records count for nothing.
    pub fn begin_noting(&self) -> Result<(), ManifestError> {
        self.folder.write(HEADER, &self.header)
    }

    /// Looks at the inputs on a thread of its own: nothing waits for that, only no run can go on with this one before.
    fn take_fingerprints(&mut self, sources: &InputFiles) {
        let (sources, folder) = (sources.clone(), self.folder.path().to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let take = move || {
            let prints = sources.prints(&stopped);
            if let Some(Err(error)) = prints.map(|prints| write_whole(&folder, INPUTS, &prints)) {
                tracing::warn!("what this run finishes will not outlive it: {error}");
            }
        };
        self.fingerprints = Some((std::thread::spawn(take), stop));
    }

    /// Writes down a checkpoint.
    pub fn note_checkpoint(&self, saved: &CheckpointIndex) -> Result<(), ManifestError> {
        // As long as there are no datasets, nobody has.
        self.begin_noting()?;
        self.folder.write(CHECKPOINT, saved)
    }

    /// Whether there is something for a later run to go on with.
    pub fn has_finished(&self) -> bool {
        let is_record = |entry: fs::DirEntry| {
            let path = entry.path();
            let is_checkpoint = path.file_name().is_some_and(|name| name == CHECKPOINT);
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            (is_log || is_checkpoint) && entry.metadata().is_ok_and(|metadata| metadata.len() > 0)
        };
        fs::read_dir(self.folder.path()).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(is_record)))
    }

    /// Without them nothing counts that this run has finished.
    pub fn await_fingerprints(&self) {
        let until = Instant::now() + FINGERPRINTS;
        while self.fingerprints.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stop(&mut self) {
        if let Some((thread, stop)) = self.fingerprints.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }

    pub fn remove(mut self) -> Result<(), ManifestError> {
        self.stop();
        for leftover in &self.header.leftovers {
            let _ = fs::remove_file(leftover);
        }
        self.folder.remove()
    }
}

/// Whether a checkpoint is of what the stages are now, those that are iterated or come before them.
fn counts_still(saved: &CheckpointIndex, job: &Job, plan: &Plan, changed: &BTreeMap<String, String>) -> bool {
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

impl Header {
    /// A manifest speaks of unfinished files beside their targets, by names that this job gives: whatever it says, nothing else is
    /// opened or removed.
    fn stay_here(&mut self, id: &str) {
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

/// What sets a job apart: its file, where it lies and not what it is called, and the folder of its first output. A user's own: what
/// others leave, this one could not go on with.
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

/// Removes unfinished files of dead runs of this job that nobody goes on with. This run holds the manifest, so nobody writes to them.
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

/// Removes what another run has left.
fn clear(folder: &Folder) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Io { path: folder.path().to_owned(), what: "clear", source };
    for entry in fs::read_dir(folder.path()).map_err(failed)?.flatten() {
        if entry.file_name() != "lock" {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
