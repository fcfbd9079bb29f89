//! The limits that the system sets on a process.

use rustix::process::{Resource, getrlimit};

/// A limit on a process, with the shell command that shows and raises it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub name: &'static str,
    pub shell: &'static str,
    /// The current limit; `None` if unlimited.
    pub now: Option<u64>,
    /// The hard limit, up to which the user may raise the current one.
    pub maximum: Option<u64>,
    in_bytes: bool,
}

impl Limit {
    fn of(resource: Resource, name: &'static str, shell: &'static str, in_bytes: bool) -> Limit {
        let limit = getrlimit(resource);
        Limit { name, shell, now: limit.current, maximum: limit.maximum, in_bytes }
    }

    pub fn file_size() -> Limit {
        Limit::of(Resource::Fsize, "file size", "ulimit -f", true)
    }

    pub fn address_space() -> Limit {
        Limit::of(Resource::As, "address space", "ulimit -v", true)
    }

    pub fn open_files() -> Limit {
        Limit::of(Resource::Nofile, "open files", "ulimit -n", false)
    }

    pub fn processes() -> Limit {
        Limit::of(Resource::Nproc, "processes and threads", "ulimit -u", false)
    }

    /// All limits that matter to a run.
    pub fn all() -> [Limit; 7] {
        [
            Limit::file_size(),
            Limit::address_space(),
            Limit::of(Resource::Data, "data", "ulimit -d", true),
            Limit::open_files(),
            Limit::processes(),
            Limit::of(Resource::Stack, "stack", "ulimit -s", true),
            Limit::of(Resource::Core, "core dumps", "ulimit -c", true),
        ]
    }

    /// Formats the limit, such as `open files 1024 (ulimit -n)`.
    pub fn format(&self) -> String {
        let amount = |limit: Option<u64>| match limit {
            None => "unlimited".to_owned(),
            Some(bytes) if self.in_bytes => bytesize::ByteSize(bytes).to_string(),
            Some(count) => count.to_string(),
        };
        let maximum = match self.now == self.maximum {
            true => String::new(),
            false => format!(", maximum {}", amount(self.maximum)),
        };
        format!("{} {} ({}{maximum})", self.name, amount(self.now), self.shell)
    }
}

/// Advice on an error of the system that a limit may cause; `text` is the whole message.
pub fn advice(text: &str) -> Option<String> {
    if text.contains("ulimit") {
        return None;
    }
    let raise = |limit: Limit, more: &str| format!("{} is too low: raise it{more}", limit.format());
    let contains = |words: &[&str]| words.iter().any(|words| text.contains(words));
    if contains(&["File too large", "(os error 27)"]) {
        let limit = Limit::file_size();
        let unlimited = || "the file system does not support files of this size: write to another".to_owned();
        let limited = |_| raise(limit, " (batch systems have their own option for it)");
        return Some(limit.now.map_or_else(unlimited, limited));
    }
    if contains(&["Too many open files", "(os error 24)"]) {
        return Some(raise(Limit::open_files(), ""));
    }
    if contains(&["Cannot allocate memory", "(os error 12)"]) {
        let limit = Limit::address_space();
        let unlimited = "check that there is enough memory and that vm.overcommit_memory is 0 or 1: each worker thread \
                         reserves some GiB of address space for each kernel, but uses far less";
        let limited = " to unlimited: each worker thread reserves some GiB of address space for each kernel";
        return Some(limit.now.map_or_else(|| unlimited.to_owned(), |_| raise(limit, limited)));
    }
    if contains(&["Resource temporarily unavailable", "(os error 11)"]) {
        return Limit::processes().now.map(|_| raise(Limit::processes(), ", or use fewer --threads"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_with_their_shell_command() {
        let limit = Limit { now: Some(1024), maximum: None, ..Limit::open_files() };
        assert_eq!(limit.format(), "open files 1024 (ulimit -n, maximum unlimited)");
        let limit = Limit { now: Some(10 << 20), maximum: Some(10 << 20), ..Limit::file_size() };
        assert_eq!(limit.format(), "file size 10.0 MiB (ulimit -f)");
        let advised = advice("cannot open x: Too many open files (os error 24)").unwrap();
        assert!(advised.contains("ulimit -n") && advised.contains("raise it"), "{advised}");
        assert!(advice("errno = 27, error message = 'File too large'").is_some());
        assert_eq!(advice("Cannot allocate memory: raise `ulimit -v`"), None, "the message already names the limit");
        assert_eq!(advice("no such file (os error 2)"), None);
    }
}
