use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::ManifestError;
use super::open_options::no_follow;

/// Records are written once this many are pending, or the oldest has this age. Pending records die with the process.
const MAX_PENDING: usize = 64;
const MAX_AGE: Duration = Duration::from_millis(100);

/// One rank's log of one run.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Lines that are not in the file yet.
    pending: String,
    records: usize,
    oldest: Instant,
    payloads: Option<(File, u64)>,
}

/// Bytes that a record refers to, in a file next to its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPayload {
    /// Name of the file in the manifest's folder.
    pub file: String,
    pub at: u64,
    pub len: u64,
    pub checksum: u32,
}

/// The records of earlier runs.
#[derive(Debug)]
pub struct Records<T> {
    pub records: Vec<T>,
    /// The number of torn or damaged lines.
    pub damaged: u64,
}

impl Log {
    /// Begins the log of `rank` in the `generation`th run on this manifest.
    pub fn create(folder: &Path, generation: u64, rank: u32) -> Result<Log, ManifestError> {
        let path = folder.join(format!("finished-{generation}-{rank}.log"));
        let file = no_follow().append(true).create(true).open(&path);
        let file = file.map_err(|source| ManifestError::Io { path: path.clone(), what: "write", source })?;
        let (pending, oldest) = (String::new(), Instant::now());
        Ok(Log { path, file, pending, records: 0, oldest, payloads: None })
    }

    /// Appends a record, which is written to the file soon.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<(), ManifestError> {
        if self.records == 0 {
            self.oldest = Instant::now();
        }
        let line = serde_json::to_string(record).map_err(|e| self.failed(e.into()))?;
        self.pending += &format!("{:08x} {line}\n", crc32fast::hash(line.as_bytes()));
        self.records += 1;
        if self.records >= MAX_PENDING { self.flush() } else { Ok(()) }
    }

    /// Stores bytes for a later record to refer to.
    pub fn store(&mut self, bytes: &[u8]) -> Result<StoredPayload, ManifestError> {
        let path = self.path.with_extension("bin");
        let failed = |source| ManifestError::Io { path: path.clone(), what: "write", source };
        let (file, at) = match &mut self.payloads {
            Some(payloads) => payloads,
            None => {
                let file = no_follow().write(true).create(true).truncate(true).open(&path).map_err(failed)?;
                self.payloads.insert((file, 0))
            }
        };
        file.write_all_at(bytes, *at).map_err(failed)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let payload = StoredPayload { file: name, at: *at, len: bytes.len() as u64, checksum: crc32fast::hash(bytes) };
        *at += bytes.len() as u64;
        Ok(payload)
    }

    /// Writes pending records if the oldest has waited long enough.
    pub fn flush_if_due(&mut self) -> Result<(), ManifestError> {
        if self.records > 0 && self.oldest.elapsed() >= MAX_AGE { self.flush() } else { Ok(()) }
    }

    /// Writes all pending records, so that they survive this process.
    pub fn flush(&mut self) -> Result<(), ManifestError> {
        // One call writes all lines: if the process dies, at most the last line is torn.
        let written = self.file.write_all(self.pending.as_bytes());
        written.map_err(|source| self.failed(source))?;
        self.pending.clear();
        self.records = 0;
        Ok(())
    }

    /// The file of the log and the file of its payloads.
    pub fn files(&self) -> [PathBuf; 2] {
        [self.path.clone(), self.path.with_extension("bin")]
    }

    fn failed(&self, source: std::io::Error) -> ManifestError {
        ManifestError::Io { path: self.path.clone(), what: "write", source }
    }
}

impl<T: DeserializeOwned> Records<T> {
    /// Reads the logs of all ranks and runs, ordered by name; records within a log keep their order.
    pub fn read(folder: &Path) -> Result<Records<T>, ManifestError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ManifestError::Io { path, what: "read", source }
        };
        let mut logs = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed(folder))? {
            let entry = entry.map_err(failed(folder))?;
            let path = entry.path();
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && path.extension().is_some_and(|extension| extension == "log") {
                logs.push(path);
            }
        }
        logs.sort();
        let mut found = Records { records: Vec::new(), damaged: 0 };
        for path in logs {
            let mut bytes = Vec::new();
            let log = no_follow().read(true).open(&path);
            log.and_then(|mut log| log.read_to_end(&mut bytes)).map_err(failed(&path))?;
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match parse(line) {
                    Some(record) => found.records.push(record),
                    None => found.damaged += 1,
                }
            }
        }
        Ok(found)
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (checksum, text) = line.split_at_checked(9)?;
    let checksum = std::str::from_utf8(checksum).ok()?.strip_suffix(' ')?;
    let checksum = u32::from_str_radix(checksum, 16).ok()?;
    if crc32fast::hash(text) == checksum { serde_json::from_slice(text).ok() } else { None }
}

