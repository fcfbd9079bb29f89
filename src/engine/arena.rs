//! The layout of the operands in linear memory: the arena follows the module's own memory and holds the views and one
//! slot per operand, each in its own pages between guard pages.
//!
//! A tile lies at the end of its slot, as close to the guard page as alignment allows, so that most kernels that access
//! memory after it trap. On either side of the tile there is a fence, a byte pattern. Fences around outputs are checked
//! after each call; fences around inputs, which a kernel cannot write, make stray reads the same in every run.

use std::ops::Range;

use crate::engine::operand::{Access, OperandSpec, View};

/// Page size of the host, the unit of memory protection.
pub(super) const HOST_PAGE: u64 = 4_096;
/// Alignment of tiles.
pub(super) const ALIGNMENT: u64 = 64;
/// Most bytes of a fence.
pub(super) const FENCE_BYTES: u64 = 64;

/// The position of a tile in its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TilePlacement {
    /// Aligned at the end of the slot, as in runs.
    Aligned,
    /// This many bytes after the guard page before the slot.
    Front(u64),
    /// This many bytes before the guard page after the slot.
    Back(u64),
}

/// The pages of an operand in linear memory.
#[derive(Clone, Debug)]
pub(super) struct OperandSlot {
    /// Whole pages.
    pub pages: Range<u64>,
    pub max_bytes: u64,
    pub access: Access,
    pub place: TilePlacement,
    /// The tile of the last or the coming call, if there is one.
    pub tile: Option<Range<u64>>,
}

impl OperandSlot {
    /// Whether the kernel can write to it.
    pub fn is_writable(&self) -> bool {
        matches!(self.access, Access::Out | Access::InOut)
    }

    /// The addresses of a tile of `bytes`, if it fits.
    pub fn tile_of(&self, bytes: u64) -> Option<Range<u64>> {
        let Range { start, end } = self.pages;
        let address = match (self.access, self.place) {
            // Shared memory may be mapped over these pages.
            (Access::Shared, _) => start,
            (_, TilePlacement::Aligned) => end.checked_sub(bytes.max(1).next_multiple_of(ALIGNMENT))?,
            (_, TilePlacement::Front(gap)) => start + gap,
            (_, TilePlacement::Back(gap)) => end.checked_sub(bytes + gap)?,
        };
        let tile = address..address + bytes;
        (bytes <= self.max_bytes && start <= address && tile.end <= end).then_some(tile)
    }

    /// The parts of the slot before and after `tile`, at most `width` bytes each.
    pub fn fences(&self, tile: &Range<u64>, width: u64) -> [Range<u64>; 2] {
        let Range { start, end } = self.pages;
        let before = start.max(tile.start.saturating_sub(width))..tile.start;
        [before, tile.end..end.min(tile.end.saturating_add(width))]
    }
}

/// The host's part of linear memory.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pub start: u64,
    pub views: Range<u64>,
    pub slots: Vec<OperandSlot>,
    /// Addresses of the guard pages.
    pub guards: Vec<u64>,
    end: u64,
}

impl Arena {
    /// Lays out views and operands from `start` on, which is page-aligned.
    pub fn new(start: u64, operands: &[OperandSpec]) -> Arena {
        let mut arena = Arena { start, end: start, ..Arena::default() };
        // A guard page precedes the views too: a heap that grows beyond the module's own memory must not reach them.
        arena.add_guard();
        arena.views = arena.add_pages((operands.len() * View::BYTES) as u64);
        for operand in operands {
            // An empty operand also has a page.
            let bytes = match operand.access {
                Access::Shared => operand.max_bytes.max(1),
                _ => operand.max_bytes.max(1).next_multiple_of(ALIGNMENT) + FENCE_BYTES,
            };
            let pages = arena.add_pages(bytes);
            let OperandSpec { max_bytes, access } = *operand;
            arena.slots.push(OperandSlot { pages, max_bytes, access, place: TilePlacement::Aligned, tile: None });
        }
        arena
    }

    /// Pages for `bytes`, and a guard behind them.
    fn add_pages(&mut self, bytes: u64) -> Range<u64> {
        let pages = self.end..(self.end + bytes).next_multiple_of(HOST_PAGE);
        self.end = pages.end;
        self.add_guard();
        pages
    }

    fn add_guard(&mut self) {
        self.guards.push(self.end);
        self.end += HOST_PAGE;
    }

    /// First address behind the arena.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The pages that the kernel may only read, and the host writes to.
    pub fn read_only(&self) -> impl Iterator<Item = Range<u64>> {
        let inputs = self.slots.iter().filter(|slot| !slot.is_writable()).map(|slot| slot.pages.clone());
        [self.views.clone()].into_iter().chain(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_lie_between_guards_and_fences() {
        let spec = |max_bytes, access| OperandSpec { max_bytes, access };
        let operands = [spec(8000, Access::In), spec(0, Access::Shared), spec(4096, Access::Out)];
        let arena = Arena::new(65_536, &operands);
        assert_eq!(arena.guards[0], 65_536, "a guard stands before the views");
        for pages in arena.slots.iter().map(|slot| &slot.pages).chain([&arena.views]) {
            assert!(arena.guards.contains(&(pages.start - HOST_PAGE)) && arena.guards.contains(&pages.end));
        }
        let [input, shared, output] = &arena.slots[..] else { panic!("{arena:?}") };
        assert_eq!((input.pages.end - input.pages.start, shared.pages.end - shared.pages.start), (8192, 4096));
        let tile = input.tile_of(8000).unwrap();
        assert_eq!((tile.start % 64, tile.end), (0, input.pages.end), "8000 is a multiple of 64");
        assert_eq!(input.tile_of(8).unwrap().end + 56, input.pages.end);
        assert_eq!(input.tile_of(0).unwrap(), input.pages.end - 64..input.pages.end - 64);
        assert_eq!(input.tile_of(8001), None);
        let [before, behind] = input.fences(&input.tile_of(8).unwrap(), FENCE_BYTES);
        assert_eq!((before.end - before.start, behind.end - behind.start), (64, 56));
        assert_eq!(shared.tile_of(0).unwrap().start, shared.pages.start);
        let mut output = output.clone();
        output.place = TilePlacement::Front(0);
        assert_eq!(output.fences(&output.tile_of(4096).unwrap(), u64::MAX)[0], output.pages.start..output.pages.start);
        output.place = TilePlacement::Back(3);
        assert_eq!(output.tile_of(4096).unwrap().end + 3, output.pages.end);
    }
}
