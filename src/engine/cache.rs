use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::artifact::{Artifact, ArtifactFingerprint};
use crate::engine::error::EngineError;
use crate::engine::kernel::Kernel;

/// Artifacts on disk, one file per fingerprint, and notes of runs on kernels, in a directory that only its owner can
/// write.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The cache in `directory`, or in `$EXUVIA_CACHE_DIR`, `$XDG_CACHE_HOME/exuvia` or `~/.cache/exuvia`. Creates it;
    /// fails if another user could plant code in it.
    pub fn open(directory: Option<&Path>) -> Result<Cache, EngineError> {
        let directory = directory.map(Path::to_owned).or_else(default_directory);
        let Some(directory) = directory else {
            let message = "neither EXUVIA_CACHE_DIR, XDG_CACHE_HOME nor HOME is set".to_owned();
            return Err(failed(Path::new("<none>"), message));
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&directory).map_err(|e| failed(&directory, e.to_string()))?;
        Cache::reopen(&directory)
    }

    /// Opens an existing cache. A helper of a run uses this, so that it does not recreate a cache that was removed.
    pub fn reopen(directory: &Path) -> Result<Cache, EngineError> {
        let metadata = fs::metadata(directory).map_err(|e| failed(directory, e.to_string()))?;
        let me = rustix::process::geteuid().as_raw();
        if metadata.uid() != me {
            return Err(failed(directory, format!("it belongs to user {}, and this is user {me}", metadata.uid())));
        }
        if metadata.mode() & 0o022 != 0 {
            let mode = metadata.mode() & 0o777;
            return Err(failed(directory, format!("others may write to it (mode {mode:o}); run `chmod go-w` on it")));
        }
        Ok(Cache { directory: directory.to_owned() })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The artifact of this fingerprint, if it is cached. Removes a damaged one.
    pub fn get(&self, wanted: &ArtifactFingerprint) -> Option<Vec<u8>> {
        let file = self.file(wanted);
        let bytes = read_own(&file)?;
        match Artifact::parse(&bytes) {
            Ok(artifact) if artifact.fingerprint == *wanted => Some(bytes),
            _ => {
                let _ = fs::remove_file(&file);
                None
            }
        }
    }

    /// Stores an artifact. Other processes see all of it or nothing.
    pub fn put(&self, artifact: &[u8]) -> Result<(), EngineError> {
        let fingerprint = Artifact::parse(artifact).map_err(|message| self.failed(message))?.fingerprint;
        self.write(&self.file(&fingerprint), artifact)
    }

    /// The notes of earlier runs on a kernel, if there are any.
    pub fn notes(&self, kernel: &Kernel) -> Option<Vec<u8>> {
        read_own(&self.notes_file(kernel))
    }

    /// Replaces the notes on a kernel.
    pub fn put_notes(&self, kernel: &Kernel, notes: &[u8]) -> Result<(), EngineError> {
        self.write(&self.notes_file(kernel), notes)
    }

    /// Whether `exuvia check` has found nothing wrong with a kernel.
    pub fn is_checked(&self, kernel: &Kernel) -> bool {
        let exports = fs::read_to_string(self.checked_file(kernel.hash())).unwrap_or_default();
        exports.lines().any(|export| export == kernel.export())
    }

    /// Records that `exuvia check` has found nothing wrong with an export of the module with this hash.
    pub fn put_checked(&self, module_hash: &str, export: &str) -> Result<(), EngineError> {
        let file = self.checked_file(module_hash);
        let known = fs::read_to_string(&file).unwrap_or_default();
        if known.lines().any(|line| line == export) {
            return Ok(());
        }
        self.write(&file, format!("{known}{export}\n").as_bytes())
    }

    fn checked_file(&self, module_hash: &str) -> PathBuf {
        self.directory.join(format!("{module_hash}.checked"))
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> Result<(), EngineError> {
        let write = || -> std::io::Result<()> {
            let mut temporary = tempfile::NamedTempFile::new_in(&self.directory)?;
            temporary.write_all(bytes)?;
            temporary.as_file().sync_all()?;
            temporary.persist(file).map_err(|e| e.error)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|e| self.failed(e.to_string()))
    }

    fn failed(&self, message: String) -> EngineError {
        failed(&self.directory, message)
    }

    fn notes_file(&self, kernel: &Kernel) -> PathBuf {
        self.directory.join(format!("{}.notes", kernel.hash()))
    }

    fn file(&self, fingerprint: &ArtifactFingerprint) -> PathBuf {
        self.directory.join(format!("{}.artifact", fingerprint.key()))
    }
}

/// Reads a file that this user owns. If others may write to the parent directory, the cache may have been exchanged
/// since it was checked; code of another user is never run.
fn read_own(file: &Path) -> Option<Vec<u8>> {
    let unlinked = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut opened = File::options().read(true).custom_flags(unlinked).open(file).ok()?;
    if opened.metadata().ok()?.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn failed(directory: &Path, message: String) -> EngineError {
    EngineError::Cache { directory: directory.to_owned(), message }
}

fn default_directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("EXUVIA_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|d| d.join("exuvia")))
        .or_else(|| variable("HOME").map(|d| d.join(".cache/exuvia")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::engine::artifact::Pipeline;
    use crate::engine::code::{Engine, optimize};
    use crate::engine::pipeline::Cpu;
    use crate::engine::tier::Tier;

    #[test]
    fn keeps_what_is_whole_and_forgets_what_is_damaged() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&home.path().join("a/b"))).unwrap();
        let wat = r#"(module (memory 1) (func (export "k") (param i32 i32) (result i32) i32.const 0))"#;
        let kernel = Kernel::from_bytes("k", &wat::parse_str(wat).unwrap(), None).unwrap();
        let engine = Engine::new(Cpu::host(), Pipeline::Full);
        let wanted = |engine: &Engine| engine.fingerprint(&kernel, Tier::Optimized);
        assert_eq!(cache.get(&wanted(&engine)), None);
        let artifact = optimize(&kernel, engine.cpu(), Pipeline::Full).unwrap();
        cache.put(&artifact).unwrap();
        assert_eq!(cache.get(&wanted(&engine)), Some(artifact.clone()));
        let stock = Engine::new(Cpu::host(), Pipeline::Stock);
        assert_eq!(cache.get(&wanted(&stock)), None, "another identity");
        assert_eq!(cache.get(&engine.fingerprint(&kernel, Tier::Baseline)), None, "another tier");

        let file = fs::read_dir(cache.directory()).unwrap().next().unwrap().unwrap().path();
        fs::write(&file, &artifact[..artifact.len() - 1]).unwrap();
        assert_eq!(cache.get(&wanted(&engine)), None);
        assert!(!file.exists(), "a damaged entry is removed");
        assert!(cache.put(b"nonsense").is_err());
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let message = Cache::open(Some(home.path())).unwrap_err().to_string();
        assert!(message.contains("others may write") && message.contains("777"), "{message}");
        let fresh = home.path().join("fresh");
        Cache::open(Some(&fresh)).unwrap();
        assert_eq!(fs::metadata(fresh).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn files_of_others_are_not_there() {
        let home = tempfile::tempdir().unwrap();
        let (own, link) = (home.path().join("own"), home.path().join("link"));
        fs::write(&own, "7").unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert_eq!((read_own(&own), read_own(&link)), (Some(b"7".to_vec()), None));
        // Only root can give a file away.
        if std::os::unix::fs::chown(&own, Some(12345), None).is_ok() {
            assert_eq!(read_own(&own), None);
        }
    }

    #[test]
    fn a_directory_that_is_gone_does_not_come_back() {
        let home = tempfile::tempdir().unwrap();
        let gone = home.path().join("gone");
        assert!(Cache::reopen(&gone).is_err() && !gone.exists());
        Cache::open(Some(&gone)).unwrap();
        assert_eq!(Cache::reopen(&gone).unwrap().directory(), gone);
    }
}
