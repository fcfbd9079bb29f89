use std::path::{Path, PathBuf};

/// Why tensor data cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("there is no file {}{}", file.display(), nearest.as_ref().map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    NoFile { file: PathBuf, nearest: Option<String> },
    #[error("{} is a directory, not an HDF5 file", file.display())]
    Directory { file: PathBuf },
    #[error("{} is not an HDF5 file", file.display())]
    NotHdf5 { file: PathBuf },
    #[error("{} is truncated: {message}; copy it again from its source", file.display())]
    Truncated { file: PathBuf, message: String },
    #[error("{} is open for writing elsewhere; wait for that program, or set HDF5_USE_FILE_LOCKING=FALSE", file.display())]
    Locked { file: PathBuf },
    #[error("there is no dataset '{dataset}' in {}; {found}", file.display())]
    NoDataset { file: PathBuf, dataset: String, found: String },
    #[error("dataset '{dataset}' in {} has elements of {what}, which no kernel can take (supported: {supported})", file.display())]
    ElementType { file: PathBuf, dataset: String, what: String, supported: String },
    #[error("dataset '{dataset}' in {} cannot be used: {message}", file.display())]
    Unusable { file: PathBuf, dataset: String, message: String },
    #[error("HDF5 cannot {what} in {}", file.display())]
    Hdf5 { file: PathBuf, what: String, source: hdf5::Error },
    #[error("no space left for {}: {what}", file.display())]
    DiskFull { file: PathBuf, what: String },
    #[error("cannot {what} {}", file.display())]
    Io { file: PathBuf, what: &'static str, source: std::io::Error },
}

impl StoreError {
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
            if text.contains("truncated file") || text.contains("addr overflow") {
                return StoreError::Truncated { file, message: text };
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

/// The name most like `name`.
pub(super) fn nearest(name: &str, candidates: &[String]) -> Option<String> {
    let similarity = |candidate: &&String| strsim::jaro_winkler(name, candidate);
    let best = candidates.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&best) > 0.6).then(|| best.clone())
}
