//! From a dataset's name in a file to the file that has it: one link at a time, so that what leads nowhere is named, circles
//! end, and nothing is opened that is no regular file.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::error::nearest;
use super::listing::{Listing, list_opened};
use super::raw::guard::Held;
use super::raw::source::{self, Kind, Link, path_of};
use crate::encode;
use crate::store::error::StoreError;

/// Links that are followed for one name. HDF5 itself follows 16.
const MOST_LINKS: usize = 64;

/// An HDF5 file that is open for reading.
#[derive(Debug)]
pub(super) struct Opened {
    pub path: PathBuf,
    pub file: Held<hdf5::File>,
    cache_bytes: usize,
}

/// A place in a file that a dataset's elements come from, or that a link on the way there lies at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Source {
    #[serde(with = "encode::path")]
    pub file: PathBuf,
    /// A path in the file; none of a file that has bare elements.
    pub object: String,
}

/// What a name leads to.
pub(super) struct Found {
    pub opened: Arc<Opened>,
    /// Of hard links alone.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub address: u64,
    /// All places on the way; this is the last.
    pub sources: Vec<Source>,
}

impl Opened {
    /// Opens a file; keeps so many bytes of decompressed chunks for each of its datasets.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Arc<Opened>, StoreError> {
        check_regular(path)?;
        let file = source::open_file(path, cache_bytes).map_err(|error| {
            // A user block may stand before the signature, so this is asked only once HDF5 has given up.
            let mut start = [0; 8];
            let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
            if start[..read] == *b"\x89HDF\r\n\x1a\n" {
                StoreError::hdf5(path, "open the file")(error)
            } else {
                StoreError::NotHdf5 { file: path.to_owned() }
            }
        })?;
        Ok(Arc::new(Opened { path: path.to_owned(), file, cache_bytes }))
    }

    /// What `name` leads to in this file, or from it in others.
    pub fn find(self: &Arc<Opened>, name: &[u8]) -> Result<Found, StoreError> {
        let mut search = Search::new(self, true);
        let stop = match search.follow(name) {
            Ok((kind, address)) => {
                let Search { opened, at: path, sources, .. } = search;
                return Ok(Found { opened, path, kind, address, sources });
            }
            Err(stop) => stop,
        };
        Err(match stop {
            Stop::Missing(_) if search.trail.is_empty() => self.missing(name),
            Stop::Missing(path) => {
                let file = search.opened.path.display();
                self.unusable(name, format!("{}but there is no '{path}' in {file}", search.trail))
            }
            Stop::Unusable(message) => self.unusable(name, message),
            Stop::Failed(error) if search.trail.is_empty() => error,
            Stop::Failed(error) => self.unusable(name, format!("{}but {}", search.trail, with_causes(&error))),
        })
    }

    /// Whether there is something of this name in this file; `None` if that is in another one.
    pub fn leads(self: &Arc<Opened>, name: &[u8]) -> Option<bool> {
        let mut search = Search::new(self, false);
        match search.follow(name) {
            Ok(_) => Some(true),
            Err(Stop::Unusable(_)) if search.leaves => None,
            Err(_) => Some(false),
        }
    }

    fn missing(self: &Arc<Opened>, name: &[u8]) -> StoreError {
        let names = list_opened(self).map_or_else(|_| Vec::new(), Listing::names);
        let dataset = text(name);
        let found = match nearest(&dataset, &names) {
            Some(near) => format!("did you mean '{near}'?"),
            None if names.is_empty() => "the file has no datasets".to_owned(),
            None => format!("it has: {}", some_of(&names)),
        };
        StoreError::NoDataset { file: self.path.clone(), dataset, found }
    }

    pub fn unusable(&self, name: &[u8], message: String) -> StoreError {
        let dataset = text(name);
        StoreError::Unusable { file: self.path.clone(), dataset, message }
    }

    /// The folder in which other files are looked for first; empty if it is the working directory.
    fn folder(&self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).to_owned()
    }

    /// The file of this name that this one means, as HDF5 looks for it: where environment variables say, in this file's folder,
    /// in the working directory, and where this file really lies. The first that is there has to do.
    pub fn beside(&self, name: &[u8], variables: &[&str]) -> Result<PathBuf, StoreError> {
        let name = path_of(name);
        let mut candidates = Vec::new();
        let mut relative = name.as_path();
        if name.is_absolute() {
            candidates.push(name.clone());
            relative = name.file_name().map_or(relative, Path::new);
        }
        for variable in variables {
            let prefixes = std::env::var_os(variable).unwrap_or_default();
            for prefix in prefixes.as_encoded_bytes().split(|byte| *byte == b':').filter(|prefix| !prefix.is_empty()) {
                candidates.push(self.with_origin(prefix).join(relative));
            }
        }
        candidates.push(self.folder().join(relative));
        candidates.push(relative.to_owned());
        if let Ok(real) = std::fs::canonicalize(&self.path) {
            candidates.push(folder_of(&real).join(relative));
        }
        for candidate in &candidates {
            match std::fs::metadata(candidate) {
                Ok(_) => return Ok(candidate.clone()),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(source) => return Err(StoreError::Io { file: candidate.clone(), what: "look at", source }),
            }
        }
        let first = if name.is_absolute() { name } else { self.folder().join(relative) };
        let nearest = nearest_file(&first);
        Err(StoreError::NoFile { file: first, nearest })
    }

    /// Where HDF5 looks for a file of bare elements.
    pub fn raw_file(&self, name: &[u8]) -> PathBuf {
        let prefix = std::env::var_os("HDF5_EXTFILE_PREFIX").unwrap_or_default();
        match prefix.as_encoded_bytes() {
            b"" | b"." => path_of(name),
            prefix => self.with_origin(prefix).join(path_of(name)),
        }
    }

    /// A folder that may begin with this file's own.
    fn with_origin(&self, prefix: &[u8]) -> PathBuf {
        match prefix.strip_prefix(b"${ORIGIN}") {
            Some(rest) => {
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                self.folder().join(path_of(rest))
            }
            None => path_of(prefix),
        }
    }
}

