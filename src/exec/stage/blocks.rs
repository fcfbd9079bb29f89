//! What the main thread does with blocks: brings their inputs in, takes their outputs out, lends and borrows them.

use std::sync::Arc;

use crate::exec::comm::communicator::{Link, tag};
use crate::exec::comm::trailer::Stamp;
use crate::exec::dataset::inputs::{BlockInput, Inputs};
use crate::exec::dataset::outputs::Stagings;
use crate::exec::error::RunError;
use crate::exec::kernels::tier_up::Tiers;
use crate::exec::recovery::completed::Finished;
use crate::exec::reduce::chain::{Outcome, Reduction};
use crate::exec::stage::Running;
use crate::exec::stage::steal_transfer;
use crate::exec::stage::steal_transfer::{Stealing, key};
use crate::exec::trace::recorder::What;
use crate::exec::worker::shared_state::{BlockData, BlockOutputs, lock};
use crate::fabric::{Message, Rank};
use crate::plan::{OperandPlan, Role, StagePlan, Tile};
use crate::report::Reason;
use crate::sched::{self, Action, Costs, Event, Path, Span, Team};
use crate::topology::Topology;

/// An action of the scheduler that reads inputs, and the transfers that it waits for.
#[derive(Debug)]
pub(in crate::exec) struct Held {
    missing: Vec<usize>,
    action: Action,
}

