//! The tables and keys of a job file, one function per table.

use super::constant;
use super::cuts;
use super::iterate;
use super::notation::{self, Notation, Operand};
use super::table::{Document, Table, Value};
use crate::job::definition::{Combine, Job, Limits, Source, Stage, TensorDecl};
use crate::job::error::JobError;
use crate::job::snippet::position;
use crate::tensor::{Boundary, Dtype, MAX_RANK, Shape};
use crate::text::{nearest, suggest};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

pub(super) fn job(text: &str, path: &Path) -> Result<Job, JobError> {
    let document = Document { path, text };
    let entries = DeTable::parse(text).map_err(|error| JobError::Syntax {
        at: document.at(error.span().unwrap_or(0..0)),
        message: error.message().to_owned(),
    })?;
    let root = Table::root(document, entries.get_ref());
    root.only(&["name", "memory", "tensors", "stages", "iterate"])?;
    let name = match root.get("name") {
        Some(value) => plain_name(&value)?,
        None => {
            let stem = path.file_stem().unwrap_or("job".as_ref()).to_string_lossy();
            stem.replace(|c| !is_plain(c), "-")
        }
    };
    let (tensors, stages) = (tensors(&root)?, stages(&root)?);
    Ok(Job {
        name,
        path: path.to_owned(),
        memory_bytes: root.get("memory").map(|value| value.bytes()).transpose()?,
        tensors,
        iterate: root.get("iterate").map(|value| iterate::read(&value, &stages)).transpose()?,
        stages,
        text: text.to_owned(),
    })
}

fn tensors(root: &Table<'_>) -> Result<BTreeMap<String, TensorDecl>, JobError> {
    let mut tensors = BTreeMap::new();
    let table = root.require("tensors", "{ NAME = { file = \"...\", dataset = \"...\" } }")?;
    for value in table.table("[tensors]".to_owned())?.entries() {
        if !notation::is_tensor_name(&value.key) {
            return Err(JobError::BadValue {
                at: root.document.at_with(
                    value.key_span.clone(),
                    Some("ASCII letters, digits and '_', not starting with a digit".to_owned()),
                ),
                key: "tensors".to_owned(),
                reason: format!("'{}' is no tensor name", value.key),
            });
        }
        let mut table = value.table(format!("[tensors.{}]", value.key))?;
        table.span = value.key_span.clone();
        let decl = TensorDecl {
            name: value.key.clone(),
            source: source(&table)?,
            line: position(root.document.text, value.key_span.start).0,
            span: value.key_span.clone(),
        };
        tensors.insert(value.key, decl);
    }
    Ok(tensors)
}

fn source(table: &Table<'_>) -> Result<Source, JobError> {
    // The key that says what kind of tensor this is decides which other keys it may have.
    const KINDS: [&str; 4] = ["file", "create", "value", "values"];
    const KEYS: [&str; 8] = ["file", "create", "value", "values", "dataset", "dtype", "chunk", "deflate"];
    table.only(&KEYS)?;
    let kinds: Vec<Value<'_>> = KINDS.iter().filter_map(|key| table.get(key)).collect();
    if let [first, second, ..] = kinds.as_slice() {
        let conflict = format!("'{}' and '{}' exclude each other", first.key, second.key);
        return Err(conflict_at(table, second, conflict));
    }
    let Some(kind) = kinds.first() else {
        allow(table, "scratch (no file, create, value or values)", &["dtype"])?;
        return Ok(Source::Scratch { dtype: dtype(table)? });
    };
    match kind.key.as_str() {
        "file" => {
            allow(table, "a tensor with 'file'", &["file", "dataset"])?;
            Ok(Source::File { file: path(table, kind)?, dataset: dataset(table)? })
        }
        "create" => {
            let (chunk, deflate) = storage(table)?;
            Ok(Source::Create {
                file: path(table, kind)?,
                dataset: dataset(table)?,
                dtype: dtype(table)?,
                chunk,
                deflate,
            })
        }
        _ => {
            allow(table, "a constant", &["value", "values", "dtype"])?;
            inline(table, kind)
        }
    }
}

