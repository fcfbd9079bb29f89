use crate::tensor::shape::Shape;
use std::fmt;

/// An axis-aligned box inside a tensor: `offset[d] .. offset[d] + extent[d]` in every dimension, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Region {
    pub offset: Vec<u64>,
    pub extent: Vec<u64>,
}

impl Region {
    /// The whole of a tensor.
    pub fn whole(shape: &Shape) -> Self {
        Region { offset: vec![0; shape.rank()], extent: shape.to_vec() }
    }

    /// The empty region of `rank` dimensions.
    pub fn empty(rank: usize) -> Self {
        Region { offset: vec![0; rank], extent: vec![0; rank] }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.offset.len()
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> u64 {
        self.extent.iter().product()
    }

    /// One past the last index in dimension `dim`.
    pub fn end(&self, dim: usize) -> u64 {
        self.offset[dim] + self.extent[dim]
    }

    /// Whether every point of `inner` lies in `self`.
    pub fn contains(&self, inner: &Region) -> bool {
        self.rank() == inner.rank()
            && (0..self.rank()).all(|d| inner.offset[d] >= self.offset[d] && inner.end(d) <= self.end(d))
    }

    /// The box both have in common; `None` when they share no point.
    ///
    /// ```
    /// use exuvia::tensor::Region;
    ///
    /// let rows = Region { offset: vec![2, 0], extent: vec![3, 10] };
    /// let columns = Region { offset: vec![0, 4], extent: vec![10, 2] };
    /// let both = Region { offset: vec![2, 4], extent: vec![3, 2] };
    /// assert_eq!(rows.intersect(&columns), Some(both));
    /// ```
    pub fn intersect(&self, other: &Region) -> Option<Region> {
        let mut common = Region::default();
        for d in 0..self.rank() {
            let start = self.offset[d].max(other.offset[d]);
            let end = self.end(d).min(other.end(d));
            if start >= end {
                return None;
            }
            common.offset.push(start);
            common.extent.push(end - start);
        }
        Some(common)
    }

    /// What is left of it without `other`: at most two boxes per dimension, none of which meet.
    pub fn without(&self, other: &Region) -> Vec<Region> {
        let Some(common) = self.intersect(other) else { return vec![self.clone()] };
        let (mut rest, mut left) = (self.clone(), Vec::new());
        for d in 0..self.rank() {
            for (start, end) in [(rest.offset[d], common.offset[d]), (common.end(d), rest.end(d))] {
                if start < end {
                    let mut side = rest.clone();
                    (side.offset[d], side.extent[d]) = (start, end - start);
                    left.push(side);
                }
            }
            (rest.offset[d], rest.extent[d]) = (common.offset[d], common.extent[d]);
        }
        left
    }
}

impl fmt::Display for Region {
    /// Prints as index ranges: `[0..4, 16..32]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for d in 0..self.rank() {
            if d > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{}..{}", self.offset[d], self.end(d))?;
        }
        f.write_str("]")
    }
}

/// Number of chunks along each dimension when `shape` is cut into boxes of extent `chunk`.
pub fn chunk_count(shape: &[u64], chunk: &[u64]) -> Vec<u64> {
    shape.iter().zip(chunk).map(|(s, c)| s.div_ceil(*c)).collect()
}

/// The chunks that `region` touches, as their full boxes clipped to `shape`, in row-major order,
/// each with its linear index in the row-major grid of all chunks.
pub fn chunks_of(shape: &[u64], chunk: &[u64], region: &Region) -> Vec<(u64, Region)> {
    if region.elements() == 0 {
        return Vec::new();
    }
    let grid = chunk_count(shape, chunk);
    let rank = shape.len();
    let first: Vec<u64> = (0..rank).map(|d| region.offset[d] / chunk[d]).collect();
    let last: Vec<u64> = (0..rank).map(|d| (region.end(d) - 1) / chunk[d]).collect();
    let mut at = first.clone();
    let mut found = Vec::new();
    loop {
        let linear = (0..rank).fold(0, |l, d| l * grid[d] + at[d]);
        let offset: Vec<u64> = (0..rank).map(|d| at[d] * chunk[d]).collect();
        let extent = (0..rank).map(|d| chunk[d].min(shape[d] - offset[d])).collect();
        found.push((linear, Region { offset, extent }));
        let Some(d) = (0..rank).rev().find(|d| at[*d] < last[*d]) else {
            return found;
        };
        at[d] += 1;
        at[d + 1..].copy_from_slice(&first[d + 1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(offset: &[u64], extent: &[u64]) -> Region {
        Region { offset: offset.to_vec(), extent: extent.to_vec() }
    }

    #[test]
    fn intersects_and_contains() {
        let a = region(&[0, 4], &[4, 4]);
        assert_eq!(a.intersect(&region(&[2, 6], &[8, 8])), Some(region(&[2, 6], &[2, 2])));
        assert_eq!(a.intersect(&region(&[4, 0], &[1, 9])), None);
        assert!(a.contains(&region(&[3, 7], &[1, 1])));
        assert!(!a.contains(&region(&[3, 7], &[1, 2])));
        assert_eq!(a.to_string(), "[0..4, 4..8]");
    }

    #[test]
    fn without_leaves_every_other_point_once() {
        let whole = region(&[0, 0, 2], &[4, 5, 3]);
        for other in [region(&[1, 1, 3], &[2, 2, 1]), region(&[0, 3, 0], &[9, 9, 9]), region(&[4, 0, 0], &[1, 1, 1])] {
            let left = whole.without(&other);
            let common = whole.intersect(&other).map_or(0, |common| common.elements());
            assert_eq!(left.iter().map(Region::elements).sum::<u64>() + common, whole.elements());
            for (at, part) in left.iter().enumerate() {
                assert!(whole.contains(part) && part.intersect(&other).is_none());
                assert!(left[..at].iter().all(|earlier| earlier.intersect(part).is_none()));
            }
        }
        assert_eq!(whole.without(&whole), []);
    }

    #[test]
    fn chunks_are_clipped_and_numbered_row_major() {
        let got = chunks_of(&[5, 5], &[2, 3], &region(&[1, 2], &[2, 3]));
        let want = vec![
            (0, region(&[0, 0], &[2, 3])),
            (1, region(&[0, 3], &[2, 2])),
            (2, region(&[2, 0], &[2, 3])),
            (3, region(&[2, 3], &[2, 2])),
        ];
        assert_eq!(got, want);
        assert_eq!(chunks_of(&[], &[], &region(&[], &[])), vec![(0, region(&[], &[]))]);
        assert!(chunks_of(&[4], &[2], &region(&[1], &[0])).is_empty());
    }
}
