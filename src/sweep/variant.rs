//! The variant of a job that a sweep runs. It has its own outputs, so that results and unfinished runs of the job are
//! not touched, and may be larger.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use crate::job::{Job, Source};
use crate::store;
use crate::sweep::error::SweepError;
use crate::sweep::weak_scaling::JobGrowth;
use crate::sweep::weak_scaling::repeat;

/// A job in its own folder, which is removed on drop.
#[derive(Debug)]
pub struct Variant {
    job: Job,
    folder: PathBuf,
    /// The larger inputs that exist, by their factor.
    grown: BTreeMap<u64, BTreeMap<String, PathBuf>>,
}

impl Variant {
    /// Creates a hidden folder beside the first output, on a file system that all nodes see.
    pub fn new(job: Job) -> Result<Variant, SweepError> {
        let first = job.stages.iter().flat_map(|stage| &stage.compute.outputs).find_map(|output| {
            match &job.tensors.get(&output.tensor)?.source {
                Source::Create { file, .. } => file.parent().map(absolute),
                _ => None,
            }
        });
        let beside = first.or_else(|| job.path.parent().map(absolute)).unwrap_or_default();
        let failed = SweepError::io("create a folder in", &beside);
        let made = std::fs::create_dir_all(&beside);
        let folder = made.and_then(|()| tempfile::Builder::new().prefix(".exuvia-bench-").tempdir_in(&beside));
        Ok(Variant { folder: folder.map_err(failed)?.keep(), job, grown: BTreeMap::new() })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The latest job file.
    pub fn file(&self) -> PathBuf {
        self.folder().join("job.toml")
    }

    /// The files that the job reads.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        self.job.tensors.values().filter_map(|decl| match &decl.source {
            Source::File { file, .. } => Some(file.as_path()),
            _ => None,
        })
    }

    /// Writes the job for the next run, creates its larger inputs if they do not exist, and removes the outputs of the
    /// previous run. Returns the job file.
    pub fn write(&mut self, growth: Option<&JobGrowth>, times: u64) -> Result<PathBuf, SweepError> {
        let outputs = self.folder().join("out");
        match std::fs::remove_dir_all(&outputs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(SweepError::io("clear", &outputs)(error));
            }
            _ => {}
        }
        let growth = growth.filter(|_| times > 1);
        if let Some(growth) = growth
            && !self.grown.contains_key(&times)
        {
            let inputs = self.make_inputs(growth, times)?;
            self.grown.insert(times, inputs);
        }
        let text = self.text(&outputs, growth.map(|growth| (growth, times)))?;
        let file = self.file();
        std::fs::write(&file, text).map_err(SweepError::io("write", &file))?;
        Ok(file)
    }

    fn make_inputs(&self, growth: &JobGrowth, times: u64) -> Result<BTreeMap<String, PathBuf>, SweepError> {
        let mut made = BTreeMap::new();
        for (tensor, dims) in &growth.dims {
            let Some(Source::File { file, dataset }) = self.job.tensors.get(tensor).map(|decl| &decl.source) else {
                continue;
            };
            let target = self.folder().join(format!("{tensor}-x{times}.h5"));
            let info = store::describe(file, dataset).map_err(|source| SweepError::Store { source })?;
            let compressed = info.chunk.is_some() && !info.filters.is_empty();
            repeat((file, dataset), dims, times, &target, compressed.then_some(DEFLATE))?;
            made.insert(tensor.clone(), target);
        }
        Ok(made)
    }

    /// The text of the job file, with absolute paths.
    fn text(&self, outputs: &Path, grown: Option<(&JobGrowth, u64)>) -> Result<String, SweepError> {
        let failed = |source| SweepError::Toml { path: self.job.path.clone(), source };
        let mut table: Table = self.job.text().parse().map_err(failed)?;
        table.insert("name".to_owned(), Value::String(self.job.name.clone()));
        let made = grown.and_then(|(_, times)| self.grown.get(&times));
        let mut numbers = BTreeMap::new();
        for (name, decl) in &self.job.tensors {
            let Some(Value::Table(tensor)) = table.get_mut("tensors").and_then(|tensors| tensors.get_mut(name)) else {
                continue;
            };
            match &decl.source {
                Source::File { file, .. } => {
                    let file = made.and_then(|made| made.get(name)).unwrap_or(file);
                    tensor.insert("file".to_owned(), text_of(file));
                }
                Source::Create { file, .. } => {
                    // Files in different folders may have the same name.
                    let count = numbers.len();
                    let number = numbers.entry(file.clone()).or_insert(count);
                    let name = file.file_name().unwrap_or_default();
                    tensor.insert("create".to_owned(), text_of(&outputs.join(number.to_string()).join(name)));
                }
                _ => {}
            }
        }
        let stages = table.get_mut("stages").and_then(Value::as_array_mut).into_iter().flatten();
        for (position, (stage, read)) in stages.zip(&self.job.stages).enumerate() {
            let Value::Table(stage) = stage else { continue };
            stage.insert("kernel".to_owned(), text_of(&read.kernel));
            let Some((growth, times)) = grown else { continue };
            let Some(Value::Table(sizes)) = stage.get_mut("sizes") else { continue };
            for (index, size) in sizes.iter_mut() {
                if growth.indices.contains(&(position, index.clone()))
                    && let Value::Integer(extent) = size
                {
                    *extent = extent.saturating_mul(i64::try_from(times).unwrap_or(i64::MAX));
                }
            }
        }
        toml::to_string(&table).map_err(|source| SweepError::Written { source })
    }
}

