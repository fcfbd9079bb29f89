//! What can be wrong between the tables of a job file.

use crate::job::definition::{Combine, Job, Source, Stage};
use crate::job::error::JobError;
use crate::job::notation::Operand;
use crate::text::nearest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub(super) fn check(job: &Job) -> Result<(), JobError> {
    // Which stage (by position) writes each tensor, filled in stage by stage.
    let mut writers = BTreeMap::new();
    for (position, stage) in job.stages.iter().enumerate() {
        inputs(job, stage, &writers)?;
        pairs(job, stage)?;
        for output in &stage.compute.outputs {
            self::output(job, stage, output)?;
            if let Some(first) = writers.insert(output.tensor.as_str(), position) {
                return Err(JobError::WrittenTwice {
                    at: job.excerpt(output.span.clone(), None),
                    tensor: output.tensor.clone(),
                    first: job.stages[first].name.clone(),
                });
            }
        }
    }
    super::iterate::check(job)?;
    unused(job)?;
    same_dataset(job)
}

fn inputs(job: &Job, stage: &Stage, writers: &BTreeMap<&str, usize>) -> Result<(), JobError> {
    for input in &stage.compute.inputs {
        let source = declared(job, stage, input)?;
        let made_here = matches!(source, Source::Create { .. } | Source::Scratch { .. });
        if stage.compute.outputs.iter().any(|output| output.tensor == input.tensor) {
            return Err(JobError::InPlace {
                at: job.excerpt(input.span.clone(), Some("write to another tensor".to_owned())),
                stage: stage.name.clone(),
                tensor: input.tensor.clone(),
            });
        }
        if made_here && !writers.contains_key(input.tensor.as_str()) {
            return Err(JobError::NotYetWritten {
                at: job.excerpt(input.span.clone(), Some(writer_later(job, &input.tensor))),
                stage: stage.name.clone(),
                tensor: input.tensor.clone(),
            });
        }
    }
    Ok(())
}

fn writer_later(job: &Job, tensor: &str) -> String {
    let writes = |stage: &&Stage| stage.compute.outputs.iter().any(|output| output.tensor == tensor);
    match job.stages.iter().find(writes) {
        Some(later) => format!("stage '{}' writes it: put that stage first", later.name),
        None => "no stage writes it: declare it with 'file' if it exists already".to_owned(),
    }
}

fn output(job: &Job, stage: &Stage, output: &Operand) -> Result<(), JobError> {
    let source = declared(job, stage, output)?;
    if !matches!(source, Source::Create { .. } | Source::Scratch { .. }) {
        let help = "declare it with 'create', or with 'dtype' alone for scratch";
        return Err(JobError::NotWritable {
            at: job.excerpt(output.span.clone(), Some(help.to_owned())),
            stage: stage.name.clone(),
            tensor: output.tensor.clone(),
            what: source.what(),
        });
    }
    let compared = job.iterate.iter().flat_map(|iterate| &iterate.until).any(|until| until.tensor == output.tensor);
    if let Source::Create { dtype, .. } | Source::Scratch { dtype } = source
        && !dtype.is_computed()
        && (stage.combine.is_some_and(|combine| combine != Combine::Kernel) || compared)
    {
        return Err(JobError::StorageType {
            at: job.excerpt(output.span.clone(), Some(format!("declare '{}' as f32", output.tensor))),
            tensor: output.tensor.clone(),
            dtype: *dtype,
        });
    }
    let inputs = &stage.compute.inputs;
    for index in &output.indices {
        let name = index.name.as_str();
        let bound = stage.sizes.contains_key(name) || inputs.iter().any(|input| input.dim_of(name).is_some());
        if !bound {
            let help = format!("give its extent: sizes = {{ {name} = ... }}");
            return Err(JobError::UnboundIndex {
                at: job.excerpt(index.span.clone(), Some(help)),
                stage: stage.name.clone(),
                index: name.to_owned(),
                operand: output.to_string(),
            });
        }
    }
    Ok(())
}

