//! The host's own view of pages that a kernel may only read: its inputs and views.
//!
//! These pages are memory of a file that is mapped twice, read-only where the kernel finds them and writable elsewhere, so
//! that nothing has to be protected and opened again from call to call. A part of the guest-memory door.
#![expect(unsafe_code, reason = "guest memory")]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::MmapMut;
use rustix::fs::{MemfdFlags, memfd_create};

/// Guest addresses from `start` on, as the host writes to them.
#[derive(Debug)]
pub(super) struct Window {
    start: u64,
    bytes: MmapMut,
}

impl Window {
    /// Of `addresses`, and the file to be mapped there, address by address. Pages that nobody touches take no memory.
    pub fn new(addresses: Range<u64>) -> io::Result<(Window, File)> {
        let file = File::from(memfd_create("exuvia-inputs", MemfdFlags::CLOEXEC)?);
        file.set_len(addresses.end - addresses.start)?;
        // SAFETY: nobody else knows of the file, and nothing shrinks it. Besides this mapping there are read-only ones in the
        // guest's memory, which only its code reads through, while the host does not hold what `bytes_mut` returns.
        let bytes = unsafe { MmapMut::map_mut(&file) }?;
        Ok((Window { start: addresses.start, bytes }, file))
    }

    /// What the guest finds at these addresses; `None` outside the window.
    pub fn bytes(&self, addresses: Range<u64>) -> Option<&[u8]> {
        self.bytes.get(self.places(addresses)?)
    }

    /// The same, to write to.
    pub fn bytes_mut(&mut self, addresses: Range<u64>) -> Option<&mut [u8]> {
        let places = self.places(addresses)?;
        self.bytes.get_mut(places)
    }

    fn places(&self, addresses: Range<u64>) -> Option<Range<usize>> {
        let place = |address: u64| address.checked_sub(self.start).map(|place| place as usize);
        Some(place(addresses.start)?..place(addresses.end)?)
    }
}
