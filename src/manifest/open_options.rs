use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Opens no links: whoever may write to a folder could have planted one that leads elsewhere.
pub(super) fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}
