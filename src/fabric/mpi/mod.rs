//! The fabric over MPI.

mod library;
mod mpi_fabric;
mod raw;

pub use library::{is_open_mpi, library};
pub use mpi_fabric::mpi;
