//! Parts of tensors in memory: a rank's own, and those that it maps from another rank of its node.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::engine::Mapped;
use crate::plan::StagePlan;
use crate::tensor::{Boundary, Region, clamp_edges, copy_box, copy_region, padded};

/// A region of a tensor and its elements, packed.
#[derive(Clone, Debug)]
pub(in crate::exec) struct Piece {
    pub region: Region,
    pub bytes: PieceBytes,
}

/// A block's part of one input.
#[derive(Debug)]
pub(in crate::exec) enum BlockInput {
    /// The packed bytes of its region, halo included; empty for outputs and for inputs that all tasks share.
    Packed(Vec<u8>),
    /// Pieces in this rank's memory, from which each task takes its own part: nothing is copied twice.
    Here(Vec<Piece>),
}

impl BlockInput {
    /// The number of bytes that the block holds for itself.
    pub fn packed_bytes(&self) -> u64 {
        match self {
            BlockInput::Packed(bytes) => bytes.len() as u64,
            BlockInput::Here(_) => 0,
        }
    }
}

/// The elements of a [`Piece`].
#[derive(Clone, Debug)]
pub(in crate::exec) enum PieceBytes {
    Own(Arc<Vec<u8>>),
    /// A part of memory that another rank of the node shares.
    Mapped(Arc<Mapped>, Range<usize>),
}

impl Deref for PieceBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            PieceBytes::Own(bytes) => bytes,
            PieceBytes::Mapped(mapped, range) => &mapped[range.clone()],
        }
    }
}

impl From<Vec<u8>> for PieceBytes {
    fn from(bytes: Vec<u8>) -> PieceBytes {
        PieceBytes::Own(Arc::new(bytes))
    }
}

impl Piece {
    /// Returns the pieces of these regions, which fill `mapped` one after another.
    pub fn of_mapped(mapped: Mapped, regions: &[Region], element_bytes: usize) -> Vec<Piece> {
        let (mapped, mut start) = (Arc::new(mapped), 0);
        let piece = |region: &Region| {
            let range = start..start + region.elements() as usize * element_bytes;
            start = range.end;
            Piece { region: region.clone(), bytes: PieceBytes::Mapped(mapped.clone(), range) }
        };
        regions.iter().map(piece).collect()
    }

    /// Copies the part of `region` that this piece has into `target`, which holds `region`.
    pub fn copy_to(&self, region: &Region, target: &mut [u8], element_bytes: usize) {
        if let Some(common) = self.region.intersect(region) {
            copy_region(&self.bytes, &self.region, target, region, &common, element_bytes);
        }
    }

    /// Copies the part of `region` that this piece has into a packed array of `extent`, in which `region` starts at
    /// `at`.
    pub fn copy_into(&self, region: &Region, target: &mut [u8], extent: &[u64], at: &[u64], element_bytes: usize) {
        let Some(common) = self.region.intersect(region) else { return };
        let place =
            |dim: usize| (common.offset[dim] - self.region.offset[dim], common.offset[dim] - region.offset[dim]);
        let (from_at, inside): (Vec<u64>, Vec<u64>) = (0..common.rank()).map(place).unzip();
        let to_at: Vec<u64> = inside.iter().zip(at).map(|(inside, at)| inside + at).collect();
        let from = &self.region.extent;
        copy_box(&self.bytes, from, &from_at, target, extent, &to_at, &common.extent, element_bytes);
    }
}

/// Fills `target` with `region` of input `operand`, halo included and packed, from pieces that have all of its
/// elements. Elements beyond the tensor's edge follow from the stage's boundary.
pub(in crate::exec) fn fill(target: &mut [u8], pieces: &[Piece], stage: &StagePlan, operand: usize, region: &Region) {
    let input = &stage.operands[operand];
    let element_bytes = input.dtype.size_bytes();
    if input.halo.iter().all(|width| *width == 0) {
        return pieces.iter().for_each(|piece| piece.copy_to(region, target, element_bytes));
    }
    let outer = padded(region, &input.halo);
    let parts = stage.sources(operand, region);
    let clamps = stage.boundary == Some(Boundary::Clamp);
    if !clamps && parts.iter().map(|part| part.source.elements()).sum::<u64>() < outer.elements() {
        // Beyond the edge.
        target.fill(0);
    }
    for part in &parts {
        for piece in pieces {
            piece.copy_into(&part.source, target, &outer.extent, &part.at, element_bytes);
        }
    }
    if let (true, [part]) = (clamps, parts.as_slice()) {
        clamp_edges(target, &outer, part, element_bytes);
    }
}

/// Fills `target` with `regions` from `pieces`, packed one after another.
pub(in crate::exec) fn pack(target: &mut [u8], pieces: &[Piece], regions: &[Region], element_bytes: usize) {
    let mut rest = target;
    for region in regions {
        let (first, others) = rest.split_at_mut(region.elements() as usize * element_bytes);
        pieces.iter().for_each(|piece| piece.copy_to(region, first, element_bytes));
        rest = others;
    }
}

/// The number of bytes of these regions, packed.
pub(in crate::exec) fn packed_bytes(regions: &[Region], element_bytes: usize) -> usize {
    regions.iter().map(|region| region.elements() as usize * element_bytes).sum()
}
