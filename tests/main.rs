//! All integration tests in one binary: a test's name is its file's and its function's, `stages::...`. One binary is linked
//! once; a file of tests is a module of this one.
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
