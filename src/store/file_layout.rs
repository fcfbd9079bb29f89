//! The offsets of a dataset's bytes in its file, read from the file by the HDF5 format specification (versions 1 to 3).
//!
//! HDF5's own calls are no help here: they find one chunk in time linear in the number of chunks, and it depends on the
//! version of the library whether their offsets count from the start of the file or from the end of its user block.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// How a file stores addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressFormat {
    /// Origin of the addresses: the end of the user block.
    pub base: u64,
    /// Bytes of an address.
    pub address_bytes: usize,
    /// Bytes of a length.
    pub length_bytes: usize,
}

/// Where a dataset's bytes are, as offsets from the start of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DataLocation {
    Contiguous {
        offset: u64,
        bytes: u64,
    },
    /// Chunks of one extent, by their first elements.
    Chunks {
        chunk: Vec<u64>,
        found: Vec<StoredChunk>,
    },
    /// All chunks in row-major order, without gaps.
    Consecutive {
        chunk: Vec<u64>,
        offset: u64,
    },
    /// In the dataset's header, in another file, in an index of an unsupported kind, or not allocated yet.
    Elsewhere,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct StoredChunk {
    pub first: Vec<u64>,
    pub offset: u64,
    pub bytes: u64,
}

/// Type of the header message for the storage layout.
const LAYOUT: u16 = 0x0008;
/// Type of the header message that points to more messages.
const CONTINUATION: u16 = 0x0010;
/// More header blocks than any dataset has.
const MOST_BLOCKS: usize = 1024;
const MOST_HEADER_BYTES: u64 = 16 << 20;

/// Locates the dataset whose header is at `header` and which has at most `most_chunks` chunks.
pub(super) fn locate(file: &File, format: AddressFormat, header: u64, most_chunks: u64) -> Result<DataLocation> {
    let source = HeaderReader { file, format };
    let layout = source.layout(header)?;
    let mut cursor = source.cursor(&layout);
    let version = cursor.number(1)?;
    match (version, cursor.number(1)?) {
        (3 | 4, 0) => Ok(DataLocation::Elsewhere),
        (3 | 4, 1) => {
            let (address, bytes) = (cursor.address()?, cursor.number(format.length_bytes)?);
            match address {
                Some(address) => Ok(DataLocation::Contiguous { offset: source.absolute(address)?, bytes }),
                None => Ok(DataLocation::Elsewhere),
            }
        }
        (3, 2) => {
            let dims = cursor.number(1)?;
            let root = cursor.address()?;
            let extents = (0..dims).map(|_| cursor.number(4)).collect::<Result<Vec<u64>>>()?;
            let chunk = without_element(&extents)?;
            let mut tree = ChunkTree { source, rank: chunk.len(), found: Vec::new(), nodes: 0, most_chunks };
            if let Some(root) = root {
                tree.walk(root, None)?;
            }
            Ok(DataLocation::Chunks { chunk, found: tree.found })
        }
        (4, 2) => {
            let flags = cursor.number(1)?;
            let (dims, width) = (cursor.number(1)?, cursor.number(1)? as usize);
            let extents = (0..dims).map(|_| cursor.number(width)).collect::<Result<Vec<u64>>>()?;
            let chunk = without_element(&extents)?;
            let is_filtered = flags & 2 != 0;
            // A single chunk, or all chunks in order. Datasets that can grow have another index.
            match (cursor.number(1)?, is_filtered) {
                (1 | 2, false) => match cursor.address()? {
                    Some(address) => Ok(DataLocation::Consecutive { chunk, offset: source.absolute(address)? }),
                    None => Ok(DataLocation::Elsewhere),
                },
                _ => Ok(DataLocation::Elsewhere),
            }
        }
        _ => Ok(DataLocation::Elsewhere),
    }
}

/// Removes the last extent, which is the size of an element in bytes.
fn without_element(extents: &[u64]) -> Result<Vec<u64>> {
    let (_, chunk) = extents.split_last().ok_or_else(|| damaged("a chunk without dimensions"))?;
    Ok(chunk.to_vec())
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the file is damaged: {what}"))
}

/// Reads object headers of a file.
#[derive(Clone, Copy)]
struct HeaderReader<'a> {
    file: &'a File,
    format: AddressFormat,
}

impl<'a> HeaderReader<'a> {
    fn absolute(self, address: u64) -> Result<u64> {
        address.checked_add(self.format.base).ok_or_else(|| damaged("an address overflows"))
    }

    fn read(self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.file.read_exact_at(&mut buffer, self.absolute(address)?)?;
        Ok(buffer)
    }

