use std::path::PathBuf;

/// An error of Slurm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlurmError {
    #[error("cannot find `{program}`: this machine cannot submit to Slurm")]
    Missing { program: &'static str },
    #[error("cannot start `{program}`")]
    Start { program: &'static str, source: std::io::Error },
    #[error("`{program}` failed: {message}")]
    Refused { program: &'static str, message: String },
    #[error("`{program}` cannot reach Slurm: {message}")]
    Unreachable { program: &'static str, message: String },
    #[error("cannot parse the output of `{program}`: '{said}'")]
    NotUnderstood { program: &'static str, said: String },
    #[error("srun has no plugin for {pmi}, which the MPI library of this build needs (see `srun --mpi=list`)")]
    NoPmi { pmi: String },
    #[error("'{text}' is not a list of array tasks")]
    Array { text: String },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not the record of a submission")]
    Record { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

impl SlurmError {
    /// The next step for the user, if there is one.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            SlurmError::Missing { .. } => Some(
                "log in to a login node of the cluster, or `module load slurm`; without Slurm start the job with `mpirun \
                 exuvia run JOB`",
            ),
            SlurmError::Unreachable { .. } => {
                Some("try `sinfo`; on a machine outside a cluster, use `exuvia run --ranks N JOB`")
            }
            SlurmError::NoPmi { .. } => Some("start the ranks with mpirun in a script such as slurm/mpirun.sbatch"),
            SlurmError::Array { .. } => Some("use the format 0-15, 1,3,7 or 0-99:10%4"),
            SlurmError::Record { .. } => Some("remove the file if you do not need it"),
            _ => None,
        }
    }

    /// Returns whether the machine causes the error, and not the request.
    pub fn is_environment(&self) -> bool {
        use SlurmError::*;
        matches!(self, Missing { .. } | Start { .. } | Unreachable { .. } | NoPmi { .. })
    }
}