/// Refuses keys that are known, but mean nothing for this kind of tensor.
fn allow(table: &Table<'_>, kind: &str, keys: &[&str]) -> Result<(), JobError> {
    match table.entries().into_iter().find(|value| !keys.contains(&value.key.as_str())) {
        Some(value) => Err(conflict_at(table, &value, format!("'{}' means nothing for {kind}", value.key))),
        None => Ok(()),
    }
}

fn conflict_at(table: &Table<'_>, value: &Value<'_>, conflict: String) -> JobError {
    JobError::Conflict { at: table.document.at(value.key_span.clone()), table: table.name.clone(), conflict }
}

fn path(table: &Table<'_>, value: &Value<'_>) -> Result<PathBuf, JobError> {
    let directory = table.document.path.parent().unwrap_or(Path::new(""));
    Ok(directory.join(value.string()?))
}

fn dataset(table: &Table<'_>) -> Result<String, JobError> {
    let value = table.require("dataset", "\"path/in/file\"")?;
    // One spelling for each: HDF5 passes over empty steps and those to where it is.
    let steps = value.string()?.split('/').filter(|step| !step.is_empty() && *step != ".");
    let name = steps.collect::<Vec<_>>().join("/");
    if name.is_empty() || name.contains('\0') {
        return Err(value.bad("this is no name of a dataset", Some("such as \"group/name\"".to_owned())));
    }
    Ok(name)
}

fn dtype(table: &Table<'_>) -> Result<Dtype, JobError> {
    let value = table.require("dtype", "\"f32\"")?;
    let text = value.string()?;
    text.parse().map_err(|error| {
        let names = Dtype::ALL.map(Dtype::name);
        // Names of other libraries come first: `float32` is nearer to `f32` than letters tell.
        let short = text.to_lowercase().trim_end_matches("_t").to_owned();
        let short = [("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")]
            .into_iter()
            .find_map(|(long, short_form)| short.strip_prefix(long).map(|bits| format!("{short_form}{bits}")))
            .unwrap_or(short);
        let short = match short.as_str() {
            "half" => "f16",
            "f" | "single" => "f32",
            "double" => "f64",
            "i" => "i32",
            "byte" => "u8",
            other => other,
        };
        let help = match nearest(short, names) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("dtypes: {}", names.join(", ")),
        };
        value.bad(error, Some(help))
    })
}

fn storage(table: &Table<'_>) -> Result<(Option<Vec<u64>>, Option<u8>), JobError> {
    let mut chunk = None;
    if let Some(value) = table.get("chunk") {
        let items = value.items("an array of whole numbers, one per dimension")?;
        if items.is_empty() || items.len() > MAX_RANK {
            return Err(value.bad(format!("must have 1 to {MAX_RANK} extents, one per dimension"), None));
        }
        let mut extents = Vec::new();
        for item in items {
            match item.count()? {
                0 => return Err(item.bad("a chunk has at least 1 element in every dimension", None)),
                extent => extents.push(extent),
            }
        }
        chunk = Some(extents);
    }
    let Some(value) = table.get("deflate") else {
        return Ok((chunk, None));
    };
    if chunk.is_none() {
        return Err(conflict_at(table, &value, "'deflate' needs 'chunk': HDF5 compresses chunk by chunk".to_owned()));
    }
    match u8::try_from(value.count()?) {
        Ok(level @ 1..=9) => Ok((chunk, Some(level))),
        _ => Err(value.bad("the level is from 1 (fast) to 9 (small)", Some("leave it out for none".to_owned()))),
    }
}

