//! What must hold between the parts of a job.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{Spot, nearest, suggestion};
use super::{Job, JobError, Source};

/// Checks every cross-reference of a job; the first thing that is wrong is the error.
pub(super) fn check(job: &Job) -> Result<(), JobError> {
    let spot = Spot { path: &job.path, text: &job.text };
    if job.stages.is_empty() {
        return Err(spot.error(0, "the job has no [[stages]], so there is nothing to run"));
    }
    let mut stage_names = BTreeSet::new();
    let mut written: BTreeMap<&str, &str> = BTreeMap::new();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for stage in &job.stages {
        let stage_start = line_start(&job.text, stage.line);
        if !stage_names.insert(&stage.name) {
            return Err(spot.error(stage_start, format!("two stages are called '{}'", stage.name)));
        }
        // Notation is on one line of the file: its place is where its text first stands behind the stage's head.
        let text_start = job.text[stage_start..].find(&stage.compute.text).map_or(stage_start, |at| stage_start + at);
        for operand in stage.compute.operands() {
            if !job.tensors.contains_key(&operand.tensor) {
                let suggestion =
                    suggestion(nearest(&operand.tensor, job.tensors.keys().map(String::as_str)).as_deref());
                let message = format!("no tensor is called '{}'{suggestion}", operand.tensor);
                return Err(spot.error(text_start + operand.at, message));
            }
            used.insert(&operand.tensor);
        }
        for operand in &stage.compute.inputs {
            let made_here =
                matches!(job.tensors[&operand.tensor].source, Source::Create { .. } | Source::Scratch { .. });
            if made_here && !written.contains_key(operand.tensor.as_str()) {
                let message = format!("'{}' is read here, but no earlier stage writes it", operand.tensor);
                return Err(spot.error(text_start + operand.at, message));
            }
        }
        for operand in &stage.compute.outputs {
            let name = &operand.tensor;
            let message = match &job.tensors[name].source {
                Source::File { .. } => {
                    format!("'{name}' is an existing dataset and cannot be written; use create = \"...\"")
                }
                Source::Inline { .. } => format!("'{name}' is a constant and cannot be written"),
                Source::Create { chunk: Some(chunk), .. } if chunk.len() != operand.indices.len() => format!(
                    "{operand} has {} indices, but the chunk of '{name}' has {} extents",
                    operand.indices.len(),
                    chunk.len()
                ),
                Source::Create { .. } | Source::Scratch { .. } => match written.insert(name, &stage.name) {
                    Some(earlier) => format!("'{name}' was written by stage '{earlier}' already"),
                    None => continue,
                },
            };
            return Err(spot.error(text_start + operand.at, message));
        }
        let letters: BTreeSet<&str> =
            stage.compute.operands().flat_map(|o| &o.indices).map(|i| i.name.as_str()).collect();
        if let Some(unknown) = stage.sizes.keys().find(|name| !letters.contains(name.as_str())) {
            let suggestion = suggestion(nearest(unknown, letters.iter().copied()).as_deref());
            return Err(spot.error(stage_start, format!("sizes: no index is called '{unknown}'{suggestion}")));
        }
    }
    let mut datasets = BTreeSet::new();
    for decl in job.tensors.values() {
        let at = line_start(&job.text, decl.line);
        if !used.contains(decl.name.as_str()) {
            return Err(spot.error(at, format!("tensor '{}' is used by no stage", decl.name)));
        }
        if let Source::Create { file, dataset, .. } = &decl.source
            && !datasets.insert((file, dataset))
        {
            return Err(spot.error(at, format!("two tensors create dataset '{dataset}' in {}", file.display())));
        }
    }
    Ok(())
}

/// Byte offset at which a line, counted from 1, begins.
fn line_start(text: &str, line: usize) -> usize {
    text.split_inclusive('\n').take(line - 1).map(str::len).sum()
}
