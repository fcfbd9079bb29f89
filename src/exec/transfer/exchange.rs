//! The exchange of parts of tensors between ranks, in memory that the ranks of a node share or in messages.

use std::sync::Arc;

use crate::engine::{Mapped, SharedBytes};
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::trailer::TRAILER_BYTES;
use crate::exec::error::RunError;
use crate::exec::transfer::node_memory::{Offer, exchange_on_node, shares};
use crate::exec::transfer::pending_receives::{PendingReceives, Transfer};
use crate::exec::transfer::piece::{Piece, pack, packed_bytes};
use crate::fabric::{Payload, Rank};
use crate::plan::StagePlan;
use crate::report::{Moved, Reason};
use crate::tensor::Region;

/// The most bytes of one message of a transfer.
const MESSAGE_BYTES: usize = 256 << 20;

/// The regions that another rank needs from this one, or has for it.
#[derive(Clone, Debug)]
pub(in crate::exec) struct Parts {
    pub rank: Rank,
    pub regions: Arc<[Region]>,
}

/// The exchange of one operand. Both sides know from the plan which regions it moves.
#[derive(Clone, Copy)]
pub(in crate::exec) struct Exchange {
    pub operand: usize,
    pub element_bytes: usize,
    pub reason: Reason,
}

/// The result of an exchange; parts that come as messages are pending receives.
pub(in crate::exec) struct ExchangedPieces {
    /// Pieces that ranks of this node share with this rank.
    pub received: Vec<Piece>,
    /// Memory that this rank shares with others.
    pub shared: Vec<SharedBytes>,
}

/// Memory that this rank offers to others, and the regions in it.
struct RegionsOffer<'a> {
    regions: &'a [Region],
    offer: Offer,
}

impl Exchange {
    /// Sends other ranks the parts of `pieces` that they need, and receives those that this rank needs.
    pub fn run(
        self,
        comm: &mut Communicator,
        pieces: &[Piece],
        sends: &[Parts],
        receives: &[Parts],
        pending: &mut PendingReceives,
        moved: &mut Moved,
    ) -> Result<ExchangedPieces, RunError> {
        let Exchange { operand, element_bytes, reason } = self;
        let is_shared = |parts: &&Parts| self.is_shared(comm, parts);
        let (shared_sends, mut sends): (Vec<_>, Vec<_>) = sends.iter().partition(is_shared);
        let (shared_receives, mut receives): (Vec<_>, Vec<_>) = receives.iter().partition(is_shared);
        let started = comm.tracer.begin();
        let offers = self.offers(&shared_sends, pieces);
        let offers: Vec<Offer> = offers.into_iter().map(|offered| offered.offer).collect();
        let from: Vec<Rank> = shared_receives.iter().map(|parts| parts.rank).collect();
        let exchanged = exchange_on_node(comm, pending.trailer(operand), &offers, &from, Mapped::open)?;
        let is_refused = |rank: &Rank| exchanged.refused.iter().any(|refused| refused.contains(rank));
        for parts in shared_sends {
            match is_refused(&parts.rank) {
                true => sends.push(parts),
                false => comm.sent(started, parts.rank, reason, self.bytes(parts) as u64),
            }
        }
        let mut received = Vec::new();
        for (parts, mapped) in shared_receives.into_iter().zip(exchanged.accepted) {
            let Some(mapped) = mapped else {
                receives.push(parts);
                continue;
            };
            comm.received(moved, reason, parts.rank, mapped.len() as u64);
            received.extend(Piece::of_mapped(mapped, &parts.regions, element_bytes));
        }
        for parts in sends {
            self.send(comm, parts, pieces, pending)?;
        }
        for Parts { rank, regions } in receives {
            pending.expect(Transfer { from: *rank, operand, regions: regions.clone(), element_bytes, reason });
        }
        Ok(ExchangedPieces { received, shared: offers.into_iter().filter_map(|offer| offer.shared).collect() })
    }

    fn bytes(self, parts: &Parts) -> usize {
        packed_bytes(&parts.regions, self.element_bytes)
    }

    /// Whether both ranks exchange these parts in memory that they share. Halos come as messages, so that tasks run
    /// meanwhile.
    fn is_shared(self, comm: &Communicator, parts: &Parts) -> bool {
        self.reason != Reason::Halo && shares(comm, parts.rank, self.bytes(parts))
    }

