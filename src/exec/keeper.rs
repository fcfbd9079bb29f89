//! Rank 0's side of a manifest: the folder and its header, what of an earlier run still counts, and which of its files are gone on
//! with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::checkpoint::Saved;
use super::finished::Finished;
use super::identity::{Identity, changes};
use super::outputs::{destination, first_folder};
use super::sources::{Prints, Sources};
use crate::job::Job;
use crate::manifest::{Folder, ManifestError, Records, write_whole};
use crate::plan::{Plan, StagePlan};
use crate::store::{OutputLayout, Staging, Storage, checksum_outside};

const HEADER: &str = "header.json";
const INPUTS: &str = "inputs.json";
const CHECKPOINT: &str = "checkpoint.json";
/// How long a run that begins again waits for them.
const FINGERPRINTS: Duration = Duration::from_secs(1);
/// Of the header and the records. Others are no use.
const SCHEMA: u32 = 1;

/// What the run is and where its outputs lie; rank 0 keeps it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Header {
    schema: u32,
    exuvia: String,
    job: String,
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
    temporary: PathBuf,
    /// Of the temporary, which keeps it when it gets its name.
    inode: u64,
    /// Checksum of all that lies outside of the datasets that are written.
    outside: Option<u32>,
    /// Length and time of change of the file that is going to be replaced, if there is one.
    replaces: Option<(u64, i64, i64)>,
}

/// What rank 0 tells the others.
#[derive(Serialize, Deserialize)]
pub(super) struct Opening {
    pub path: PathBuf,
    pub generation: u64,
    pub finished: Vec<Finished>,
    pub layouts: BTreeMap<String, OutputLayout>,
    pub saved: Option<Saved>,
}

/// Whoever holds a manifest's folder.
pub(super) struct Keeper {
    folder: Folder,
    header: Header,
    /// Datasets of earlier runs that are written on.
    pub adopted: BTreeMap<String, OutputLayout>,
    fingerprints: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
}

