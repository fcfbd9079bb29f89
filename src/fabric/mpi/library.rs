//! The MPI library in use, and whether it fits the launcher.

use super::raw;
use crate::fabric::error::FabricError;
use crate::topology::Launcher;

/// The MPI library in use and its version, such as `Open MPI v4.1.4`. Works before MPI starts.
pub fn library() -> String {
    let version = raw::library_version();
    version.map_or_else(|| "an unknown MPI library".to_owned(), |version| short_version(&version))
}

/// Whether the library is Open MPI. Works before MPI starts.
pub fn is_open_mpi() -> bool {
    library().starts_with("Open MPI")
}

/// Open MPI: `Open MPI v4.1.4, package: ...`. MPICH: `MPICH Version:\t4.0.2\nMPICH Release date: ...`.
fn short_version(version: &str) -> String {
    let first = version.split(['\n', ',']).next().unwrap_or_default();
    let words = first.split_whitespace().filter(|&word| word != "Version:");
    words.collect::<Vec<_>>().join(" ")
}

pub(super) fn check_launcher(size: u32, launcher: Launcher) -> Result<(), FabricError> {
    match launcher {
        Launcher::Mpi { size_hint: Some(expected), name, .. } if expected > 1 && size == 1 => {
            let library = library();
            Err(FabricError::LauncherMismatch {
                launcher: name,
                expected,
                help: mismatch_help(name, &library),
                library,
            })
        }
        _ => Ok(()),
    }
}

fn mismatch_help(launcher: &str, library: &str) -> String {
    if !launcher.starts_with("srun") {
        return format!(
            "start with the mpirun or mpiexec of {library}, or rebuild with MPICC naming the compiler wrapper of the \
             other MPI, in a target directory of its own"
        );
    }
    let (pmi, runner) = match library.starts_with("Open MPI") {
        true => ("pmix", "mpirun"),
        false => ("pmi2", "mpiexec"),
    };
    format!(
        "start with `srun --mpi={pmi}` (`srun --mpi=list` shows what Slurm has), or with `{runner}` in the allocation"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(name: &'static str, size: u32) -> Launcher {
        Launcher::Mpi { size_hint: Some(size), rank_hint: Some(0), name }
    }

    #[test]
    fn versions_are_short() {
        let open_mpi = "Open MPI v4.1.4, package: Debian Open MPI, ident: 4.1.4";
        assert_eq!(short_version(open_mpi), "Open MPI v4.1.4");
        let mpich = "MPICH Version:\t4.0.2\nMPICH Release date:\tThu";
        assert_eq!(short_version(mpich), "MPICH 4.0.2");
    }

    #[test]
    fn a_singleton_among_launched_ranks_is_refused_with_a_way_out() {
        assert!(check_launcher(1, Launcher::None).is_ok());
        assert!(check_launcher(1, launched("srun --mpi=pmix", 1)).is_ok());
        assert!(check_launcher(4, launched("srun --mpi=pmix", 4)).is_ok());
        let text = check_launcher(1, launched("srun without PMI", 4)).unwrap_err().to_string();
        assert!(text.starts_with("srun without PMI started 4 ranks"), "{text}");
        assert!(mismatch_help("srun", "Open MPI v4.1.4").contains("srun --mpi=pmix"));
        assert!(mismatch_help("srun", "MPICH 4.0.2").contains("srun --mpi=pmi2"));
        assert!(mismatch_help("mpiexec (Hydra)", "Open MPI v4.1.4").contains("MPICC"));
    }
}