    fn cursor<'b>(self, bytes: &'b [u8]) -> Cursor<'b> {
        Cursor { rest: bytes, address_bytes: self.format.address_bytes }
    }

    /// The layout message of an object header.
    fn layout(self, header: u64) -> Result<Vec<u8>> {
        let start = self.read(header, 6)?;
        let (is_new, tracks_order, mut at, mut length) = match *start {
            [b'O', b'H', b'D', b'R', 2, flags] => {
                let before = 6 + if flags & 0x20 != 0 { 16 } else { 0 } + if flags & 0x10 != 0 { 4 } else { 0 };
                let width = 1 << (flags & 3);
                let size = self.read(self.beyond(header, before)?, width)?;
                let length = self.cursor(&size).number(width)?;
                (true, flags & 4 != 0, self.beyond(header, before + width as u64)?, length)
            }
            [1, ..] => {
                let size = self.read(self.beyond(header, 8)?, 4)?;
                (false, false, self.beyond(header, 16)?, self.cursor(&size).number(4)?)
            }
            _ => return Err(damaged("the dataset has no valid header")),
        };
        let mut more = Vec::new();
        for _ in 0..MOST_BLOCKS {
            if length > MOST_HEADER_BYTES {
                return Err(damaged("the header of the dataset is too long"));
            }
            let block = self.read(at, length as usize)?;
            let mut cursor = self.cursor(&block);
            let prefix = if is_new { 4 + if tracks_order { 2 } else { 0 } } else { 8 };
            while cursor.rest.len() >= prefix {
                let kind = cursor.number(if is_new { 1 } else { 2 })? as u16;
                let size = cursor.number(2)? as usize;
                cursor.skip(prefix - if is_new { 3 } else { 4 })?;
                let body = cursor.skip(size)?;
                match kind {
                    LAYOUT => return Ok(body.to_vec()),
                    CONTINUATION => {
                        let mut body = self.cursor(body);
                        let address = body.address()?.ok_or_else(|| damaged("a header continues at no address"))?;
                        more.push((address, body.number(self.format.length_bytes)?));
                    }
                    _ => {}
                }
            }
            let next = more.pop().ok_or_else(|| damaged("the dataset does not say how it is stored"))?;
            // A version 2 block begins with a signature and ends with a checksum.
            (at, length) = match next {
                (address, bytes) if is_new && bytes >= 8 => (self.beyond(address, 4)?, bytes - 8),
                next => next,
            };
        }
        Err(damaged("the header of the dataset is circular"))
    }

    fn beyond(self, address: u64, bytes: u64) -> Result<u64> {
        address.checked_add(bytes).ok_or_else(|| damaged("an address overflows"))
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
    address_bytes: usize,
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (skipped, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| damaged("it is truncated"))?;
        self.rest = rest;
        Ok(skipped)
    }

    fn number(&mut self, bytes: usize) -> Result<u64> {
        let mut whole = [0; 8];
        let part = whole.get_mut(..bytes).ok_or_else(|| damaged("its numbers are too long"))?;
        part.copy_from_slice(self.skip(bytes)?);
        Ok(u64::from_le_bytes(whole))
    }

    /// `None` for the undefined address.
    fn address(&mut self) -> Result<Option<u64>> {
        let address = self.number(self.address_bytes)?;
        let none = u64::MAX >> (64 - 8 * self.address_bytes);
        Ok(Some(address).filter(|address| *address != none))
    }
}

/// A version 1 B-tree of chunks.
struct ChunkTree<'a> {
    source: HeaderReader<'a>,
    rank: usize,
    found: Vec<StoredChunk>,
    nodes: u64,
    most_chunks: u64,
}

impl ChunkTree<'_> {
    /// Collects the chunks below a node, which must be of `level` if one is given.
    fn walk(&mut self, node: u64, level: Option<u64>) -> Result<()> {
        self.nodes += 1;
        if self.nodes > 2 * self.most_chunks + 64 {
            return Err(damaged("its chunk index is circular"));
        }
        let address_bytes = self.source.format.address_bytes;
        let head_bytes = 8 + 2 * address_bytes;
        let head = self.source.read(node, head_bytes)?;
        let mut cursor = self.source.cursor(&head);
        if cursor.skip(4)? != b"TREE" || cursor.number(1)? != 1 {
            return Err(damaged("its chunk index is invalid"));
        }
        let (here, entries) = (cursor.number(1)?, cursor.number(2)? as usize);
        if level.is_some_and(|level| level != here) {
            return Err(damaged("the levels of its chunk index do not match"));
        }
        let key_bytes = 8 + 8 * (self.rank + 1);
        let body =
            self.source.read(self.source.beyond(node, head_bytes as u64)?, entries * (key_bytes + address_bytes))?;
        let mut cursor = self.source.cursor(&body);
        for _ in 0..entries {
            let bytes = cursor.number(4)?;
            let _filters = cursor.number(4)?;
            let first = (0..self.rank).map(|_| cursor.number(8)).collect::<Result<Vec<u64>>>()?;
            let _of_element = cursor.number(8)?;
            let child = cursor.address()?.ok_or_else(|| damaged("a chunk has no address"))?;
            match here.checked_sub(1) {
                Some(below) => self.walk(child, Some(below))?,
                None if self.found.len() as u64 >= self.most_chunks => return Err(damaged("it has too many chunks")),
                None => self.found.push(StoredChunk { first, offset: self.source.absolute(child)?, bytes }),
            }
        }
        Ok(())
    }
}
