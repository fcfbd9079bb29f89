//! The log of a sweep: a file with one line of JSON per run.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::sweep::error::SweepError;
use crate::sweep::point::{Point, SweepIdentity, SweepKind};

/// The log file, locked by one sweep at a time.
#[derive(Debug)]
pub struct PointLog {
    path: PathBuf,
    file: File,
}

impl PointLog {
    /// Opens or creates the file and returns its points. An incomplete last line, left by a sweep that was killed, is
    /// removed. Points that are not comparable with new ones are an error, unless `fresh` discards all points.
    pub fn open(
        path: &Path,
        kind: SweepKind,
        identity: &SweepIdentity,
        fresh: bool,
    ) -> Result<(PointLog, Vec<Point>), SweepError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(SweepError::io("create the folder", folder))?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(SweepError::io("open", path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(SweepError::Busy { path: path.to_owned() }),
            // Some file systems do not support locks.
            Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(SweepError::io("lock", path)(error.into())),
        }
        let mut text = Vec::new();
        if !fresh {
            file.read_to_end(&mut text).map_err(SweepError::io("read", path))?;
        }
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let truncated = file.set_len(complete as u64).and_then(|()| file.seek(SeekFrom::End(0)));
        truncated.map_err(SweepError::io("write to", path))?;
        let lines = text[..complete].split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
        let read = |(at, line): (usize, &[u8])| {
            let failed = |source| SweepError::Line { path: path.to_owned(), line: at + 1, source };
            serde_json::from_slice::<Point>(line).map_err(failed)
        };
        let points = lines.map(read).collect::<Result<Vec<Point>, SweepError>>()?;
        if let Some(what) = points.iter().find_map(|point| difference(point, kind, identity)) {
            return Err(SweepError::Other { path: path.to_owned(), what });
        }
        Ok((PointLog { path: path.to_owned(), file }, points))
    }

    /// Appends a point and flushes it to disk.
    pub fn append(&mut self, point: &Point) -> Result<(), SweepError> {
        let failed = SweepError::io("write to", &self.path);
        let line = serde_json::to_string(point).map_err(std::io::Error::from);
        let written = line.and_then(|line| self.file.write_all((line + "\n").as_bytes()));
        written.and_then(|()| self.file.sync_data()).map_err(failed)
    }
}

/// Returns why a point is not comparable with new ones, if so.
fn difference(point: &Point, kind: SweepKind, now: &SweepIdentity) -> Option<&'static str> {
    let then = &point.identity;
    let differs = [
        (point.sweep != kind, "another kind of sweep"),
        (then.job_hash != now.job_hash, "another job, kernel or input"),
        (then.program_hash != now.program_hash, "another build of exuvia"),
        (then.cpu != now.cpu || then.cores != now.cores, "another machine"),
        (then.launcher != now.launcher, "another launcher of ranks"),
        (then.options != now.options, "other options of exuvia run"),
        (then.index != now.index, "another --index"),
    ];
    differs.into_iter().find_map(|(differs, what)| differs.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::statistics::tests::{identity, point};

    #[test]
    fn an_incomplete_line_is_removed_and_other_points_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/sweep.jsonl");
        let open = |identity: &SweepIdentity, fresh| PointLog::open(&path, SweepKind::Strong, identity, fresh);
        let (mut log, points) = open(&identity(), false).unwrap();
        assert_eq!(points, []);
        assert!(matches!(open(&identity(), false), Err(SweepError::Busy { .. })));
        let written = [point(1, 1, 2.0), point(2, 1, 1.1)];
        written.iter().for_each(|point| log.append(point).unwrap());
        log.file.write_all(b"{\"schema\":1,\"swe").unwrap();
        drop(log);
        let (mut log, points) = open(&identity(), false).unwrap();
        assert_eq!(points, written);
        // A new point does not continue the incomplete line.
        log.append(&point(4, 1, 0.6)).unwrap();
        drop(log);
        assert_eq!(open(&identity(), false).unwrap().1.len(), 3);
        let other = SweepIdentity { program_hash: "new".into(), ..identity() };
        let error = open(&other, false).unwrap_err();
        assert!(error.to_string().contains("another build") && error.help().unwrap().contains("--fresh"), "{error}");
        assert_eq!(open(&identity(), false).unwrap().1.len(), 3);
        assert_eq!(open(&other, true).unwrap().1, []);
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(matches!(open(&other, false), Err(SweepError::Line { line: 1, .. })));
    }
}
