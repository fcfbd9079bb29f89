//! The layout of a job file, as serde sees it.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::error::{Spot, nearest, position, suggestion};
use super::{Job, JobError, Limits, Notation, Source, Stage, TensorDecl};
use crate::tensor::{Dtype, Shape};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    name: Option<String>,
    memory: Option<Spanned<String>>,
    #[serde(default)]
    tensors: BTreeMap<String, Spanned<TensorTable>>,
    #[serde(default)]
    stages: Vec<Spanned<StageTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorTable {
    file: Option<String>,
    create: Option<String>,
    dataset: Option<String>,
    dtype: Option<Spanned<String>>,
    chunk: Option<Vec<u64>>,
    deflate: Option<u8>,
    value: Option<Spanned<toml::Value>>,
    values: Option<Spanned<Vec<toml::Value>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageTable {
    name: Option<String>,
    kernel: String,
    export: Option<String>,
    compute: Spanned<String>,
    #[serde(default)]
    sizes: BTreeMap<String, u64>,
    limits: Option<LimitsTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    memory: Option<Spanned<String>>,
    time: Option<Spanned<String>>,
}

/// Parses the text; cross-references are checked by [`super::check`].
pub(super) fn read(text: &str, path: &Path) -> Result<Job, JobError> {
    let spot = Spot { path, text };
    let file: JobFile = toml::from_str(text).map_err(|e| toml_error(spot, &e))?;
    let memory_bytes = file.memory.as_ref().map(|value| size(spot, value)).transpose()?;
    let mut tensors = BTreeMap::new();
    for (name, table) in file.tensors {
        let decl = tensor(spot, &name, table)?;
        tensors.insert(name, decl);
    }
    let stages = file.stages.into_iter().enumerate().map(|(index, table)| stage(spot, index, table));
    let stages = stages.collect::<Result<Vec<_>, _>>()?;
    let stem = || path.file_stem().map_or_else(|| "job".to_owned(), |s| s.to_string_lossy().into_owned());
    let name = file.name.unwrap_or_else(stem);
    Ok(Job { name, path: path.to_owned(), memory_bytes, tensors, stages, text: text.to_owned() })
}

/// serde's message, with the known key that is most like the unknown one.
fn toml_error(spot: Spot<'_>, error: &toml::de::Error) -> JobError {
    let mut message = error.message().to_owned();
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((unknown, expected)) = rest.split_once('`')
    {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let suggestion = suggestion(nearest(unknown, known.iter().copied()).as_deref());
        message = format!("unknown key '{unknown}'{suggestion} (known here: {})", known.join(", "));
    }
    spot.error(error.span().map_or(0, |span| span.start), message)
}

fn resolve(spot: Spot<'_>, file: &str) -> std::path::PathBuf {
    spot.path.parent().unwrap_or(Path::new("")).join(file)
}

fn tensor(spot: Spot<'_>, name: &str, table: Spanned<TensorTable>) -> Result<TensorDecl, JobError> {
    let at = table.span().start;
    let line = position(spot.text, at).0;
    let table = table.into_inner();
    let fail = |message: String| Err(spot.error(at, format!("tensor '{name}': {message}")));
    let inline = table.value.is_some() || table.values.is_some();
    let kinds = [table.file.is_some(), table.create.is_some(), table.value.is_some(), table.values.is_some()];
    if kinds.into_iter().filter(|k| *k).count() > 1 {
        return fail("give one of file (existing), create (written by the job), value or values (constant)".to_owned());
    }
    let dtype = table.dtype.as_ref().map(|value| dtype(spot, value)).transpose()?;
    if table.create.is_none() && (table.chunk.is_some() || table.deflate.is_some()) {
        return fail("chunk and deflate are for tensors that the job creates".to_owned());
    }
    let needs_dtype = || spot.error(at, format!("tensor '{name}': add dtype = \"...\" (one of {})", dtype_names()));
    let source = match (table.file, table.create, table.dataset) {
        (Some(_), _, None) | (_, Some(_), None) => return fail("add dataset = \"...\"".to_owned()),
        (Some(file), _, Some(dataset)) => {
            if dtype.is_some() {
                return fail("the file says the dtype of an existing dataset; leave dtype out".to_owned());
            }
            Source::File { file: resolve(spot, &file), dataset }
        }
        (_, Some(file), Some(dataset)) => {
            if table.deflate.is_some_and(|level| !(1..=9).contains(&level)) {
                return fail("deflate is a level from 1 to 9".to_owned());
            }
            if table.deflate.is_some() && table.chunk.is_none() {
                return fail("deflate needs chunk = [...]".to_owned());
            }
            if table.chunk.as_ref().is_some_and(|chunk| chunk.contains(&0)) {
                return fail("no extent of chunk may be 0".to_owned());
            }
            let dtype = dtype.ok_or_else(needs_dtype)?;
            let (chunk, deflate) = (table.chunk, table.deflate);
            Source::Create { file: resolve(spot, &file), dataset, dtype, chunk, deflate }
        }
        (None, None, Some(_)) => return fail("dataset goes with file or create".to_owned()),
        (None, None, None) if inline => {
            let dtype = dtype.ok_or_else(needs_dtype)?;
            let (at, values, shape) = match (table.value, table.values) {
                (Some(value), _) => (value.span().start, vec![value.into_inner()], Vec::new()),
                (_, Some(values)) => {
                    let at = values.span().start;
                    let values = values.into_inner();
                    let count = values.len() as u64;
                    (at, values, vec![count])
                }
                (None, None) => unreachable!("inline means one of them"),
            };
            let mut bytes = Vec::new();
            for value in &values {
                encode(dtype, value, &mut bytes).map_err(|message| spot.error(at, message))?;
            }
            let shape = Shape::new(shape).map_err(|e| spot.error(at, e.to_string()))?;
            Source::Inline { dtype, shape, bytes }
        }
        (None, None, None) => Source::Scratch { dtype: dtype.ok_or_else(needs_dtype)? },
    };
    Ok(TensorDecl { name: name.to_owned(), source, line })
}

fn stage(spot: Spot<'_>, index: usize, table: Spanned<StageTable>) -> Result<Stage, JobError> {
    let line = position(spot.text, table.span().start).0;
    let table = table.into_inner();
    // The span covers the quotes.
    let start = table.compute.span().start + 1;
    let compute = Notation::parse(table.compute.get_ref()).map_err(|e| spot.error(start + e.at, e.message))?;
    let mut limits = Limits::default();
    if let Some(given) = table.limits {
        if let Some(memory) = &given.memory {
            limits.memory_bytes = size(spot, memory)?;
        }
        if let Some(time) = &given.time {
            limits.task_time = duration(spot, time)?;
        }
    }
    Ok(Stage {
        name: table.name.unwrap_or_else(|| format!("stage{}", index + 1)),
        kernel: resolve(spot, &table.kernel),
        export: table.export,
        compute,
        sizes: table.sizes,
        limits,
        line,
    })
}

fn dtype_names() -> String {
    Dtype::ALL.map(Dtype::name).join(", ")
}

fn dtype(spot: Spot<'_>, value: &Spanned<String>) -> Result<Dtype, JobError> {
    Dtype::from_str(value.get_ref()).map_err(|e| {
        let suggestion = suggestion(nearest(value.get_ref(), Dtype::ALL.map(Dtype::name)).as_deref());
        spot.error(value.span().start, format!("{e}{suggestion} (known: {})", dtype_names()))
    })
}

fn size(spot: Spot<'_>, value: &Spanned<String>) -> Result<u64, JobError> {
    let parsed = bytesize::ByteSize::from_str(value.get_ref()).ok().map(|size| size.as_u64()).filter(|size| *size > 0);
    let message = || format!("'{}' is no size in bytes; write for example \"64MiB\"", value.get_ref());
    parsed.ok_or_else(|| spot.error(value.span().start, message()))
}

fn duration(spot: Spot<'_>, value: &Spanned<String>) -> Result<Duration, JobError> {
    let parsed = humantime::parse_duration(value.get_ref()).ok().filter(|time| !time.is_zero());
    let message = || format!("'{}' is no time; write for example \"30s\" or \"500ms\"", value.get_ref());
    parsed.ok_or_else(|| spot.error(value.span().start, message()))
}

/// Appends one constant, in native byte order.
fn encode(dtype: Dtype, value: &toml::Value, bytes: &mut Vec<u8>) -> Result<(), String> {
    let misfit = || format!("{value} is no {dtype}");
    let float = || value.as_float().or_else(|| value.as_integer().map(|i| i as f64)).ok_or_else(misfit);
    macro_rules! integer {
        ($t:ty) => {{
            let wide = value.as_integer().ok_or_else(misfit)?;
            bytes.extend_from_slice(&<$t>::try_from(wide).map_err(|_| misfit())?.to_ne_bytes());
        }};
    }
    match dtype {
        Dtype::F16 => bytes.extend_from_slice(&half::f16::from_f64(float()?).to_ne_bytes()),
        Dtype::Bf16 => bytes.extend_from_slice(&half::bf16::from_f64(float()?).to_ne_bytes()),
        Dtype::F32 => bytes.extend_from_slice(&(float()? as f32).to_ne_bytes()),
        Dtype::F64 => bytes.extend_from_slice(&float()?.to_ne_bytes()),
        Dtype::I8 => integer!(i8),
        Dtype::I16 => integer!(i16),
        Dtype::I32 => integer!(i32),
        Dtype::I64 => integer!(i64),
        Dtype::U8 => integer!(u8),
        Dtype::U16 => integer!(u16),
        Dtype::U32 => integer!(u32),
        Dtype::U64 => integer!(u64),
    }
    Ok(())
}