impl Drop for Variant {
    /// Retries: compilers that earlier runs left behind may still write to the folder.
    fn drop(&mut self) {
        for _ in 0..TRIES {
            match std::fs::remove_dir_all(&self.folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => std::thread::sleep(PAUSE),
                _ => return,
            }
        }
        tracing::warn!("cannot remove {}", self.folder.display());
    }
}

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// The compression level of larger inputs; files do not record theirs.
const DEFLATE: u8 = 4;

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn text_of(path: &Path) -> Value {
    Value::String(absolute(path).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::weak_scaling::growth;

    #[test]
    fn a_variant_is_the_same_job_with_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[tensors]\nx = { file = \"in.h5\", dataset = \"x\" }\n\
                    y = { create = \"out/y.h5\", dataset = \"y\", dtype = \"f32\", chunk = [4], deflate = 2 }\n\
                    z = { create = \"other/y.h5\", dataset = \"y\", dtype = \"f32\" }\n\
                    [[stages]]\nkernel = \"k.wasm\"\ncompute = \"x[n] -> y[n], z[n,t]\"\nsizes = { t = 7 }\n";
        let job = Job::parse(text, &folder.path().join("a job.toml")).unwrap();
        let growth = growth(&job, "t").unwrap();
        let mut variant = Variant::new(job).unwrap();
        assert!(variant.folder().starts_with(folder.path().join("out")));
        let left = variant.folder().join("out/0/y.h5");
        std::fs::create_dir_all(left.parent().unwrap()).unwrap();
        std::fs::write(&left, "of the run before").unwrap();
        let again = Job::load(&variant.write(None, 1).unwrap()).unwrap();
        assert!(!left.exists());
        assert_eq!(again.name, "a-job");
        let Source::Create { file: y, chunk, deflate, .. } = &again.tensors["y"].source else { panic!() };
        let Source::Create { file: z, .. } = &again.tensors["z"].source else { panic!() };
        assert!(y.starts_with(variant.folder()) && z.starts_with(variant.folder()) && y != z);
        assert_eq!((chunk, deflate), (&Some(vec![4]), &Some(2)));
        assert_eq!(again.stages[0].kernel, folder.path().join("k.wasm"));
        assert_eq!(variant.inputs().collect::<Vec<_>>(), [folder.path().join("in.h5")]);
        let grown = Job::load(&variant.write(Some(&growth), 3).unwrap()).unwrap();
        assert_eq!(grown.stages[0].sizes["t"], 21);
        let place = variant.folder().to_owned();
        drop(variant);
        assert!(!place.exists());
    }
}
