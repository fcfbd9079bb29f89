use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::live::folder::PART;
use crate::live::snapshot::Snapshot;

/// The interval after which an unchanged snapshot is written again, to show that the run is alive.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The time to remove the file at the end of the run, if the file system is slow.
const FAREWELL: Duration = Duration::from_secs(1);

/// Writes the file of a run, and removes it on drop.
#[derive(Debug)]
pub struct Publisher {
    snapshots: Option<Sender<Snapshot>>,
    /// Disconnected when the file is removed.
    gone: Receiver<()>,
}

impl Publisher {
    /// Creates the publisher of a run with a unique name. Removes the files of dead runs from the folder.
    pub fn start(folder: &Path, name: &str) -> io::Result<Publisher> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let file = folder.join(format!("{name}.json"));
        let (snapshots, to_write) = bounded(1);
        let (lives, gone) = bounded(0);
        let folder = folder.to_owned();
        std::thread::Builder::new().name("live".to_owned()).spawn(move || {
            crate::live::folder::list(&folder);
            keep(&file, &to_write);
            drop::<Sender<()>>(lives);
        })?;
        Ok(Publisher { snapshots: Some(snapshots), gone })
    }

    /// Publishes a snapshot without waiting.
    pub fn publish(&self, snapshot: Snapshot) {
        if let Some(snapshots) = &self.snapshots {
            let _ = snapshots.try_send(snapshot);
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.snapshots = None;
        let _ = self.gone.recv_timeout(FAREWELL);
    }
}

/// Writes all snapshots until the channel closes.
fn keep(file: &Path, snapshots: &Receiver<Snapshot>) {
    let part = file.with_extension(PART);
    let mut last: Option<Snapshot> = None;
    loop {
        match snapshots.recv_timeout(HEARTBEAT) {
            Ok(snapshot) => last = Some(snapshot),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let Some(snapshot) = &mut last else { continue };
        if let Err(error) = write(file, &part, snapshot) {
            tracing::debug!("cannot write {}: {error}", file.display());
        }
    }
    for file in [file, &part] {
        let _ = fs::remove_file(file);
    }
}

fn write(file: &Path, part: &Path, snapshot: &mut Snapshot) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    snapshot.written_ms = now.as_millis() as u64;
    // Always a new file: other users who may write to the folder could place a link there.
    let _ = fs::remove_file(part);
    fs::File::create_new(part)?.write_all(&serde_json::to_vec(snapshot)?)?;
    fs::rename(part, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_goes_with_the_run() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().join("a/b");
        let publisher = Publisher::start(&folder, "run").unwrap();
        let rank_0 = crate::topology::host().process();
        let snapshot = Snapshot { schema: Snapshot::SCHEMA, job: "j".into(), rank_0, ..Snapshot::default() };
        publisher.publish(snapshot.clone());
        let read = loop {
            if let [read] = &crate::live::folder::list(&folder)[..] {
                break read.clone();
            }
            std::thread::yield_now();
        };
        assert!(read.written_ms > 0);
        assert_eq!(Snapshot { written_ms: 0, ..read }, snapshot);
        drop(publisher);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let lab = tempfile::tempdir().unwrap();
        let at = |name: &str| lab.path().join(name);
        fs::write(at("precious"), "7").unwrap();
        std::os::unix::fs::symlink(at("precious"), at("run.part")).unwrap();
        std::os::unix::fs::symlink(at("precious"), at("run.json")).unwrap();
        write(&at("run.json"), &at("run.part"), &mut Snapshot::default()).unwrap();
        assert_eq!(fs::read_to_string(at("precious")).unwrap(), "7");
        assert!(!at("run.json").is_symlink() && at("run.json").exists());
    }
}
