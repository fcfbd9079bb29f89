//! HTML pages with inline charts, which need no network and print well.

pub(crate) mod charts;
mod figures;
pub(crate) mod lines;
pub(crate) mod page;
mod run;

pub use run::html;
