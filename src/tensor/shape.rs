use std::fmt;
use std::ops::Deref;

/// Most dimensions a tensor may have; fixed by the kernel interface.
pub const MAX_RANK: usize = 8;

/// Extents of a tensor, outermost (slowest varying) first. A scalar has rank 0.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Shape(Vec<u64>);

/// Why a shape is not supported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// More dimensions than the kernel interface carries.
    #[error("{rank} dimensions, but at most {MAX_RANK} are supported")]
    TooManyDimensions { rank: usize },
    /// 8 bytes times the element count does not fit in 63 bits.
    #[error("shape {shape} has too many elements")]
    TooLarge { shape: Shape },
}

impl Shape {
    /// Checks that rank and size are within what the kernel interface and the byte counters carry.
    pub fn new(extents: impl Into<Vec<u64>>) -> Result<Self, ShapeError> {
        let shape = Shape(extents.into());
        if shape.0.len() > MAX_RANK {
            return Err(ShapeError::TooManyDimensions { rank: shape.0.len() });
        }
        // Zero extents are left out of the product so that no partial product can overflow either.
        let product = shape.0.iter().filter(|e| **e > 0).try_fold(8u64, |p, e| p.checked_mul(*e));
        match product {
            Some(bytes) if bytes <= i64::MAX as u64 => Ok(shape),
            _ => Err(ShapeError::TooLarge { shape }),
        }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> u64 {
        self.0.iter().product()
    }
}

impl Deref for Shape {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, extent) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{extent}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_be_counted() {
        assert!(Shape::new(vec![1; 9]).is_err());
        assert!(Shape::new(vec![1 << 40, 1 << 40]).is_err());
        assert!(Shape::new(vec![0, 1 << 40, 1 << 40]).is_err());
        assert_eq!(Shape::new(vec![]).unwrap().elements(), 1);
        assert_eq!(Shape::new(vec![3, 0, 5]).unwrap().elements(), 0);
        assert_eq!(Shape::new(vec![3, 4]).unwrap().to_string(), "[3, 4]");
    }
}
