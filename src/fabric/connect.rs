//! The choice of a fabric.

use super::error::FabricError;
use super::interface::Fabric;
use super::local::solo;
use super::mpi::mpi;
use crate::topology::{Launcher, launcher};

/// MPI where a launcher started ranks, otherwise one rank without it.
pub fn connect() -> Result<Box<dyn Fabric>, FabricError> {
    match launcher() {
        Launcher::None => Ok(solo()),
        Launcher::Mpi { .. } => mpi(),
    }
}
