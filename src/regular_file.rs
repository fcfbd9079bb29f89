//! Small files that are read whole, such as jobs and kernels. Pipes, devices and files above a limit are refused;
//! reading them could block or exhaust memory.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The bytes of a regular file of at most `limit_bytes`.
pub fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let refused = |message: String| Error::new(ErrorKind::InvalidInput, message);
    // Without this flag, opening a pipe without a writer would block.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(refused("it is a directory".to_owned()));
    }
    if !metadata.is_file() {
        return Err(refused("it is no regular file but a pipe, a device or a socket".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(refused(format!("it is longer than {limit_bytes} bytes, the most that is read")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_fitting_length_are_read() {
        let lab = tempfile::tempdir().unwrap();
        let (file, pipe) = (lab.path().join("file"), lab.path().join("pipe"));
        std::fs::write(&file, [1, 2, 3]).unwrap();
        assert_eq!(read(&file, 3).unwrap(), [1, 2, 3]);
        assert!(read(&file, 2).unwrap_err().to_string().contains("longer than 2 bytes"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read(&pipe, 3).unwrap_err().to_string().contains("a pipe"));
        assert!(read(Path::new("/dev/zero"), 3).unwrap_err().to_string().contains("a device"));
        assert!(read(lab.path(), 3).unwrap_err().to_string().contains("a directory"));
        assert_eq!(read(&lab.path().join("none"), 3).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
