//! Starts ranks with the launcher of the MPI that the program is built with.

use std::path::Path;
use std::process::{Command, Stdio};

pub fn open_mpi() -> bool {
    exuvia::fabric::library().starts_with("Open MPI")
}

/// Returns a command for `ranks` ranks of `program`. Arguments that follow are the program's.
pub fn ranks(ranks: u32, program: &Path) -> Command {
    let open_mpi = open_mpi();
    let names = match open_mpi {
        true => ["mpirun.openmpi", "mpirun"],
        false => ["mpiexec.mpich", "mpiexec"],
    };
    let present = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let launcher = names.into_iter().find(present).unwrap_or_else(|| panic!("none of {names:?} is installed"));
    let mut command = Command::new(launcher);
    if open_mpi {
        // Tests run in containers, as root, on fewer cores than ranks.
        command.args(["--oversubscribe", "--bind-to", "none"]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    command.args(["-n", &ranks.to_string()]).arg(program).stdin(Stdio::null());
    command
}
