use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;

use super::{Output, fail, print_json};
use crate::engine::{self, Inspection};
use crate::exec::ExitCode;
use crate::store::{self, DatasetInfo, StoreError};

/// Arguments of `exuvia inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    /// A kernel module, or an HDF5 file
    file: PathBuf,
    /// One dataset of the HDF5 file [default: all]
    dataset: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn inspect(arguments: &InspectArguments) -> ExitCode {
    let start = std::fs::read(&arguments.file).ok().filter(|bytes| bytes.starts_with(b"\0asm"));
    if let Some(found) = start.and_then(|bytes| engine::inspect(&bytes)) {
        match arguments.output {
            Output::Human => print_module(&arguments.file, &found),
            Output::Json => print_json(&serde_json::json!({ "schema": 1, "module": found })),
        }
        return ExitCode::Done;
    }
    match datasets(&arguments.file, arguments.dataset.as_deref()) {
        Ok(found) => {
            match arguments.output {
                Output::Human => found.iter().for_each(print_dataset),
                Output::Json => print_json(&serde_json::json!({ "schema": 1, "datasets": found })),
            }
            ExitCode::Done
        }
        Err(error) => fail(&error, ExitCode::Failed, None),
    }
}

fn datasets(file: &Path, dataset: Option<&str>) -> Result<Vec<DatasetInfo>, StoreError> {
    let names = match dataset {
        Some(dataset) => vec![dataset.to_owned()],
        None => store::list(file)?,
    };
    let mut found = Vec::new();
    for name in names {
        match store::describe(file, &name) {
            // A file may hold what no kernel can take beside what one can.
            Err(error @ StoreError::ElementType { .. }) if dataset.is_none() => eprintln!("note: {error}"),
            result => found.push(result?),
        }
    }
    Ok(found)
}

fn print_module(file: &Path, found: &Inspection) {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    println!("{}: WebAssembly module, {}, {} functions", file.display(), ByteSize(found.bytes as u64), found.functions);
    println!("  kernels    {}", list(&found.kernels));
    println!("  exports    {}", list(&found.exports));
    println!("  imports    {}", list(&found.imports));
    println!("  memory     {}", found.memory_bytes.map_or("none".to_owned(), |bytes| ByteSize(bytes).to_string()));
    println!("  features   {}", list(&found.features));
    println!("  baseline   {}", found.baseline);
    println!("  optimized  {}", found.optimized);
    for obstacle in &found.obstacles {
        println!("  cannot run as a kernel: {obstacle}");
    }
}

fn print_dataset(info: &DatasetInfo) {
    let chunk = info.chunk.as_ref().map_or("contiguous".to_owned(), |chunk| format!("chunks {chunk:?}"));
    let filters = if info.filters.is_empty() { String::new() } else { format!(", {}", info.filters.join(" + ")) };
    let order = if info.big_endian { ", big-endian" } else { "" };
    println!(
        "{}:{} {} {} {chunk}{filters}{order}, {} stored",
        info.file.display(),
        info.dataset,
        info.dtype,
        info.shape,
        ByteSize(info.stored_bytes)
    );
}