/// The bytes of a payload, if they are what they were, in a file of this folder.
pub fn read_payload(folder: &Path, payload: &StoredPayload) -> Option<Vec<u8>> {
    let name = Path::new(&payload.file).file_name().filter(|name| *name == payload.file.as_str())?;
    let file = no_follow().read(true).open(folder.join(name)).ok()?;
    if file.metadata().ok()?.len() < payload.at.checked_add(payload.len)? {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(payload.len).ok()?];
    file.read_exact_at(&mut bytes, payload.at).ok()?;
    (crc32fast::hash(&bytes) == payload.checksum).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path, records: std::ops::Range<u32>) -> PathBuf {
        let mut log = Log::create(folder, 1, 0).unwrap();
        records.for_each(|record| log.append(&(record, "tile")).unwrap());
        log.flush().unwrap();
        log.path
    }

    fn numbers(folder: &Path) -> (Vec<u32>, u64) {
        let found: Records<(u32, String)> = Records::read(folder).unwrap();
        (found.records.into_iter().map(|(number, _)| number).collect(), found.damaged)
    }

    #[test]
    fn a_last_record_torn_or_damaged_at_any_byte_is_not_there() {
        let lab = tempfile::tempdir().unwrap();
        let path = log(lab.path(), 0..3);
        let whole = fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        for cut in last..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (found, damaged) = numbers(lab.path());
            // Without its end of line it is still whole.
            let is_whole = cut + 1 == whole.len();
            assert_eq!(found.len(), 2 + usize::from(is_whole), "cut at {cut}");
            assert_eq!(damaged, u64::from(cut > last && !is_whole));
        }
        for bit in 8 * last..8 * (whole.len() - 1) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            let (found, _) = numbers(lab.path());
            // A letter of the checksum may change its case.
            assert!(found == [0, 1] || (found == [0, 1, 2] && bit / 8 < last + 8), "bit {bit}: {found:?}");
        }
    }

    #[test]
    fn damage_in_the_middle_costs_one_record_and_later_runs_add_theirs() {
        let lab = tempfile::tempdir().unwrap();
        let path = log(lab.path(), 0..3);
        let mut bytes = fs::read(&path).unwrap();
        bytes[31] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut later = Log::create(lab.path(), 2, 5).unwrap();
        later.append(&(9, "tile")).unwrap();
        assert_eq!(numbers(lab.path()), (vec![0, 2], 1), "not written yet");
        later.flush().unwrap();
        assert_eq!(numbers(lab.path()), (vec![0, 2, 9], 1));
    }

    #[test]
    fn payloads_are_what_they_were_or_nothing() {
        let lab = tempfile::tempdir().unwrap();
        let mut log = Log::create(lab.path(), 1, 0).unwrap();
        log.store(&[1, 2, 3]).unwrap();
        let payload = log.store(&[4, 5]).unwrap();
        assert_eq!(read_payload(lab.path(), &payload), Some(vec![4, 5]));
        let path = lab.path().join(&payload.file);
        for damage in [&[1, 2, 3, 4][..], &[1, 2, 3, 4, 7], &[]] {
            fs::write(&path, damage).unwrap();
            assert_eq!(read_payload(lab.path(), &payload), None);
        }
    }

    #[test]
    fn payloads_are_in_the_folder_or_nowhere() {
        let lab = tempfile::tempdir().unwrap();
        let (folder, outside) = (lab.path().join("m"), lab.path().join("outside"));
        fs::create_dir(&folder).unwrap();
        fs::write(&outside, [4, 5]).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link")).unwrap();
        fs::copy(&outside, folder.join("inside")).unwrap();
        let read = |file: &str| {
            let payload = StoredPayload { file: file.to_owned(), at: 0, len: 2, checksum: crc32fast::hash(&[4, 5]) };
            read_payload(&folder, &payload)
        };
        assert_eq!(read("inside"), Some(vec![4, 5]));
        for file in ["../outside", outside.to_str().unwrap(), "link", "./inside/..", "..", ""] {
            assert_eq!(read(file), None, "{file}");
        }
    }
}
