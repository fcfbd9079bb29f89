//! All integration tests in one binary, so that it is linked once. A file of tests is a module of this one, and a
//! test's name joins the names of its file and function, as in `stages::...`.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod lab;

mod bench;
mod check;
mod docs;
mod examples;
mod fabric;
mod files;
mod hosts;
mod layering;
mod notation;
mod overlap;
mod refusals;
mod resume;
mod run;
mod slurm;
mod stages;
mod survive;
mod top;
mod trace;
mod traffic;
