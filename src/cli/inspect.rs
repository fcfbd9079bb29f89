//! `exuvia inspect`.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;

use crate::cli::output::{Output, fail, print_json};
use crate::engine::{self, Inspection};
use crate::exec::ExitCode;
use crate::store::{self, Catalog, DatasetInfo, ListedLink, StoreError};
use crate::text;

/// Arguments of `exuvia inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    /// Kernel module or HDF5 file
    file: PathBuf,
    /// Dataset of the HDF5 file [default: all datasets]
    dataset: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn inspect(arguments: &InspectArguments) -> ExitCode {
    if is_module(&arguments.file)
        && let Some(found) = crate::regular_file::read(&arguments.file, engine::MODULE_BYTES)
            .ok()
            .and_then(|bytes| engine::inspect(&bytes))
    {
        match arguments.output {
            Output::Human => print_module(&arguments.file, &found),
            Output::Json => print_json(&serde_json::json!({ "schema": 1, "module": found })),
        }
        return ExitCode::Done;
    }
    match contents(&arguments.file, arguments.dataset.as_deref()) {
        Ok(found) => {
            match arguments.output {
                Output::Human => {
                    found.datasets.iter().for_each(print_dataset);
                    found.links.iter().for_each(|link| print_link(&arguments.file, link));
                }
                Output::Json => print_json(&serde_json::json!({
                    "schema": 1, "datasets": found.datasets, "links": found.links, "damaged": found.damaged
                })),
            }
            if found.damaged.is_empty() { ExitCode::Done } else { ExitCode::Failed }
        }
        Err(error) => fail(&error, ExitCode::Failed, None),
    }
}

/// Reads only the first bytes, and only those of a regular file.
fn is_module(file: &Path) -> bool {
    let mut start = [0; 4];
    std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file())
        && std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && start == *b"\0asm"
}

/// The contents of an HDF5 file.
#[derive(Default)]
struct FileContents {
    datasets: Vec<DatasetInfo>,
    links: Vec<ListedLink>,
    /// Paths of objects that cannot be read.
    damaged: Vec<String>,
}

fn contents(file: &Path, dataset: Option<&str>) -> Result<FileContents, StoreError> {
    let mut catalog = Catalog::default();
    if let Some(dataset) = dataset {
        return Ok(FileContents { datasets: vec![catalog.describe(file, dataset)?], ..FileContents::default() });
    }
    let listing = store::list(file)?;
    let mut found = FileContents { links: listing.links, damaged: listing.damaged, ..FileContents::default() };
    for path in &found.damaged {
        eprintln!("error: {}", text::line(&format!("'{path}' in {} is damaged", file.display())));
    }
    for name in listing.datasets {
        match catalog.describe(file, &name) {
            Ok(info) => found.datasets.push(info),
            // A file may hold datasets of unsupported types beside supported ones.
            Err(error) if error.is_of_one_dataset() => eprintln!("note: {}", text::line(&error.to_string())),
            Err(error) => {
                eprintln!("error: {}", text::line(&format!("{:#}", anyhow::Error::from(error))));
                found.damaged.push(name);
            }
        }
    }
    Ok(found)
}

fn print_module(file: &Path, found: &Inspection) {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { text::list(items) };
    let (file, bytes) = (text::line(&file.display().to_string()), ByteSize(found.bytes as u64));
    println!("{file}: WebAssembly module, {bytes}, {} functions", found.functions);
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
        "{}:{} {} {} {chunk}{filters}{order}, {} stored{}",
        text::line(&info.file.display().to_string()),
        text::line(&info.dataset),
        info.dtype,
        info.shape,
        ByteSize(info.stored_bytes),
        sources(info)
    );
}

/// The files that hold the elements of a virtual dataset.
fn sources(info: &DatasetInfo) -> String {
    const SHOWN: usize = 4;
    let others: Vec<String> = info
        .sources
        .iter()
        .filter(|source| source.file != info.file)
        .map(|source| format!("{}:{}", source.file.display(), source.object.trim_start_matches('/')))
        .map(|source| text::line(&source))
        .collect();
    match others.len() {
        0 => String::new(),
        count if count > SHOWN => format!(", from {} and {} more", others[..SHOWN].join(", "), count - SHOWN),
        _ => format!(", from {}", others.join(", ")),
    }
}

fn print_link(file: &Path, link: &ListedLink) {
    let elsewhere = link.file.as_ref().map_or(String::new(), |file| format!("{file}:"));
    let dangling = if link.leads == Some(false) { " (dangling)" } else { "" };
    let shown = format!("{}:{} -> {elsewhere}{}{dangling}", file.display(), link.path, link.target);
    println!("{}", text::line(&shown));
}
