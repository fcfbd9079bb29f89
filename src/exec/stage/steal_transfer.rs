//! Work that moves between ranks, as far as it is bytes: the inputs that go with a grant, the outputs that come back.
//!
//! `sched` decides what is stolen. A thief reads inputs from files itself; what only the owner has in memory travels with
//! the grant. Results go back to the owner, who writes them as if they were its own.

use std::collections::BTreeMap;

use crate::exec::dataset::inputs::Inputs;
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::TierUp;
use crate::exec::recovery::completed::CompletedTiles;
use crate::exec::sync::lock;
use crate::exec::transfer::piece::BlockInput;
use crate::exec::worker::block::{BlockData, BlockKey, BlockOutputs};
use crate::fabric::Rank;
use crate::plan::{OperandPlan, Role, StagePlan, Tile};
use crate::report::Counts;
use crate::sched::{Costs, Path, Span, Team};
use crate::tensor::copy_region;
use crate::topology::Topology;

/// What has come with messages and waits for the scheduler's word, and the blocks of other ranks.
#[derive(Debug, Default)]
pub(in crate::exec) struct Stealing {
    attached: BTreeMap<BlockKey, Vec<Vec<u8>>>,
    tiles: BTreeMap<Rank, Vec<Tile>>,
    /// What earlier runs have finished.
    done: CompletedTiles,
}

pub(in crate::exec) fn key(piece: Span) -> BlockKey {
    (piece.owner, piece.block, piece.start)
}

impl Stealing {
    pub fn new(done: CompletedTiles) -> Stealing {
        Stealing { done, ..Stealing::default() }
    }

    /// What earlier runs have finished of the stage.
    pub fn done(&self) -> &CompletedTiles {
        &self.done
    }

    /// The tile of the block that `piece` is of, and the tile of the piece; `None` if there is no such block or slice.
    pub fn tiles(&mut self, plan: &StagePlan, piece: Span) -> Option<(Tile, Tile)> {
        let tiles = self.tiles.entry(piece.owner).or_insert_with(|| self.done.blocks_left(plan, piece.owner));
        let tile = tiles.get(usize::try_from(piece.block).ok()?)?.clone();
        let slices = plan.slices(&tile);
        let len = if piece.len == 0 { slices } else { piece.len };
        let cover = (piece.start.checked_add(len)? <= slices).then(|| plan.task(&tile, piece.start, len))?;
        Some((tile, cover))
    }

    /// Keeps what came with a message about these pieces, one list of buffers each. False if it is cut short.
    pub fn attach(&mut self, pieces: &[Span], mut bytes: &[u8]) -> bool {
        for piece in pieces {
            let Some((buffers, rest)) = split(bytes) else { return false };
            self.attached.insert(key(*piece), buffers);
            bytes = rest;
        }
        bytes.is_empty()
    }

    pub fn take_attached(&mut self, piece: Span) -> Vec<Vec<u8>> {
        self.attached.remove(&key(piece)).unwrap_or_default()
    }

    /// The transfers that a grant of these own pieces waits for: of what its thief gets, some may be on its way to this rank.
    pub fn missing(&mut self, plan: &StagePlan, inputs: &Inputs<'_>, pieces: &[Span]) -> Vec<usize> {
        let missing = |piece: &Span| self.tiles(plan, *piece).map(|(_, cover)| inputs.missing(plan, &cover));
        pieces.iter().filter_map(missing).flatten().collect()
    }

    /// The inputs that go with a grant of this own piece.
    pub fn inputs_to_send(
        &mut self,
        plan: &StagePlan,
        inputs: &Inputs<'_>,
        piece: Span,
        counts: &mut Counts,
    ) -> Result<Vec<Vec<u8>>, RunError> {
        let (_, cover) = self.tiles(plan, piece).unwrap_or_else(|| panic!("{piece:?} is lent, but not owned"));
        let travelling = (0..plan.operands.len()).filter(|index| inputs.travels(*index));
        travelling.map(|index| inputs.read(plan, index, &plan.region(index, &cover), counts)).collect()
    }

    /// A stolen piece as a block to compute, and how many bytes of it came with its grant.
    pub fn block(
        &mut self,
        plan: &StagePlan,
        inputs: &Inputs<'_>,
        piece: Span,
        counts: &mut Counts,
    ) -> Result<(BlockData, u64), RunError> {
        let wrong = || RunError::Protocol { rank: piece.owner, what: "work" };
        let (tile, cover) = self.tiles(plan, piece).ok_or_else(wrong)?;
        let (mut attached, mut came) = (self.take_attached(piece).into_iter(), 0);
        let slices = if piece.len == 0 { plan.slices(&tile) } else { piece.len };
        let outputs = match plan.reduce {
            None => BlockOutputs::tiles(plan, &cover),
            // The owner combines: it alone has all slices.
            Some(_) => BlockOutputs::Slices(piece.start, vec![Vec::new(); slices as usize]),
        };
        let summed = self.done.sums.leaves(plan, &tile);
        let mut block = BlockData { tile, cover, inputs: Vec::new(), outputs: outputs.into(), summed };
        for (index, operand) in plan.operands.iter().enumerate() {
            let region = plan.region(index, &block.cover);
            block.inputs.push(if inputs.travels(index) {
                let bytes = attached.next().ok_or_else(wrong)?;
                let padded: u64 =
                    region.extent.iter().zip(&operand.halo).map(|(extent, halo)| extent + 2 * halo).product();
                if bytes.len() as u64 != padded * operand.dtype.size_bytes() as u64 {
                    return Err(wrong());
                }
                came += bytes.len() as u64;
                BlockInput::Packed(bytes)
            } else {
                inputs.of_block(plan, index, &region, counts)?
            });
        }
        Ok((block, came))
    }

