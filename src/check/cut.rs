//! The samples of a stage, and the ways to cut them.

use crate::plan::Tile;
use crate::tensor::Region;

/// The most parts along one axis, and of one cut.
const MAX_PARTS: u64 = 192;

/// A way to cut a sample into tiles.
#[derive(Debug)]
pub(super) struct SampleCut {
    pub tiles: Vec<Tile>,
    /// The axes along which the sample is cut.
    pub axes: Vec<usize>,
}

/// Returns the distinct boxes of this size at the start, at the end and in the middle of the data.
pub(super) fn samples(extents: &[u64], size: &[u64]) -> Vec<Tile> {
    let at = |place: fn(u64) -> u64| {
        let offset = extents.iter().zip(size).map(|(extent, size)| place(extent - size)).collect();
        Tile(Region { offset, extent: size.to_vec() })
    };
    let mut samples: Vec<Tile> = Vec::new();
    for sample in [at(|_| 0), at(|rest| rest), at(|rest| rest / 2)] {
        if !samples.contains(&sample) {
            samples.push(sample);
        }
    }
    samples
}

/// Cuts an axis of `extent` elements into intervals of these lengths; the last one ends with the axis.
fn cut_along(extent: u64, lengths: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let (mut parts, mut at) = (Vec::new(), 0);
    for length in lengths {
        if at == extent {
            break;
        }
        let length = if parts.len() as u64 + 1 == MAX_PARTS { extent - at } else { length.min(extent - at) };
        parts.push((at, length));
        at += length;
    }
    parts
}

fn primes() -> impl Iterator<Item = u64> {
    (2u64..).filter(|number| (2..*number).take_while(|divisor| divisor * divisor <= *number).all(|d| number % d != 0))
}

/// The cuts to try: along each axis into halves, single elements and primes; along all axes at once into primes.
pub(super) fn cuts(cover: &Tile) -> Vec<SampleCut> {
    let extents = &cover.0.extent;
    let axes: Vec<usize> = (0..extents.len()).filter(|axis| extents[*axis] > 1).collect();
    let whole = |axis: usize| vec![(0, extents[axis])];
    let mut cuts = Vec::new();
    for axis in &axes {
        let extent = extents[*axis];
        let halves = cut_along(extent, [extent / 2, extent].into_iter());
        for parts in [halves, cut_along(extent, std::iter::repeat(1)), cut_along(extent, primes())] {
            let along = (0..extents.len()).map(|other| if other == *axis { parts.clone() } else { whole(other) });
            cuts.push(SampleCut { tiles: product(cover, &along.collect::<Vec<_>>()), axes: vec![*axis] });
        }
    }
    if axes.len() > 1 {
        // More axes allow fewer parts along each of them.
        let most = (MAX_PARTS as f64).powf(1.0 / axes.len() as f64) as usize;
        let along = |axis: usize| {
            let lengths = primes().skip(axis);
            let mut parts = cut_along(extents[axis], lengths);
            if let Some((at, length)) = parts.get_mut(most.max(2) - 1) {
                *length = extents[axis] - *at;
                parts.truncate(most.max(2));
            }
            parts
        };
        let along: Vec<Vec<(u64, u64)>> = (0..extents.len()).map(along).collect();
        cuts.push(SampleCut { tiles: product(cover, &along), axes });
    }
    cuts
}

/// The boxes with these intervals along each axis.
fn product(cover: &Tile, along: &[Vec<(u64, u64)>]) -> Vec<Tile> {
    let empty = Tile(Region { offset: Vec::new(), extent: Vec::new() });
    along.iter().enumerate().fold(vec![empty], |tiles, (axis, parts)| {
        let with = |tile: &Tile, (at, length): (u64, u64)| {
            let mut tile = tile.clone();
            tile.0.offset.push(cover.0.offset[axis] + at);
            tile.0.extent.push(length);
            tile
        };
        tiles.iter().flat_map(|tile| parts.iter().map(|part| with(tile, *part)).collect::<Vec<_>>()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_at_both_ends_and_in_the_middle() {
        let offsets = |extents: &[u64], size: &[u64]| {
            samples(extents, size).into_iter().map(|tile| tile.0.offset).collect::<Vec<_>>()
        };
        assert_eq!(offsets(&[10, 3], &[4, 3]), [[0, 0], [6, 0], [3, 0]]);
        assert_eq!(offsets(&[10], &[10]), [[0]]);
        assert_eq!(offsets(&[], &[]).len(), 1, "without split indices there is one task");
    }

    #[test]
    fn the_tiles_of_every_cut_make_up_the_sample() {
        for extent in [vec![1000, 7], vec![2], vec![5, 1, 300], vec![64, 64, 64], vec![1], vec![100_000]] {
            let cover = Tile(Region { offset: vec![3; extent.len()], extent: extent.clone() });
            let cuts = cuts(&cover);
            assert_eq!(cuts.is_empty(), extent == [1]);
            for cut in cuts {
                assert!(cut.tiles.len() as u64 <= MAX_PARTS, "{} tiles of {extent:?}", cut.tiles.len());
                let elements: u64 = cut.tiles.iter().map(|tile| tile.0.elements()).sum();
                assert_eq!(elements, cover.0.elements(), "{extent:?} along {:?}", cut.axes);
                assert!(cut.tiles.iter().all(|tile| cover.0.contains(&tile.0) && tile.0.elements() > 0));
                let meets = |a: &Tile, b: &Tile| a.0.intersect(&b.0).is_some();
                let pairs =
                    cut.tiles.iter().enumerate().flat_map(|(at, a)| cut.tiles[..at].iter().map(move |b| (a, b)));
                assert!(pairs.take(5000).all(|(a, b)| !meets(a, b)));
            }
        }
    }
}
