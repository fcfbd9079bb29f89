use std::path::PathBuf;

/// Why Slurm did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlurmError {
    #[error("there is no `{program}` here: this machine does not submit to Slurm")]
    Missing { program: &'static str },
    #[error("`{program}` cannot be started")]
    Start { program: &'static str, source: std::io::Error },
    #[error("`{program}` refused: {message}")]
    Refused { program: &'static str, message: String },
    #[error("`{program}` does not reach Slurm: {message}")]
    Unreachable { program: &'static str, message: String },
    #[error("`{program}` said '{said}', which is not understood")]
    NotUnderstood { program: &'static str, said: String },
    #[error("srun has no plugin for {pmi}, which the MPI library of this exuvia needs (see `srun --mpi=list`)")]
    NoPmi { pmi: String },
    #[error("'{text}' is no list of array tasks")]
    Array { text: String },
    #[error("{path} cannot be written")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is no record of a submission")]
    Record { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

impl SlurmError {
    /// A way out, where there is one to tell.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            SlurmError::Missing { .. } => Some(
                "log in to a login node of the cluster, or `module load slurm`; without Slurm start the job with `mpirun \
                 exuvia run JOB`",
            ),
            SlurmError::Unreachable { .. } => {
                Some("try `sinfo`; on a machine that is no part of a cluster use `mpirun exuvia run JOB`")
            }
            SlurmError::NoPmi { .. } => Some("start ranks with mpirun in a script like slurm/mpirun.sbatch"),
            SlurmError::Array { .. } => Some("write for example 0-15, 1,3,7 or 0-99:10%4"),
            SlurmError::Record { .. } => Some("remove it if you do not need it"),
            _ => None,
        }
    }

    /// Whether the machine is at fault, and not what was asked for.
    pub fn is_environment(&self) -> bool {
        use SlurmError::*;
        matches!(self, Missing { .. } | Start { .. } | Unreachable { .. } | NoPmi { .. })
    }
}
