//! Real paths, also of files that do not exist yet, and identities of files.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// More links in one path count as a circle, as in Linux.
const LINKS: u32 = 40;
/// How many bytes of a file name go into the names of its hidden files.
const NAME_BYTES: usize = 150;

/// The absolute path without links and `..`. The end of the path need not exist: a dangling link leads to the file that
/// is going to be created.
pub fn real_path(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut steps: VecDeque<OsString> = path.components().map(|step| step.as_os_str().to_owned()).collect();
    let (mut real, mut links) = (PathBuf::from("/"), 0);
    while let Some(step) = steps.pop_front() {
        match Path::new(&step).components().next() {
            Some(Component::RootDir) => real = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(real.pop()),
            Some(Component::Normal(name)) => {
                real.push(name);
                match real.read_link() {
                    Ok(_) if links == LINKS => return Err(Error::from(rustix::io::Errno::LOOP)),
                    Ok(link) => {
                        links += 1;
                        real.pop();
                        link.components().rev().for_each(|step| steps.push_front(step.as_os_str().to_owned()));
                    }
                    // This is not a link, or it does not exist yet.
                    Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {}
                    Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(error),
                    // Opening the file will report the error.
                    Err(_) => {}
                }
            }
            _ => {}
        }
    }
    Ok(real)
}

/// The name of a file, cut so that it fits into another file name of at most 255 bytes.
pub(super) fn short_name(file: &Path) -> String {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ends = name.char_indices().map(|(start, letter)| start + letter.len_utf8());
    name[..ends.take_while(|end| *end <= NAME_BYTES).last().unwrap_or(0)].to_owned()
}

/// Device and inode of a file, which all its names share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(u64, u64);

impl FileId {
    /// `None` if there is no such file.
    pub fn of(path: &Path) -> Option<FileId> {
        std::fs::metadata(path).ok().map(|metadata| FileId(metadata.dev(), metadata.ino()))
    }
}

/// The identity of a real path whose file need not exist: the nearest existing folder and the rest of the path. Two
/// paths are equal if they name the same file, even where a folder is mounted twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathIdentity {
    folder: Option<FileId>,
    rest: PathBuf,
}

impl PathIdentity {
    pub fn of(real: &Path) -> PathIdentity {
        let folders = real.ancestors().skip(1);
        let found = folders.map(|folder| (FileId::of(folder), folder)).find(|(id, _)| id.is_some());
        let (folder, above) = found.unwrap_or((None, Path::new("/")));
        PathIdentity { folder, rest: real.strip_prefix(above).unwrap_or(real).to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_where_they_lead_to_nothing_yet() {
        let lab = tempfile::tempdir().unwrap();
        let root = lab.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        fs::create_dir_all(at("real/deep")).unwrap();
        symlink("real", at("link")).unwrap();
        symlink("link/deep/../new.h5", at("out.h5")).unwrap();
        symlink(at("elsewhere"), at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for (path, expected) in [
            ("real/x.h5", "real/x.h5"),
            ("./real/../link/x.h5", "real/x.h5"),
            ("link/deep/../x.h5", "real/x.h5"),
            ("out.h5", "real/new.h5"),
            ("dangling/a/b.h5", "elsewhere/a/b.h5"),
            ("nothing/../x.h5", "x.h5"),
        ] {
            assert_eq!(real_path(&at(path)).unwrap(), at(expected), "{path}");
        }
        assert!(real_path(&at("circle")).is_err());
        fs::write(at("file"), "").unwrap();
        assert!(real_path(&at("file/x.h5")).is_err(), "a file is not a folder");
    }

    #[test]
    fn long_names_are_cut_between_letters() {
        let name = format!("{}é.h5", "a".repeat(NAME_BYTES - 1));
        assert_eq!(short_name(Path::new(&name)), "a".repeat(NAME_BYTES - 1));
        assert_eq!(short_name(Path::new("x/größe.h5")), "größe.h5");
    }

    #[test]
    fn names_of_one_file_are_known() {
        let lab = tempfile::tempdir().unwrap();
        let at = |name: &str| lab.path().join(name);
        let (place, id) = (|name: &str| PathIdentity::of(&at(name)), |name: &str| FileId::of(&at(name)));
        fs::write(at("a"), "").unwrap();
        fs::hard_link(at("a"), at("b")).unwrap();
        assert!(id("a").is_some() && id("a") == id("b") && id("c").is_none());
        assert!(place("a") == place("a") && place("a") != place("b"));
        assert!(place("new/x") == place("new/x") && place("new/x") != place("new/y"));
    }
}
