//! Where the host puts what it hands to a kernel: behind what the module itself uses lies the arena, with the views and
//! one slot per operand, each in pages of its own between pages that nobody may touch.
//!
//! A tile lies at the end of its slot, as near to the page behind as alignment lets it, so that most kernels that go
//! beyond it trap. What is left of the slot on either side begins with a fence, a pattern: behind and before outputs it
//! is compared after each call, and beside inputs, which a kernel cannot write, it makes what is read there the same in
//! every run.

use std::ops::Range;

use crate::engine::operand::{Access, OperandSpec, View};

/// Protection works on the host's pages.
pub(super) const HOST_PAGE: u64 = 4_096;
/// Tiles begin at multiples of it.
pub(super) const ALIGNMENT: u64 = 64;
/// Bytes of a fence, where the slot has so many.
pub(super) const FENCE_BYTES: u64 = 64;

/// Where in its slot an operand's tile lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TilePlacement {
    /// As in runs: aligned, at the end of the slot.
    Aligned,
    /// So many bytes behind the page that ends before the slot.
    Front(u64),
    /// So many bytes before the page that begins behind the slot.
    Back(u64),
}

/// Where an operand's bytes may lie in linear memory.
#[derive(Clone, Debug)]
pub(super) struct OperandSlot {
    /// Whole pages.
    pub pages: Range<u64>,
    pub max_bytes: u64,
    pub access: Access,
    pub place: TilePlacement,
    /// The tile of the last call, or the next one, if there is one.
    pub tile: Option<Range<u64>>,
}

impl OperandSlot {
    /// Whether the kernel can write to it.
    pub fn is_writable(&self) -> bool {
        matches!(self.access, Access::Out | Access::InOut)
    }

    /// Where a tile of `bytes` lies, if it fits.
    pub fn tile_of(&self, bytes: u64) -> Option<Range<u64>> {
        let Range { start, end } = self.pages;
        let address = match (self.access, self.place) {
            // Pages of others may take the place of these.
            (Access::Shared, _) => start,
            (_, TilePlacement::Aligned) => end.checked_sub(bytes.max(1).next_multiple_of(ALIGNMENT))?,
            (_, TilePlacement::Front(gap)) => start + gap,
            (_, TilePlacement::Back(gap)) => end.checked_sub(bytes + gap)?,
        };
        let tile = address..address + bytes;
        (bytes <= self.max_bytes && start <= address && tile.end <= end).then_some(tile)
    }

    /// What of the slot stands before and behind `tile`, at most `width` bytes of it on each side.
    pub fn fences(&self, tile: &Range<u64>, width: u64) -> [Range<u64>; 2] {
        let Range { start, end } = self.pages;
        let before = start.max(tile.start.saturating_sub(width))..tile.start;
        [before, tile.end..end.min(tile.end.saturating_add(width))]
    }
}

/// Where everything lies that the host put into linear memory.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pub start: u64,
    pub views: Range<u64>,
    pub slots: Vec<OperandSlot>,
    /// Pages that nobody may touch, as addresses.
    pub guards: Vec<u64>,
    end: u64,
}

impl Arena {
    /// Lays out views and operands from `start` on, which is page-aligned.
    pub fn new(start: u64, operands: &[OperandSpec]) -> Arena {
        let mut arena = Arena { start, end: start, ..Arena::default() };
        // Before the views too: a heap that runs over the module's own memory must not reach them.
        arena.add_guard();
        arena.views = arena.add_pages((operands.len() * View::BYTES) as u64);
        for operand in operands {
            // An empty operand has a page of its own all the same.
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
