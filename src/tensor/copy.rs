use crate::tensor::region::Region;
use crate::tensor::shape::MAX_RANK;

/// A packed row-major buffer that holds the elements of one region.
#[derive(Clone, Copy, Debug)]
pub struct PackedBox<'a> {
    pub region: &'a Region,
    /// Size of one element in bytes.
    pub element_bytes: usize,
}

impl PackedBox<'_> {
    /// Bytes the buffer must have.
    pub fn bytes(&self) -> usize {
        self.region.elements() as usize * self.element_bytes
    }
}

/// Copies the elements of `part` from `source` (packed, holding `from`) to `target` (packed, holding `to`).
/// `part` must lie in both boxes.
pub fn copy_region(source: &[u8], from: &Region, target: &mut [u8], to: &Region, part: &Region, element_bytes: usize) {
    assert!(from.contains(part) && to.contains(part), "{part} must lie in {from} and {to}");
    assert_eq!(source.len(), PackedBox { region: from, element_bytes }.bytes(), "source must hold {from}");
    assert_eq!(target.len(), PackedBox { region: to, element_bytes }.bytes(), "target must hold {to}");
    let rank = part.rank();
    let at = |outer: &Region| {
        let mut at = [0; MAX_RANK];
        (0..rank).for_each(|dim| at[dim] = part.offset[dim] - outer.offset[dim]);
        at
    };
    let (from_at, to_at) = (at(from), at(to));
    copy_box(source, &from.extent, &from_at[..rank], target, &to.extent, &to_at[..rank], &part.extent, element_bytes);
}

/// Copies a box of `extent` elements, from `from_at` in a packed array of `from` elements a dimension to `to_at` in one
/// of `to`. Runs that are contiguous on both sides are copied as one.
#[expect(clippy::too_many_arguments, reason = "two arrays, a place in each, and what is copied")]
pub fn copy_box(
    source: &[u8],
    from: &[u64],
    from_at: &[u64],
    target: &mut [u8],
    to: &[u64],
    to_at: &[u64],
    extent: &[u64],
    element_bytes: usize,
) {
    if extent.contains(&0) {
        return;
    }
    // The innermost dimensions that the box spans wholly in both arrays fold into one run.
    let rank = extent.len();
    let mut run_dim = rank;
    let mut run = element_bytes;
    while run_dim > 0 {
        run_dim -= 1;
        run *= extent[run_dim] as usize;
        if extent[run_dim] != from[run_dim] || extent[run_dim] != to[run_dim] {
            break;
        }
    }
    let place = |outer: &[u64], start: &[u64], at: &[u64]| {
        (0..rank).fold(0usize, |l, d| l * outer[d] as usize + (start[d] + at[d]) as usize) * element_bytes
    };
    // No allocation: most copies are of one short run.
    let mut at = [0; MAX_RANK];
    let at = &mut at[..rank];
    loop {
        let (s, t) = (place(from, from_at, at), place(to, to_at, at));
        target[t..t + run].copy_from_slice(&source[s..s + run]);
        let Some(d) = (0..run_dim).rev().find(|d| at[*d] + 1 < extent[*d]) else {
            return;
        };
        at[d] += 1;
        at[d + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn boxed(rank: usize) -> impl Strategy<Value = (Region, Region, Region)> {
        // A part and two boxes around it, each with its own margins.
        proptest::collection::vec((0u64..3, 1u64..4, 0u64..3, 0u64..3, 0u64..3, 0u64..3), rank).prop_map(|dims| {
            let (mut part, mut from, mut to) = (Region::default(), Region::default(), Region::default());
            for (base, extent, before_a, after_a, before_b, after_b) in dims {
                let offset = base + 3;
                part.offset.push(offset);
                part.extent.push(extent);
                from.offset.push(offset - before_a);
                from.extent.push(before_a + extent + after_a);
                to.offset.push(offset - before_b);
                to.extent.push(before_b + extent + after_b);
            }
            (part, from, to)
        })
    }

    fn label(at: &[u64]) -> u8 {
        at.iter().fold(7u64, |l, i| l * 31 + i) as u8
    }

    fn points(region: &Region) -> Vec<Vec<u64>> {
        (0..region.rank()).fold(vec![vec![]], |all, d| {
            all.iter()
                .flat_map(|p| {
                    (region.offset[d]..region.end(d)).map(move |i| {
                        let mut p = p.clone();
                        p.push(i);
                        p
                    })
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn copies_exactly_the_part((part, from, to) in (0usize..5).prop_flat_map(boxed)) {
            let source: Vec<u8> = points(&from).iter().map(|p| label(p)).collect();
            let mut target = vec![0xEE; to.elements() as usize];
            copy_region(&source, &from, &mut target, &to, &part, 1);
            let inside = points(&part);
            for (byte, at) in target.iter().zip(points(&to)) {
                let want = if inside.contains(&at) { label(&at) } else { 0xEE };
                prop_assert_eq!(*byte, want);
            }
        }
    }
}