fn inline(table: &Table<'_>, kind: &Value<'_>) -> Result<Source, JobError> {
    let dtype = dtype(table)?;
    let scalar = kind.key == "value";
    let items = if scalar { vec![kind.clone()] } else { kind.items("an array of numbers")? };
    let mut bytes = Vec::with_capacity(items.len() * dtype.size_bytes());
    for item in &items {
        constant::push(item.number()?, dtype, &mut bytes).map_err(|reason| item.bad(reason, None))?;
    }
    let extents = if scalar { vec![] } else { vec![items.len() as u64] };
    let shape = Shape::new(extents).map_err(|error| kind.bad(error, None))?;
    Ok(Source::Inline { dtype, shape, bytes })
}

fn stages(root: &Table<'_>) -> Result<Vec<Stage>, JobError> {
    let array = root.require("stages", "[{ kernel = \"...\", compute = \"...\" }]")?;
    let items = array.items("an array of tables, [[stages]]")?;
    if items.is_empty() {
        return Err(array.bad("must have at least one stage", None));
    }
    let mut stages: Vec<Stage> = Vec::new();
    for (position, item) in items.iter().enumerate() {
        let name = format!("stage{}", position + 1);
        let table = item.table(format!("[[stages]] {}", position + 1))?;
        let stage = stage(&table, name)?;
        if stages.iter().any(|earlier| earlier.name == stage.name) {
            let span = table.get("name").map_or(table.span.clone(), |value| value.span);
            return Err(JobError::BadValue {
                at: root.document.at(span),
                key: "name".to_owned(),
                reason: format!("an earlier stage is called '{}' too", stage.name),
            });
        }
        stages.push(stage);
    }
    Ok(stages)
}

fn stage(table: &Table<'_>, default_name: String) -> Result<Stage, JobError> {
    table
        .only(&["name", "kernel", "export", "compute", "sizes", "combine", "reduce", "whole", "boundary", "limits"])?;
    let name = match table.get("name") {
        Some(value) => plain_name(&value)?,
        None => default_name,
    };
    let kernel = table.require("kernel", "\"kernels/NAME.wasm\"")?;
    let text = table.require("compute", "\"a[i] -> b[i]\"")?;
    let export = table.get("export").map(|value| value.string().map(str::to_owned)).transpose()?;
    let compute = compute(table, &text)?;
    let (combine, merge) = combine(table, &name)?;
    let (reduce, whole) = cuts::read(table, &name, &compute)?;
    let boundary = boundary(table, &compute)?;
    Ok(Stage {
        combine,
        merge,
        reduce,
        whole,
        boundary,
        kernel: path(table, &kernel)?,
        export,
        sizes: sizes(table, &name, &compute)?,
        compute,
        limits: limits(table, &name)?,
        line: position(table.document.text, text.span.start).0,
        name,
    })
}

/// How partial results become one, and the export that merges them where it is a kernel.
fn combine(table: &Table<'_>, stage: &str) -> Result<(Option<Combine>, Option<String>), JobError> {
    let Some(value) = table.get("combine") else { return Ok((None, None)) };
    if !value.is_table() {
        return Ok((Some(one_of(&value, &Combine::NAMES, &["{ export = \"...\" }"])?), None));
    }
    let merge = value.table(format!("combine of stage '{stage}'"))?;
    merge.only(&["export"])?;
    let export = merge.require("export", "\"merge\"")?.string()?;
    Ok((Some(Combine::Kernel), Some(export.to_owned())))
}

/// Parses the notation and moves every span from the notation's text to the job file's.
fn compute(table: &Table<'_>, value: &Value<'_>) -> Result<Notation, JobError> {
    let document = table.document;
    let text = value.string()?;
    let offset = value.text_offset(text);
    let place = |span: &std::ops::Range<usize>| match offset {
        Some(offset) => offset + span.start..offset + span.end,
        None => value.span.clone(),
    };
    let mut notation = notation::parse(text).map_err(|fault| JobError::Notation {
        at: document.at_with(place(&fault.span), fault.help),
        reason: fault.reason,
    })?;
    for operand in notation.inputs.iter_mut().chain(&mut notation.outputs) {
        operand.span = place(&operand.span);
        operand.column = position(document.text, operand.span.start).1;
        for index in &mut operand.indices {
            index.span = place(&index.span);
        }
    }
    Ok(notation)
}

