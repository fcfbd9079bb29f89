use crate::tensor::region::Region;
use crate::tensor::shape::Shape;
use serde::{Deserialize, Serialize};

/// The elements beyond the edge of a tensor, for kernels that read neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// The nearest element.
    Clamp,
    /// The other end of the tensor.
    Periodic,
    /// Zeros.
    Zero,
    /// Undefined for the kernel (in fact zeros, so that runs agree).
    None,
}

impl Boundary {
    /// Every kind, as job files write it.
    pub const NAMES: [(&'static str, Boundary); 4] = [
        ("clamp", Boundary::Clamp),
        ("periodic", Boundary::Periodic),
        ("zero", Boundary::Zero),
        ("none", Boundary::None),
    ];
}

/// A part of a padded box: the region of its elements in the tensor, and its place in the padded box.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HaloPart {
    pub source: Region,
    pub at: Vec<u64>,
}

/// `region` with `widths` more elements on each side, as a box that starts at 0.
pub fn padded(region: &Region, widths: &[u64]) -> Region {
    let extent = region.extent.iter().zip(widths).map(|(extent, width)| extent + 2 * width).collect();
    Region { offset: vec![0; region.rank()], extent }
}

/// The pieces of `region`, padded by `widths`, whose elements are in the tensor. With [`Boundary::Periodic`] they fill
/// the padded box, otherwise there is one piece, and the rest lies beyond the edge.
pub fn halo_parts(region: &Region, widths: &[u64], shape: &Shape, boundary: Boundary) -> Vec<HaloPart> {
    let empty = HaloPart { source: Region::default(), at: Vec::new() };
    (0..region.rank()).fold(vec![empty], |parts, dim| {
        let spans = spans(region.offset[dim], region.extent[dim], widths[dim], shape[dim], boundary);
        let with = |part: &HaloPart, (at, offset, extent): (u64, u64, u64)| {
            let mut part = part.clone();
            part.source.offset.push(offset);
            part.source.extent.push(extent);
            part.at.push(at);
            part
        };
        parts.iter().flat_map(|part| spans.iter().map(|span| with(part, *span)).collect::<Vec<_>>()).collect()
    })
}

/// Along one dimension: place in the padded box, place in the tensor, and length of each piece.
fn spans(offset: u64, extent: u64, width: u64, length: u64, boundary: Boundary) -> Vec<(u64, u64, u64)> {
    let total = extent + 2 * width;
    if boundary != Boundary::Periodic || length == 0 {
        let before = width.min(offset);
        let after = width.min(length - offset - extent);
        return vec![(width - before, offset - before, before + extent + after)];
    }
    let mut spans = Vec::new();
    // A halo may be wider than the tensor: then it goes round more than once.
    let (mut at, mut place) = (0, (offset + length - width % length) % length);
    while at < total {
        let run = (length - place).min(total - at);
        spans.push((at, place, run));
        at += run;
        place = 0;
    }
    spans
}

/// Fills what lies beyond the edge in a packed padded box with the nearest element inside, where `part` is its only
/// piece that is filled.
pub fn clamp_edges(bytes: &mut [u8], padded: &Region, part: &HaloPart, element_bytes: usize) {
    // Dimension by dimension, so that corners take what the sides before them got.
    for dim in 0..padded.rank() {
        let row = padded.extent[dim + 1..].iter().product::<u64>() as usize * element_bytes;
        let rows = padded.extent[dim] as usize;
        let (first, last) = (part.at[dim] as usize, (part.at[dim] + part.source.extent[dim]) as usize);
        if row == 0 || first == last || (first == 0 && last == rows) {
            continue;
        }
        for block in bytes.chunks_exact_mut(rows * row) {
            for to in (0..first).chain(last..rows) {
                let from = if to < first { first } else { last - 1 };
                block.copy_within(from * row..(from + 1) * row, to * row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::copy::copy_box;
    use proptest::prelude::*;

    /// What a kernel must find at `at` of the padded box.
    fn expected(region: &Region, widths: &[u64], shape: &Shape, boundary: Boundary, at: [u64; 2]) -> u8 {
        let mut label = 0;
        for d in 0..2 {
            let place = (region.offset[d] + at[d]) as i64 - widths[d] as i64;
            let length = shape[d] as i64;
            let place = match boundary {
                Boundary::Clamp => place.clamp(0, length - 1),
                Boundary::Periodic => place.rem_euclid(length),
                _ if (0..length).contains(&place) => place,
                _ => return 0,
            };
            label = label * 16 + place as u8 + 1;
        }
        label
    }

    proptest! {
        #[test]
        fn every_element_of_a_padded_box_is_the_right_one(
            dims in proptest::array::uniform2((0u64..4, 1u64..4, 0u64..3, 0u64..7)),
            kind in 0usize..4,
        ) {
            let boundary = Boundary::NAMES[kind].1;
            let [offset, extent, after, widths] = [0, 1, 2, 3].map(|field| {
                dims.map(|(a, b, c, d)| [a, b, c, d][field]).to_vec()
            });
            let region = Region { offset, extent };
            let shape = Shape::new([0, 1].map(|d| region.end(d) + after[d])).unwrap();
            let whole: Vec<u8> = (0..shape[0])
                .flat_map(|y| (0..shape[1]).map(move |x| (y as u8 + 1) * 16 + x as u8 + 1))
                .collect();
            let outer = padded(&region, &widths);
            let mut bytes = vec![0u8; outer.elements() as usize];
            let parts = halo_parts(&region, &widths, &shape, boundary);
            for part in &parts {
                copy_box(&whole, &shape, &part.source.offset, &mut bytes, &outer.extent, &part.at, &part.source.extent, 1);
            }
            if boundary == Boundary::Clamp {
                clamp_edges(&mut bytes, &outer, &parts[0], 1);
            }
            for y in 0..outer.extent[0] {
                for x in 0..outer.extent[1] {
                    let found = bytes[(y * outer.extent[1] + x) as usize];
                    prop_assert_eq!(found, expected(&region, &widths, &shape, boundary, [y, x]), "at {}, {}", y, x);
                }
            }
        }
    }
}
