use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Why tensor data cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("there is no file {}{}", file.display(), nearest.as_ref().map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    NoFile { file: PathBuf, nearest: Option<String> },
    #[error("{} is a directory, not an HDF5 file", file.display())]
    Directory { file: PathBuf },
    #[error("{} is not a regular file but a pipe, a device or a socket: copy its output into a file", file.display())]
    NotRegular { file: PathBuf },
    #[error("{} is not an HDF5 file", file.display())]
    NotHdf5 { file: PathBuf },
    #[error("{} is truncated: {message}; copy it again from its source", file.display())]
    Truncated { file: PathBuf, message: String },
    #[error("{} is open for writing elsewhere; wait for that program, or set HDF5_USE_FILE_LOCKING=FALSE", file.display())]
    Locked { file: PathBuf },
    #[error("{} is open for writing in another program; close it there and run the same command again", file.display())]
    OutputLocked { file: PathBuf },
    #[error("another program keeps writing to {}", file.display())]
    Changing { file: PathBuf },
    #[error(
        "another program created dataset '{dataset}' in {} during this run; rename or delete one of them and run the \
         same command again",
        file.display()
    )]
    Conflict { file: PathBuf, dataset: String },
    #[error("{} is not the file that this run created: it has been replaced", file.display())]
    Exchanged { file: PathBuf },
    #[error("there is no dataset '{dataset}' in {}; {found}", file.display())]
    NoDataset { file: PathBuf, dataset: String, found: String },
    #[error("dataset '{dataset}' in {} has elements of {what}, which kernels do not support (supported: {supported})", file.display())]
    ElementType { file: PathBuf, dataset: String, what: String, supported: String },
    #[error(
        "dataset '{dataset}' in {} is stored through filter {id} ({name}), which this HDF5 lacks: install a plugin \
         for it and set HDF5_PLUGIN_PATH to its folder, or store the dataset again without the filter",
        file.display()
    )]
    NoFilter { file: PathBuf, dataset: String, id: i32, name: String },
    #[error("dataset '{dataset}' in {} cannot be used: {message}", file.display())]
    Unusable { file: PathBuf, dataset: String, message: String },
    #[error("{} is marked as open for writing: another program has it open, or crashed without closing it; wait for that program, or clear the mark with 'h5clear -s {}'", file.display(), file.display())]
    LeftOpen { file: PathBuf },
    #[error("{} is one part of a file that HDF5 splits into several ('{driver}' driver), which is not supported; convert it to one file with 'h5repart' or 'h5repack'", file.display())]
    Divided { file: PathBuf, driver: &'static str },
    #[error("dataset '{dataset}' cannot be created in {}: {message}", file.display())]
    Refused { file: PathBuf, dataset: String, message: String },
    #[error("dataset '{dataset}' in the unfinished {} is damaged: {message}; run the job again to recreate the file", file.display())]
    Damaged { file: PathBuf, dataset: String, message: String },
    #[error("HDF5 cannot {what} in {}", file.display())]
    Hdf5 { file: PathBuf, what: String, source: hdf5::Error },
    #[error("no space left for {}: {what}", file.display())]
    DiskFull { file: PathBuf, what: String },
    #[error("cannot {what} {}", file.display())]
    Io { file: PathBuf, what: &'static str, source: std::io::Error },
}

impl StoreError {
    /// Whether the error concerns one dataset of an otherwise usable file.
    pub fn is_of_one_dataset(&self) -> bool {
        matches!(self, StoreError::ElementType { .. } | StoreError::Unusable { .. } | StoreError::NoFilter { .. })
    }

    /// An I/O error, with a full disk named as such.
    pub(super) fn io(file: &Path, what: &'static str) -> impl Fn(std::io::Error) -> StoreError {
        let file = file.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { file: file.clone(), what: format!("cannot {what} it") }
            }
            _ => StoreError::Io { file: file.clone(), what, source },
        }
    }

    /// An error of the HDF5 library.
    pub(super) fn hdf5(file: &Path, what: impl Into<String>) -> impl FnOnce(hdf5::Error) -> StoreError {
        let (file, what) = (file.to_owned(), what.into());
        move |source| {
            let text = source.to_string();
            if text.contains("multi driver should") {
                return StoreError::Divided { file, driver: "multi" };
            }
            if text.contains("family driver should") || is_of_family(&file) {
                return StoreError::Divided { file, driver: "family" };
            }
            if text.contains("truncated file") || text.contains("addr overflow") {
                return StoreError::Truncated { file, message: text };
            }
            if text.contains("file is already open for") || text.contains("file consistency flags") {
                return StoreError::LeftOpen { file };
            }
            if text.contains("unable to lock file") {
                return StoreError::Locked { file };
            }
            if text.contains("No space left") {
                return StoreError::DiskFull { file, what: format!("HDF5 cannot {what}") };
            }
            StoreError::Hdf5 { file, what, source }
        }
    }
}

/// Whether a file is the first member of a family of files, which HDF5 reports as truncated.
fn is_of_family(file: &Path) -> bool {
    let mut start = [0; 512];
    let read = std::fs::File::open(file).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    start[..read].windows(8).any(|name| name == b"NCSAfami")
}

/// The candidate most similar to `name`.
pub(super) fn nearest(name: &str, candidates: &[String]) -> Option<String> {
    let similar = candidates.iter().map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let (similarity, best) = similar.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (similarity > 0.6).then(|| best.clone())
}

/// An error and its causes in one line.
pub(super) fn with_causes(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}
