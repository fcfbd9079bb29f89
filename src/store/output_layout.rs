//! Datasets to be written, and where their bytes lie in the file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::raw::output;
use crate::tensor::{Dtype, Shape, chunk_count};

/// A dataset to be written.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub chunk: Option<Vec<u64>>,
    /// Level 1 to 9; needs `chunk`.
    pub deflate: Option<u8>,
}

impl OutputSpec {
    /// Bytes of all elements.
    pub(super) fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }

    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk.iter().flatten().product::<u64>() * self.dtype.size_bytes() as u64
    }

    /// Creates the dataset, and the groups above it.
    pub(super) fn create_in(&self, file: &hdf5::File, path: &str) -> hdf5::Result<()> {
        let storage = output::NewStorage {
            dtype: self.dtype,
            shape: &self.shape,
            chunk: self.chunk.as_deref(),
            deflate: self.deflate,
        };
        output::create(file, path, &storage)
    }
}

/// Where a dataset's bytes go: everything that a rank needs to write its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLayout {
    /// The staging file, until it is published.
    pub temporary: PathBuf,
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub storage: Storage,
}

impl OutputLayout {
    /// Bytes of all elements.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }

    pub(super) fn spec(&self) -> OutputSpec {
        let (chunk, deflate) = match &self.storage {
            Storage::Contiguous { .. } => (None, None),
            Storage::Chunked { chunk, .. } => (Some(chunk.clone()), None),
            Storage::Compressed { chunk, deflate } => (Some(chunk.clone()), Some(*deflate)),
        };
        OutputSpec { dataset: self.dataset.clone(), dtype: self.dtype, shape: self.shape.clone(), chunk, deflate }
    }

    /// The byte ranges of the file that belong to this dataset: offset and length of each.
    pub(super) fn parts(&self) -> Vec<(u64, u64)> {
        match &self.storage {
            Storage::Contiguous { offset_bytes } => vec![(*offset_bytes, self.bytes())],
            Storage::Chunked { chunk, runs } => {
                let spec = self.spec();
                let count = chunk_count(&self.shape, chunk).iter().product();
                let ends = runs.iter().skip(1).map(|run| run.first).chain([count]);
                let length =
                    |run: &ChunkRun, end: u64| end.saturating_sub(run.first).saturating_mul(spec.chunk_bytes());
                runs.iter().zip(ends).map(|(run, end)| (run.offset_bytes, length(run, end))).collect()
            }
            Storage::Compressed { .. } => Vec::new(),
        }
    }
}

/// The storage of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    Contiguous {
        offset_bytes: u64,
    },
    Chunked {
        chunk: Vec<u64>,
        /// In the order of their chunks.
        runs: Vec<ChunkRun>,
    },
    /// Rank 0 writes the chunks that all ranks compress.
    Compressed {
        chunk: Vec<u64>,
        deflate: u8,
    },
}

/// Consecutive chunks of the file in row-major order, up to the first chunk of the next run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRun {
    /// Number of its first chunk.
    pub first: u64,
    pub offset_bytes: u64,
}

/// A dataset that this run created or adopted from an earlier one.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) layout: OutputLayout,
    /// Address of its header.
    pub(super) header: u64,
}

/// The offset of the chunk of this number.
pub(super) fn offset_of(runs: &[ChunkRun], chunk_bytes: u64, number: u64) -> Option<u64> {
    let run = runs.get(runs.partition_point(|run| run.first <= number).checked_sub(1)?)?;
    run.offset_bytes.checked_add((number - run.first).checked_mul(chunk_bytes)?)
}
