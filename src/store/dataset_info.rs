//! The description of a dataset.

use std::path::PathBuf;

use serde::Serialize;

use super::links::DataSource;
use crate::encode;
use crate::tensor::{Dtype, Shape};

/// Description of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetInfo {
    #[serde(with = "encode::path")]
    pub file: PathBuf,
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub chunk: Option<Vec<u64>>,
    pub filters: Vec<String>,
    pub stored_bytes: u64,
    pub big_endian: bool,
    /// The objects that its elements come from: targets of links, parts of a virtual dataset, raw files.
    pub sources: Vec<DataSource>,
}
