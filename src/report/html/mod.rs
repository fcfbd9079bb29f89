//! Pages for people: plain HTML with charts inside, which opens without a network and prints well.

pub(crate) mod charts;
mod figures;
#[allow(dead_code, reason = "pages of benchmarks have lines")]
pub(crate) mod lines;
pub(crate) mod page;
mod run;

pub use run::html;
