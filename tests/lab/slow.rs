//! A slow job, and helpers for tests that kill its ranks.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use exuvia::tensor::Dtype;

use super::{EXUVIA, Lab};

pub const ROWS: u64 = 4001;
pub const COLUMNS: u64 = 16;

/// Writes a job of three stages. A row of the first takes 4 `spin` steps. Its outputs are contiguous, chunked and
/// compressed.
pub fn slow_job(lab: &Lab, spin: u32) {
    let job = format!(
        "[tensors]\nx = {{ file = \"in.h5\", dataset = \"x\" }}\nspin = {{ value = {spin}, dtype = \"u32\" }}\n\
         y = {{ create = \"out.h5\", dataset = \"y\", dtype = \"f64\" }}\n\
         z = {{ create = \"out.h5\", dataset = \"z\", dtype = \"f64\", chunk = [7, 16], deflate = 1 }}\n\
         w = {{ create = \"other.h5\", dataset = \"w\", dtype = \"f64\", chunk = [9, 16] }}\n\
         [[stages]]\nname = \"one\"\nkernel = \"slow.wasm\"\nexport = \"slow\"\ncompute = \"x[n,d], spin[] -> y[n,d]\"\n\
         [[stages]]\nname = \"two\"\nkernel = \"slow.wasm\"\nexport = \"slow\"\ncompute = \"y[n,d], spin[] -> z[n,d]\"\n\
         [[stages]]\nname = \"three\"\nkernel = \"slow.wasm\"\nexport = \"slow\"\ncompute = \"z[n,d], spin[] -> w[n,d]\"\n"
    );
    fs::write(lab.path("job.toml"), job).unwrap();
}

pub fn input(lab: &Lab, first: f64) {
    let numbers = (0..ROWS * COLUMNS).map(|i| if i == 0 { first } else { i as f64 });
    lab.dataset(Dtype::F64, &[ROWS, COLUMNS], numbers.flat_map(f64::to_le_bytes).collect());
}

pub fn slow_lab(spin: u32) -> Lab {
    let lab = Lab::new(&["slow"]);
    input(&lab, 1.0);
    slow_job(&lab, spin);
    lab
}

/// Returns the outputs of [`slow_job`] for the input.
pub fn expected(first: f64) -> Vec<(String, Vec<u8>)> {
    let times = |factor: f64| {
        let numbers = (0..ROWS * COLUMNS).map(|i| factor * if i == 0 { first } else { i as f64 });
        numbers.flat_map(f64::to_le_bytes).collect()
    };
    vec![("y".to_owned(), times(2.0)), ("z".to_owned(), times(4.0)), ("w".to_owned(), times(8.0))]
}

/// Returns pseudorandom numbers that repeat from run to run (the finalizer of SplitMix64).
pub fn chance(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the number of runs to kill. EXUVIA_KILLS sets it for a long test.
pub fn kills(usual: u64) -> u64 {
    std::env::var("EXUVIA_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

/// Returns the bytes of the logs of all ranks, and of the checkpoint's record with its number.
pub fn record_bytes(lab: &Lab) -> u64 {
    let entries = fs::read_dir(lab.manifest()).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        let is_log = name.ends_with(".log");
        // Each checkpoint is a file with a name of its own.
        let checkpoint =
            name.strip_prefix("checkpoint-").map_or(0, |rest| rest.bytes().map(u64::from).sum::<u64>() << 32);
        checkpoint + entry.metadata().map_or(0, |metadata| if is_log { metadata.len() } else { 0 })
    };
    entries.map(bytes).sum()
}

/// Returns the live processes of a run in this folder, in ascending order.
pub fn pids(lab: &Lab) -> Vec<u32> {
    let folder = lab.path("").display().to_string();
    let of = |entry: fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let is_rank = command.starts_with(EXUVIA) && command.contains(&folder) && !command.contains("compile-kernel");
        is_rank.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    };
    let mut pids: Vec<u32> = fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect();
    pids.sort_unstable();
    pids
}

/// Whether a rank is in a long kernel: one of its workers has used a third of a second of processor time, which is more
/// than anything before it takes.
pub fn is_in_kernel(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let workers = tasks.filter(|task| task.file_name() != *pid.to_string());
    let ticks = |task: fs::DirEntry| -> Option<u64> {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(11)?.parse().ok()
    };
    workers.filter_map(ticks).any(|ticks| 3 * ticks >= rustix::param::clock_ticks_per_second())
}

/// Sends SIGINT to a process until it has ended: two signals that come together count as one.
pub fn interrupt_until_it_ends(child: &mut Child) {
    while child.try_wait().unwrap().is_none() {
        signal(&[child.id()], "-INT");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sends a signal to all processes at once; some may already have ended.
pub fn signal(pids: &[u32], name: &str) {
    let _ = Command::new("kill").arg(name).args(pids.iter().map(u32::to_string)).stderr(Stdio::null()).status();
}

/// Asserts that only the outputs of the run remain.
pub fn assert_tidy(lab: &Lab) {
    let names = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.contains(".part") || name.contains(".exuvia")).collect();
    assert!(left.is_empty(), "{left:?}");
}
