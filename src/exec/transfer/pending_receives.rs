//! Parts of inputs on their way from other ranks: noted when a run of a stage begins, taken as they come.
//!
//! Every rank sends what others need of it before it waits for anything, and both sides know from the plan what that is. A
//! rank sends the transfers of a run in the order in which their receivers note them, so that a message belongs to the first
//! of its source that is not whole yet. The stamp tells whether it does.

use std::sync::Arc;

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{StageMessage, Tag, TaggedMessage};
use crate::exec::comm::trailer::{TRAILER_BYTES, Trailer};
use crate::exec::error::RunError;
use crate::exec::transfer::piece::{Piece, packed_bytes};
use crate::fabric::Rank;
use crate::report::{Moved, Reason};
use crate::tensor::{HaloPart, Region};

/// What one rank sends of one input.
#[derive(Debug)]
pub(in crate::exec) struct Transfer {
    pub from: Rank,
    pub operand: usize,
    pub regions: Arc<[Region]>,
    pub element_bytes: usize,
    pub reason: Reason,
}

/// A transfer of which something is yet to come.
#[derive(Debug)]
struct PendingReceive {
    number: usize,
    transfer: Transfer,
    /// What has come of it.
    bytes: Vec<u8>,
}

/// What a rank awaits in a run of a stage.
#[derive(Debug)]
pub(in crate::exec) struct PendingReceives {
    stage: usize,
    run: u64,
    /// Transfers noted so far, which numbers them.
    noted: usize,
    awaited: Vec<PendingReceive>,
    /// What has come and nobody has taken, by operand.
    came: Vec<(usize, Piece)>,
}

