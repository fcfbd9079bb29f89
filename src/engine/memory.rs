//! The linear memory of an instance: owned by the host, limited, and with pages that a kernel cannot access or write.
//!
//! This is the guest-memory door of the crate's `unsafe`.
#![expect(unsafe_code, reason = "guest memory")]

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytesize::ByteSize;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect};
use rustix::process::{Resource, getrlimit};
use wasmer::{AsStoreMut, AsStoreRef, Memory, MemoryError, MemoryType, Pages};
use wasmer_vm::{LinearMemory, MemoryStyle, VMMemory, VMMemoryDefinition};

use super::arena::{Arena, HOST_PAGE, OperandSlot};
use super::host_window::HostWindow;
use crate::engine::shared_memory::SharedBytes;

pub(super) const WASM_PAGE: u64 = 65_536;
/// First address that no access of compiled code reaches, counted from the start of a memory.
///
/// LLVM's code checks nothing: it adds an address and a constant offset, both of 32 bits and without a sign, in 64 bits
/// and touches at most 16 bytes there. Optimization makes this no larger. No GEP is `inbounds`, so rewriting an address
/// keeps its value modulo 2^64. A wide access stands for narrow ones that the program makes too, so it ends where the
/// last of them ends; lanes that a mask turns off touch nothing. Accesses that the program may not make are only added
/// where the pointer is known to be dereferenceable: wasmer says so of its own context, never of memory. Singlepass's
/// code traps on a carry out of 32 bits. The last page is for the width of the last access.
const REACH: u64 = (1 << 32) + (1 << 32) + WASM_PAGE;

/// The limit of a memory's growth, and the growth that was refused.
#[derive(Debug)]
struct MemoryGrowth {
    /// Pages that the module declares as its maximum, and those that the host added.
    max_pages: AtomicU64,
    /// The largest size that was refused for the limit of the job.
    refused_bytes: AtomicU64,
}

/// wasmer's memory with the module's own maximum, which records refused growth.
#[derive(Debug)]
struct LimitedMemory {
    inner: VMMemory,
    growth: Arc<MemoryGrowth>,
}

impl LinearMemory for LimitedMemory {
    fn ty(&self) -> MemoryType {
        self.inner.ty()
    }

    fn size(&self) -> Pages {
        self.inner.size()
    }

    fn style(&self) -> MemoryStyle {
        self.inner.style()
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let current = self.inner.size();
        let wanted = u64::from(current.0) + u64::from(delta.0);
        if wanted > self.growth.max_pages.load(Ordering::Relaxed) {
            return Err(MemoryError::CouldNotGrow { current, attempted_delta: delta });
        }
        self.inner.grow(delta).inspect_err(|_| {
            self.growth.refused_bytes.fetch_max(wanted * WASM_PAGE, Ordering::Relaxed);
        })
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.inner.vmmemory()
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + 'static>, MemoryError> {
        self.inner.try_clone()
    }

    fn copy(&mut self) -> Result<Box<dyn LinearMemory + 'static>, MemoryError> {
        self.inner.copy()
    }
}

/// A memory of a store, and access to its bytes.
#[derive(Debug)]
pub(super) struct GuestMemory {
    pub memory: Memory,
    growth: Arc<MemoryGrowth>,
}

impl GuestMemory {
    /// A memory of `pages`. It may grow to the module's own `max_pages` plus the host's pages, and to `limit_pages` in
    /// all.
    pub fn new(
        store: &mut impl AsStoreMut,
        pages: u32,
        max_pages: u32,
        limit_pages: u32,
    ) -> Result<GuestMemory, String> {
        let ty = MemoryType::new(Pages(pages), Some(Pages(limit_pages)), false);
        let bound = Pages(0x1_0000);
        let style = MemoryStyle::Static { bound, offset_guard_size: REACH - bound.bytes().0 as u64 };
        let inner = VMMemory::new(&ty, &style).map_err(|e| no_room(&e.to_string()))?;
        close_rest(&inner).map_err(|e| no_room(&e.to_string()))?;
        let growth = MemoryGrowth { max_pages: AtomicU64::new(max_pages.into()), refused_bytes: AtomicU64::new(0) };
        let growth = Arc::new(growth);
        let memory =
            Memory::new_from_existing(store, VMMemory(Box::new(LimitedMemory { inner, growth: growth.clone() })));
        Ok(GuestMemory { memory, growth })
    }

    /// Adds pages for the host's own use, which the module's maximum does not count.
    pub fn add(&self, store: &mut impl AsStoreMut, pages: u32) -> Result<(), MemoryError> {
        self.growth.max_pages.fetch_add(pages.into(), Ordering::Relaxed);
        self.memory.grow(store, pages).map(|_| ())
    }

