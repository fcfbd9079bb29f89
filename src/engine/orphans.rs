//! Orphaned helpers: they continue to compile for later runs although no process waits for them. Each cache has at most
//! [`MOST`] on a machine. Each holds a lock on a file in the cache, and ends when the file is removed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::engine::cache::Cache;

/// Most orphaned helpers of a cache on one machine.
pub const MOST: usize = 2;

/// An orphaned helper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrphanedHelper {
    pub process: u32,
    /// Name of the module.
    pub kernel: String,
    /// When it became an orphan.
    pub since: SystemTime,
    /// Key of its artifact in the cache.
    pub(super) key: String,
    #[serde(skip)]
    file: PathBuf,
}

impl OrphanedHelper {
    /// Makes it end within about a second.
    pub(super) fn dismiss(&self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// One of the slots for orphaned helpers, while it is held.
#[derive(Debug)]
pub(super) struct HelperSlot {
    file: File,
    path: PathBuf,
}

impl HelperSlot {
    /// Takes a free slot, unless another orphan compiles the same.
    pub fn take(cache: &Cache, key: &str, kernel: &str) -> Option<HelperSlot> {
        if !has_room(cache, key) {
            return None;
        }
        paths(cache).find_map(|path| {
            let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).ok()?;
            flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
            let process = std::process::id();
            let (kernel, key) = (kernel.to_owned(), key.to_owned());
            let left = OrphanedHelper { process, kernel, since: SystemTime::now(), key, file: PathBuf::new() };
            file.set_len(0).ok()?;
            file.write_all(&serde_json::to_vec(&left).ok()?).ok()?;
            let slot = HelperSlot { file, path };
            // Another process may have removed it meanwhile.
            slot.is_mine().then_some(slot)
        })
    }

    /// Whether the slot is still held.
    pub fn is_mine(&self) -> bool {
        let there = fs::metadata(&self.path).and_then(|there| Ok((there, self.file.metadata()?)));
        there.is_ok_and(|(there, mine)| there.ino() == mine.ino() && there.dev() == mine.dev())
    }
}

/// The orphaned helpers on this machine.
pub fn list(cache: &Cache) -> Vec<OrphanedHelper> {
    let left = |path: PathBuf| {
        let file = File::open(&path).ok()?;
        // A free lock means that the helper has ended.
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None;
        }
        let left: OrphanedHelper = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        Some(OrphanedHelper { file: path, ..left })
    };
    paths(cache).filter_map(left).collect()
}

/// Whether another orphan may compile the artifact of this key.
pub(super) fn has_room(cache: &Cache, key: &str) -> bool {
    let left = list(cache);
    left.len() < MOST && left.iter().all(|left| left.key != key)
}

/// Paths of the lock files of this machine; other machines may share the cache.
fn paths(cache: &Cache) -> impl Iterator<Item = PathBuf> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    (0..MOST).map(move |number| cache.directory().join(format!("helper-{host}-{number}.lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_few_places_each_known_while_it_is_held_and_gone_when_it_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(home.path())).unwrap();
        let slots: Vec<HelperSlot> =
            (0..MOST).map(|n| HelperSlot::take(&cache, &format!("key{n}"), "k.wasm").unwrap()).collect();
        assert!(HelperSlot::take(&cache, "more", "k.wasm").is_none());
        assert!(!has_room(&cache, "more"));
        let known = list(&cache);
        assert_eq!(known.iter().map(|left| left.key.as_str()).collect::<Vec<_>>(), ["key0", "key1"]);
        assert_eq!((known[0].process, known[0].kernel.as_str()), (std::process::id(), "k.wasm"));
        known[0].dismiss();
        assert!(!slots[0].is_mine() && slots[1].is_mine());
        drop(slots);
        assert!(list(&cache).is_empty());
        let again = HelperSlot::take(&cache, "again", "k.wasm");
        assert!(
            again.is_some() && HelperSlot::take(&cache, "again", "k.wasm").is_none(),
            "one is enough for one module"
        );
    }
}
