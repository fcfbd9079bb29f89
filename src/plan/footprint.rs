//! The bytes of an operand that a tile needs.

use crate::plan::model::{Distribution, OperandPlan};

/// The bytes of an operand that a tile needs, including the halo, as a function of the tile's extents.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    /// The bytes at one point of the split indices.
    pub point_bytes: u64,
    axes: Vec<Along>,
}

/// An axis that an operand has.
#[derive(Clone, Debug)]
struct Along {
    axis: usize,
    /// The number of elements per value of the index.
    scale: u64,
    /// The width of the halo.
    halo: u64,
}

impl Footprint {
    pub fn new(operand: &OperandPlan, split: &[usize]) -> Self {
        let mut footprint = Footprint { point_bytes: operand.dtype.size_bytes() as u64, axes: Vec::new() };
        for (dim, index) in operand.dims.iter().enumerate() {
            match split.iter().position(|split| split == index) {
                Some(axis) => {
                    footprint.axes.push(Along { axis, scale: operand.scale[dim], halo: operand.halo[dim] });
                }
                None => {
                    let width = operand.shape[dim] + 2 * operand.halo[dim];
                    footprint.point_bytes = footprint.point_bytes.saturating_mul(width);
                }
            }
        }
        footprint
    }

    /// Returns whether the operand is cut along `axis`.
    pub fn has(&self, axis: usize) -> bool {
        self.axes.iter().any(|along| along.axis == axis)
    }

    pub fn bytes(&self, extents: &[u64]) -> u64 {
        let width = |along: &Along| along.elements(extents).saturating_add(2 * along.halo);
        self.axes.iter().map(width).fold(self.point_bytes, u64::saturating_mul)
    }

    /// Returns the bytes of the tile without its halo.
    pub fn core_bytes(&self, extents: &[u64]) -> u64 {
        self.axes.iter().map(|along| along.elements(extents)).fold(self.point_bytes, u64::saturating_mul)
    }

    /// Returns the sum over the `count` parts per axis into which a tile is cut.
    pub fn bytes_of_pieces(&self, extents: &[u64], count: &[u64]) -> u128 {
        let width = |along: &Along| u128::from(along.elements(extents) + 2 * along.halo * count[along.axis]);
        self.axes.iter().map(width).product::<u128>() * u128::from(self.point_bytes)
    }
}

impl Along {
    /// Returns the number of elements along the axis, without the halo.
    fn elements(&self, extents: &[u64]) -> u64 {
        extents[self.axis].saturating_mul(self.scale)
    }
}

/// Returns the footprints of the split operands, in order.
pub(super) fn footprints(operands: &[OperandPlan], split: &[usize]) -> Vec<Footprint> {
    let is_split = |operand: &&OperandPlan| operand.distribution == Distribution::Split;
    operands.iter().filter(is_split).map(|operand| Footprint::new(operand, split)).collect()
}
