//! Links, followed one at a time from a dataset's name to the file that holds the dataset. A link that leads nowhere is
//! named in the error, circles end, and only regular files are opened.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::error::StoreError;
use super::open_file::OpenFile;
use super::raw::links::{self, Link, ObjectKind};
use crate::encode;

/// Most links that are followed for one name. HDF5 itself follows 16.
const MOST_LINKS: usize = 64;

/// An object that a dataset's elements come from, or a link on the way there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DataSource {
    #[serde(with = "encode::path")]
    pub file: PathBuf,
    /// A path in the file; empty for a raw file.
    pub object: String,
}

/// The object that a name leads to.
pub(super) struct FoundObject {
    pub opened: Arc<OpenFile>,
    /// A path of hard links only.
    pub path: Vec<u8>,
    pub kind: ObjectKind,
    pub address: u64,
    /// All objects on the way, this one last.
    pub sources: Vec<DataSource>,
}

/// The state of following a name.
pub(super) struct Search {
    pub opened: Arc<OpenFile>,
    /// A path of hard links in `opened`.
    pub at: Vec<u8>,
    pub sources: Vec<DataSource>,
    /// The links that were followed, for a message.
    pub trail: String,
    /// Whether to follow links to other files.
    pub elsewhere: bool,
    /// Whether the name leads to another file that was not to be followed.
    pub leaves: bool,
}

/// Why no object was found.
pub(super) enum LookupError {
    Missing(String),
    Unusable(String),
    Failed(StoreError),
}

impl Search {
    pub fn new(opened: &Arc<OpenFile>, elsewhere: bool) -> Search {
        let (at, sources, trail) = (Vec::new(), Vec::new(), String::new());
        Search { opened: opened.clone(), at, sources, trail, elsewhere, leaves: false }
    }

    pub fn follow(&mut self, name: &[u8]) -> Result<(ObjectKind, u64), LookupError> {
        let mut left = parts(name);
        let mut followed = 0;
        while let Some(part) = left.pop_front() {
            let path = [&self.at[..], b"/", &part].concat();
            let shown = text(&path[1..]);
            let link = links::link(&self.opened.file, &path).or_else(|error| self.not_a_group(error))?;
            let object = match link {
                None => return Err(LookupError::Missing(shown)),
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
                        return Err(LookupError::Unusable(format!("'{shown}' is in another file")));
                    }
                    let (to, of) = (text(&object), text(&file));
                    let _ = write!(self.trail, "its external link '{shown}' leads to '{to}' in {of}, ");
                    self.note(&path);
                    let beside = self.opened.beside(&file, &["HDF5_EXT_PREFIX"]);
                    let next = beside.and_then(|path| OpenFile::open(&path, self.opened.cache_bytes));
                    self.opened = next.map_err(LookupError::Failed)?;
                    self.at.clear();
                    object
                }
                Some(Link::Other) => {
                    return Err(LookupError::Unusable(format!(
                        "'{shown}' is a link that only another program can follow"
                    )));
                }
            };
            followed += 1;
            if followed > MOST_LINKS {
                let message = format!("its links lead in a circle: there are more than {MOST_LINKS}");
                return Err(LookupError::Unusable(message));
            }
            if object.starts_with(b"/") {
                self.at.clear();
            }
            parts(&object).into_iter().rev().for_each(|part| left.push_front(part));
        }
        if self.at.is_empty() {
            self.at.push(b'/');
        }
        let found = links::kind(&self.opened.file, &self.at).map_err(|error| {
            LookupError::Failed(StoreError::hdf5(&self.opened.path, format!("look at '{}'", text(&self.at)))(error))
        })?;
        self.note(&self.at.clone());
        Ok(found)
    }

    fn note(&mut self, path: &[u8]) {
        self.sources.push(DataSource { file: self.opened.path.clone(), object: text(path) });
    }

    /// HDF5 fails to find links in an object that is not a group.
    fn not_a_group(&self, error: hdf5::Error) -> Result<Option<Link>, LookupError> {
        let path = if self.at.is_empty() { &b"/"[..] } else { &self.at };
        match links::kind(&self.opened.file, path) {
            Ok((ObjectKind::Dataset | ObjectKind::Other, _)) => Ok(None),
            _ => Err(LookupError::Failed(StoreError::hdf5(&self.opened.path, format!("look into '{}'", text(path)))(
                error,
            ))),
        }
    }
}

pub(super) fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn parts(name: &[u8]) -> VecDeque<Vec<u8>> {
    name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

/// Whether an object of this name exists in this file; `None` if the name leads to another file.
pub(super) fn leads(file: &Arc<OpenFile>, name: &[u8]) -> Option<bool> {
    let mut search = Search::new(file, false);
    match search.follow(name) {
        Ok(_) => Some(true),
        Err(LookupError::Unusable(_)) if search.leaves => None,
        Err(_) => Some(false),
    }
}
