//! Inputs that every task needs whole. Small ones are copied into the memory of every kernel instance. Of large ones
//! each node has one copy, which the kernels of all its ranks read in place.

use std::sync::Arc;

use crate::engine::{EngineError, Instance, SharedBytes};
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::Tag;
use crate::exec::comm::trailer::Trailer;
use crate::exec::error::RunError;
use crate::exec::transfer::node_memory::{Offer, exchange_on_node};
use crate::fabric::{Payload, Rank};
use crate::report::{Distance, Moved, Reason};

/// The bytes of an input, halo included.
#[derive(Clone, Debug)]
pub(in crate::exec) enum BroadcastInput {
    Copied(Payload),
    Shared(Arc<SharedBytes>),
}

impl BroadcastInput {
    /// Gives these bytes to operand `operand` of a kernel instance.
    pub fn put(&self, instance: &mut Instance, operand: usize) -> Result<(), EngineError> {
        match self {
            BroadcastInput::Shared(shared) => instance.map_operand(operand, shared),
            BroadcastInput::Copied(bytes) => instance.renew(operand, bytes),
        }
    }
}

/// The broadcast of an input from one rank of a node to the others.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct NodeBroadcast<'a> {
    pub ranks: &'a [Rank],
    /// The rank that has the input.
    pub holder: Rank,
    pub trailer: Trailer,
    pub reason: Reason,
}

impl NodeBroadcast<'_> {
    /// Gives the `bytes` of the holder, which alone passes `Some`, to the other ranks of the node: as memory that they
    /// map if the host allows that, and as messages otherwise. All ranks of the node call it.
    pub fn run(
        self,
        comm: &mut Communicator,
        bytes: Option<Vec<u8>>,
        moved: &mut Moved,
    ) -> Result<BroadcastInput, RunError> {
        match bytes {
            Some(bytes) => self.offer(comm, bytes),
            None => self.accept(comm, moved),
        }
    }

    fn offer(self, comm: &mut Communicator, bytes: Vec<u8>) -> Result<BroadcastInput, RunError> {
        let others = self.ranks.iter().filter(|rank| **rank != self.holder);
        let offers = [Offer::new(others.copied().collect(), SharedBytes::new(&bytes))];
        let exchanged = exchange_on_node(comm, self.trailer, &offers, &[], SharedBytes::open)?;
        // Created for the first rank that refuses.
        let mut with_trailer: Option<Payload> = None;
        for rank in exchanged.refused.into_iter().flatten() {
            let started = comm.tracer.begin();
            let message = with_trailer.get_or_insert_with(|| {
                let mut message = bytes.clone();
                self.trailer.put(&mut message);
                message.into()
            });
            comm.send(rank, Tag::NodeMemory, message.clone())?;
            comm.sent(started, rank, self.reason, bytes.len() as u64);
        }
        let [Offer { shared, .. }] = offers;
        Ok(match shared {
            Some(shared) => BroadcastInput::Shared(Arc::new(shared)),
            None => BroadcastInput::Copied(bytes.into()),
        })
    }

    fn accept(self, comm: &mut Communicator, moved: &mut Moved) -> Result<BroadcastInput, RunError> {
        let mut accepted = exchange_on_node(comm, self.trailer, &[], &[self.holder], SharedBytes::open)?.accepted;
        if let Some(shared) = accepted.pop().flatten() {
            moved.count(self.reason, Distance::Rank, shared.len());
            return Ok(BroadcastInput::Shared(Arc::new(shared)));
        }
        let mut bytes = comm.receive(self.holder, Tag::NodeMemory)?;
        self.trailer.check(&mut bytes, self.holder, "an input of its node")?;
        comm.received(moved, self.reason, self.holder, bytes.len() as u64);
        Ok(BroadcastInput::Copied(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::comm::signal::Signal;
    use crate::fabric::local;

    const TRAILER: Trailer = Trailer::operand(1, 2);

    /// Returns the input that rank 1 gets while rank 0 runs `give`, and the bytes that it counts as moved.
    fn received_while(
        give: impl FnOnce(&mut Communicator, NodeBroadcast<'_>) + Send + 'static,
    ) -> (Result<BroadcastInput, RunError>, Moved) {
        let mut ends = local(2).into_iter();
        let (first, second) = (ends.next().unwrap(), ends.next().unwrap());
        let here = NodeBroadcast { ranks: &[0, 1], holder: 0, trailer: TRAILER, reason: Reason::Input };
        let holder = std::thread::spawn(move || give(&mut Communicator::new(first, Signal::default()), here));
        let mut moved = Moved::default();
        let got = here.run(&mut Communicator::new(second, Signal::default()), None, &mut moved);
        holder.join().unwrap();
        (got, moved)
    }

    #[test]
    fn a_node_has_one_copy() {
        let (got, moved) = received_while(|comm, here| {
            here.run(comm, Some(vec![1, 2, 3]), &mut Moved::default()).unwrap();
        });
        assert!(matches!(got.unwrap(), BroadcastInput::Shared(shared) if shared.len() == 3));
        assert_eq!((moved.input.rank, moved.total().moved()), (3, 0));
    }

    #[test]
    fn bytes_travel_where_memory_cannot_be_shared() {
        let (got, moved) = received_while(|comm, _| {
            let mut name = serde_json::to_vec(&SharedBytes::new(&[1]).unwrap().name()).unwrap();
            TRAILER.put(&mut name);
            // The memory of this name is already gone.
            comm.send(1, Tag::NodeMemory, name.into()).unwrap();
            assert_eq!(comm.receive(1, Tag::NodeMemory).unwrap(), [0]);
            let mut bytes = vec![1, 2, 3];
            TRAILER.put(&mut bytes);
            comm.send(1, Tag::NodeMemory, bytes.into()).unwrap();
        });
        assert!(matches!(got.unwrap(), BroadcastInput::Copied(bytes) if *bytes == [1, 2, 3]));
        assert_eq!((moved.input.node, moved.total().moved()), (3, 3));
    }
}
