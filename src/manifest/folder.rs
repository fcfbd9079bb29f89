use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ManifestError;
use super::open_options::no_follow;

const LOCK: &str = "lock";
/// How long the lock of a killed run may last.
const PATIENCE: Duration = Duration::from_secs(1);

/// The folder of a manifest, held by one run at a time: by its rank 0.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The lock lasts while this file is open.
    _lock: File,
}

impl Folder {
    /// Locks the folder at `path` for this run; creates it if there is none.
    pub fn open(path: &Path) -> Result<Folder, ManifestError> {
        let failed = |what| move |source| ManifestError::Io { path: path.to_owned(), what, source };
        let until = Instant::now() + PATIENCE;
        loop {
            make(path).map_err(failed("create the folder"))?;
            check(path)?;
            let mut options = no_follow();
            let mut lock = match options.read(true).write(true).create(true).truncate(false).open(path.join(LOCK)) {
                Ok(lock) => lock,
                // The previous run is removing the folder.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("lock")(error)),
            };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(Errno::WOULDBLOCK) => {
                    let mut by = String::new();
                    let _ = lock.read_to_string(&mut by);
                    return Err(ManifestError::Busy { folder: path.to_owned(), by: by.trim().to_owned() });
                }
                // Some file systems have no locks: then other runs are not excluded, as without a manifest.
                Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(failed("lock")(error.into())),
            }
            let same = |there: fs::Metadata| lock.metadata().is_ok_and(|here| here.ino() == there.ino());
            if !fs::symlink_metadata(path.join(LOCK)).is_ok_and(same) {
                continue;
            }
            let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let by = format!("process {} on {hostname}", std::process::id());
            let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{by}"));
            written.map_err(failed("lock"))?;
            return Ok(Folder { path: path.to_owned(), _lock: lock });
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was last written under this name; nothing if it cannot be understood.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let (mut file, mut bytes) = (no_follow().read(true).open(self.path.join(name)).ok()?, Vec::new());
        file.read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes `value` under this name, whole or not at all.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), ManifestError> {
        write_json(&self.path, name, value)
    }

    /// Removes it with all that is in it.
    pub fn remove(self) -> Result<(), ManifestError> {
        let failed = |source| ManifestError::Io { path: self.path.clone(), what: "remove", source };
        fs::remove_dir_all(&self.path).map_err(failed)
    }
}

/// Makes the folder if there is none: what is in it is nobody else's business.
fn make(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Fails unless it is a folder of this user: somebody who may write beside it could have put a link there, or a folder
/// of their own.
fn check(path: &Path) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Io { path: path.to_owned(), what: "look at", source };
    let refused = |why: String| Err(ManifestError::NotOurs { folder: path.to_owned(), why });
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return refused(if metadata.is_symlink() { "is a link" } else { "is no folder" }.to_owned());
    }
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    // Some file systems give all files to one user. Then what this one makes is theirs too.
    let made = path.parent().map(tempfile::tempfile_in).and_then(|made| made.and_then(|file| file.metadata()).ok());
    match made {
        Some(made) if made.uid() == metadata.uid() => Ok(()),
        _ => refused(format!("belongs to user {}", metadata.uid())),
    }
}

/// Writes `value` under this name in a folder that this or another thread holds, whole or not at all.
pub fn write_json<T: Serialize>(folder: &Path, name: &str, value: &T) -> Result<(), ManifestError> {
    let path = folder.join(name);
    let write = || -> std::io::Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(&serde_json::to_vec_pretty(value)?)?;
        temporary.as_file().sync_all()?;
        temporary.persist(&path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|source| ManifestError::Io { path: path.clone(), what: "write", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_at_a_time_has_it() {
        let lab = tempfile::tempdir().unwrap();
        let path = lab.path().join("m");
        let first = Folder::open(&path).unwrap();
        first.write("header", &7).unwrap();
        let busy = Folder::open(&path).unwrap_err().to_string();
        assert!(busy.contains(&format!("process {}", std::process::id())), "{busy}");
        drop(first);
        let second = Folder::open(&path).unwrap();
        assert_eq!((second.read::<i32>("header"), second.read::<i32>("nothing")), (Some(7), None));
        fs::write(path.join("header"), "tor").unwrap();
        assert_eq!(second.read::<i32>("header"), None);
        second.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_others_have_put_there_is_not_used() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let lab = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (lab.path().join("m"), lab.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("keep"), "7").unwrap();
        symlink(&elsewhere, &path).unwrap();
        let refused = Folder::open(&path).unwrap_err().to_string();
        assert!(refused.contains("is a link") && fs::read_dir(&elsewhere).unwrap().count() == 1, "{refused}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(Folder::open(&path).is_err());
        fs::remove_file(&path).unwrap();
        let folder = Folder::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        symlink(elsewhere.join("keep"), path.join("header")).unwrap();
        assert_eq!(folder.read::<i32>("header"), None);
        folder.write("header", &8).unwrap();
        assert_eq!(
            (fs::read_to_string(elsewhere.join("keep")).unwrap().as_str(), folder.read("header")),
            ("7", Some(8))
        );
        drop(folder);
        // Only root can make a folder somebody else's.
        if fs::metadata(&path).unwrap().uid() == 0 && std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
            let refused = Folder::open(&path).unwrap_err().to_string();
            assert!(refused.contains("belongs to user 12345"), "{refused}");
        }
    }
}
