//! HDF5 files as users have them: inputs with links, virtual parts and filters, outputs beside other data, and files that
//! several programs share.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../lab/mod.rs"]
mod lab;

mod damage;
mod inputs;
mod outputs;
mod sharing;
