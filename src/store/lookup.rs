//! The object that a name leads to, or an error that says where the name stops and which names there are.

use std::sync::Arc;

use super::error::{StoreError, nearest, with_causes};
use super::links::{FoundObject, LookupError, Search, text};
use super::listing::{Listing, list_file};
use super::open_file::OpenFile;

/// Finds the object of this name, which may be in another file.
pub(super) fn find(file: &Arc<OpenFile>, name: &[u8]) -> Result<FoundObject, StoreError> {
    let mut search = Search::new(file, true);
    let stop = match search.follow(name) {
        Ok((kind, address)) => {
            let Search { opened, at: path, sources, .. } = search;
            return Ok(FoundObject { opened, path, kind, address, sources });
        }
        Err(stop) => stop,
    };
    Err(match stop {
        LookupError::Missing(_) if search.trail.is_empty() => missing(file, name),
        LookupError::Missing(path) => {
            let reached = search.opened.path.display();
            file.unusable(name, format!("{}but there is no '{path}' in {reached}", search.trail))
        }
        LookupError::Unusable(message) => file.unusable(name, message),
        LookupError::Failed(error) if search.trail.is_empty() => error,
        LookupError::Failed(error) => file.unusable(name, format!("{}but {}", search.trail, with_causes(&error))),
    })
}

fn missing(file: &Arc<OpenFile>, name: &[u8]) -> StoreError {
    let names = list_file(file).map_or_else(|_| Vec::new(), Listing::names);
    let dataset = text(name);
    let found = match nearest(&dataset, &names) {
        Some(near) => format!("did you mean '{near}'?"),
        None if names.is_empty() => "the file has no datasets".to_owned(),
        None => format!("it has: {}", some_of(&names)),
    };
    StoreError::NoDataset { file: file.path.clone(), dataset, found }
}

/// A few names for a message.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    names[..names.len() - more].join(", ") + &rest
}
