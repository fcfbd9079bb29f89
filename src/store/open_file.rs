//! Files that are open for reading, and the other files that they name.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{StoreError, nearest};
use super::raw::dataset;
use super::raw::guard::Guarded;
use super::raw::links::path_of;

/// An HDF5 file that is open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub path: PathBuf,
    pub file: Guarded<hdf5::File>,
    pub(super) cache_bytes: usize,
}

impl OpenFile {
    /// Opens a file with a cache of `cache_bytes` of decompressed chunks for each of its datasets.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Arc<OpenFile>, StoreError> {
        check_regular(path)?;
        let file = dataset::open_file(path, cache_bytes).map_err(|error| {
            // A user block may precede the signature, so this check runs only after HDF5 has failed.
            let mut start = [0; 8];
            let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
            if start[..read] == *b"\x89HDF\r\n\x1a\n" {
                StoreError::hdf5(path, "open the file")(error)
            } else {
                StoreError::NotHdf5 { file: path.to_owned() }
            }
        })?;
        Ok(Arc::new(OpenFile { path: path.to_owned(), file, cache_bytes }))
    }

    pub fn unusable(&self, name: &[u8], message: String) -> StoreError {
        let dataset = String::from_utf8_lossy(name).into_owned();
        StoreError::Unusable { file: self.path.clone(), dataset, message }
    }

    /// The folder of this file; empty if it is the working directory.
    fn folder(&self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).to_owned()
    }

    /// Finds a file that this one names, as HDF5 does: in the folders of environment variables, in this file's folder,
    /// in the working directory, and in the folder of this file's real path. The first existing file counts.
    pub fn beside(&self, name: &[u8], variables: &[&str]) -> Result<PathBuf, StoreError> {
        let name = path_of(name);
        let mut candidates = Vec::new();
        let mut relative = name.as_path();
        if name.is_absolute() {
            candidates.push(name.clone());
            relative = name.file_name().map_or(relative, Path::new);
        }
        for variable in variables {
            let prefixes = std::env::var_os(variable).unwrap_or_default();
            for prefix in prefixes.as_encoded_bytes().split(|byte| *byte == b':').filter(|prefix| !prefix.is_empty()) {
                candidates.push(self.with_origin(prefix).join(relative));
            }
        }
        candidates.push(self.folder().join(relative));
        candidates.push(relative.to_owned());
        if let Ok(real) = std::fs::canonicalize(&self.path) {
            candidates.push(folder_of(&real).join(relative));
        }
        for candidate in &candidates {
            match std::fs::metadata(candidate) {
                Ok(_) => return Ok(candidate.clone()),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(source) => return Err(StoreError::Io { file: candidate.clone(), what: "look at", source }),
            }
        }
        let first = if name.is_absolute() { name } else { self.folder().join(relative) };
        let nearest = nearest_file(&first);
        Err(StoreError::NoFile { file: first, nearest })
    }

    /// The path at which HDF5 looks for a raw file.
    pub fn raw_file(&self, name: &[u8]) -> PathBuf {
        let prefix = std::env::var_os("HDF5_EXTFILE_PREFIX").unwrap_or_default();
        match prefix.as_encoded_bytes() {
            b"" | b"." => path_of(name),
            prefix => self.with_origin(prefix).join(path_of(name)),
        }
    }

    /// Resolves `${ORIGIN}`, which stands for this file's folder.
    fn with_origin(&self, prefix: &[u8]) -> PathBuf {
        match prefix.strip_prefix(b"${ORIGIN}") {
            Some(rest) => {
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                self.folder().join(path_of(rest))
            }
            None => path_of(prefix),
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Checks that a file is regular and readable, and returns its length. Opening a pipe or a device could block forever.
pub(super) fn check_regular(file: &Path) -> Result<u64, StoreError> {
    let metadata = std::fs::metadata(file).map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            StoreError::NoFile { file: file.to_owned(), nearest: nearest_file(file) }
        }
        _ => StoreError::Io { file: file.to_owned(), what: "look at", source },
    })?;
    if metadata.is_dir() {
        return Err(StoreError::Directory { file: file.to_owned() });
    }
    if !metadata.is_file() {
        return Err(StoreError::NotRegular { file: file.to_owned() });
    }
    // This error is clearer than that of HDF5.
    std::fs::File::open(file).map_err(StoreError::io(file, "open"))?;
    Ok(metadata.len())
}

fn nearest_file(file: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder_of(file)).ok()?.flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    nearest(&file.file_name()?.to_string_lossy(), &names)
}
