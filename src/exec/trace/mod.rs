//! The trace of one rank: events as they are recorded and as they are reported.

pub mod recorder;
pub mod render;
