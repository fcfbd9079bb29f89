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
pub(in crate::exec) type Parts = (Rank, Arc<[Region]>);

/// The exchange of one operand. Both sides know from the plan which regions it moves.
#[derive(Clone, Copy)]
pub(in crate::exec) struct Exchange {
    pub operand: usize,
    pub element_bytes: usize,
    pub reason: Reason,
}

impl Exchange {
    /// Sends other ranks the parts of `pieces` that they need. Returns the pieces that ranks of this node share with this
    /// one and the memory that this rank shares; parts that come as messages are added to `arrivals`.
    pub fn carry_out(
        self,
        comm: &mut Communicator,
        pieces: &[Piece],
        sends: &[Parts],
        receives: &[Parts],
        arrivals: &mut PendingReceives,
        moved: &mut Moved,
    ) -> Result<(Vec<Piece>, Vec<SharedBytes>), RunError> {
        let Exchange { operand, element_bytes, reason } = self;
        // Halos come as messages, so that tasks run meanwhile.
        let is_near = |comm: &Communicator, (rank, regions): &Parts| {
            reason != Reason::Halo && shares(comm, *rank, packed_bytes(regions, element_bytes))
        };
        let (near, mut sends): (Vec<_>, Vec<_>) = sends.iter().partition(|parts| is_near(comm, parts));
        let (near_from, mut receives): (Vec<_>, Vec<_>) = receives.iter().partition(|parts| is_near(comm, parts));
        let started = comm.tracer.begin();
        let mut offers: Vec<(&[Region], Offer)> = Vec::new();
        for (to, regions) in &near {
            match offers.iter_mut().find(|(offered, _)| *offered == &**regions) {
                Some((_, offer)) => offer.to.push(*to),
                None => {
                    let bytes = packed_bytes(regions, element_bytes);
                    let shared = SharedBytes::make(bytes, |target| pack(target, pieces, regions, element_bytes));
                    offers.push((regions, Offer::new(vec![*to], shared)));
                }
            }
        }
        let (_, offers): (Vec<_>, Vec<_>) = offers.into_iter().unzip();
        let from: Vec<Rank> = near_from.iter().map(|(from, _)| *from).collect();
        let exchanged = exchange_on_node(comm, arrivals.trailer(operand), &offers, &from, Mapped::open)?;
        let is_refused = |rank: &Rank| exchanged.refused.iter().any(|refused| refused.contains(rank));
        for parts in near {
            match is_refused(&parts.0) {
                true => sends.push(parts),
                false => comm.sent(started, parts.0, reason, packed_bytes(&parts.1, element_bytes) as u64),
            }
        }
        let mut came = Vec::new();
        for (parts, mapped) in near_from.into_iter().zip(exchanged.accepted) {
            let Some(mapped) = mapped else {
                receives.push(parts);
                continue;
            };
            comm.received(moved, reason, parts.0, mapped.len() as u64);
            came.extend(Piece::of_mapped(mapped, &parts.1, element_bytes));
        }
        for (to, regions) in sends {
            send(comm, *to, pieces, regions, element_bytes, (arrivals, operand, reason))?;
        }
        for (from, regions) in receives {
            arrivals.expect(Transfer { from: *from, operand, regions: regions.clone(), element_bytes, reason });
        }
        Ok((came, offers.into_iter().filter_map(|offer| offer.shared).collect()))
    }
}

/// Sends this rank's share of an input to the other ranks that need the same part, and returns all shares. All of these
/// ranks call it.
pub(in crate::exec) fn share(
    comm: &mut Communicator,
    plan: &StagePlan,
    operand: usize,
    mine: Piece,
    arrivals: &mut PendingReceives,
    moved: &mut Moved,
) -> Result<Vec<Piece>, RunError> {
    let others: Vec<Rank> =
        plan.sharers(operand, comm.rank()).into_iter().filter(|rank| *rank != comm.rank()).collect();
    let my_region: Arc<[Region]> = [mine.region.clone()].into();
    let sends: Vec<Parts> = others.iter().map(|to| (*to, my_region.clone())).collect();
    let receives: Vec<Parts> = others.iter().map(|from| (*from, [plan.share(operand, *from)].into())).collect();
    let element_bytes = plan.operands[operand].dtype.size_bytes();
    let this = Exchange { operand, element_bytes, reason: Reason::Input };
    let mut pieces = vec![mine];
    let (came, shared) = this.carry_out(comm, &pieces, &sends, &receives, arrivals, moved)?;
    // The node has one copy, which this rank reads as well.
    if let Some(mapped) = shared.first().and_then(|shared| shared.map().ok()) {
        pieces = Piece::of_mapped(mapped, &my_region, element_bytes);
    }
    pieces.extend(came);
    // Nearly every block needs all of them.
    pieces.extend(arrivals.wait(comm, operand, moved)?);
    Ok(pieces)
}

