//! Datasets to be written: made in a file that is under way, and where in it their bytes lie.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::staging::private;
use super::{Staging, StoreError, raw};
use crate::tensor::{Dtype, Region, Shape, chunks_of};

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

/// Where a dataset's bytes go: all that a rank needs to write its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLayout {
    /// The file they go to until it is published.
    pub temporary: PathBuf,
    pub dataset: String,
    pub dtype: Dtype,
    pub shape: Shape,
    pub storage: Storage,
}

impl OutputLayout {
    /// Of all its elements.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.size_bytes() as u64
    }
}

/// How a dataset lies in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    Contiguous {
        offset_bytes: u64,
    },
    Chunked {
        chunk: Vec<u64>,
        /// Place of each chunk, in row-major order of chunks.
        offsets_bytes: Vec<u64>,
    },
    /// Rank 0 writes the chunks that all ranks compress.
    Compressed {
        chunk: Vec<u64>,
        deflate: u8,
    },
}

impl Staging {
    /// Creates datasets, replacing those of the same name, and reserves their room on disk.
    pub fn create(&mut self, specs: &[OutputSpec]) -> Result<Vec<OutputLayout>, StoreError> {
        let layouts = self.create_in_file(specs)?;
        // The file is closed now; what is not reserved could turn up missing only after hours of computing.
        let file = OpenOptions::new().write(true).open(&self.temporary);
        let file = file.map_err(StoreError::io(&self.target, "open"))?;
        for layout in &layouts {
            let element_bytes = layout.dtype.size_bytes() as u64;
            match &layout.storage {
                Storage::Contiguous { offset_bytes } => {
                    self.reserve(&file, *offset_bytes, layout.shape.elements() * element_bytes)?;
                }
                Storage::Chunked { chunk, offsets_bytes } => {
                    let bytes = chunk.iter().product::<u64>() * element_bytes;
                    offsets_bytes.iter().try_for_each(|offset| self.reserve(&file, *offset, bytes))?;
                }
                Storage::Compressed { .. } => {}
            }
        }
        Ok(layouts)
    }

    fn reserve(&self, file: &File, offset: u64, bytes: u64) -> Result<(), StoreError> {
        if bytes == 0 {
            return Ok(());
        }
        let reserved = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, bytes);
        match reserved {
            // Not every file system can reserve; then the writes will tell.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(errno) => Err(StoreError::io(&self.target, "reserve room for")(errno.into())),
        }
    }

    fn create_in_file(&mut self, specs: &[OutputSpec]) -> Result<Vec<OutputLayout>, StoreError> {
        let file = private().open_rw(&self.temporary).map_err(StoreError::hdf5(&self.target, "open the file"))?;
        for spec in specs {
            if file.link_exists(&spec.dataset) {
                let what = format!("replace '{}'", spec.dataset);
                file.unlink(&spec.dataset).map_err(StoreError::hdf5(&self.target, what))?;
            }
            let chunk = spec.chunk.as_deref();
            raw::create(&file, &spec.dataset, spec.dtype, &spec.shape, chunk, spec.deflate)
                .map_err(StoreError::hdf5(&self.target, format!("create dataset '{}'", spec.dataset)))?;
        }
        file.flush().map_err(StoreError::hdf5(&self.target, "write"))?;
        specs.iter().map(|spec| self.layout(&file, spec)).collect()
    }

    fn layout(&self, file: &hdf5::File, spec: &OutputSpec) -> Result<OutputLayout, StoreError> {
        let what = || format!("place dataset '{}'", spec.dataset);
        let dataset = file.dataset(&spec.dataset).map_err(StoreError::hdf5(&self.target, what()))?;
        let unplaced = || StoreError::Unusable {
            file: self.target.clone(),
            dataset: spec.dataset.clone(),
            message: "HDF5 did not say where its data lie".to_owned(),
        };
        let storage = match (&spec.chunk, spec.deflate) {
            (Some(chunk), Some(deflate)) => Storage::Compressed { chunk: chunk.clone(), deflate },
            (Some(chunk), None) => {
                let chunks = chunks_of(&spec.shape, chunk, &Region::whole(&spec.shape));
                let mut offsets_bytes = vec![u64::MAX; chunks.len()];
                for index in 0..chunks.len() {
                    let info = dataset.chunk_info(index).ok_or_else(unplaced)?;
                    let grid = crate::tensor::chunk_count(&spec.shape, chunk);
                    let at = info.offset.iter().zip(chunk).map(|(offset, extent)| *offset / extent);
                    let linear = at.zip(&grid).fold(0, |linear, (at, count)| linear * count + at);
                    *offsets_bytes.get_mut(linear as usize).ok_or_else(unplaced)? = info.addr;
                }
                if offsets_bytes.contains(&u64::MAX) {
                    return Err(unplaced());
                }
                Storage::Chunked { chunk: chunk.clone(), offsets_bytes }
            }
            (None, _) if spec.shape.elements() == 0 => Storage::Contiguous { offset_bytes: 0 },
            (None, _) => Storage::Contiguous { offset_bytes: dataset.offset().ok_or_else(unplaced)? },
        };
        Ok(OutputLayout {
            temporary: self.temporary.clone(),
            dataset: spec.dataset.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
            storage,
        })
    }
}
