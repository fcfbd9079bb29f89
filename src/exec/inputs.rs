//! Where a stage's inputs come from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::RunError;
use super::link::Link;
use super::outputs::destination;
use crate::fabric::Payload;
use crate::job::{self, Job};
use crate::plan::{Distribution, StagePlan};
use crate::report::Counts;
use crate::store::Reader;
use crate::tensor::{Dtype, Region, copy_region};

/// Where datasets are that are not where the job says: tensors that a stage of this run wrote lie in a staging file.
pub(super) type Places = BTreeMap<String, (PathBuf, String)>;

/// What the regions of a split input are read from.
pub(super) enum Source<'a> {
    File(Reader),
    Inline { bytes: &'a [u8], whole: Region },
}

impl<'a> Source<'a> {
    pub fn open(job: &'a Job, tensor: &str, places: &Places) -> Result<Source<'a>, RunError> {
        if let Some(job::Source::Inline { shape, bytes, .. }) = job.tensors.get(tensor).map(|decl| &decl.source) {
            return Ok(Source::Inline { bytes, whole: Region::whole(shape) });
        }
        let (file, dataset) = place(job, tensor, places);
        Ok(Source::File(Reader::open(&file, &dataset)?))
    }

    /// Makes `into` the region's bytes. Returns how many came from a file.
    pub fn read(&self, region: &Region, dtype: Dtype, into: &mut Vec<u8>) -> Result<u64, RunError> {
        match self {
            Source::File(reader) => {
                reader.read(region, into)?;
                Ok(into.len() as u64)
            }
            Source::Inline { bytes, whole } => {
                into.resize(region.elements() as usize * dtype.size_bytes(), 0);
                copy_region(bytes, whole, into, region, region, dtype.size_bytes());
                Ok(0)
            }
        }
    }
}

/// Bytes of every operand that all tasks share. Rank 0 reads, the others receive. Collective.
pub(super) fn gather_whole(
    link: &mut Link,
    job: &Job,
    plan: &StagePlan,
    places: &Places,
    counts: &mut Counts,
) -> Result<Vec<Option<Payload>>, RunError> {
    let mut whole = Vec::new();
    for operand in &plan.operands {
        if operand.distribution != Distribution::Broadcast {
            whole.push(None);
            continue;
        }
        if let Some(job::Source::Inline { bytes, .. }) = job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
            whole.push(Some(Payload::from(bytes.clone())));
            continue;
        }
        let mut bytes = None;
        if link.rank() == 0 {
            let (file, dataset) = place(job, &operand.tensor, places);
            let mut read = Vec::new();
            Reader::open(&file, &dataset)?.read(&Region::whole(&operand.shape), &mut read)?;
            counts.read_bytes += read.len() as u64;
            bytes = Some(Payload::from(read));
        }
        let bytes = link.broadcast(bytes)?;
        if link.rank() != 0 {
            counts.moved_bytes += bytes.len() as u64;
        }
        whole.push(Some(bytes));
    }
    Ok(whole)
}

fn place(job: &Job, tensor: &str, places: &Places) -> (PathBuf, String) {
    match (places.get(tensor), job.tensors.get(tensor).map(|decl| &decl.source)) {
        (Some(place), _) => place.clone(),
        (None, Some(job::Source::File { file, dataset })) => (file.clone(), dataset.clone()),
        _ => destination(job, tensor),
    }
}