    /// The outputs of a stolen piece.
    pub fn outputs_to_send(block: &BlockData) -> Vec<Vec<u8>> {
        match &mut *lock(&block.outputs) {
            BlockOutputs::Tiles(tiles) => std::mem::take(&mut tiles.buffers),
            BlockOutputs::Slices(_, slices) => std::mem::take(slices).into_iter().flatten().collect(),
            BlockOutputs::Groups(..) => unreachable!("a thief does not combine"),
        }
    }

    /// Adds what a thief returned to an own block. Returns how many bytes that was.
    pub fn merge(&mut self, plan: &StagePlan, block: &BlockData, piece: Span) -> Result<u64, RunError> {
        let wrong = || RunError::Protocol { rank: piece.owner, what: "the results of its work" };
        let (_, cover) = self.tiles(plan, piece).ok_or_else(wrong)?;
        let slices = if piece.len == 0 { plan.slices(&block.tile) } else { piece.len };
        let (mut attached, mut came) = (self.take_attached(piece).into_iter(), 0);
        let mut next = |index: usize| {
            let bytes = plan.region(index, &cover).elements() * plan.operands[index].dtype.size_bytes() as u64;
            came += bytes;
            attached.next().filter(|buffer| buffer.len() as u64 == bytes).ok_or_else(wrong)
        };
        match &mut *lock(&block.outputs) {
            BlockOutputs::Tiles(tiles) => {
                for (target, index) in tiles.buffers.iter_mut().zip(plan.outputs()) {
                    let (region, to) = (plan.region(index, &cover), plan.region(index, &block.cover));
                    let element_bytes = plan.operands[index].dtype.size_bytes();
                    copy_region(&next(index)?, &region, target, &to, &region, element_bytes);
                }
                tiles.computed.add(piece.start, piece.start + slices);
            }
            BlockOutputs::Groups(reduce, groups) => {
                // Merged by the worker that adds to the group next, or after the block.
                let slices = piece.start..piece.start + slices;
                for slice in slices.filter(|slice| !block.is_summed(plan, *slice)) {
                    let results = plan.outputs().map(&mut next).collect::<Result<Vec<_>, _>>()?;
                    let (group, leaf) = (slice / reduce.leaves, slice % reduce.leaves);
                    groups[group as usize].put(leaf, results);
                }
            }
            BlockOutputs::Slices(..) => unreachable!("an owner has all slices"),
        }
        Ok(came)
    }
}

/// All ranks, as thieves and owners see them.
pub(in crate::exec) fn team(topology: &Topology, rank: Rank) -> Team {
    Team::new(rank, topology.size(), topology.ranks_on_node(rank).iter().copied(), 0..topology.size())
}

/// What stealing a block costs: main threads look for messages that often, and bytes go through their hands.
pub(in crate::exec) fn costs(plan: &StagePlan, inputs: &Inputs<'_>) -> Costs {
    let latency_ns = TierUp::PATIENCE.as_nanos() as u64;
    let travels = |(index, operand): &(usize, &OperandPlan)| operand.role == Role::Output || inputs.travels(*index);
    let travelling = plan.operands.iter().enumerate().filter(travels);
    let block_bytes = travelling.map(|(index, _)| plan.operand_max_bytes(index)).sum();
    Costs {
        node: Path { latency_ns, ns_per_byte: 0.5 },
        network: Path { latency_ns, ns_per_byte: 1.0 },
        unfetched_block_bytes: block_bytes,
        fetched_block_bytes: block_bytes,
    }
}

/// Appends a list of buffers: their number, then the length and the bytes of each. Returns the sum of their lengths.
pub(in crate::exec) fn join(buffers: &[Vec<u8>], bytes: &mut Vec<u8>) -> u64 {
    bytes.extend((buffers.len() as u64).to_le_bytes());
    for buffer in buffers {
        bytes.extend((buffer.len() as u64).to_le_bytes());
        bytes.extend_from_slice(buffer);
    }
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// The list that [`join`] appended, and what comes after it.
fn split(mut bytes: &[u8]) -> Option<(Vec<Vec<u8>>, &[u8])> {
    let word = |bytes: &mut &[u8]| {
        let (word, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        usize::try_from(u64::from_le_bytes(*word)).ok()
    };
    let count = word(&mut bytes)?;
    let mut buffers = Vec::new();
    for _ in 0..count {
        let length = word(&mut bytes)?;
        let (buffer, rest) = bytes.split_at_checked(length)?;
        buffers.push(buffer.to_vec());
        bytes = rest;
    }
    Some((buffers, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_and_cut_ones_are_refused() {
        let (first, second) = (vec![vec![1, 2, 3], vec![]], vec![vec![7; 20]]);
        let mut bytes = Vec::new();
        join(&first, &mut bytes);
        join(&second, &mut bytes);
        let (found, rest) = split(&bytes).unwrap();
        assert_eq!(found, first);
        assert_eq!(split(rest).unwrap(), (second, &[][..]));
        assert!((0..11).all(|cut| split(&bytes[..cut]).is_none()));
        let piece = Span { owner: 1, block: 2, start: 0, len: 4 };
        assert!(!Stealing::default().attach(&[piece], &u64::MAX.to_le_bytes()));
    }
}