/// What has been followed of a name so far.
struct Search {
    opened: Arc<Opened>,
    /// A path of hard links in `opened`.
    at: Vec<u8>,
    sources: Vec<Source>,
    /// The links that have been followed, as a person reads them.
    trail: String,
    /// Whether to go to other files.
    elsewhere: bool,
    /// Whether it would go to another file, but is not to.
    leaves: bool,
}

/// Why a name leads nowhere.
enum Stop {
    Missing(String),
    Unusable(String),
    Failed(StoreError),
}

impl Search {
    fn new(opened: &Arc<Opened>, elsewhere: bool) -> Search {
        let (at, sources, trail) = (Vec::new(), Vec::new(), String::new());
        Search { opened: opened.clone(), at, sources, trail, elsewhere, leaves: false }
    }

    fn follow(&mut self, name: &[u8]) -> Result<(Kind, u64), Stop> {
        let mut left = parts(name);
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            let path = [&self.at[..], b"/", &part].concat();
            let shown = text(&path[1..]);
            let link = source::link(&self.opened.file, &path).or_else(|error| self.not_a_group(error))?;
            let object = match link {
                None => return Err(Stop::Missing(shown)),
                Some(Link::Hard(_)) => {
                    self.at = path;
                    continue;
                }
                Some(Link::Soft(target)) => {
                    let _ = write!(self.trail, "its link '{shown}' leads to '{}', ", text(&target));
                    target
                }
                Some(Link::External { file, object }) => {
                    self.leaves = true;
                    if !self.elsewhere {
                        return Err(Stop::Unusable(format!("'{shown}' is in another file")));
                    }
                    let (to, of) = (text(&object), text(&file));
                    let _ = write!(self.trail, "its external link '{shown}' leads to '{to}' in {of}, ");
                    self.note(&path);
                    let beside = self.opened.beside(&file, &["HDF5_EXT_PREFIX"]);
                    let next = beside.and_then(|path| Opened::open(&path, self.opened.cache_bytes));
                    self.opened = next.map_err(Stop::Failed)?;
                    self.at.clear();
                    object
                }
                Some(Link::Other) => {
                    return Err(Stop::Unusable(format!("'{shown}' is a link that only another program can follow")));
                }
            };
            links += 1;
            if links > MOST_LINKS {
                let message = format!("its links lead in a circle: there are more than {MOST_LINKS}");
                return Err(Stop::Unusable(message));
            }
            if object.starts_with(b"/") {
                self.at.clear();
            }
            parts(&object).into_iter().rev().for_each(|part| left.push_front(part));
        }
        if self.at.is_empty() {
            self.at.push(b'/');
        }
        let found = source::kind(&self.opened.file, &self.at).map_err(|error| {
            Stop::Failed(StoreError::hdf5(&self.opened.path, format!("look at '{}'", text(&self.at)))(error))
        })?;
        self.note(&self.at.clone());
        Ok(found)
    }

    fn note(&mut self, path: &[u8]) {
        self.sources.push(Source { file: self.opened.path.clone(), object: text(path) });
    }

    /// HDF5 finds no links in what is no group.
    fn not_a_group(&self, error: hdf5::Error) -> Result<Option<Link>, Stop> {
        let path = if self.at.is_empty() { &b"/"[..] } else { &self.at };
        match source::kind(&self.opened.file, path) {
            Ok((Kind::Dataset | Kind::Other, _)) => Ok(None),
            _ => Err(Stop::Failed(StoreError::hdf5(&self.opened.path, format!("look into '{}'", text(path)))(error))),
        }
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn parts(name: &[u8]) -> VecDeque<Vec<u8>> {
    name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

/// An error in one line, with why.
pub(super) fn with_causes(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

/// Names for a message, not too many.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    names[..names.len() - more].join(", ") + &rest
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Only a regular file is opened: a pipe or a device would be waited for, perhaps for ever.
pub(super) fn check_regular(file: &Path) -> Result<u64, StoreError> {
    let metadata = std::fs::metadata(file).map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            StoreError::NoFile { file: file.to_owned(), nearest: nearest_file(file) }
        }
        _ => StoreError::Io { file: file.to_owned(), what: "look at", source },
    })?;
    if metadata.is_dir() {
        return Err(StoreError::Directory { file: file.to_owned() });
    }
    if !metadata.is_file() {
        return Err(StoreError::NotRegular { file: file.to_owned() });
    }
    // HDF5 would say less well why not.
    std::fs::File::open(file).map_err(StoreError::io(file, "open"))?;
    Ok(metadata.len())
}

fn nearest_file(file: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder_of(file)).ok()?.flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    nearest(&file.file_name()?.to_string_lossy(), &names)
}
