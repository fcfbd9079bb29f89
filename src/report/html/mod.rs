//! Pages for people: plain HTML with charts inside, which opens without a network and prints well.

pub(crate) mod charts;
mod figures;
pub(crate) mod lines;
pub(crate) mod page;
mod run;

pub use run::html;
