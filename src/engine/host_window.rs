//! The host's own view of pages that a kernel may only read: its inputs and views.
//!
//! These pages are mapped twice, read-only where the kernel finds them and writable elsewhere, so that nothing has to
//! be protected and opened again from call to call. A part of the guest-memory door.
#![expect(unsafe_code, reason = "guest memory")]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed, munmap};

/// A writable mapping of guest addresses from `start` on. Pages that are never accessed take no memory.
#[derive(Debug)]
pub(super) struct HostWindow {
    start: u64,
    bytes: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the window alone, and any thread may use it.
unsafe impl Send for HostWindow {}

impl HostWindow {
    /// A window of `addresses`, which are whole pages. It is anonymous shared memory, to which no file size limit
    /// applies.
    pub fn new(addresses: Range<u64>) -> io::Result<HostWindow> {
        let length = (addresses.end - addresses.start) as usize;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a new mapping, where the kernel likes.
        let bytes = unsafe { mmap_anonymous(std::ptr::null_mut(), length, protection, flags) }?;
        let bytes = NonNull::new(bytes.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(HostWindow { start: addresses.start, bytes, length })
    }

    /// Maps these pages read-only at `target`.
    ///
    /// # Safety
    /// As many bytes from `target` on are whole pages of the guest's memory, to which no reference exists.
    pub unsafe fn show(&self, pages: &Range<u64>, target: NonNull<u8>) -> io::Result<()> {
        let places = self.places(pages.clone()).ok_or(io::ErrorKind::InvalidInput)?;
        let length = places.end - places.start;
        if length == 0 {
            return Ok(());
        }
        // SAFETY: nothing of a shared mapping's pages moves where the old size is 0: they are mapped once more. What
        // was at `target` is the caller's to give away.
        unsafe {
            let from = self.bytes.add(places.start).as_ptr().cast();
            mremap_fixed(from, 0, length, MremapFlags::MAYMOVE, target.as_ptr().cast())?;
            mprotect(target.as_ptr().cast(), length, MprotectFlags::READ)?;
        }
        Ok(())
    }

    /// The bytes at these guest addresses; `None` outside the window.
    pub fn bytes(&self, addresses: Range<u64>) -> Option<&[u8]> {
        let places = self.places(addresses)?;
        // SAFETY: in the mapping, which lives as long as the window; its bytes change only through `bytes_mut`.
        Some(unsafe { std::slice::from_raw_parts(self.bytes.add(places.start).as_ptr(), places.end - places.start) })
    }

    /// The bytes at these guest addresses, to be written.
    pub fn bytes_mut(&mut self, addresses: Range<u64>) -> Option<&mut [u8]> {
        let places = self.places(addresses)?;
        // SAFETY: as above, and borrowed mutably. The guest only reads, and not while the host has what this returns.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.bytes.add(places.start).as_ptr(), places.end - places.start)
        })
    }

    fn places(&self, addresses: Range<u64>) -> Option<Range<usize>> {
        let place = |address: u64| address.checked_sub(self.start).map(|place| place as usize);
        let places = place(addresses.start)?..place(addresses.end)?;
        (places.start <= places.end && places.end <= self.length).then_some(places)
    }
}

impl Drop for HostWindow {
    fn drop(&mut self) {
        // SAFETY: the mapping is this window's, and nobody has a reference to it any more. Where else its pages are,
        // they stay.
        let _ = unsafe { munmap(self.bytes.as_ptr().cast(), self.length) };
    }
}