    /// Packs the regions that other ranks of the node need into memory, once for all ranks that need the same regions.
    fn offers<'a>(self, sends: &[&'a Parts], pieces: &[Piece]) -> Vec<RegionsOffer<'a>> {
        let mut offers: Vec<RegionsOffer<'a>> = Vec::new();
        for parts in sends {
            let Parts { rank, regions } = *parts;
            match offers.iter_mut().find(|offered| *offered.regions == **regions) {
                Some(RegionsOffer { offer, .. }) => offer.to.push(*rank),
                None => {
                    let fill = |target: &mut [u8]| pack(target, pieces, regions, self.element_bytes);
                    let offer = Offer::new(vec![*rank], SharedBytes::make(self.bytes(parts), fill));
                    offers.push(RegionsOffer { regions, offer });
                }
            }
        }
        offers
    }

    /// Sends regions as messages. An empty part is not sent, and its receiver knows. `pending` belongs to the same run,
    /// and has the tag and the trailer.
    fn send(
        self,
        comm: &mut Communicator,
        parts: &Parts,
        pieces: &[Piece],
        pending: &PendingReceives,
    ) -> Result<(), RunError> {
        let started = comm.tracer.begin();
        let tensor_bytes = self.bytes(parts);
        if tensor_bytes == 0 {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(tensor_bytes + TRAILER_BYTES);
        bytes.resize(tensor_bytes, 0);
        pack(&mut bytes, pieces, &parts.regions, self.element_bytes);
        pending.trailer(self.operand).put(&mut bytes);
        let (length, bytes) = (bytes.len(), Payload::from(bytes));
        for start in (0..length).step_by(MESSAGE_BYTES) {
            comm.send(parts.rank, pending.tag(), bytes.slice(start..length.min(start + MESSAGE_BYTES)))?;
        }
        comm.sent(started, parts.rank, self.reason, tensor_bytes as u64);
        Ok(())
    }
}

