use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use crate::slurm::error::SlurmError;

/// The messages of Slurm's programs if it is not configured or not running.
const UNREACHABLE: [&str; 3] = ["configuration source", "unable to contact slurm controller", "connect failure"];

/// Runs one of Slurm's programs; returns its standard output.
pub(super) fn output<A: AsRef<OsStr>>(
    program: &'static str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String, SlurmError> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|source| match source.kind() {
        ErrorKind::NotFound => SlurmError::Missing { program },
        _ => SlurmError::Start { program, source },
    })?;
    if !output.status.success() {
        let message = complaint(program, &output.stderr);
        let nobody = UNREACHABLE.iter().any(|words| message.to_ascii_lowercase().contains(words));
        return Err(match nobody {
            true => SlurmError::Unreachable { program, message },
            false => SlurmError::Refused { program, message },
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The error messages of a program, on one line and without its name.
fn complaint(program: &str, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let prefix = format!("{program}: error: ");
    let lines = text.lines().map(|line| line.strip_prefix(&prefix).unwrap_or(line).trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "no error message".to_owned() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_one_line() {
        let said =
            b"sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed\n";
        let expected = "Memory specification can not be satisfied; Batch job submission failed";
        assert_eq!(complaint("sbatch", said), expected);
        assert_eq!(complaint("sbatch", b"\n"), "no error message");
    }

    #[test]
    fn a_program_that_is_not_there_is_missing() {
        let error = output("no-such-slurm", [""; 0]).unwrap_err();
        assert!(matches!(error, SlurmError::Missing { program: "no-such-slurm" }), "{error}");
        assert!(matches!(output("false", [""; 0]), Err(SlurmError::Refused { .. })));
    }
}
