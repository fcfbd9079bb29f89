//! The real files that a job writes: links are followed once, before any file is opened, and two names of one file
//! become one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::encode;
use crate::exec::error::RunError;
use crate::job::{Job, JobError, Source};
use crate::store::{FileId, PathIdentity, StoreError, real_path};

/// A path as ranks exchange it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RealPath(#[serde(with = "encode::path")] PathBuf);

impl AsRef<Path> for RealPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// Returns the real path of each file that the job writes, by tensor. It is an error if two tensors are the same
/// dataset, or if the job writes one file under two names that are both real (hard links): a run would replace the file
/// of one name, and the other name would keep the old file.
pub fn real_outputs(job: &Job) -> Result<BTreeMap<String, RealPath>, RunError> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    // Each file is resolved once. Of several names of one place, the first is used.
    let mut found: HashMap<&Path, (PathBuf, Option<FileId>)> = HashMap::new();
    let mut places: HashMap<PathIdentity, PathBuf> = HashMap::new();
    let mut written: HashMap<FileId, PathBuf> = HashMap::new();
    for decl in job.tensors.values() {
        let Some(file) = decl.source.file() else { continue };
        if !found.contains_key(file) {
            let failed = |source| StoreError::Io { file: file.to_owned(), what: "find", source };
            let real = real_path(file).map_err(failed)?;
            let name = places.entry(PathIdentity::of(&real)).or_insert(real).clone();
            let id = FileId::of(&name);
            found.insert(file, (name, id));
        }
        let (name, id) = &found[file];
        if let (Source::Create { .. }, Some(id)) = (&decl.source, id) {
            let first = written.entry(*id).or_insert_with(|| name.clone());
            if first != name {
                let help = "write to one of them; the other keeps what it has".to_owned();
                let at = job.excerpt(decl.span.clone(), Some(help));
                return Err(Box::new(JobError::TwoNames { at, first: first.clone(), second: name.clone() }).into());
            }
        }
        files.insert(decl.name.clone(), name.clone());
    }
    job.check_files(&files).map_err(Box::new)?;
    let is_output = |tensor: &String| matches!(job.tensors[tensor].source, Source::Create { .. });
    Ok(files
        .into_iter()
        .filter(|(tensor, _)| is_output(tensor))
        .map(|(tensor, file)| (tensor, RealPath(file)))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Parses a job that reads dataset `x` of one file and writes two more, and moves its outputs to their real paths.
    fn moved(folder: &Path, input: &str, y: (&str, &str), z: (&str, &str)) -> Result<Job, String> {
        let text = format!(
            "[tensors]\nx = {{ file = \"{input}\", dataset = \"x\" }}\n\
             y = {{ create = \"{}\", dataset = \"{}\", dtype = \"f64\" }}\n\
             z = {{ create = \"{}\", dataset = \"{}\", dtype = \"f64\" }}\n\
             [[stages]]\nkernel = \"k\"\ncompute = \"x[n] -> y[n], z[n]\"\n",
            y.0, y.1, z.0, z.1
        );
        let mut job = Job::parse(&text, &folder.join("job.toml")).map_err(|error| error.to_string())?;
        let files = real_outputs(&job).map_err(|error| error.to_string())?;
        job.move_outputs(files.iter().map(|(tensor, path)| (tensor.as_str(), path.as_ref())));
        Ok(job)
    }

    #[test]
    fn spellings_of_one_file_are_one_file() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().canonicalize().unwrap();
        fs::create_dir(folder.join("real")).unwrap();
        symlink("real", folder.join("link")).unwrap();
        for other in ["real/o.h5", "./real/o.h5", "real/../real/o.h5", "link/o.h5"] {
            let job = moved(&folder, "in.h5", ("real/o.h5", "y"), (other, "z")).unwrap();
            let file = |tensor: &str| job.tensors[tensor].source.file().unwrap().to_owned();
            assert_eq!((file("y"), file("z")), (folder.join("real/o.h5"), folder.join("real/o.h5")), "{other}");
            let wrong = |y, z| moved(&folder, "in.h5", ("real/o.h5", y), (other, z)).unwrap_err();
            assert!(wrong("y", "//y").contains("are both dataset 'y'"), "{other}");
            assert!(wrong("a/y", "a").contains("tensor 'y' (a/y) would lie inside tensor 'z' (a)"), "{other}");
            assert!(moved(&folder, other, ("real/o.h5", "x"), ("real/o.h5", "y")).unwrap_err().contains("are both"));
            assert!(moved(&folder, other, ("real/o.h5", "yy"), ("real/o.h5", "y")).is_ok());
        }
    }

    #[test]
    fn hard_links_of_one_file_are_not_both_written() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().canonicalize().unwrap();
        fs::write(folder.join("a.h5"), "").unwrap();
        fs::hard_link(folder.join("a.h5"), folder.join("b.h5")).unwrap();
        let wrong = moved(&folder, "in.h5", ("a.h5", "y"), ("b.h5", "z")).unwrap_err();
        assert!(wrong.contains("two names (hard links) of one file"), "{wrong}");
        assert!(moved(&folder, "a.h5", ("b.h5", "y"), ("c.h5", "z")).is_ok(), "what is read stays what it is");
    }
}
