use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes to send, shared without a copy by all sends that carry them or a part of them.
#[derive(Clone)]
pub struct Payload {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Payload {
    /// A part of these bytes. Panics if `range` is not within them.
    pub fn slice(&self, range: Range<usize>) -> Payload {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} bytes", self.len());
        let first = self.range.start;
        Payload { bytes: Arc::clone(&self.bytes), range: first + range.start..first + range.end }
    }

    /// Returns the bytes, without a copy if there is no other clone.
    pub fn into_vec(self) -> Vec<u8> {
        if self.range != (0..self.bytes.len()) {
            return self.to_vec();
        }
        Arc::try_unwrap(self.bytes).unwrap_or_else(|shared| shared.to_vec())
    }

    /// Whether another clone is alive, such as a pending send.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.bytes) > 1
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Payload::from(Arc::new(bytes))
    }
}

impl From<Arc<Vec<u8>>> for Payload {
    fn from(bytes: Arc<Vec<u8>>) -> Payload {
        let range = 0..bytes.len();
        Payload { bytes, range }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_whole_payloads_unwrap() {
        let bytes = vec![0, 1, 2, 3, 4, 5];
        let address = bytes.as_ptr();
        let whole = Payload::from(bytes);
        let part = whole.slice(2..5).slice(1..3);
        assert_eq!(&*part, [3, 4]);
        assert!(whole.is_shared());
        assert_eq!(part.into_vec(), [3, 4]);
        assert!(!whole.is_shared());
        let unwrapped = whole.into_vec();
        assert_eq!(unwrapped.as_ptr(), address);
    }
}
