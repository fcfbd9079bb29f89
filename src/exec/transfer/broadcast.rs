//! Inputs that every task needs whole. Small ones are copied into the memory of every kernel instance; of large ones each node
//! has one copy, which the kernels of all its ranks read in place.

use std::sync::Arc;

use crate::engine::{EngineError, Instance, SharedBytes};
use crate::exec::comm::communicator::{Link, tag};
use crate::exec::comm::trailer::Stamp;
use crate::exec::error::RunError;
use crate::exec::transfer::node_memory::Offer;
use crate::fabric::{Payload, Rank};
use crate::report::{Distance, Moved, Reason};

/// The bytes of an input, halo included.
#[derive(Clone, Debug)]
pub(in crate::exec) enum Whole {
    Copied(Payload),
    Shared(Arc<SharedBytes>),
}

impl Whole {
    /// Makes these bytes those of operand `operand` of an instance.
    pub fn put(&self, instance: &mut Instance, operand: usize) -> Result<(), EngineError> {
        match self {
            Whole::Shared(shared) => instance.map_operand(operand, shared),
            Whole::Copied(bytes) => instance.renew(operand, bytes),
        }
    }
}

/// Where the ranks of a node find an input of theirs.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct OnNode<'a> {
    pub ranks: &'a [Rank],
    /// The one that has it.
    pub holder: Rank,
    pub stamp: Stamp,
    pub reason: Reason,
}

impl OnNode<'_> {
    /// Hands the `bytes` of the holder, which alone passes `Some`, to the other ranks of the node: as memory that all of them
    /// map where the host lets them, as messages where not. All ranks of the node call it.
    pub fn share(self, link: &mut Link, bytes: Option<Vec<u8>>, moved: &mut Moved) -> Result<Whole, RunError> {
        match bytes {
            Some(bytes) => self.offer(link, bytes),
            None => self.accept(link, moved),
        }
    }

    fn offer(self, link: &mut Link, bytes: Vec<u8>) -> Result<Whole, RunError> {
        let others = self.ranks.iter().filter(|rank| **rank != self.holder);
        let offers = [Offer::new(others.copied().collect(), SharedBytes::new(&bytes))];
        let exchanged = link.exchange_on_node(self.stamp, &offers, &[], SharedBytes::open)?;
        // Made once somebody needs it.
        let mut stamped: Option<Payload> = None;
        for rank in exchanged.refused.into_iter().flatten() {
            let begun = link.tracer.begin();
            let message = stamped.get_or_insert_with(|| {
                let mut message = bytes.clone();
                self.stamp.put(&mut message);
                message.into()
            });
            link.send(rank, tag::SHARED, message.clone())?;
            link.sent(begun, rank, self.reason, bytes.len() as u64);
        }
        let [Offer { shared, .. }] = offers;
        Ok(match shared {
            Some(shared) => Whole::Shared(Arc::new(shared)),
            None => Whole::Copied(bytes.into()),
        })
    }

    fn accept(self, link: &mut Link, moved: &mut Moved) -> Result<Whole, RunError> {
        let mut accepted = link.exchange_on_node(self.stamp, &[], &[self.holder], SharedBytes::open)?.accepted;
        if let Some(shared) = accepted.pop().flatten() {
            moved.count(self.reason, Distance::Rank, shared.len());
            return Ok(Whole::Shared(Arc::new(shared)));
        }
        let mut bytes = link.receive(self.holder, tag::SHARED)?;
        self.stamp.check(&mut bytes, self.holder, "an input of its node")?;
        link.received(moved, self.reason, self.holder, bytes.len() as u64);
        Ok(Whole::Copied(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::comm::monitor::Signal;
    use crate::fabric::local;

    const STAMP: Stamp = Stamp::operand(1, 2);

    /// What rank 1 gets from rank 0, and from how far, when that does `give`.
    fn handed(give: impl FnOnce(&mut Link, OnNode<'_>) + Send + 'static) -> (Result<Whole, RunError>, Moved) {
        let mut ends = local(2).into_iter();
        let (first, second) = (ends.next().unwrap(), ends.next().unwrap());
        let here = OnNode { ranks: &[0, 1], holder: 0, stamp: STAMP, reason: Reason::Input };
        let holder = std::thread::spawn(move || give(&mut Link::new(first, Signal::default()), here));
        let mut moved = Moved::default();
        let got = here.share(&mut Link::new(second, Signal::default()), None, &mut moved);
        holder.join().unwrap();
        (got, moved)
    }

    #[test]
    fn a_node_has_one_copy() {
        let (got, moved) = handed(|link, here| {
            here.share(link, Some(vec![1, 2, 3]), &mut Moved::default()).unwrap();
        });
        assert!(matches!(got.unwrap(), Whole::Shared(shared) if shared.len() == 3));
        assert_eq!((moved.input.rank, moved.total().moved()), (3, 0));
    }

    #[test]
    fn bytes_travel_where_memory_cannot_be_shared() {
        let (got, moved) = handed(|link, _| {
            let mut name = serde_json::to_vec(&SharedBytes::new(&[1]).unwrap().name()).unwrap();
            STAMP.put(&mut name);
            // By now the name is of nothing.
            link.send(1, tag::SHARED, name.into()).unwrap();
            assert_eq!(link.receive(1, tag::SHARED).unwrap(), [0]);
            let mut bytes = vec![1, 2, 3];
            STAMP.put(&mut bytes);
            link.send(1, tag::SHARED, bytes.into()).unwrap();
        });
        assert!(matches!(got.unwrap(), Whole::Copied(bytes) if *bytes == [1, 2, 3]));
        assert_eq!((moved.input.node, moved.total().moved()), (3, 3));
    }
}
