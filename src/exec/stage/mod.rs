//! Stages of a run on one rank: the main thread's side of them.

pub mod carry_over;
pub mod context;
mod deferred;
pub mod main_loop;
pub mod stage_run;
pub mod steal_policy;
mod steal_transfer;
mod sum_recorder;
