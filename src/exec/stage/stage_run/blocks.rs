//! What the main thread does with blocks: brings their inputs in, takes their outputs out, lends and borrows them.

use std::sync::Arc;

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{StageMessage, Tag, TaggedMessage};
use crate::exec::comm::trailer::Trailer;
use crate::exec::error::RunError;
use crate::exec::recovery::record::CompletionRecord;
use crate::exec::recovery::staging::Stagings;
use crate::exec::reduce::chain::{Reduction, ReductionStep};
use crate::exec::stage::deferred::DeferredAction;
use crate::exec::stage::stage_run::StageRun;
use crate::exec::stage::steal_transfer;
use crate::exec::stage::steal_transfer::Stealing;
use crate::exec::sync::lock;
use crate::exec::trace::recorder::TraceEventKind;
use crate::exec::transfer::piece::BlockInput;
use crate::exec::worker::block::{BlockData, BlockKey, BlockOutputs, ComputedTile};
use crate::fabric::Rank;
use crate::plan::Tile;
use crate::report::Reason;
use crate::sched::{self, Action, Event, Span};

impl StageRun<'_> {
    /// Takes a part of an input from another rank, and does what has waited for it.
    pub(in crate::exec) fn arrive(&mut self, comm: &mut Communicator, message: TaggedMessage) -> Result<(), RunError> {
        let counts = &mut self.report.counts;
        let Some(arrived) = self.inputs.take(comm, message, counts)? else { return Ok(()) };
        if self.shared.has_begun() {
            counts.overlapped_bytes += arrived.bytes;
        }
        self.deferred.iter_mut().for_each(|held| held.missing.retain(|number| *number != arrived.number));
        let ready: Vec<DeferredAction> = self.deferred.extract_if(.., |held| held.missing.is_empty()).collect();
        for held in ready {
            match held.action {
                Action::Fetch { block } => self.fetch(block)?,
                Action::Send { to, message } => self.send(comm, to, &message)?,
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
            self.deferred.push(DeferredAction { missing, action: Action::Fetch { block: number } });
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
        self.shared.setup.tracer.end_tile(begun, &tile, || TraceEventKind::Read { stage, bytes, read_bytes });
        let outputs = self.sums.outputs(plan, &tile).into();
        let (slices, summed) = (plan.slices(&tile), self.stealing.completed().sums.leaves(plan, &tile));
        let block = Arc::new(BlockData { cover: tile.clone(), tile, inputs, outputs, summed });
        lock(&self.shared.blocks).insert(BlockKey::whole(self.owner, number), block);
        self.shared.event(Event::Fetched { block: number, slices });
        Ok(())
    }

    pub(in crate::exec) fn write(
        &mut self,
        comm: &mut Communicator,
        number: u64,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let block = lock(&self.shared.blocks).remove(&BlockKey::whole(self.owner, number));
        let Some(block) = block else { panic!("block {number} is not in memory") };
        let shared = self.shared.clone();
        let plan = shared.stage();
        self.record_sums(&block, stagings, false);
        self.forget_sums(&block.tile);
        match (&mut *lock(&block.outputs), &mut self.reduction) {
            (BlockOutputs::Tiles(tiles), _) => {
                for ComputedTile { tile, results } in tiles.take_rest(plan, &block.tile) {
                    self.emit(comm, &tile, &results, stagings)?;
                }
            }
            (BlockOutputs::Groups(_, groups), Some(reduction)) => {
                let outcomes = reduction.add(plan, &block.tile, std::mem::take(groups));
                self.follow(comm, outcomes, stagings)?;
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
        comm: &mut Communicator,
        to: Rank,
        message: &sched::Message,
    ) -> Result<(), RunError> {
        let mut bytes = message.encode();
        let shared = self.shared.clone();
        match message {
            sched::Message::Grant { pieces, .. } => {
                let missing = self.stealing.missing(shared.stage(), &self.inputs, pieces);
                if !missing.is_empty() {
                    self.deferred
                        .push(DeferredAction { missing, action: Action::Send { to, message: message.clone() } });
                    return Ok(());
                }
                for piece in pieces {
                    let begun = comm.tracer.begin();
                    let (plan, counts) = (shared.stage(), &mut self.report.counts);
                    let inputs = self.stealing.inputs_to_send(plan, &self.inputs, *piece, counts)?;
                    comm.sent(begun, to, Reason::Steal, steal_transfer::join(&inputs, &mut bytes));
                }
            }
            sched::Message::Returned { piece, .. } => {
                let block = lock(&shared.blocks).remove(&BlockKey::of_span(*piece));
                let Some(block) = block else { panic!("{piece:?} is not in memory") };
                let begun = comm.tracer.begin();
                let outputs = Stealing::outputs_to_send(&block);
                comm.sent(begun, to, Reason::Steal, steal_transfer::join(&outputs, &mut bytes));
            }
            _ => {}
        }
        Trailer::run(self.run).put(&mut bytes);
        comm.send(to, Tag::stage(StageMessage::Scheduler, self.run), bytes.into())
    }

    pub(in crate::exec) fn handle_scheduler(&mut self, mut message: TaggedMessage) -> Result<(), RunError> {
        Trailer::run(self.run).check(&mut message.bytes, message.source, "a message of its scheduler")?;
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
    pub(in crate::exec) fn take(&mut self, comm: &Communicator, piece: Span) -> Result<(), RunError> {
        let shared = self.shared.clone();
        let plan = shared.stage();
        let (begun, counts) = (comm.tracer.begin(), &mut self.report.counts);
        let read_before = counts.read_bytes;
        let (block, came) = self.stealing.block(plan, &self.inputs, piece, counts)?;
        comm.received(&mut counts.moved, Reason::Steal, piece.owner, came);
        let (stage, read_bytes) = (shared.setup.stage_index, counts.read_bytes - read_before);
        let bytes = block.inputs.iter().map(BlockInput::packed_bytes).sum();
        comm.tracer.end_tile(begun, &block.cover, || TraceEventKind::Read { stage, bytes, read_bytes });
        let slices = if piece.len == 0 { plan.slices(&block.tile) } else { piece.len };
        lock(&shared.blocks).insert(BlockKey::of_span(piece), Arc::new(block));
        let Span { owner, block, .. } = piece;
        comm.tracer.mark(|| TraceEventKind::Steal { stage: shared.setup.stage_index, owner, block, slices });
        shared.event(Event::Taken { piece, slices });
        Ok(())
    }

    /// Adds what a thief has computed to the block that it is of, which is not in memory if all of it was stolen.
    pub(in crate::exec) fn merge(&mut self, comm: &Communicator, piece: Span, thief: Rank) -> Result<(), RunError> {
        let shared = self.shared.clone();
        let plan = shared.stage();
        if piece.len == 0 {
            let tile = self.tiles[piece.block as usize].clone();
            let outputs = self.sums.outputs(plan, &tile).into();
            let summed = self.stealing.completed().sums.leaves(plan, &tile);
            let block = BlockData { cover: tile.clone(), tile, inputs: Vec::new(), outputs, summed };
            lock(&shared.blocks).insert(BlockKey::of_span(piece), Arc::new(block));
        }
        let Some(block) = shared.block(piece) else { panic!("{piece:?} is not in memory") };
        let bytes = self.stealing.merge(plan, &block, piece)?;
        comm.received(&mut self.report.counts.moved, Reason::Steal, thief, bytes);
        Ok(())
    }

    /// Writes the outputs of a tile, in their order.
    pub(in crate::exec) fn emit(
        &mut self,
        comm: &mut Communicator,
        tile: &Tile,
        results: &[Vec<u8>],
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        let plan = self.shared.stage();
        let (begun, written_before) = (comm.tracer.begin(), self.report.counts.written_bytes);
        let mut kept = Vec::with_capacity(results.len());
        for ((number, index), bytes) in plan.outputs().enumerate().zip(results) {
            let region = plan.region(index, tile);
            let (written, stored) = self.outputs.write(comm, number, &region, bytes, stagings)?;
            self.report.counts.written_bytes += written;
            kept.extend(stored);
        }
        let (stage, written_bytes) = (self.shared.setup.stage_index, self.report.counts.written_bytes - written_before);
        comm.tracer.end_tile(begun, tile, || TraceEventKind::Write { stage, written_bytes });
        if kept.len() == results.len() {
            let (stage, tile) = (plan.name.clone(), tile.clone());
            stagings.manifest.record(&CompletionRecord { stage, tile, outputs: kept, leaves: None });
        }
        Ok(())
    }

    /// Does what follows from partial results.
    pub(in crate::exec) fn follow(
        &mut self,
        comm: &mut Communicator,
        outcomes: Vec<ReductionStep>,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        for outcome in outcomes {
            match outcome {
                ReductionStep::Merge(handed) => self.shared.hand_out(handed),
                ReductionStep::Pass { to, mut bytes } => {
                    let (begun, tensor_bytes) = (comm.tracer.begin(), bytes.len() - Reduction::header_bytes(&bytes));
                    Trailer::run(self.run).put(&mut bytes);
                    comm.send(to, Tag::stage(StageMessage::Partial, self.run), bytes.into())?;
                    comm.sent(begun, to, Reason::Reduce, tensor_bytes as u64);
                }
                ReductionStep::Complete { tile, results } => self.emit(comm, &tile, &results, stagings)?,
            }
        }
        Ok(())
    }
}