/// What lies beyond the edge: given if, and only if, an input has a halo.
fn boundary(table: &Table<'_>, compute: &Notation) -> Result<Option<Boundary>, JobError> {
    let haloed = |operand: &'_ Operand| operand.indices.iter().find(|index| index.halo > 0).cloned();
    if let Some(index) = compute.outputs.iter().find_map(haloed) {
        return Err(JobError::Notation {
            at: table.document.at_with(index.span.clone(), Some(format!("write '{}'", index.name))),
            reason: format!("an output has no halo ('{index}')"),
        });
    }
    match (table.get("boundary"), compute.inputs.iter().find_map(haloed)) {
        (None, None) => Ok(None),
        (Some(value), Some(_)) => one_of(&value, &Boundary::NAMES, &[]).map(Some),
        (Some(value), None) => {
            let conflict = "'boundary' needs an input with a halo, as in 'u[y~1]'".to_owned();
            Err(conflict_at(table, &value, conflict))
        }
        (None, Some(index)) => Err(JobError::MissingKey {
            at: table.document.at_with(
                index.span,
                Some("what lies beyond the edge: boundary = \"clamp\", \"periodic\", \"zero\" or \"none\"".to_owned()),
            ),
            key: "boundary".to_owned(),
            table: table.name.clone(),
        }),
    }
}

/// The one of `names` that a string value is; `also` is what else the key takes, for the message.
fn one_of<T: Copy>(value: &Value<'_>, names: &[(&'static str, T)], also: &[&'static str]) -> Result<T, JobError> {
    let text = value.string()?;
    let found = names.iter().find(|(name, _)| *name == text).map(|(_, one)| *one);
    found.ok_or_else(|| {
        let known = names.iter().map(|(name, _)| *name).chain(also.iter().copied());
        value.bad(format!("'{text}' is none of them"), suggest(text, known, "known"))
    })
}

fn sizes(table: &Table<'_>, stage: &str, compute: &Notation) -> Result<BTreeMap<String, u64>, JobError> {
    let mut sizes = BTreeMap::new();
    let Some(value) = table.get("sizes") else {
        return Ok(sizes);
    };
    let operands = compute.inputs.iter().chain(&compute.outputs);
    let indices: BTreeSet<&str> = operands.flat_map(|operand| &operand.indices).map(|i| i.name.as_str()).collect();
    for size in value.table(format!("sizes of stage '{stage}'"))?.entries() {
        if !indices.contains(size.key.as_str()) {
            return Err(JobError::UnknownIndex {
                at: table.document.at_with(size.key_span, suggest(&size.key, indices, "its indices")),
                stage: stage.to_owned(),
                index: size.key,
            });
        }
        let extent = size.count()?;
        sizes.insert(size.key, extent);
    }
    Ok(sizes)
}

fn limits(table: &Table<'_>, stage: &str) -> Result<Limits, JobError> {
    let mut limits = Limits::default();
    let Some(value) = table.get("limits") else {
        return Ok(limits);
    };
    let table = value.table(format!("limits of stage '{stage}'"))?;
    table.only(&["memory", "time"])?;
    if let Some(memory) = table.get("memory") {
        limits.memory_bytes = memory.bytes()?;
        if limits.memory_bytes > Limits::MEMORY_MAX_BYTES {
            return Err(
                memory.bad("a kernel has at most 4 GiB of linear memory", Some("write \"4GiB\" or less".to_owned()))
            );
        }
    }
    if let Some(time) = table.get("time") {
        limits.task_time = time.duration()?;
    }
    Ok(limits)
}

/// A name that can stand in messages, file names and `stage@tile` without quotes.
fn plain_name(value: &Value<'_>) -> Result<String, JobError> {
    let name = value.string()?;
    if !name.chars().all(is_plain) {
        return Err(value.bad(format!("'{name}' is no name"), Some("letters, digits, '.', '_' and '-'".to_owned())));
    }
    Ok(name.to_owned())
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "._-".contains(c)
}
