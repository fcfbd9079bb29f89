//! The description of a dataset.

use std::path::PathBuf;

use serde::Serialize;

use super::links::DataSource;
use crate::encode;
use crate::tensor::{Dtype, Shape};

/// What a dataset is.
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
    /// Where its elements come from: the places that its links lead to, the parts of a virtual dataset, raw files.
    pub sources: Vec<DataSource>,
}