impl Running<'_> {
    /// Takes a part of an input from another rank, and does what has waited for it.
    pub(in crate::exec) fn arrive(&mut self, link: &mut Link, message: Message) -> Result<(), RunError> {
        let counts = &mut self.report.counts;
        let Some(arrived) = self.inputs.take(link, message, counts)? else { return Ok(()) };
        if self.shared.has_begun() {
            counts.overlapped_bytes += arrived.bytes;
        }
        self.held.iter_mut().for_each(|held| held.missing.retain(|number| *number != arrived.number));
        let ready: Vec<Held> = self.held.extract_if(.., |held| held.missing.is_empty()).collect();
        for held in ready {
            match held.action {
                Action::Fetch { block } => self.fetch(block)?,
                Action::Send { to, message } => self.send(link, to, &message)?,
                action => unreachable!("{action:?} reads no inputs"),
            }
        }
        Ok(())
    }

    pub(in crate::exec) fn fetch(&mut self, number: u64) -> Result<(), RunError> {
        let tile = self.tiles[number as usize].clone();
        let plan = self.shared.stage();
        let missing = self.inputs.missing(plan, &tile);
        if !missing.is_empty() {
            self.held.push(Held { missing, action: Action::Fetch { block: number } });
            return Ok(());
        }
        let (begun, read_before) = (self.shared.setup.tracer.begin(), self.report.counts.read_bytes);
        let mut inputs = Vec::new();
        for index in 0..plan.operands.len() {
            let region = plan.region(index, &tile);
            inputs.push(self.inputs.of_block(plan, index, &region, &mut self.report.counts)?);
        }
        let (stage, read_bytes) = (self.shared.setup.stage_index, self.report.counts.read_bytes - read_before);
        let bytes = inputs.iter().map(BlockInput::packed_bytes).sum();
        self.shared.setup.tracer.end_tile(begun, &tile, || What::Read { stage, bytes, read_bytes });
        let outputs = self.sums.outputs(plan, &tile).into();
        let (slices, summed) = (plan.slices(&tile), self.stealing.done().sums.leaves(plan, &tile));
        let block = Arc::new(BlockData { cover: tile.clone(), tile, inputs, outputs, summed });
        lock(&self.shared.blocks).insert((self.owner, number, 0), block);
        self.shared.event(Event::Fetched { block: number, slices });
        Ok(())
    }

    pub(in crate::exec) fn write(
        &mut self,
        link: &mut Link,
        number: u64,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let block = lock(&self.shared.blocks).remove(&(self.owner, number, 0));
        let Some(block) = block else { panic!("block {number} is not in memory") };
        let shared = self.shared.clone();
        let plan = shared.stage();
        self.note_sums(&block, stagings, false);
        self.forget_sums(&block.tile);
        match (&mut *lock(&block.outputs), &mut self.reduction) {
            (BlockOutputs::Tiles(tiles), _) => {
                for (tile, results) in tiles.take_rest(plan, &block.tile) {
                    self.emit(link, &tile, &results, stagings)?;
                }
            }
            (BlockOutputs::Groups(_, groups), Some(reduction)) => {
                let outcomes = reduction.add(plan, &block.tile, std::mem::take(groups));
                self.follow(link, outcomes, stagings)?;
            }
            (outputs, _) => unreachable!("an own block has no {outputs:?}"),
        }
        self.blocks_done += 1;
        self.shared.event(Event::Written { block: number });
        Ok(())
    }

    /// Sends a message of the scheduler, and what goes with it.
    pub(in crate::exec) fn send(
        &mut self,
        link: &mut Link,
        to: Rank,
        message: &sched::Message,
    ) -> Result<(), RunError> {
        let mut bytes = message.encode();
        let shared = self.shared.clone();
        match message {
            sched::Message::Grant { pieces, .. } => {
                let missing = self.stealing.missing(shared.stage(), &self.inputs, pieces);
                if !missing.is_empty() {
                    self.held.push(Held { missing, action: Action::Send { to, message: message.clone() } });
                    return Ok(());
                }
                for piece in pieces {
                    let begun = link.tracer.begin();
                    let (plan, counts) = (shared.stage(), &mut self.report.counts);
                    let inputs = self.stealing.inputs_to_send(plan, &self.inputs, *piece, counts)?;
                    link.sent(begun, to, Reason::Steal, steal_transfer::join(&inputs, &mut bytes));
                }
            }
            sched::Message::Returned { piece, .. } => {
                let block = lock(&shared.blocks).remove(&key(*piece));
                let Some(block) = block else { panic!("{piece:?} is not in memory") };
                let begun = link.tracer.begin();
                let outputs = Stealing::outputs_to_send(&block);
                link.sent(begun, to, Reason::Steal, steal_transfer::join(&outputs, &mut bytes));
            }
            _ => {}
        }
        Stamp::run(self.run).put(&mut bytes);
        link.send(to, tag::of_run(tag::SCHEDULER, self.run), bytes.into())
    }

    pub(in crate::exec) fn heed_scheduler(&mut self, mut message: Message) -> Result<(), RunError> {
        Stamp::run(self.run).check(&mut message.bytes, message.source, "a message of its scheduler")?;
        let wrong = || RunError::Protocol { rank: message.source, what: "a message of its scheduler" };
        let decoded = sched::Message::decode(&message.bytes, message.source, self.owner);
        let (decoded, attached) = decoded.ok_or_else(wrong)?;
        let whole = match &decoded {
            sched::Message::Grant { pieces, .. } => self.stealing.attach(pieces, attached),
            sched::Message::Returned { piece, .. } => self.stealing.attach(&[*piece], attached),
            _ => attached.is_empty(),
        };
        if !whole {
            return Err(wrong());
        }
        self.shared.event(Event::Message { from: message.source, message: decoded });
        Ok(())
    }

    /// Gets a stolen piece ready for the workers.
    pub(in crate::exec) fn take(&mut self, link: &Link, piece: Span) -> Result<(), RunError> {
        let shared = self.shared.clone();
        let plan = shared.stage();
        let (begun, counts) = (link.tracer.begin(), &mut self.report.counts);
        let read_before = counts.read_bytes;
        let (block, came) = self.stealing.block(plan, &self.inputs, piece, counts)?;
        link.received(&mut counts.moved, Reason::Steal, piece.owner, came);
        let (stage, read_bytes) = (shared.setup.stage_index, counts.read_bytes - read_before);
        let bytes = block.inputs.iter().map(BlockInput::packed_bytes).sum();
        link.tracer.end_tile(begun, &block.cover, || What::Read { stage, bytes, read_bytes });
        let slices = if piece.len == 0 { plan.slices(&block.tile) } else { piece.len };
        lock(&shared.blocks).insert(key(piece), Arc::new(block));
        let Span { owner, block, .. } = piece;
        link.tracer.mark(|| What::Steal { stage: shared.setup.stage_index, owner, block, slices });
        shared.event(Event::Taken { piece, slices });
        Ok(())
    }

    /// Adds what a thief has computed to the block that it is of, which is not in memory if all of it was stolen.
    pub(in crate::exec) fn merge(&mut self, link: &Link, piece: Span, thief: Rank) -> Result<(), RunError> {
        let shared = self.shared.clone();
        let plan = shared.stage();
        if piece.len == 0 {
            let tile = self.tiles[piece.block as usize].clone();
            let outputs = self.sums.outputs(plan, &tile).into();
            let summed = self.stealing.done().sums.leaves(plan, &tile);
            let block = BlockData { cover: tile.clone(), tile, inputs: Vec::new(), outputs, summed };
            lock(&shared.blocks).insert(key(piece), Arc::new(block));
        }
        let Some(block) = shared.block(piece) else { panic!("{piece:?} is not in memory") };
        let bytes = self.stealing.merge(plan, &block, piece)?;
        link.received(&mut self.report.counts.moved, Reason::Steal, thief, bytes);
        Ok(())
    }

    /// Writes the outputs of a tile, in their order.
    pub(in crate::exec) fn emit(
        &mut self,
        link: &mut Link,
        tile: &Tile,
        results: &[Vec<u8>],
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let plan = self.shared.stage();
        let (begun, written_before) = (link.tracer.begin(), self.report.counts.written_bytes);
        let mut kept = Vec::with_capacity(results.len());
        for ((number, index), bytes) in plan.outputs().enumerate().zip(results) {
            let region = plan.region(index, tile);
            let (written, stored) = self.outputs.write(link, number, &region, bytes, stagings)?;
            self.report.counts.written_bytes += written;
            kept.extend(stored);
        }
        let (stage, written_bytes) = (self.shared.setup.stage_index, self.report.counts.written_bytes - written_before);
        link.tracer.end_tile(begun, tile, || What::Write { stage, written_bytes });
        if kept.len() == results.len() {
            let (stage, tile) = (plan.name.clone(), tile.clone());
            stagings.manifest.note(&Finished { stage, tile, outputs: kept, leaves: None });
        }
        Ok(())
    }

    /// Does what follows from partial results.
    pub(in crate::exec) fn follow(
        &mut self,
        link: &mut Link,
        outcomes: Vec<Outcome>,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        for outcome in outcomes {
            match outcome {
                Outcome::Merge(handed) => self.shared.hand(handed),
                Outcome::Pass { to, mut bytes } => {
                    let (begun, tensor_bytes) = (link.tracer.begin(), bytes.len() - Reduction::header_bytes(&bytes));
                    Stamp::run(self.run).put(&mut bytes);
                    link.send(to, tag::of_run(tag::PARTIAL, self.run), bytes.into())?;
                    link.sent(begun, to, Reason::Reduce, tensor_bytes as u64);
                }
                Outcome::Done { tile, results } => self.emit(link, &tile, &results, stagings)?,
            }
        }
        Ok(())
    }
}

/// All ranks, as thieves and owners see them.
pub(in crate::exec) fn team(topology: &Topology, rank: Rank) -> Team {
    Team::new(rank, topology.size(), topology.ranks_on_node(rank).iter().copied(), 0..topology.size())
}

/// What stealing a block costs: main threads look for messages that often, and bytes go through their hands.
pub(in crate::exec) fn costs(plan: &StagePlan, inputs: &Inputs<'_>) -> Costs {
    let latency_ns = Tiers::PATIENCE.as_nanos() as u64;
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
