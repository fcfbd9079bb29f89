//! Partial results and their combination.

pub mod chain;
pub mod fold;
pub mod group;
