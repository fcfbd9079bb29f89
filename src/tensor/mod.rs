//! Integer geometry of tensors: element types, shapes, regions and copies between packed buffers.
//!
//! This module has no I/O and no floating-point arithmetic, and knows nothing of ranks or files.
//! Invariant: a [`Region`] always lies in the shape it was made for, and every byte count is computed
//! without overflow (shapes whose bytes exceed `u64` are refused when they enter, see [`Shape::new`]).

mod copy;
mod dtype;
mod halo;
mod region;
mod shape;

pub use copy::{PackedBox, copy_box, copy_region};
pub use dtype::Dtype;
pub use halo::{Boundary, HaloPart, clamp_edges, halo_parts, padded};
pub use region::{Region, chunk_count, chunks_of};
pub use shape::{MAX_RANK, Shape, ShapeError};
