use crate::tensor::{Dtype, MAX_RANK, Region, Shape};

/// How a kernel may access an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The same for every task of a stage, and read-only.
    Shared,
    /// Read by the task, and read-only.
    In,
    /// Written by the task.
    Out,
    /// Written by the task over what is there.
    InOut,
}

/// One operand of a kernel, for all tasks of a stage.
#[derive(Clone, Copy, Debug)]
pub struct OperandSpec {
    /// Bytes of the largest tile.
    pub max_bytes: u64,
    pub access: Access,
}

/// One operand of one task, as the kernel sees it: a row-major tile of a tensor, packed, with its halo around it.
#[derive(Clone, Debug)]
pub struct View {
    pub dtype: Dtype,
    /// The tile, in the whole tensor.
    pub region: Region,
    /// Elements around the tile, on each side of each dimension.
    pub halo: Vec<u64>,
    /// The whole tensor.
    pub shape: Shape,
}

impl View {
    /// Size of `exuvia_view` in exuvia.h.
    pub const BYTES: usize = 208;

    /// Elements of the tile with its halo, per dimension.
    pub fn padded(&self) -> Vec<u64> {
        self.region.extent.iter().zip(&self.halo).map(|(extent, halo)| extent + 2 * halo).collect()
    }

    /// Bytes of the tile with its halo.
    pub fn bytes(&self) -> u64 {
        self.padded().iter().product::<u64>() * self.dtype.size_bytes() as u64
    }

    /// The struct `exuvia_view` of exuvia.h, little-endian, for a padded tile at `address`. The view points at the
    /// tile's own first element, inside its halo.
    pub fn encode(&self, address: u64, output: bool) -> [u8; View::BYTES] {
        let (rank, padded) = (self.region.rank(), self.padded());
        let stride = |d: usize| if d < rank { padded[d + 1..].iter().product() } else { 0 };
        let inside: u64 = (0..rank).map(|d| self.halo[d] * stride(d)).sum();
        let address = address + inside * self.dtype.size_bytes() as u64;
        let mut encoded = [0; View::BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            encoded[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        for word in [address as u32, self.dtype.code(), rank as u32, u32::from(output)] {
            put(&word.to_le_bytes());
        }
        let of = |values: &[u64], d: usize| values.get(d).copied().unwrap_or(0);
        for d in 0..MAX_RANK {
            put(&(of(&self.region.extent, d) as u32).to_le_bytes());
        }
        for d in 0..MAX_RANK {
            put(&(stride(d) as i32).to_le_bytes());
        }
        for d in 0..MAX_RANK {
            put(&of(&self.region.offset, d).to_le_bytes());
        }
        for d in 0..MAX_RANK {
            put(&of(&self.shape, d).to_le_bytes());
        }
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_one_of_the_header() {
        let view = View {
            dtype: Dtype::F32,
            region: Region { offset: vec![5, 0], extent: vec![2, 3] },
            halo: vec![0, 0],
            shape: Shape::new(vec![9, 3]).unwrap(),
        };
        let e = view.encode(0x1000, true);
        let word = |at: usize| u32::from_le_bytes(e[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(e[at..at + 8].try_into().unwrap());
        assert_eq!([word(0), word(4), word(8), word(12)], [0x1000, 3, 2, 1]);
        assert_eq!([word(16), word(20), word(24)], [2, 3, 0]);
        assert_eq!([word(48), word(52), word(56)], [3, 1, 0]);
        assert_eq!([long(80), long(88), long(144), long(152)], [5, 0, 9, 3]);
        assert_eq!(view.bytes(), 24);
        let e = View { halo: vec![1, 2], ..view }.encode(0x1000, false);
        let word = |at: usize| u32::from_le_bytes(e[at..at + 4].try_into().unwrap());
        assert_eq!([word(0), word(16), word(20), word(48), word(52)], [0x1000 + (7 + 2) * 4, 2, 3, 7, 1]);
    }
}
