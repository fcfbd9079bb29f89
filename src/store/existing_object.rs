//! The object at the path of a dataset that is to be created, and whether the dataset may take its place.

use std::collections::VecDeque;

use hdf5::{File, LocationType};

use super::raw::links::{self, Link};

/// More soft links in a row count as a circle.
const MOST_LINKS: usize = 32;

/// What a path leads to. The paths here have no soft links.
pub(super) enum ExistingObject {
    Nothing { path: String },
    Dataset { path: String },
}

/// Follows a path as HDF5 would, soft links included, and rejects paths through which a dataset would end up in an
/// unexpected place. The error says why nothing can be created there.
pub(super) fn find_existing(file: &File, name: &str) -> Result<ExistingObject, String> {
    let parts = |path: &str, of_link: bool| -> Vec<(String, bool)> {
        let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(|part| (part.to_owned(), of_link)).collect()
    };
    let mut rest = VecDeque::from(parts(name, false));
    let (mut group, mut followed) = (String::new(), 0);
    while let Some((part, of_link)) = rest.pop_front() {
        let path = format!("{group}/{part}");
        let shown = path.trim_start_matches('/');
        match links::link_in(file, path.as_bytes()).map_err(|e| format!("'{shown}' cannot be read: {e}"))? {
            None if of_link => {
                return Err(format!(
                    "it leads through a soft link to '{path}', which does not exist; remove that link"
                ));
            }
            None => {
                let path = rest.iter().fold(path, |path, (part, _)| format!("{path}/{part}"));
                return Ok(ExistingObject::Nothing { path });
            }
            Some(Link::Soft(target)) => {
                let target = String::from_utf8_lossy(&target).into_owned();
                followed += 1;
                if followed > MOST_LINKS {
                    return Err(format!("'{shown}' is a soft link in a circle; remove it"));
                }
                if target.starts_with('/') {
                    group.clear();
                }
                for part in parts(&target, true).into_iter().rev() {
                    rest.push_front(part);
                }
            }
            Some(Link::External { file, object }) => {
                let (file, object) = (String::from_utf8_lossy(&file), String::from_utf8_lossy(&object));
                return Err(format!(
                    "'{shown}' is a link to '{object}' in another file, {file}; create the dataset there, or remove the link"
                ));
            }
            Some(Link::Other) => {
                return Err(format!("'{shown}' is a link of an unknown kind; remove it"));
            }
            Some(Link::Hard(_)) if is_group(file, &path, rest.is_empty())? => group = path,
            Some(Link::Hard(_)) => return Ok(ExistingObject::Dataset { path }),
        }
    }
    Err("it is the group '/', the file's root".to_owned())
}

/// Whether the object at this path is a group on the way to the dataset. It is the dataset if it is the last object of
/// the path and no group; everything else is an error.
fn is_group(file: &File, path: &str, is_last: bool) -> Result<bool, String> {
    let shown = path.trim_start_matches('/');
    let kind = file.loc_type_by_name(path);
    match kind.map_err(|e| format!("'{shown}' cannot be opened: {e}"))? {
        LocationType::Group if is_last => {
            Err(format!("'{shown}' is a group; choose another name, or remove the group"))
        }
        LocationType::Group => Ok(true),
        LocationType::Dataset if is_last => Ok(false),
        LocationType::Dataset => {
            Err(format!("'{shown}' is a dataset, which cannot contain others; choose another name"))
        }
        _ => Err(format!("'{shown}' is a named datatype; choose another name")),
    }
}
