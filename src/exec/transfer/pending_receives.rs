//! Pending receives: parts of inputs that other ranks send. They are expected when a run of a stage starts, and taken
//! as they arrive.
//!
//! Both sides know from the plan what to send, and every rank sends before it waits. A rank sends the transfers of a
//! run in the order in which their receivers expect them, so a message belongs to the first incomplete transfer of its
//! source. The trailer confirms that.

use std::sync::Arc;

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{StageMessage, Tag, TaggedMessage};
use crate::exec::comm::trailer::{TRAILER_BYTES, Trailer};
use crate::exec::error::RunError;
use crate::exec::transfer::piece::{Piece, packed_bytes};
use crate::fabric::Rank;
use crate::report::{Moved, Reason};
use crate::tensor::{HaloPart, Region};

/// The parts of one input that one rank sends.
#[derive(Debug)]
pub(in crate::exec) struct Transfer {
    pub from: Rank,
    pub operand: usize,
    pub regions: Arc<[Region]>,
    pub element_bytes: usize,
    pub reason: Reason,
}

/// A transfer that has not arrived completely.
#[derive(Debug)]
struct PendingReceive {
    number: usize,
    transfer: Transfer,
    /// The bytes that have arrived.
    bytes: Vec<u8>,
}

/// The transfers that a rank expects in a run of a stage.
#[derive(Debug)]
pub(in crate::exec) struct PendingReceives {
    stage: usize,
    run: u64,
    /// The number of transfers expected so far. It numbers them.
    expected: usize,
    pending: Vec<PendingReceive>,
    /// Pieces that have arrived and are not taken yet, by operand.
    arrived: Vec<(usize, Piece)>,
}

/// A transfer that has arrived completely.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::exec) struct Arrived {
    pub number: usize,
    pub bytes: u64,
}

impl Transfer {
    fn bytes(&self) -> usize {
        packed_bytes(&self.regions, self.element_bytes)
    }
}

impl PendingReceives {
    pub fn new(stage: usize, run: u64) -> PendingReceives {
        PendingReceives { stage, run, expected: 0, pending: Vec::new(), arrived: Vec::new() }
    }

    /// The tag of their messages.
    pub fn tag(&self) -> Tag {
        Tag::stage(StageMessage::Shard, self.run)
    }

    /// The trailer of input `operand`.
    pub fn trailer(&self, operand: usize) -> Trailer {
        Trailer::operand(self.stage, operand)
    }

    /// Adds `transfer` to the pending receives. An empty transfer is never sent.
    pub fn expect(&mut self, transfer: Transfer) {
        if transfer.bytes() > 0 {
            self.pending.push(PendingReceive { number: self.expected, transfer, bytes: Vec::new() });
            self.expected += 1;
        }
    }

    pub fn all_here(&self) -> bool {
        self.pending.is_empty()
    }

    /// The pending transfers that have elements of these parts of input `operand`.
    pub fn missing(&self, operand: usize, parts: &[HaloPart]) -> Vec<usize> {
        let of_parts = |pending: &&PendingReceive| {
            let regions = &pending.transfer.regions;
            let meets = |part: &HaloPart| regions.iter().any(|region| region.intersect(&part.source).is_some());
            pending.transfer.operand == operand && parts.iter().any(meets)
        };
        self.pending.iter().filter(of_parts).map(|pending| pending.number).collect()
    }

    /// Takes a message with their tag. Returns the transfer that it completes, if it completes one.
    pub fn take(
        &mut self,
        comm: &Communicator,
        message: TaggedMessage,
        moved: &mut Moved,
    ) -> Result<Option<Arrived>, RunError> {
        let wrong = RunError::Protocol { rank: message.source, what: "its part of a tensor" };
        let first = self.pending.iter().position(|pending| pending.transfer.from == message.source);
        let Some(at) = first else { return Err(wrong) };
        let PendingReceive { transfer, bytes, .. } = &mut self.pending[at];
        let (length, part) = (transfer.bytes(), message.bytes);
        if part.is_empty() || bytes.len() + part.len() > length + TRAILER_BYTES {
            return Err(wrong);
        }
        // Most transfers are one message, which is taken as it is.
        if bytes.is_empty() {
            *bytes = part
        } else {
            bytes.extend_from_slice(&part)
        }
        if bytes.len() < length + TRAILER_BYTES {
            return Ok(None);
        }
        let PendingReceive { number, transfer, mut bytes } = self.pending.remove(at);
        self.trailer(transfer.operand).check(&mut bytes, transfer.from, "a part of a tensor")?;
        comm.received(moved, transfer.reason, transfer.from, length as u64);
        for region in &*transfer.regions {
            let rest = bytes.split_off(region.elements() as usize * transfer.element_bytes);
            self.arrived.push((transfer.operand, Piece { region: region.clone(), bytes: bytes.into() }));
            bytes = rest;
        }
        Ok(Some(Arrived { number, bytes: length as u64 }))
    }

