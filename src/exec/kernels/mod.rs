//! Kernel code and its measured costs.

pub mod cost_history;
pub mod tier_up;