/// Sends regions as messages; an empty part is not sent, and its receiver knows. `arrivals` belongs to the same run, and has
/// the tag and the trailer.
fn send(
    comm: &mut Communicator,
    to: Rank,
    pieces: &[Piece],
    regions: &[Region],
    element_bytes: usize,
    (arrivals, operand, reason): (&PendingReceives, usize, Reason),
) -> Result<(), RunError> {
    let started = comm.tracer.begin();
    let tensor_bytes = packed_bytes(regions, element_bytes);
    if tensor_bytes == 0 {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(tensor_bytes + TRAILER_BYTES);
    bytes.resize(tensor_bytes, 0);
    pack(&mut bytes, pieces, regions, element_bytes);
    arrivals.trailer(operand).put(&mut bytes);
    let (length, bytes) = (bytes.len(), Payload::from(bytes));
    for start in (0..length).step_by(MESSAGE_BYTES) {
        comm.send(to, arrivals.tag(), bytes.slice(start..length.min(start + MESSAGE_BYTES)))?;
    }
    comm.sent(started, to, reason, tensor_bytes as u64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::comm::signal::Signal;
    use crate::exec::comm::tag::Tag;
    use crate::exec::transfer::piece::PieceBytes;
    use crate::fabric::local;
    use crate::plan::SHARED_BYTES;

    const THIS: Exchange = Exchange { operand: 3, element_bytes: 8, reason: Reason::Operand };
    const HALF: u64 = SHARED_BYTES / 8;

    fn arrivals() -> PendingReceives {
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

    fn piece(region: Region) -> Piece {
        let bytes: Vec<u8> = (region.offset[0]..region.end(0)).flat_map(u64::to_le_bytes).collect();
        Piece { region, bytes: bytes.into() }
    }

    /// Runs `first` as rank 0 while rank 1 exchanges its part for that of rank 0. Returns what rank 1 received.
    fn exchange_with(less: u64, first: impl FnOnce(&mut Communicator) + Send + 'static) -> (Vec<Piece>, Moved, u64) {
        let mut ends = local(2).into_iter();
        let (left, right) = (ends.next().unwrap(), ends.next().unwrap());
        let other = std::thread::spawn(move || first(&mut Communicator::new(left, Signal::default())));
        let (mut comm, mut arrivals, mut moved) =
            (Communicator::new(right, Signal::default()), arrivals(), Moved::default());
        let (sends, receives) = ([(0, [part(1, less)].into())], [(0, cut(&part(0, less)))]);
        let mine = [piece(part(1, less))];
        let (mut came, _) = THIS.carry_out(&mut comm, &mine, &sends, &receives, &mut arrivals, &mut moved).unwrap();
        came.extend(arrivals.wait(&mut comm, THIS.operand, &mut moved).unwrap());
        other.join().unwrap();
        (came, moved, comm.traffic().bytes_sent)
    }

    fn is_mapped(pieces: &[Piece]) -> bool {
        pieces.iter().all(|piece| matches!(piece.bytes, PieceBytes::Mapped(..)))
    }

    /// Whether these pieces are all of rank 0's part.
    fn is_all(came: &[Piece], less: u64) -> bool {
        let expected = cut(&part(0, less));
        came.len() == 2
            && came
                .iter()
                .zip(&*expected)
                .all(|(came, region)| came.region == *region && *came.bytes == *piece(region.clone()).bytes)
    }

    /// The exchange as rank 0, whose pieces differ from the regions that rank 1 gets.
    fn left(less: u64) -> impl FnOnce(&mut Communicator) + Send + 'static {
        move |comm| {
            let piece_of = |from, to| piece(Region { offset: vec![from], extent: vec![to - from] });
            let mine = [piece_of(HALF / 2, HALF - less), piece_of(0, HALF / 2)];
            let (sends, receives) = ([(1, cut(&part(0, less)))], [(1, [part(1, less)].into())]);
            let (mut arrivals, mut moved) = (arrivals(), Moved::default());
            let (came, shared) = THIS.carry_out(comm, &mine, &sends, &receives, &mut arrivals, &mut moved).unwrap();
            assert_eq!((came.len(), shared.len()), (usize::from(less == 0), usize::from(less == 0)));
            assert!(is_mapped(&came));
            arrivals.wait(comm, THIS.operand, &mut moved).unwrap();
        }
    }

    #[test]
    fn large_parts_are_mapped_and_small_ones_are_sent() {
        for less in [0, 1] {
            let (came, moved, sent_bytes) = exchange_with(less, left(less));
            assert!(is_all(&came, less));
            let bytes = SHARED_BYTES - 8 * less;
            assert_eq!((is_mapped(&came), moved.operand.node), (less == 0, bytes));
            assert_eq!(sent_bytes < bytes, less == 0, "{sent_bytes} sent");
        }
    }

    #[test]
    fn parts_are_sent_if_the_host_refuses_shared_memory() {
        let (came, moved, sent_bytes) = exchange_with(0, |comm| {
            // The memory of this name is already gone.
            let mut name = serde_json::to_vec(&SharedBytes::new(&[1]).unwrap().name()).unwrap();
            arrivals().trailer(THIS.operand).put(&mut name);
            comm.send(1, Tag::NodeMemory, name.into()).unwrap();
            comm.receive(1, Tag::NodeMemory).unwrap();
            // This rank refuses the memory of the other.
            comm.send(1, Tag::NodeMemory, vec![0].into()).unwrap();
            assert_eq!(comm.receive(1, Tag::NodeMemory).unwrap(), [0]);
            let mut bytes = piece(part(0, 0)).bytes.to_vec();
            arrivals().trailer(THIS.operand).put(&mut bytes);
            comm.send(1, arrivals().tag(), bytes.into()).unwrap();
            let mut got = comm.receive(1, arrivals().tag()).unwrap();
            arrivals().trailer(THIS.operand).check(&mut got, 1, "a part").unwrap();
            assert!(*got == *piece(part(1, 0)).bytes);
        });
        assert!(is_all(&came, 0) && !is_mapped(&came));
        assert!(moved.operand.node == SHARED_BYTES && sent_bytes > SHARED_BYTES);
    }
}
