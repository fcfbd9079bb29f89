//! The files that a run writes on request: its report and its trace.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli::run::arguments::RunArguments;
use crate::report::Report;
use crate::store::real_path;

/// A file that could not be written after the run.
#[derive(Debug, thiserror::Error)]
#[error("the job is done, but its {what} cannot be written to {}", file.display())]
pub(super) struct RecordError {
    what: &'static str,
    file: PathBuf,
    source: std::io::Error,
}

/// Writes the report and the trace, if requested; returns the number of events that the trace lacks.
pub(super) fn write(arguments: &RunArguments, report: &Report) -> Result<u64, RecordError> {
    if let Some(file) = &arguments.report {
        let write = |out: &mut BufWriter<&File>| {
            serde_json::to_writer_pretty(&mut *out, report)?;
            out.write_all(b"\n")
        };
        write_whole(file, write).map_err(|source| RecordError { what: "report", file: file.clone(), source })?;
    }
    let Some(file) = &arguments.trace else { return Ok(0) };
    let trace = report.trace.as_ref().ok_or_else(|| std::io::Error::other("it could not be collected from the ranks"));
    let written = trace.and_then(|trace| {
        write_whole(file, |out| trace.write(&report.job, out))?;
        Ok(trace.dropped)
    });
    written.map_err(|source| RecordError { what: "trace", file: file.clone(), source })
}

/// Writes a file atomically. A link is kept, and its target replaced; a terminal or a pipe is written to directly.
pub(in crate::cli) fn write_whole(
    file: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let there = std::fs::metadata(file).ok();
    let is_stream =
        ["/dev", "/proc"].iter().any(|streams| std::path::absolute(file).is_ok_and(|f| f.starts_with(streams)));
    if there.as_ref().is_some_and(|there| is_stream || !there.is_file()) {
        let opened = File::options().append(true).open(file)?;
        let mut out = BufWriter::new(&opened);
        write(&mut out)?;
        return out.flush();
    }
    let file = real_path(file)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let permissions = std::fs::Permissions::from_mode(0o666);
    let temporary = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
    let mut out = BufWriter::new(temporary.as_file());
    write(&mut out)?;
    out.flush()?;
    drop(out);
    if let Some(there) = there {
        temporary.as_file().set_permissions(there.permissions())?;
    }
    temporary.persist(file).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_modes_and_devices_are_kept() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let put = |name: &str| write_whole(&at(name), |out| out.write_all(b"all")).unwrap();
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        std::fs::write(at("secret"), "before").unwrap();
        std::fs::set_permissions(at("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink("secret", at("latest")).unwrap();
        symlink("new/report", at("dangling")).unwrap();
        put("latest");
        put("dangling");
        assert!(at("latest").is_symlink() && at("dangling").is_symlink());
        assert_eq!(std::fs::read_to_string(at("secret")).unwrap(), "all");
        assert_eq!(std::fs::read_to_string(at("new/report")).unwrap(), "all");
        assert_eq!(mode("secret"), 0o600);
        symlink("/dev/null", at("null")).unwrap();
        put("null");
        write_whole(Path::new("/dev/null"), |out| out.write_all(b"all")).unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 5, "no temporary");
    }
}
