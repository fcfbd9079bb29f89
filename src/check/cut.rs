//! Boxes of a stage to take as samples, and odd ways to cut them.

use crate::plan::Tile;
use crate::tensor::Region;

/// Most pieces along one axis, and of one cut.
const PIECES: u64 = 192;

/// A way to cut a box, and its pieces, which together are the box.
#[derive(Debug)]
pub(super) struct Cut {
    pub tiles: Vec<Tile>,
    /// Axes that are cut.
    pub axes: Vec<usize>,
}

/// Boxes of so many elements along each axis, at the first, the last and the middle place; fewer where those are the same.
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

/// Lengths of pieces along an axis of `extent` elements, in turn; the last one ends where the axis does.
fn cut_along(extent: u64, lengths: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    for length in lengths {
        if at == extent {
            break;
        }
        let length = if pieces.len() as u64 + 1 == PIECES { extent - at } else { length.min(extent - at) };
        pieces.push((at, length));
        at += length;
    }
    pieces
}

fn primes() -> impl Iterator<Item = u64> {
    (2u64..).filter(|number| (2..*number).take_while(|divisor| divisor * divisor <= *number).all(|d| number % d != 0))
}

/// The cuts to try: along each axis in two, in slices of one element, in primes; along all axes at once in primes.
pub(super) fn cuts(cover: &Tile) -> Vec<Cut> {
    let extents = &cover.0.extent;
    let axes: Vec<usize> = (0..extents.len()).filter(|axis| extents[*axis] > 1).collect();
    let whole = |axis: usize| vec![(0, extents[axis])];
    let mut cuts = Vec::new();
    for axis in &axes {
        let extent = extents[*axis];
        let halves = cut_along(extent, [extent / 2, extent].into_iter());
        for pieces in [halves, cut_along(extent, std::iter::repeat(1)), cut_along(extent, primes())] {
            let along = (0..extents.len()).map(|other| if other == *axis { pieces.clone() } else { whole(other) });
            cuts.push(Cut { tiles: product(cover, &along.collect::<Vec<_>>()), axes: vec![*axis] });
        }
    }
    if axes.len() > 1 {
        // Fewer pieces the more axes there are.
        let most = (PIECES as f64).powf(1.0 / axes.len() as f64) as usize;
        let along = |axis: usize| {
            let lengths = primes().skip(axis);
            let mut pieces = cut_along(extents[axis], lengths);
            if let Some((at, length)) = pieces.get_mut(most.max(2) - 1) {
                *length = extents[axis] - *at;
                pieces.truncate(most.max(2));
            }
            pieces
        };
        let along: Vec<Vec<(u64, u64)>> = (0..extents.len()).map(along).collect();
        cuts.push(Cut { tiles: product(cover, &along), axes });
    }
    cuts
}

/// The boxes whose sides are these pieces of each axis.
fn product(cover: &Tile, along: &[Vec<(u64, u64)>]) -> Vec<Tile> {
    let empty = Tile(Region { offset: Vec::new(), extent: Vec::new() });
    along.iter().enumerate().fold(vec![empty], |tiles, (axis, pieces)| {
        let with = |tile: &Tile, (at, length): (u64, u64)| {
            let mut tile = tile.clone();
            tile.0.offset.push(cover.0.offset[axis] + at);
            tile.0.extent.push(length);
            tile
        };
        tiles.iter().flat_map(|tile| pieces.iter().map(|piece| with(tile, *piece)).collect::<Vec<_>>()).collect()
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
    fn the_pieces_of_every_cut_are_the_box() {
        for extent in [vec![1000, 7], vec![2], vec![5, 1, 300], vec![64, 64, 64], vec![1], vec![100_000]] {
            let cover = Tile(Region { offset: vec![3; extent.len()], extent: extent.clone() });
            let cuts = cuts(&cover);
            assert_eq!(cuts.is_empty(), extent == [1]);
            for cut in cuts {
                assert!(cut.tiles.len() as u64 <= PIECES, "{} pieces of {extent:?}", cut.tiles.len());
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