/// A transfer that is here.
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
        PendingReceives { stage, run, noted: 0, awaited: Vec::new(), came: Vec::new() }
    }

    /// The tag of their messages.
    pub fn tag(&self) -> Tag {
        Tag::stage(StageMessage::Shard, self.run)
    }

    /// What stands behind the bytes of input `operand`.
    pub fn trailer(&self, operand: usize) -> Trailer {
        Trailer::operand(self.stage, operand)
    }

    /// From now on `transfer` is awaited. Nothing is sent where there is nothing to send.
    pub fn expect(&mut self, transfer: Transfer) {
        if transfer.bytes() > 0 {
            self.awaited.push(PendingReceive { number: self.noted, transfer, bytes: Vec::new() });
            self.noted += 1;
        }
    }

    pub fn all_here(&self) -> bool {
        self.awaited.is_empty()
    }

    /// The transfers still awaited that have elements of these parts of input `operand`.
    pub fn missing(&self, operand: usize, parts: &[HaloPart]) -> Vec<usize> {
        let of_parts = |awaited: &&PendingReceive| {
            let regions = &awaited.transfer.regions;
            let meets = |part: &HaloPart| regions.iter().any(|region| region.intersect(&part.source).is_some());
            awaited.transfer.operand == operand && parts.iter().any(meets)
        };
        self.awaited.iter().filter(of_parts).map(|awaited| awaited.number).collect()
    }

    /// Takes a message with their tag, and says which transfer is whole with it, if one is.
    pub fn take(
        &mut self,
        comm: &Communicator,
        message: TaggedMessage,
        moved: &mut Moved,
    ) -> Result<Option<Arrived>, RunError> {
        let wrong = RunError::Protocol { rank: message.source, what: "its part of a tensor" };
        let first = self.awaited.iter().position(|awaited| awaited.transfer.from == message.source);
        let Some(at) = first else { return Err(wrong) };
        let PendingReceive { transfer, bytes, .. } = &mut self.awaited[at];
        let (length, part) = (transfer.bytes(), message.bytes);
        if part.is_empty() || bytes.len() + part.len() > length + TRAILER_BYTES {
            return Err(wrong);
        }
        // One message is the rule: taken as it is.
        if bytes.is_empty() {
            *bytes = part
        } else {
            bytes.extend_from_slice(&part)
        }
        if bytes.len() < length + TRAILER_BYTES {
            return Ok(None);
        }
        let PendingReceive { number, transfer, mut bytes } = self.awaited.remove(at);
        self.trailer(transfer.operand).check(&mut bytes, transfer.from, "a part of a tensor")?;
        comm.received(moved, transfer.reason, transfer.from, length as u64);
        for region in &*transfer.regions {
            let rest = bytes.split_off(region.elements() as usize * transfer.element_bytes);
            self.came.push((transfer.operand, Piece { region: region.clone(), bytes: bytes.into() }));
            bytes = rest;
        }
        Ok(Some(Arrived { number, bytes: length as u64 }))
    }

    /// What has come since it was asked last, by operand.
    pub fn came(&mut self) -> Vec<(usize, Piece)> {
        std::mem::take(&mut self.came)
    }

    /// Waits for all that was noted of input `operand`, and returns it.
    pub fn wait(&mut self, comm: &mut Communicator, operand: usize, moved: &mut Moved) -> Result<Vec<Piece>, RunError> {
        while let Some(first) = self.awaited.iter().find(|awaited| awaited.transfer.operand == operand) {
            let (source, tag) = (first.transfer.from, self.tag());
            let bytes = comm.receive(source, tag)?;
            self.take(comm, TaggedMessage { source, tag, bytes }, moved)?;
        }
        let (wanted, others) = self.came().into_iter().partition(|(of, _)| *of == operand);
        self.came = others;
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

    fn message(arrivals: &PendingReceives, source: Rank, operand: usize, bytes: &[u8]) -> TaggedMessage {
        let mut bytes = bytes.to_vec();
        arrivals.trailer(operand).put(&mut bytes);
        TaggedMessage { source, tag: arrivals.tag(), bytes }
    }

    fn comm() -> Communicator {
        Communicator::new(fabric::local(3).remove(0), Signal::default())
    }

    #[test]
    fn transfers_come_in_the_order_of_their_source_whatever_others_do() {
        let (comm, mut moved, mut arrivals) = (comm(), Moved::default(), PendingReceives::new(4, 9));
        arrivals.expect(transfer(1, 0, &[region(0, 1), region(5, 2)]));
        arrivals.expect(transfer(2, 0, &[region(9, 3)]));
        arrivals.expect(transfer(2, 0, &[]));
        arrivals.expect(transfer(1, 2, &[region(3, 1)]));
        let part = |offset, extent| [HaloPart { source: region(offset, extent), at: vec![0] }];
        assert_eq!(arrivals.missing(0, &part(6, 4)), [0, 1]);
        assert!(arrivals.missing(0, &part(1, 4)).is_empty());
        assert_eq!(arrivals.missing(2, &part(0, 4)), [2]);

        let late = message(&arrivals, 2, 0, &[7, 8, 9]);
        assert_eq!(arrivals.take(&comm, late, &mut moved).unwrap(), Some(Arrived { number: 1, bytes: 3 }));
        // In two parts.
        let mut first = message(&arrivals, 1, 0, &[1, 2, 3]);
        let rest = TaggedMessage { bytes: first.bytes.split_off(2), ..first.clone() };
        assert_eq!(arrivals.take(&comm, first, &mut moved).unwrap(), None);
        assert_eq!(arrivals.take(&comm, rest, &mut moved).unwrap(), Some(Arrived { number: 0, bytes: 3 }));
        assert!(arrivals.missing(0, &part(0, 20)).is_empty());
        let came = arrivals.came().into_iter().map(|(operand, piece)| (operand, piece.region, piece.bytes.to_vec()));
        let expected = [(0, region(9, 3), vec![7, 8, 9]), (0, region(0, 1), vec![1]), (0, region(5, 2), vec![2, 3])];
        assert_eq!(came.collect::<Vec<_>>(), expected);
        assert_eq!(moved.halo.node, 6);

        assert!(!arrivals.all_here());
        // Of another operand than the one that is due.
        let wrong = message(&arrivals, 1, 0, &[4]);
        assert!(matches!(arrivals.take(&comm, wrong, &mut moved), Err(RunError::Damaged { rank: 1, .. })));
        assert!(arrivals.all_here());
        let unasked = message(&arrivals, 1, 2, &[4]);
        assert!(matches!(arrivals.take(&comm, unasked, &mut moved), Err(RunError::Protocol { rank: 1, .. })));
    }

    #[test]
    fn who_waits_for_one_input_keeps_what_comes_of_others() {
        let mut fabrics = fabric::local(2);
        let mut sender = fabrics.pop().unwrap();
        let mut comm = Communicator::new(fabrics.remove(0), Signal::default());
        let (mut moved, mut arrivals) = (Moved::default(), PendingReceives::new(0, 1));
        for operand in [0, 1] {
            arrivals.expect(transfer(1, operand, &[region(operand as u64, 2)]));
            let TaggedMessage { tag, bytes, .. } = message(&arrivals, 1, operand, &[operand as u8; 2]);
            sender.send(0, tag.encode(), bytes.into()).unwrap();
        }
        let pieces = arrivals.wait(&mut comm, 1, &mut moved).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.bytes.to_vec()).collect::<Vec<_>>(), [[1, 1]]);
        assert_eq!(arrivals.came().len(), 1);
        assert!(arrivals.all_here());
    }
}
