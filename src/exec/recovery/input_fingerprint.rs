//! The files of inputs, behind links and virtual datasets too, and whether they have changed since an earlier run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::encode;
use crate::exec::error::RunError;
use crate::store::DatasetInfo;

/// Larger files are not hashed: that would take too long, and samples would miss changes.
const HASHED_BYTES: u64 = 1 << 30;
const BUFFER_BYTES: usize = 1 << 20;

/// The files of the inputs, as rank 0 found them when it opened the datasets.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::exec) struct InputFiles {
    files: Vec<FileStat>,
    /// By tensor: the number of a file, and the object in it.
    tensors: BTreeMap<String, Vec<(usize, String)>>,
}

/// A file's metadata in the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileStat {
    #[serde(with = "encode::path")]
    file: PathBuf,
    bytes: u64,
    modified_ns: i128,
    inode: u64,
}

/// Fingerprints of the files of all inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct Fingerprints {
    files: Vec<Fingerprint>,
    tensors: BTreeMap<String, Vec<(usize, String)>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    stat: FileStat,
    hash: Option<String>,
}

impl InputFiles {
    /// Finds the files of the datasets of a job, given by tensor.
    pub fn of(datasets: &BTreeMap<String, DatasetInfo>) -> Result<InputFiles, RunError> {
        let (mut sources, mut known) = (InputFiles::default(), BTreeMap::new());
        for (tensor, info) in datasets {
            let mut places = Vec::with_capacity(info.sources.len());
            for source in &info.sources {
                let next = sources.files.len();
                let number = *known.entry(&source.file).or_insert(next);
                if number == next {
                    sources.files.push(FileStat::of(&source.file)?);
                }
                places.push((number, source.object.clone()));
            }
            sources.tensors.insert(tensor.clone(), places);
        }
        Ok(sources)
    }

    /// Hashes the files. Returns `None` if one cannot be read or has changed since it was opened, or if `stop` is set.
    pub fn prints(&self, stop: &AtomicBool) -> Option<Fingerprints> {
        let files = self.files.iter().map(|stat| Fingerprint::take(stat, stop)).collect::<Option<_>>()?;
        Some(Fingerprints { files, tensors: self.tensors.clone() })
    }

    /// Returns the tensors whose content, or its place, has changed.
    pub fn changed(&self, before: &Fingerprints) -> Vec<String> {
        let mut held: BTreeMap<(usize, usize), bool> = BTreeMap::new();
        let mut is_as_before = |(number, object): &(usize, String), (print, earlier): &(usize, String)| {
            object == earlier
                && *held
                    .entry((*number, *print))
                    .or_insert_with(|| before.files.get(*print).is_some_and(|print| print.holds(&self.files[*number])))
        };
        let mut has_changed = |(tensor, places): &(&String, &Vec<(usize, String)>)| {
            let Some(earlier) = before.tensors.get(*tensor) else { return true };
            earlier.len() != places.len()
                || !places.iter().zip(earlier).all(|(place, earlier)| is_as_before(place, earlier))
        };
        let changed = self.tensors.iter().filter(|entry| has_changed(entry));
        changed.map(|(tensor, _)| tensor.clone()).collect()
    }

    /// Fails if one of the files has changed since it was opened. `outputs` are excepted, as other runs may replace
    /// them.
    pub fn check(&self, outputs: &[PathBuf]) -> Result<(), RunError> {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let outputs: Vec<PathBuf> = outputs.iter().map(|path| real(path)).collect();
        let changed = |stat: &&FileStat| FileStat::of(&stat.file).ok().as_ref() != Some(*stat);
        let is_input_alone = |stat: &&FileStat| !outputs.contains(&real(&stat.file));
        match self.files.iter().filter(changed).find(is_input_alone) {
            Some(stat) => Err(RunError::InputChanged { file: stat.file.clone() }),
            None => Ok(()),
        }
    }
}

impl FileStat {
    fn of(file: &Path) -> Result<FileStat, RunError> {
        let stat = std::fs::metadata(file).map(|metadata| FileStat::from(file, &metadata));
        stat.map_err(|_| RunError::InputChanged { file: file.to_owned() })
    }

    fn from(file: &Path, metadata: &std::fs::Metadata) -> FileStat {
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        FileStat { file: file.to_owned(), bytes: metadata.len(), modified_ns, inode: metadata.ino() }
    }
}

