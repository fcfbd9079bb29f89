//! The bytes of stolen work: the inputs that go with a grant, and the outputs that come back.
//!
//! `sched` decides which spans are stolen. A thief reads inputs from files itself; inputs that only the owner has in
//! memory travel with the grant. Results go back to the owner, which writes them like its own.

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

/// The bytes that came with messages and wait for the scheduler's decision, and the blocks of other ranks.
#[derive(Debug, Default)]
pub(in crate::exec) struct Stealing {
    attached: BTreeMap<BlockKey, Vec<Vec<u8>>>,
    tiles: BTreeMap<Rank, Vec<Tile>>,
    /// The completed work of earlier runs.
    completed: CompletedTiles,
}

/// The tiles of a span.
struct SpanTiles {
    /// Of the whole block.
    block: Tile,
    /// Of the span itself.
    cover: Tile,
}

impl Stealing {
    pub fn new(completed: CompletedTiles) -> Stealing {
        Stealing { completed, ..Stealing::default() }
    }

    /// Returns the completed work of earlier runs of the stage.
    pub fn completed(&self) -> &CompletedTiles {
        &self.completed
    }

    /// Returns the tiles of a span and of its block; `None` if there is no such block or slice.
    fn tiles(&mut self, plan: &StagePlan, span: Span) -> Option<SpanTiles> {
        let tiles = self.tiles.entry(span.owner).or_insert_with(|| self.completed.blocks_left(plan, span.owner));
        let block = tiles.get(usize::try_from(span.block).ok()?)?.clone();
        let slices = plan.slices(&block);
        let len = if span.len == 0 { slices } else { span.len };
        let cover = (span.start.checked_add(len)? <= slices).then(|| plan.task(&block, span.start, len))?;
        Some(SpanTiles { block, cover })
    }

    /// Keeps the bytes that came with a message about these spans: a list of buffers for each. Returns false if they
    /// are truncated.
    pub fn attach(&mut self, spans: &[Span], mut bytes: &[u8]) -> bool {
        for span in spans {
            let Some((buffers, rest)) = split(bytes) else { return false };
            self.attached.insert(BlockKey::of_span(*span), buffers);
            bytes = rest;
        }
        bytes.is_empty()
    }

    fn take_attached(&mut self, span: Span) -> Vec<Vec<u8>> {
        self.attached.remove(&BlockKey::of_span(span)).unwrap_or_default()
    }

    /// Returns the transfers that a grant of these own spans waits for: inputs for the thief that are still on their
    /// way to this rank.
    pub fn missing(&mut self, plan: &StagePlan, inputs: &Inputs<'_>, spans: &[Span]) -> Vec<usize> {
        let missing = |span: &Span| self.tiles(plan, *span).map(|tiles| inputs.missing(plan, &tiles.cover));
        spans.iter().filter_map(missing).flatten().collect()
    }

    /// Returns the inputs that go with a grant of an own span.
    pub fn inputs_to_send(
        &mut self,
        plan: &StagePlan,
        inputs: &Inputs<'_>,
        span: Span,
        counts: &mut Counts,
    ) -> Result<Vec<Vec<u8>>, RunError> {
        let SpanTiles { cover, .. } =
            self.tiles(plan, span).unwrap_or_else(|| panic!("{span:?} is granted, but not owned"));
        let travelling = (0..plan.operands.len()).filter(|index| inputs.travels(*index));
        travelling.map(|index| inputs.read(plan, index, &plan.region(index, &cover), counts)).collect()
    }

    /// Makes a block of a stolen span, and returns how many bytes of it came with the grant.
    pub fn block(
        &mut self,
        plan: &StagePlan,
        inputs: &Inputs<'_>,
        span: Span,
        counts: &mut Counts,
    ) -> Result<(BlockData, u64), RunError> {
        let wrong = || RunError::Protocol { rank: span.owner, what: "work" };
        let SpanTiles { block: tile, cover } = self.tiles(plan, span).ok_or_else(wrong)?;
        let (mut attached, mut came) = (self.take_attached(span).into_iter(), 0);
        let slices = if span.len == 0 { plan.slices(&tile) } else { span.len };
        let outputs = match plan.reduce {
            None => BlockOutputs::tiles(plan, &cover),
            // The owner combines partial results: it alone has all slices.
            Some(_) => BlockOutputs::Slices(span.start, vec![Vec::new(); slices as usize]),
        };
        let summed = self.completed.sums.leaves(plan, &tile);
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

    /// Takes the outputs of a stolen span.
    pub fn outputs_to_send(block: &BlockData) -> Vec<Vec<u8>> {
        match &mut *lock(&block.outputs) {
            BlockOutputs::Tiles(tiles) => std::mem::take(&mut tiles.buffers),
            BlockOutputs::Slices(_, slices) => std::mem::take(slices).into_iter().flatten().collect(),
            BlockOutputs::Groups(..) => unreachable!("a thief does not combine partial results"),
        }
    }

    /// Adds the results that a thief returned to an own block. Returns the number of bytes.
    pub fn merge(&mut self, plan: &StagePlan, block: &BlockData, span: Span) -> Result<u64, RunError> {
        let wrong = || RunError::Protocol { rank: span.owner, what: "the results of its work" };
        let SpanTiles { cover, .. } = self.tiles(plan, span).ok_or_else(wrong)?;
        let slices = if span.len == 0 { plan.slices(&block.tile) } else { span.len };
        let (mut attached, mut came) = (self.take_attached(span).into_iter(), 0);
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
                tiles.computed.add(span.start, span.start + slices);
            }
            BlockOutputs::Groups(reduce, groups) => {
                // Merged by the worker that adds to the group next, or after the block.
                let slices = span.start..span.start + slices;
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

/// Returns the ranks that a rank may steal from, and that may steal from it.
pub(in crate::exec) fn team(topology: &Topology, rank: Rank) -> Team {
    Team::new(rank, topology.size(), topology.ranks_on_node(rank).iter().copied(), 0..topology.size())
}

/// Returns the cost of stealing a block: main threads poll for messages at this interval, and copy the bytes.
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

/// Appends a list of buffers: their number, then the length and the bytes of each. Returns the sum of the lengths.
pub(in crate::exec) fn join(buffers: &[Vec<u8>], bytes: &mut Vec<u8>) -> u64 {
    bytes.extend((buffers.len() as u64).to_le_bytes());
    for buffer in buffers {
        bytes.extend((buffer.len() as u64).to_le_bytes());
        bytes.extend_from_slice(buffer);
    }
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// Splits a list that [`join`] appended from the bytes after it.
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
    fn lists_are_read_back_and_truncated_ones_are_refused() {
        let (first, second) = (vec![vec![1, 2, 3], vec![]], vec![vec![7; 20]]);
        let mut bytes = Vec::new();
        join(&first, &mut bytes);
        join(&second, &mut bytes);
        let (found, rest) = split(&bytes).unwrap();
        assert_eq!(found, first);
        assert_eq!(split(rest).unwrap(), (second, &[][..]));
        assert!((0..11).all(|cut| split(&bytes[..cut]).is_none()));
        let span = Span { owner: 1, block: 2, start: 0, len: 4 };
        assert!(!Stealing::default().attach(&[span], &u64::MAX.to_le_bytes()));
    }
}
