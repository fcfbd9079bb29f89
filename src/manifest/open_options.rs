use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Options that open no links: another user with write access to the folder could plant one.
pub(super) fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}