impl Fingerprint {
    /// Returns `None` if the metadata of the file differs from `stat` before or after it is read.
    fn take(stat: &FileStat, stop: &AtomicBool) -> Option<Fingerprint> {
        let mut opened = File::open(&stat.file).ok()?;
        let is_same = |opened: &File| opened.metadata().is_ok_and(|found| FileStat::from(&stat.file, &found) == *stat);
        if !is_same(&opened) {
            return None;
        }
        let mut hash = None;
        if stat.bytes <= HASHED_BYTES {
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                let read = opened.read(&mut buffer).ok()?;
                if read == 0 {
                    break;
                }
                hasher.update(&buffer[..read]);
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
            }
            hash = Some(hasher.finalize().to_hex().to_string());
        }
        // A file that is being written has no fingerprint.
        is_same(&opened).then(|| Fingerprint { stat: stat.clone(), hash })
    }

    /// Whether the file has the same content: it is untouched, or has the same hash.
    fn holds(&self, now: &FileStat) -> bool {
        let again = || Fingerprint::take(now, &AtomicBool::new(false));
        let can_compare = self.hash.is_some() && now.bytes == self.stat.bytes;
        self.stat == *now || (can_compare && again().is_some_and(|now| now.hash == self.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_unchanged_if_its_content_is() {
        let lab = tempfile::tempdir().unwrap();
        let file = lab.path().join("x");
        std::fs::write(&file, [1, 2, 3]).unwrap();
        let (stop, stat) = (AtomicBool::new(false), |file: &Path| FileStat::of(file).unwrap());
        let opened = stat(&file);
        let print = Fingerprint::take(&opened, &stop).unwrap();
        assert!(print.holds(&opened));
        let copy = lab.path().join("y");
        std::fs::copy(&file, &copy).unwrap();
        assert!(print.holds(&stat(&copy)), "the same content elsewhere, at another time");
        std::fs::write(&copy, [1, 2, 4]).unwrap();
        assert!(!print.holds(&stat(&copy)));
        assert!(Fingerprint::take(&opened, &AtomicBool::new(true)).is_none());
        // The same length, but another modification time.
        std::fs::write(&file, [1, 2, 5]).unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(!print.holds(&stat(&file)));
        assert!(Fingerprint::take(&opened, &stop).is_none(), "it has changed since it was opened");
    }

    #[test]
    fn a_file_too_large_to_hash_is_unchanged_only_if_untouched() {
        let lab = tempfile::tempdir().unwrap();
        let path = lab.path().join("large");
        let file = File::create(&path).unwrap();
        file.set_len(HASHED_BYTES + 1).unwrap();
        let opened = FileStat::of(&path).unwrap();
        let print = Fingerprint::take(&opened, &AtomicBool::new(false)).unwrap();
        assert!(print.holds(&opened));
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(!print.holds(&FileStat::of(&path).unwrap()));
    }

    #[test]
    fn a_tensor_changes_with_any_of_its_files_and_objects() {
        let lab = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| lab.path().join(name)).collect();
        files.iter().for_each(|file| std::fs::write(file, file.display().to_string()).unwrap());
        let sources = |x: &[(usize, &str)]| {
            let places =
                |all: &[(usize, &str)]| all.iter().map(|(file, object)| (*file, (*object).to_owned())).collect();
            InputFiles {
                files: files.iter().map(|file| FileStat::of(file).unwrap()).collect(),
                tensors: [("x".to_owned(), places(x)), ("y".to_owned(), places(&[(2, "/y")]))].into(),
            }
        };
        let now = sources(&[(0, "/x"), (1, "/p")]);
        let before = now.prints(&AtomicBool::new(false)).unwrap();
        assert!(now.changed(&before).is_empty() && now.check(&[]).is_ok());
        for other in [&[(0, "/x")][..], &[(0, "/x"), (1, "/q")], &[(0, "/x"), (2, "/p")]] {
            assert_eq!(sources(other).changed(&before), ["x"]);
        }
        assert_eq!(now.changed(&Fingerprints::default()), ["x", "y"]);
        std::fs::write(&files[1], "other").unwrap();
        assert_eq!(sources(&[(0, "/x"), (1, "/p")]).changed(&before), ["x"]);
        assert!(matches!(now.check(&[]), Err(RunError::InputChanged { file }) if file == files[1]));
        assert!(now.check(&files[1..2]).is_ok(), "its own output");
    }
}