/// Sends this rank's share of an input to the other ranks that need the same part, and returns all shares. All of these
/// ranks call it.
pub(in crate::exec) fn share(
    comm: &mut Communicator,
    plan: &StagePlan,
    operand: usize,
    mine: Piece,
    pending: &mut PendingReceives,
    moved: &mut Moved,
) -> Result<Vec<Piece>, RunError> {
    let others: Vec<Rank> =
        plan.sharers(operand, comm.rank()).into_iter().filter(|rank| *rank != comm.rank()).collect();
    let regions: Arc<[Region]> = [mine.region.clone()].into();
    let sends: Vec<Parts> = others.iter().map(|rank| Parts { rank: *rank, regions: regions.clone() }).collect();
    let share_of = |rank: &Rank| Parts { rank: *rank, regions: [plan.share(operand, *rank)].into() };
    let receives: Vec<Parts> = others.iter().map(share_of).collect();
    let element_bytes = plan.operands[operand].dtype.size_bytes();
    let exchange = Exchange { operand, element_bytes, reason: Reason::Input };
    let mut pieces = vec![mine];
    let exchanged = exchange.run(comm, &pieces, &sends, &receives, pending, moved)?;
    // The node has one copy, which this rank reads as well.
    if let Some(mapped) = exchanged.shared.first().and_then(|shared| shared.map().ok()) {
        pieces = Piece::of_mapped(mapped, &regions, element_bytes);
    }
    pieces.extend(exchanged.received);
    // Nearly every block needs all of them.
    pieces.extend(pending.wait(comm, operand, moved)?);
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::comm::signal::Signal;
    use crate::exec::comm::tag::Tag;
    use crate::exec::transfer::piece::PieceBytes;
    use crate::fabric::local;
    use crate::plan::SHARED_BYTES;

    const EXCHANGE: Exchange = Exchange { operand: 3, element_bytes: 8, reason: Reason::Operand };
    const HALF: u64 = SHARED_BYTES / 8;

    fn pending() -> PendingReceives {
        PendingReceives::new(2, 5)
    }

    /// A part of a vector that is just large enough to be shared, or smaller by `less` elements.
    fn part(rank: Rank, less: u64) -> Region {
        Region { offset: vec![u64::from(rank) * HALF], extent: vec![HALF - less] }
    }

    /// Cuts a part into two regions, of which the first is smaller.
    fn cut(part: &Region) -> Arc<[Region]> {
        let region = |from: u64, to: u64| Region { offset: vec![part.offset[0] + from], extent: vec![to - from] };
        [region(0, HALF / 3), region(HALF / 3, part.extent[0])].into()
    }

    fn parts(rank: Rank, regions: Arc<[Region]>) -> Parts {
        Parts { rank, regions }
    }

    fn piece(region: Region) -> Piece {
        let bytes: Vec<u8> = (region.offset[0]..region.end(0)).flat_map(u64::to_le_bytes).collect();
        Piece { region, bytes: bytes.into() }
    }

    /// Runs `first` as rank 0 while rank 1 exchanges its part for that of rank 0. Returns what rank 1 received.
    fn exchange_with(less: u64, first: impl FnOnce(&mut Communicator) + Send + 'static) -> (Vec<Piece>, Moved, u64) {
        let mut ends = local(2).into_iter();
        let (left, right) = (ends.next().unwrap(), ends.next().unwrap());
        let other = std::thread::spawn(move || first(&mut Communicator::new(left, Signal::default())));
        let (mut comm, mut pending, mut moved) =
            (Communicator::new(right, Signal::default()), pending(), Moved::default());
        let (sends, receives) = ([parts(0, [part(1, less)].into())], [parts(0, cut(&part(0, less)))]);
        let mine = [piece(part(1, less))];
        let mut received =
            EXCHANGE.run(&mut comm, &mine, &sends, &receives, &mut pending, &mut moved).unwrap().received;
        received.extend(pending.wait(&mut comm, EXCHANGE.operand, &mut moved).unwrap());
        other.join().unwrap();
        (received, moved, comm.traffic().bytes_sent)
    }

    fn is_mapped(pieces: &[Piece]) -> bool {
        pieces.iter().all(|piece| matches!(piece.bytes, PieceBytes::Mapped(..)))
    }

    /// Whether these pieces are all of rank 0's part.
    fn is_all(received: &[Piece], less: u64) -> bool {
        let expected = cut(&part(0, less));
        received.len() == 2
            && received
                .iter()
                .zip(&*expected)
                .all(|(piece_of, region)| piece_of.region == *region && *piece_of.bytes == *piece(region.clone()).bytes)
    }

    /// The exchange as rank 0, whose pieces differ from the regions that rank 1 gets.
    fn left(less: u64) -> impl FnOnce(&mut Communicator) + Send + 'static {
        move |comm| {
            let piece_of = |from, to| piece(Region { offset: vec![from], extent: vec![to - from] });
            let mine = [piece_of(HALF / 2, HALF - less), piece_of(0, HALF / 2)];
            let (sends, receives) = ([parts(1, cut(&part(0, less)))], [parts(1, [part(1, less)].into())]);
            let (mut pending, mut moved) = (pending(), Moved::default());
            let ExchangedPieces { received, shared } =
                EXCHANGE.run(comm, &mine, &sends, &receives, &mut pending, &mut moved).unwrap();
            assert_eq!((received.len(), shared.len()), (usize::from(less == 0), usize::from(less == 0)));
            assert!(is_mapped(&received));
            pending.wait(comm, EXCHANGE.operand, &mut moved).unwrap();
        }
    }

    #[test]
    fn large_parts_are_mapped_and_small_ones_are_sent() {
        for less in [0, 1] {
            let (received, moved, sent_bytes) = exchange_with(less, left(less));
            assert!(is_all(&received, less));
            let bytes = SHARED_BYTES - 8 * less;
            assert_eq!((is_mapped(&received), moved.operand.node), (less == 0, bytes));
            assert_eq!(sent_bytes < bytes, less == 0, "{sent_bytes} sent");
        }
    }

    #[test]
    fn parts_are_sent_if_the_host_refuses_shared_memory() {
        let (received, moved, sent_bytes) = exchange_with(0, |comm| {
            // The memory of this name is already gone.
            let mut name = serde_json::to_vec(&SharedBytes::new(&[1]).unwrap().name()).unwrap();
            pending().trailer(EXCHANGE.operand).put(&mut name);
            comm.send(1, Tag::NodeMemory, name.into()).unwrap();
            comm.receive(1, Tag::NodeMemory).unwrap();
            // This rank refuses the memory of the other.
            comm.send(1, Tag::NodeMemory, vec![0].into()).unwrap();
            assert_eq!(comm.receive(1, Tag::NodeMemory).unwrap(), [0]);
            let mut bytes = piece(part(0, 0)).bytes.to_vec();
            pending().trailer(EXCHANGE.operand).put(&mut bytes);
            comm.send(1, pending().tag(), bytes.into()).unwrap();
            let mut got = comm.receive(1, pending().tag()).unwrap();
            pending().trailer(EXCHANGE.operand).check(&mut got, 1, "a part").unwrap();
            assert!(*got == *piece(part(1, 0)).bytes);
        });
        assert!(is_all(&received, 0) && !is_mapped(&received));
        assert!(moved.operand.node == SHARED_BYTES && sent_bytes > SHARED_BYTES);
    }
}
