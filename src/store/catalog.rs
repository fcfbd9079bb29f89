//! Descriptions of datasets, without their data.

use std::path::Path;
use std::sync::Arc;

use super::dataset_info::DatasetInfo;
use super::error::StoreError;
use super::open_file::OpenFile;
use super::reader::{CHUNK_CACHE_BYTES, Reader};
use super::virtual_dataset::{Ancestors, PartReader as _};

/// Describes datasets one after another; a file stays open until a dataset of another file is asked for.
#[derive(Debug, Default)]
pub struct Catalog {
    opened: Option<Arc<OpenFile>>,
}

impl Catalog {
    /// Describes a dataset without reading its data, and checks everything that the data come from.
    pub fn describe(&mut self, file: &Path, dataset: &str) -> Result<DatasetInfo, StoreError> {
        let opened = match self.opened.take().filter(|opened| opened.path == file) {
            Some(opened) => opened,
            None => OpenFile::open(file, CHUNK_CACHE_BYTES)?,
        };
        let reader = Reader::open_in(self.opened.insert(opened), dataset.as_bytes(), &Ancestors::default())?;
        let sources = reader.sources()?;
        Ok(DatasetInfo { sources, ..reader.info().clone() })
    }
}

/// Describes one dataset, as [`Catalog::describe`] does.
pub fn describe(file: &Path, dataset: &str) -> Result<DatasetInfo, StoreError> {
    Catalog::default().describe(file, dataset)
}
