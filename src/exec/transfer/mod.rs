//! Tensor data on its way between ranks: pieces, exchanges, memory shared on a node.

pub mod broadcast;
pub mod exchange;
pub mod node_memory;
pub mod pending_receives;
pub mod piece;
pub mod resident;
