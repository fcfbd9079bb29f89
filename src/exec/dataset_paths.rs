//! Paths of the datasets that a job reads and writes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::job::{Job, Source};

/// The staging file and dataset of each tensor that a stage of this run wrote. All other datasets are where the job
/// says.
pub(in crate::exec) type DatasetPaths = BTreeMap<String, (PathBuf, String)>;

/// Returns the file and dataset that holds a tensor now.
pub(in crate::exec) fn place(job: &Job, tensor: &str, places: &DatasetPaths) -> (PathBuf, String) {
    match (places.get(tensor), job.tensors.get(tensor).map(|decl| &decl.source)) {
        (Some(place), _) => place.clone(),
        (None, Some(Source::File { file, dataset })) => (file.clone(), dataset.clone()),
        _ => destination(job, tensor),
    }
}

/// Returns the file and dataset that a tensor is written to. Scratch tensors lie in a file of their own beside the
/// first output, which is never published.
pub(in crate::exec) fn destination(job: &Job, tensor: &str) -> (PathBuf, String) {
    match job.tensors.get(tensor).map(|decl| &decl.source) {
        Some(Source::Create { file, dataset, .. }) => (file.clone(), dataset.clone()),
        _ => (first_folder(job).join(".scratch"), tensor.to_owned()),
    }
}

/// Returns the folder of the first output. Other files of a run lie there too.
pub fn first_folder(job: &Job) -> PathBuf {
    let created = job.tensors.values().find_map(|decl| match &decl.source {
        Source::Create { file, .. } => file.parent().filter(|folder| !folder.as_os_str().is_empty()),
        _ => None,
    });
    created.unwrap_or_else(|| ".".as_ref()).to_owned()
}
