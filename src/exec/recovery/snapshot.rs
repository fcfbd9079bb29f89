//! A checkpoint on disk: which tensors it holds, and where.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exec::error::RunError;
use crate::exec::transfer::piece::Piece;
use crate::exec::transfer::resident::{Holding, Resident};
use crate::plan::Plan;
use crate::store::{OutputLayout, Writer};
use crate::tensor::Region;

/// The point at which a run continues.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct ResumePoint {
    /// The next stage.
    pub stage: usize,
    /// Completed iterations, if that stage is iterated.
    pub iteration: u64,
}

/// A checkpoint's index: which tensors it holds, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::exec) struct CheckpointIndex {
    /// The next stage.
    pub stage: String,
    /// Completed iterations, if that stage is iterated.
    pub iteration: u64,
    pub file: PathBuf,
    pub tensors: Vec<SavedTensor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::exec) struct SavedTensor {
    pub tensor: String,
    /// The stage that wrote the tensor, and the number of its operand.
    pub stage: String,
    pub operand: usize,
    pub layout: OutputLayout,
    /// Regions and their checksums.
    pub pieces: Vec<(Region, u32)>,
}

impl CheckpointIndex {
    /// Sets the folder of the file, whatever the index says.
    pub fn move_to(&mut self, folder: &Path) {
        self.file = folder.join(self.file.file_name().unwrap_or_default());
        self.tensors.iter_mut().for_each(|tensor| tensor.layout.temporary.clone_from(&self.file));
    }

    /// Reads this rank's pieces of the tensors, as the plan distributes them.
    pub fn load(&self, plan: &Plan, rank: u32, resident: &mut Resident) -> Result<(), RunError> {
        for saved in &self.tensors {
            let lost = || RunError::Lost { tensor: saved.tensor.clone() };
            let stage = plan.stages.iter().position(|stage| stage.name == saved.stage).ok_or_else(lost)?;
            let writer = Writer::open(&saved.layout)?;
            let read = |region: Region| Ok(Piece { bytes: writer.read(&region)?.into(), region });
            let pieces = plan.stages[stage].owned(saved.operand, rank).into_iter().map(read);
            let pieces = pieces.collect::<Result<_, RunError>>()?;
            resident.keep(&saved.tensor, Holding { stage, operand: saved.operand, pieces });
        }
        Ok(())
    }

    /// Whether the `part`th of `parts` parts of the file is undamaged.
    pub fn is_sound(&self, part: usize, parts: usize) -> bool {
        self.tensors.iter().all(|saved| {
            let Ok(writer) = Writer::open(&saved.layout) else { return false };
            let is_sound = |(region, checksum): &(Region, u32)| {
                writer.read(region).is_ok_and(|bytes| crc32fast::hash(&bytes) == *checksum)
            };
            let elements: u64 = saved.pieces.iter().map(|(region, _)| region.elements()).sum();
            elements == saved.layout.shape.elements() && saved.pieces.iter().skip(part).step_by(parts).all(is_sound)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{OutputSpec, Staging};
    use crate::tensor::{Dtype, Shape};

    #[test]
    fn a_checkpoint_with_any_byte_changed_is_not_sound() {
        let lab = tempfile::tempdir().unwrap();
        let (file, shape) = (lab.path().join("checkpoint.h5"), Shape::new([6, 4]).unwrap());
        let spec = OutputSpec { dataset: "u".into(), dtype: Dtype::U16, shape, chunk: None, deflate: None };
        let mut staging = Staging::begin(&file, "new").unwrap();
        let mut layout = staging.create(&[spec]).unwrap().remove(0);
        let piece = |offset: u64, extent: u64| Region { offset: vec![offset, 0], extent: vec![extent, 4] };
        let (regions, mut pieces) = ([piece(0, 1), piece(1, 3), piece(4, 2)], Vec::new());
        for region in &regions {
            let bytes: Vec<u8> = (0..8 * region.extent[0]).map(|at| (region.offset[0] * 8 + at + 1) as u8).collect();
            Writer::open(&layout).unwrap().write(region, &bytes).unwrap();
            pieces.push((region.clone(), crc32fast::hash(&bytes)));
        }
        staging.publish().unwrap();
        layout.temporary = file.clone();
        let (tensor, stage) = ("u".to_owned(), "s".to_owned());
        let tensors = vec![SavedTensor { tensor, stage: stage.clone(), operand: 1, layout, pieces }];
        let mut saved = CheckpointIndex { stage, iteration: 3, file: file.clone(), tensors };
        let sound =
            |saved: &CheckpointIndex, parts| (0..parts).map(|part| saved.is_sound(part, parts)).collect::<Vec<_>>();
        assert_eq!(sound(&saved, 3), [true; 3]);
        let whole = std::fs::read(&file).unwrap();
        let first = whole.windows(48).position(|bytes| bytes.iter().copied().eq(1..=48)).unwrap();
        for at in 0..48 {
            let mut flipped = whole.clone();
            flipped[first + at] ^= 16;
            std::fs::write(&file, flipped).unwrap();
            // The rank that reads that part detects it, and no other rank does.
            let part = regions.iter().position(|region| (at as u64) < 8 * region.end(0)).unwrap();
            assert_eq!(sound(&saved, 3), [0, 1, 2].map(|other| other != part), "byte {at}");
            assert_eq!(sound(&saved, 1), [false]);
        }
        for length in [first + 47, first, 9] {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(sound(&saved, 2).contains(&false), "cut to {length}");
        }
        std::fs::write(&file, &whole).unwrap();
        saved.tensors[0].pieces.pop();
        assert_eq!(sound(&saved, 2), [false; 2], "a rank's part is missing");
    }
}
