//! Several hosts on this machine, in namespaces (`tests/slurm/cluster -b`). A test runs itself again among them.

use std::any::type_name_of_val;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::launch::open_mpi;
use super::slow::{pids, signal};
use super::{Lab, text};

const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster");
const INSIDE: &str = "EXUVIA_TEST_INSIDE";

/// Returns the name of the test that contains a closure: its path without the crate's name and `{{closure}}`.
pub fn test_name<T>(closure: &T) -> &'static str {
    let (_, path) = type_name_of_val(closure).split_once("::").unwrap();
    path.strip_suffix("::{{closure}}").unwrap()
}

/// Runs `test`, a closure in the body of a test, beside `hosts` hosts, which see its files.
pub fn among_hosts(hosts: u32, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let name = test_name(&test);
    let mut cluster = Command::new(CLUSTER);
    cluster.args(["-b", "-n", &hosts.to_string(), "--"]).arg(std::env::current_exe().unwrap());
    let output = cluster.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null()).output().unwrap();
    let ran = output.status.success() && text(&output).contains("1 passed");
    assert!(ran, "{name} among hosts ({}):\n{}", output.status, text(&output));
    println!("{}", text(&output));
}

/// Writes a file that names hosts and the number of ranks on each.
pub fn hostfile(lab: &Lab, hosts: &[(&str, u32)]) -> String {
    let line = |(name, slots): &(&str, u32)| match open_mpi() {
        true => format!("{name} slots={slots}\n"),
        false => format!("{name}:{slots}\n"),
    };
    fs::write(lab.path("hosts"), hosts.iter().map(line).collect::<String>()).unwrap();
    lab.path("hosts").display().to_string()
}

/// Returns the processes of a run on a host, in ascending order.
pub fn pids_on(lab: &Lab, host: &str) -> Vec<u32> {
    let inode = |file: String| fs::metadata(file).ok().map(|metadata| metadata.ino());
    let home = inode(format!("/run/netns/{host}"));
    pids(lab).into_iter().filter(|pid| home.is_some() && inode(format!("/proc/{pid}/ns/net")) == home).collect()
}

/// Crashes a host like a power cut: no process there has time to report.
pub fn crash(host: &str) {
    let cut = Command::new("ip").args(["link", "set", host, "down"]).status().unwrap();
    assert!(cut.success());
    let pid = fs::read_to_string(format!("/run/{host}.pid")).unwrap();
    signal(&[pid.trim().parse().unwrap()], "-KILL");
}