    /// The largest size that was refused since the last call.
    pub fn take_refused_bytes(&self) -> Option<u64> {
        Some(self.growth.refused_bytes.swap(0, Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    fn base(&self, store: &impl AsStoreRef, address: u64, bytes: u64) -> Option<*mut u8> {
        let view = self.memory.view(store);
        let within = address.checked_add(bytes).is_some_and(|end| end <= view.data_size());
        // SAFETY: the sum stays within the allocation, as just checked.
        within.then(|| unsafe { view.data_ptr().add(address as usize) })
    }

    /// Bytes of the guest, to be read while nothing runs in it; `None` outside its memory.
    pub fn bytes<'a>(&'a self, store: &'a impl AsStoreRef, address: u64, bytes: u64) -> Option<&'a [u8]> {
        let start = self.base(store, address, bytes)?;
        // SAFETY: in bounds; readable, since only guard pages are not and no slot reaches into one; no kernel runs and
        // no mutable slice exists while the store is borrowed.
        Some(unsafe { std::slice::from_raw_parts(start, bytes as usize) })
    }

    /// Bytes of the guest, to be written while nothing runs in it; `None` outside its memory.
    pub fn bytes_mut<'a>(
        &'a mut self,
        store: &'a mut impl AsStoreMut,
        address: u64,
        bytes: u64,
    ) -> Option<&'a mut [u8]> {
        let start = self.base(store, address, bytes)?;
        // SAFETY: as above, and both the memory and the store are borrowed mutably. Of the arena only what the kernel
        // may write is asked for: `Instance` sees to that.
        Some(unsafe { std::slice::from_raw_parts_mut(start, bytes as usize) })
    }

    /// Revokes access to the guard pages and to the pages after the arena, and maps the pages that the kernel may only
    /// read from a window through which the host writes to them.
    pub fn lay_out(&self, store: &impl AsStoreRef, arena: &Arena) -> std::io::Result<HostWindow> {
        for guard in &arena.guards {
            self.close(store, *guard..guard + HOST_PAGE)?;
        }
        self.close(store, arena.end()..self.memory.view(store).data_size())?;
        let window = HostWindow::new(arena.start..arena.end())?;
        for pages in arena.read_only() {
            let target = self.base(store, pages.start, pages.end - pages.start).and_then(NonNull::new);
            // SAFETY: whole pages of this memory, between guards, and no slice of it exists.
            unsafe { window.show(&pages, target.ok_or(std::io::ErrorKind::InvalidInput)?) }?;
        }
        Ok(window)
    }

    /// Revokes all access to whole pages.
    pub fn close(&self, store: &impl AsStoreRef, pages: Range<u64>) -> std::io::Result<()> {
        let bytes = pages.end - pages.start;
        if bytes == 0 {
            return Ok(());
        }
        let start = self.base(store, pages.start, bytes).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: whole pages inside this memory, which wasmer unmaps as one and never protects again page by page; the
        // host itself does not touch them any more.
        unsafe { mprotect(start.cast(), bytes as usize, MprotectFlags::empty()) }.map_err(Into::into)
    }

    /// Maps `shared` into the slot of a shared operand, read-only and without a copy. It must fit the slot.
    pub fn map(&self, store: &impl AsStoreRef, slot: &OperandSlot, shared: &SharedBytes) -> std::io::Result<()> {
        let bytes = shared.len();
        if bytes == 0 {
            return Ok(());
        }
        let start = self.base(store, slot.pages.start, bytes).ok_or(std::io::ErrorKind::InvalidInput)?;
        let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: whole pages of this memory's slot take the place of those that were there; a guard page follows, so
        // rounding up stays in the slot. The file is sealed: it neither shrinks nor changes below the mapping.
        unsafe { mmap(start.cast(), bytes as usize, protection, flags, shared.descriptor(), 0) }?;
        Ok(())
    }
}

/// Revokes access to the addresses after a new memory that compiled code can reach. Fails if they are not reserved.
fn close_rest(memory: &VMMemory) -> std::io::Result<()> {
    let MemoryStyle::Static { bound, offset_guard_size } = memory.style() else {
        return Err(std::io::ErrorKind::Unsupported.into());
    };
    assert!(bound.bytes().0 as u64 + offset_guard_size >= REACH, "a memory reserves all that its code can reach");
    // SAFETY: the definition belongs to the memory, which nobody else knows of yet. wasmer reserves for a static memory
    // what its style says, which is up to `REACH` at least, so nothing else lies there; a hole there is an error.
    unsafe {
        let definition = memory.vmmemory().as_ref();
        let (base, length) = (definition.base, definition.current_length);
        mprotect(base.add(length).cast(), REACH as usize - length, MprotectFlags::empty())?;
    }
    Ok(())
}

/// The message for a failed reservation, for a user who can raise the limit.
fn no_room(error: &str) -> String {
    let needed = ByteSize(REACH);
    let limit = match getrlimit(Resource::As).current {
        Some(bytes) => format!(
            "this process may have {} in all: raise `ulimit -v`, or the batch system's limit of virtual memory",
            ByteSize(bytes)
        ),
        None => "`ulimit -v` does not limit it: look at the system's limits of memory and mappings".to_owned(),
    };
    format!(
        "its memory needs {needed} of address space ({error}), and {limit}; compiled code checks no address, so all that 32 bits \
         of address and 32 bits of offset reach is kept free of anything else; it takes no memory, and each worker thread has it \
         once for each kernel"
    )
}
