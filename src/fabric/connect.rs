//! The choice of a fabric.

use super::error::FabricError;
use super::interface::Fabric;
use super::local::solo;
use super::mpi::mpi;
use crate::topology::{Launcher, launcher};

/// Connects to MPI if a launcher started this rank; otherwise returns a single rank without MPI.
pub fn connect() -> Result<Box<dyn Fabric>, FabricError> {
    match launcher() {
        Launcher::None => Ok(solo()),
        Launcher::Mpi { .. } => mpi(),
    }
}