/// `argmin` and `argmax` compare a value and its place.
fn pairs(job: &Job, stage: &Stage) -> Result<(), JobError> {
    let outputs = &stage.compute.outputs;
    if !stage.combine.is_some_and(Combine::is_of_pairs) {
        return Ok(());
    }
    let dims = |output: &Operand| output.indices.iter().map(|i| (i.name.clone(), i.scale)).collect::<Vec<_>>();
    let is_integer = |output: &Operand| match job.tensors.get(&output.tensor).map(|decl| &decl.source) {
        Some(Source::Create { dtype, .. } | Source::Scratch { dtype }) => dtype.is_integer(),
        // Another error, which is told later.
        _ => true,
    };
    let fault = match outputs.as_slice() {
        [value, place] if dims(value) != dims(place) => Some((
            place,
            format!("{place} and {value} must have the same indices and multiples: a place for every value"),
        )),
        [_, place] if !is_integer(place) => Some((place, format!("'{}' must be of an integer dtype", place.tensor))),
        [_, _] => None,
        _ => outputs.last().map(|last| (last, "two outputs are needed, the value and its place".to_owned())),
    };
    match fault {
        None => Ok(()),
        Some((output, reason)) => Err(JobError::BadPair {
            at: job.excerpt(output.span.clone(), Some("as in: x[n,d] -> value[d], place[d]".to_owned())),
            stage: stage.name.clone(),
            reason,
        }),
    }
}

fn declared<'a>(job: &'a Job, stage: &Stage, operand: &Operand) -> Result<&'a Source, JobError> {
    let found = job.tensors.get(&operand.tensor);
    found.map(|decl| &decl.source).ok_or_else(|| {
        let help = match nearest(&operand.tensor, job.tensors.keys().map(String::as_str)) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("declare it: [tensors.{}]", operand.tensor),
        };
        JobError::UnknownTensor {
            at: job.excerpt(operand.span.clone(), Some(help)),
            stage: stage.name.clone(),
            tensor: operand.tensor.clone(),
        }
    })
}

fn unused(job: &Job) -> Result<(), JobError> {
    let operands = job.stages.iter().flat_map(|stage| stage.compute.inputs.iter().chain(&stage.compute.outputs));
    let used: BTreeSet<&str> = operands.map(|operand| operand.tensor.as_str()).collect();
    match job.tensors.values().find(|decl| !used.contains(decl.name.as_str())) {
        None => Ok(()),
        Some(decl) => Err(JobError::UnusedTensor {
            at: job.excerpt(decl.span.clone(), Some("use it in a 'compute', or remove it".to_owned())),
            tensor: decl.name.clone(),
        }),
    }
}

/// A dataset that the job creates must stand for one tensor only, and holds no other.
fn same_dataset(job: &Job) -> Result<(), JobError> {
    let paths = job.tensors.values().filter_map(|decl| Some((decl.name.as_str(), decl.source.file()?)));
    apart(job, &paths.collect())
}

/// The same of a job whose files are not where it says: `files` has them by tensor, under one name each.
pub(super) fn apart(job: &Job, files: &BTreeMap<&str, &Path>) -> Result<(), JobError> {
    // By file and dataset the first tensor, and whether the job creates it.
    let mut seen: BTreeMap<&Path, BTreeMap<&str, (&str, bool)>> = BTreeMap::new();
    for decl in job.tensors.values() {
        let (file, dataset, created) = match &decl.source {
            Source::File { file, dataset } => (file, dataset.as_str(), false),
            Source::Create { file, dataset, .. } => (file, dataset.as_str(), true),
            _ => continue,
        };
        let file = files.get(decl.name.as_str()).copied().unwrap_or(file);
        let seen = seen.entry(file).or_default();
        let clashes = |other_created: bool| created || other_created;
        if let Some((first, _)) = seen.get(dataset).filter(|(_, other)| clashes(*other)) {
            return Err(JobError::SameDataset {
                at: job.excerpt(decl.span.clone(), Some("create it under another name".to_owned())),
                first: (*first).to_owned(),
                second: decl.name.clone(),
                dataset: dataset.to_owned(),
                file: file.to_owned(),
            });
        }
        let here = (dataset, decl.name.as_str());
        let outer = dataset.match_indices('/').map(|(end, _)| &dataset[..end]);
        let outer = outer.filter_map(|outer| seen.get_key_value(outer)).find(|(_, (_, other))| clashes(*other));
        let below = format!("{dataset}/");
        let inner = seen.range(below.as_str()..).take_while(|(inner, _)| inner.starts_with(&below));
        let pair = match (outer, { inner }.find(|(_, (_, other))| clashes(*other))) {
            (Some((outer, (tensor, _))), _) => Some((here, (*outer, *tensor))),
            (None, Some((inner, (tensor, _)))) => Some(((*inner, *tensor), here)),
            (None, None) => None,
        };
        if let Some((inner, outer)) = pair {
            return Err(JobError::InsideDataset {
                at: job.excerpt(decl.span.clone(), Some("give one of them a name of its own".to_owned())),
                inner: format!("'{}' ({})", inner.1, inner.0),
                outer: format!("'{}' ({})", outer.1, outer.0),
                file: file.to_owned(),
            });
        }
        let (_, any_created) = seen.entry(dataset).or_insert((&decl.name, created));
        *any_created |= created;
    }
    Ok(())
}
