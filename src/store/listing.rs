//! The content of a file: every link once, in time linear in their number.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::error::StoreError;
use super::links::{leads, text};
use super::open_file::OpenFile;
use super::raw::links::{self, Link, ObjectKind};

/// The content of a file, ordered by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Paths of datasets, one for each hard link.
    pub datasets: Vec<String>,
    /// Soft and external links, which are not followed.
    pub links: Vec<ListedLink>,
    /// Paths of unreadable objects.
    pub damaged: Vec<String>,
}

/// A soft or external link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedLink {
    pub path: String,
    /// The file of an external link, as the link names it.
    pub file: Option<String>,
    /// The path that the link leads to.
    pub target: String,
    /// Whether the target exists; `None` if it is in another file.
    pub leads: Option<bool>,
}

impl Listing {
    /// All names that may lead to datasets.
    pub fn names(self) -> Vec<String> {
        self.datasets.into_iter().chain(self.links.into_iter().map(|link| link.path)).collect()
    }
}

/// Lists a file. Links to other files are not followed, and each group is listed once.
pub fn list(file: &Path) -> Result<Listing, StoreError> {
    list_file(&OpenFile::open(file, 0)?)
}

pub(super) fn list_file(opened: &Arc<OpenFile>) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    let (mut seen, mut groups) = (HashSet::new(), vec![b"/".to_vec()]);
    let (_, root) =
        links::kind(&opened.file, b"/").map_err(StoreError::hdf5(&opened.path, "look at the root group"))?;
    seen.insert(root);
    while let Some(group) = groups.pop() {
        let what = || format!("list '{}'", String::from_utf8_lossy(&group));
        let found = match links::links(&opened.file, &group) {
            Ok(found) => found,
            Err(error) if group == b"/" => return Err(StoreError::hdf5(&opened.path, what())(error)),
            Err(_) => {
                listing.damaged.push(shown(&group));
                continue;
            }
        };
        for (name, link) in found {
            let mut path = if group == b"/" { Vec::new() } else { group.clone() };
            path.push(b'/');
            path.extend_from_slice(&name);
            match link {
                Link::Hard(address) => match links::kind(&opened.file, &path) {
                    Ok((ObjectKind::Dataset, _)) => listing.datasets.push(shown(&path)),
                    Ok((ObjectKind::Group, _)) if seen.insert(address) => groups.push(path),
                    Ok(_) => {}
                    Err(_) => listing.damaged.push(shown(&path)),
                },
                Link::Soft(target) => {
                    let from = if target.starts_with(b"/") { Vec::new() } else { [&group[..], b"/"].concat() };
                    let leads = leads(opened, &[&from[..], &target[..]].concat());
                    listing.links.push(ListedLink { path: shown(&path), file: None, target: text(&target), leads });
                }
                Link::External { file, object } => {
                    let file = Some(text(&file));
                    listing.links.push(ListedLink { path: shown(&path), file, target: text(&object), leads: None });
                }
                Link::Other => {}
            }
        }
    }
    listing.datasets.sort_unstable();
    listing.damaged.sort_unstable();
    listing.links.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

/// A path without its leading slash.
fn shown(path: &[u8]) -> String {
    text(path.strip_prefix(b"/").unwrap_or(path))
}