    /// Takes the pieces that have arrived, by operand.
    pub fn take_arrived(&mut self) -> Vec<(usize, Piece)> {
        std::mem::take(&mut self.arrived)
    }

    /// Waits for all expected pieces of input `operand`, and returns them.
    pub fn wait(&mut self, comm: &mut Communicator, operand: usize, moved: &mut Moved) -> Result<Vec<Piece>, RunError> {
        while let Some(first) = self.pending.iter().find(|pending| pending.transfer.operand == operand) {
            let (source, tag) = (first.transfer.from, self.tag());
            let bytes = comm.receive(source, tag)?;
            self.take(comm, TaggedMessage { source, tag, bytes }, moved)?;
        }
        let (wanted, others) = self.take_arrived().into_iter().partition(|(of, _)| *of == operand);
        self.arrived = others;
        let wanted: Vec<(usize, Piece)> = wanted;
        Ok(wanted.into_iter().map(|(_, piece)| piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::comm::signal::Signal;
    use crate::fabric;

    fn region(offset: u64, extent: u64) -> Region {
        Region { offset: vec![offset], extent: vec![extent] }
    }

    fn transfer(from: Rank, operand: usize, regions: &[Region]) -> Transfer {
        Transfer { from, operand, regions: regions.into(), element_bytes: 1, reason: Reason::Halo }
    }

    fn message(pending: &PendingReceives, source: Rank, operand: usize, bytes: &[u8]) -> TaggedMessage {
        let mut bytes = bytes.to_vec();
        pending.trailer(operand).put(&mut bytes);
        TaggedMessage { source, tag: pending.tag(), bytes }
    }

    fn comm() -> Communicator {
        Communicator::new(fabric::local(3).remove(0), Signal::default())
    }

    #[test]
    fn transfers_of_one_source_arrive_in_order() {
        let (comm, mut moved, mut pending) = (comm(), Moved::default(), PendingReceives::new(4, 9));
        pending.expect(transfer(1, 0, &[region(0, 1), region(5, 2)]));
        pending.expect(transfer(2, 0, &[region(9, 3)]));
        pending.expect(transfer(2, 0, &[]));
        pending.expect(transfer(1, 2, &[region(3, 1)]));
        let part = |offset, extent| [HaloPart { source: region(offset, extent), at: vec![0] }];
        assert_eq!(pending.missing(0, &part(6, 4)), [0, 1]);
        assert!(pending.missing(0, &part(1, 4)).is_empty());
        assert_eq!(pending.missing(2, &part(0, 4)), [2]);

        let late = message(&pending, 2, 0, &[7, 8, 9]);
        assert_eq!(pending.take(&comm, late, &mut moved).unwrap(), Some(Arrived { number: 1, bytes: 3 }));
        // This transfer arrives in two messages.
        let mut first = message(&pending, 1, 0, &[1, 2, 3]);
        let rest = TaggedMessage { bytes: first.bytes.split_off(2), ..first.clone() };
        assert_eq!(pending.take(&comm, first, &mut moved).unwrap(), None);
        assert_eq!(pending.take(&comm, rest, &mut moved).unwrap(), Some(Arrived { number: 0, bytes: 3 }));
        assert!(pending.missing(0, &part(0, 20)).is_empty());
        let came =
            pending.take_arrived().into_iter().map(|(operand, piece)| (operand, piece.region, piece.bytes.to_vec()));
        let expected = [(0, region(9, 3), vec![7, 8, 9]), (0, region(0, 1), vec![1]), (0, region(5, 2), vec![2, 3])];
        assert_eq!(came.collect::<Vec<_>>(), expected);
        assert_eq!(moved.halo.node, 6);

        assert!(!pending.all_here());
        // This message has the trailer of another operand.
        let wrong = message(&pending, 1, 0, &[4]);
        assert!(matches!(pending.take(&comm, wrong, &mut moved), Err(RunError::Damaged { rank: 1, .. })));
        assert!(pending.all_here());
        let unexpected = message(&pending, 1, 2, &[4]);
        assert!(matches!(pending.take(&comm, unexpected, &mut moved), Err(RunError::Protocol { rank: 1, .. })));
    }

    #[test]
    fn waiting_for_one_input_keeps_the_pieces_of_others() {
        let mut fabrics = fabric::local(2);
        let mut sender = fabrics.pop().unwrap();
        let mut comm = Communicator::new(fabrics.remove(0), Signal::default());
        let (mut moved, mut pending) = (Moved::default(), PendingReceives::new(0, 1));
        for operand in [0, 1] {
            pending.expect(transfer(1, operand, &[region(operand as u64, 2)]));
            let TaggedMessage { tag, bytes, .. } = message(&pending, 1, operand, &[operand as u8; 2]);
            sender.send(0, tag.encode(), bytes.into()).unwrap();
        }
        let pieces = pending.wait(&mut comm, 1, &mut moved).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.bytes.to_vec()).collect::<Vec<_>>(), [[1, 1]]);
        assert_eq!(pending.take_arrived().len(), 1);
        assert!(pending.all_here());
    }
}
