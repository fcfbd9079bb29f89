use rustix::process::{Resource, getrlimit};

/// A limit that the system sets to a process, and how a shell shows and raises it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub what: &'static str,
    pub shell: &'static str,
    /// None: unlimited.
    pub now: Option<u64>,
    /// How far the user may raise it.
    pub most: Option<u64>,
    in_bytes: bool,
}

impl Limit {
    fn of(resource: Resource, what: &'static str, shell: &'static str, in_bytes: bool) -> Limit {
        let limit = getrlimit(resource);
        Limit { what, shell, now: limit.current, most: limit.maximum, in_bytes }
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

    /// All that matter to a run.
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

    /// `open files 1024 (ulimit -n)`.
    pub fn in_words(&self) -> String {
        let amount = |limit: Option<u64>| match limit {
            None => "unlimited".to_owned(),
            Some(bytes) if self.in_bytes => bytesize::ByteSize(bytes).to_string(),
            Some(count) => count.to_string(),
        };
        let most = if self.now == self.most { String::new() } else { format!(", {} at most", amount(self.most)) };
        format!("{} {} ({}{most})", self.what, amount(self.now), self.shell)
    }
}

/// What to do about an error of the system that a limit stands behind; `text` is all that is said of it.
pub fn advice(text: &str) -> Option<String> {
    if text.contains("ulimit") {
        return None;
    }
    let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
    let too_low = |limit: Limit, more: &str| Some(format!("{} is too low: raise it{more}", limit.in_words()));
    if says(&["File too large", "(os error 27)"]) {
        let limit = Limit::file_size();
        let without = || Some("the file system takes no files of this size: write to another".to_owned());
        return limit.now.map_or_else(without, |_| too_low(limit, " (batch systems have a name of their own for it)"));
    }
    if says(&["Too many open files", "(os error 24)"]) {
        return too_low(Limit::open_files(), "");
    }
    if says(&["Cannot allocate memory", "(os error 12)"]) {
        let limit = Limit::address_space();
        let without = "the system gives no more memory: is there enough, and is vm.overcommit_memory 0 or 1? Each worker \
                       thread reserves some GiB of addresses for each kernel, but uses far less";
        let more = ", best to unlimited: each worker thread reserves some GiB of addresses for each kernel";
        return limit.now.map_or(Some(without.to_owned()), |_| too_low(limit, more));
    }
    if says(&["Resource temporarily unavailable", "(os error 11)"]) {
        return Limit::processes().now.and_then(|_| too_low(Limit::processes(), ", or use fewer --threads"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_as_the_shell_names_them() {
        let limit = Limit { now: Some(1024), most: None, ..Limit::open_files() };
        assert_eq!(limit.in_words(), "open files 1024 (ulimit -n, unlimited at most)");
        let limit = Limit { now: Some(10 << 20), most: Some(10 << 20), ..Limit::file_size() };
        assert_eq!(limit.in_words(), "file size 10.0 MiB (ulimit -f)");
        let advised = advice("cannot open x: Too many open files (os error 24)").unwrap();
        assert!(advised.contains("ulimit -n") && advised.contains("raise it"), "{advised}");
        assert!(advice("errno = 27, error message = 'File too large'").is_some());
        assert_eq!(advice("Cannot allocate memory: raise `ulimit -v`"), None, "said already");
        assert_eq!(advice("no such file (os error 2)"), None);
    }
}
