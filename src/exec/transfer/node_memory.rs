//! Memory that the ranks of a node share: the other ranks read the bytes of one rank in place.
//!
//! Both sides know from the plan what they exchange. If the host does not allow shared memory, messages carry the
//! bytes.

use std::io;

use crate::encode::encode;
use crate::engine::{SharedBytes, SharedName};
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::Tag;
use crate::exec::comm::trailer::Trailer;
use crate::exec::error::RunError;
use crate::fabric::Rank;
use crate::plan::SHARED_BYTES;
use crate::report::Distance;

/// Bytes that other ranks of the node may read; none if this rank could not create the memory.
pub(in crate::exec) struct Offer {
    pub to: Vec<Rank>,
    pub shared: Option<SharedBytes>,
}

/// The result of an exchange.
pub(in crate::exec) struct Exchanged<T> {
    /// The memory that each sender has shared; none if its bytes come as messages.
    pub accepted: Vec<Option<T>>,
    /// By offer, the ranks that need its bytes as messages.
    pub refused: Vec<Vec<Rank>>,
}

impl Offer {
    pub fn new(to: Vec<Rank>, shared: io::Result<SharedBytes>) -> Offer {
        Offer { to, shared: shared_or_not(shared) }
    }
}

fn shared_or_not<T>(shared: io::Result<T>) -> Option<T> {
    shared.inspect_err(|error| tracing::debug!("memory is not shared: {error}")).ok()
}

/// Whether this rank and `rank` exchange this many bytes in memory that they share.
pub(in crate::exec) fn shares(comm: &Communicator, rank: Rank, bytes: usize) -> bool {
    bytes as u64 >= SHARED_BYTES && comm.distance(rank) == Distance::Node
}

/// Sends these offers, and accepts one from each rank of `from` through `open`. All these ranks call it with matching
/// arguments, and continue when all have answered.
pub(in crate::exec) fn exchange_on_node<T>(
    comm: &mut Communicator,
    trailer: Trailer,
    offers: &[Offer],
    from: &[Rank],
    open: impl Fn(SharedName) -> io::Result<T>,
) -> Result<Exchanged<T>, RunError> {
    for Offer { to, shared } in offers {
        let name = shared.as_ref().map(SharedBytes::name);
        for rank in to {
            let mut message = encode(&name)?;
            trailer.put(&mut message);
            comm.send(*rank, Tag::NodeMemory, message.into())?;
        }
    }
    let mut exchanged = Exchanged { accepted: Vec::new(), refused: Vec::new() };
    for rank in from {
        let what = "an input of its node";
        let mut message = comm.receive(*rank, Tag::NodeMemory)?;
        trailer.check(&mut message, *rank, what)?;
        let name: Option<SharedName> =
            serde_json::from_slice(&message).map_err(|_| RunError::Protocol { rank: *rank, what })?;
        let opened = name.and_then(|name| shared_or_not(open(name)));
        comm.send(*rank, Tag::NodeMemory, vec![u8::from(opened.is_some())].into())?;
        exchanged.accepted.push(opened);
    }
    for Offer { to, .. } in offers {
        let mut refused = Vec::new();
        for rank in to {
            if comm.receive(*rank, Tag::NodeMemory)? != [1] {
                refused.push(*rank);
            }
        }
        exchanged.refused.push(refused);
    }
    Ok(exchanged)
}
