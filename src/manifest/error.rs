use std::path::PathBuf;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("another run is writing the outputs of this job ({by}; {})", folder.display())]
    Busy { folder: PathBuf, by: String },
    #[error("{} {why}: it is not used", folder.display())]
    NotOurs { folder: PathBuf, why: String },
    #[error("cannot {what} {}", path.display())]
    Io { path: PathBuf, what: &'static str, source: std::io::Error },
}