impl Keeper {
    pub fn open(
        job: &Job,
        plan: &Plan,
        (stages, sources): (Vec<Identity>, &Sources),
        fresh: bool,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) -> Result<(Keeper, Opening), ManifestError> {
        let folder = Folder::open(&first_folder(job).join(format!(".{}.exuvia", job.name)))?;
        let mut before: Header = folder.read(HEADER).unwrap_or_default();
        let mut records: Records<Finished> = Records::read(folder.path())?;
        let known = before.schema == SCHEMA && before.exuvia == env!("CARGO_PKG_VERSION");
        let mut saved: Option<Saved> = folder.read(CHECKPOINT);
        if !known || fresh || (records.records.is_empty() && saved.is_none()) {
            saved = None;
            clear(&folder, &before)?;
            before.leftovers.clear();
            (records.records, records.damaged) = (Vec::new(), 0);
        }
        let header = Header {
            schema: SCHEMA,
            exuvia: env!("CARGO_PKG_VERSION").to_owned(),
            job: job.name.clone(),
            generation: before.generation + 1,
            stages,
            leftovers: before.leftovers.clone(),
            ..Header::default()
        };
        let mut keeper = Keeper { folder, header, adopted: BTreeMap::new(), fingerprints: None };
        let (path, generation) = (keeper.folder.path().to_owned(), keeper.header.generation);
        if records.records.is_empty() && saved.is_none() {
            keeper.take_fingerprints(sources);
            let (finished, layouts) = (Vec::new(), BTreeMap::new());
            return Ok((keeper, Opening { path, generation, finished, layouts, saved }));
        }
        // Without them nothing counts.
        let prints: Prints = keeper.folder.read(INPUTS).unwrap_or_default();
        let changed_inputs = sources.changed(&prints);
        let mut changed = changes(job, &before.stages, &keeper.header.stages, &changed_inputs);
        keeper.adopt_files(job, plan, &before, &mut changed, stagings, notes);
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
        let counts = |finished: &Finished| {
            !changed.contains_key(&finished.stage) && before.stages.iter().any(|stage| stage.stage == finished.stage)
        };
        // A part that was computed again counts as it is now.
        let finished: BTreeMap<_, _> = records
            .records
            .into_iter()
            .filter(counts)
            .map(|finished| {
                let Finished { stage, tile, leaves, .. } = &finished;
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
        let path = self.folder.path().to_string_lossy().into_owned();
        format!("{}-{}", &blake3::hash(path.as_bytes()).to_hex()[..8], self.header.generation)
    }

    /// Goes on with the files that the run before has left. What is lost is to be computed again.
    fn adopt_files(
        &mut self,
        job: &Job,
        plan: &Plan,
        before: &Header,
        changed: &mut BTreeMap<String, String>,
        stagings: &mut BTreeMap<PathBuf, Staging>,
        notes: &mut Vec<String>,
    ) {
        for (target, file) in &before.files {
            let stages = || {
                let writes = |stage: &&StagePlan| {
                    stage.outputs().any(|output| destination(job, &stage.operands[output].tensor).0 == *target)
                };
                plan.stages.iter().filter(writes).map(|stage| stage.name.clone())
            };
            let name = target.display();
            if identity_of(target) != file.replaces && inode(target) != Some(file.inode) {
                changed.extend(stages().map(|stage| (stage, format!("{name} has changed"))));
                let _ = fs::remove_file(&file.temporary);
                continue;
            }
            // It may have got its name already.
            let published = inode(target) == Some(file.inode);
            let there =
                published && fs::copy(target, &file.temporary).is_ok() || inode(&file.temporary) == Some(file.inode);
            if !there {
                changed.extend(stages().map(|stage| (stage, format!("the unfinished {name} is gone"))));
                continue;
            }
            let written = || before.layouts.iter().filter(|(_, layout)| layout.temporary == file.temporary);
            // HDF5 may not have finished writing what it keeps about chunks: such a file is made anew from the parts.
            if written().any(|(_, layout)| matches!(layout.storage, Storage::Compressed { .. })) {
                self.header.leftovers.insert(file.temporary.clone());
                continue;
            }
            let layouts: Vec<&OutputLayout> = written().map(|(_, layout)| layout).collect();
            let is_sound = checksum_outside(&file.temporary, &layouts) == file.outside;
            let adopted = is_sound.then(|| Staging::adopt(target, &file.temporary, &layouts).ok()).flatten();
            let Some(staging) = adopted else {
                notes.push(format!("the unfinished {name} is damaged, and made anew from what is sound of it"));
                self.header.leftovers.insert(file.temporary.clone());
                continue;
            };
            stagings.insert(target.clone(), staging);
            let inode = inode(&file.temporary).unwrap_or(file.inode);
            self.header.files.insert(target.clone(), StagedFile { inode, ..file.clone() });
            self.adopted.extend(written().map(|(tensor, layout)| (tensor.clone(), layout.clone())));
        }
    }

    pub fn begin_writing(
        &mut self,
        staging: &Staging,
        tensor: &str,
        layout: &OutputLayout,
    ) -> Result<(), ManifestError> {
        let file = StagedFile {
            temporary: staging.temporary().to_owned(),
            inode: inode(staging.temporary()).unwrap_or(0),
            outside: None,
            replaces: identity_of(staging.target()),
        };
        self.header.files.insert(staging.target().to_owned(), file);
        self.header.layouts.insert(tensor.to_owned(), layout.clone());
        self.look_outside(staging.target());
        self.folder.write(HEADER, &self.header)
    }

    /// Notes what a file is like that this run writes, but for what it writes there.
    fn look_outside(&mut self, target: &Path) {
        let Some(file) = self.header.files.get_mut(target) else { return };
        let layouts: Vec<&OutputLayout> =
            self.header.layouts.values().filter(|layout| layout.temporary == file.temporary).collect();
        let is_compressed = layouts.iter().any(|layout| matches!(layout.storage, Storage::Compressed { .. }));
        file.outside = if is_compressed { None } else { checksum_outside(&file.temporary, &layouts) };
    }

    /// Without a header records count for nothing.
    pub fn begin_noting(&self) -> Result<(), ManifestError> {
        self.folder.write(HEADER, &self.header)
    }

    /// Looks at the inputs on a thread of its own: nothing waits for that, only no run can go on with this one before.
    fn take_fingerprints(&mut self, sources: &Sources) {
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
    pub fn note_checkpoint(&self, saved: &Saved) -> Result<(), ManifestError> {
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
fn counts_still(saved: &Saved, job: &Job, plan: &Plan, changed: &BTreeMap<String, String>) -> bool {
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

/// Removes what another run has left.
fn clear(folder: &Folder, before: &Header) -> Result<(), ManifestError> {
    for temporary in before.files.values().map(|file| &file.temporary).chain(&before.leftovers) {
        let _ = fs::remove_file(temporary);
    }
    let failed = |source| ManifestError::Io { path: folder.path().to_owned(), what: "clear", source };
    for entry in fs::read_dir(folder.path()).map_err(failed)?.flatten() {
        if entry.file_name() != "lock" {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// What tells whether somebody else has written a file.
fn identity_of(path: &Path) -> Option<(u64, i64, i64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}
