//! Tests the fabric on real MPI: `examples/fabric_check` runs under the launcher of the MPI that this test is built
//! with.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::launch;

/// Returns the path of `examples/fabric_check`, beside the folder `deps` of this test. Cargo builds both.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/fabric_check");
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

fn launch(ranks: u32, arguments: &[&str]) -> Command {
    let mut command = launch::ranks(ranks, &program());
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits up to two minutes for the launcher.
fn finish(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("ranks did not end: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn ranks_hear_each_other() {
    for ranks in [1, 2, 3, 4, 7] {
        let output = finish(launch(ranks, &[]).spawn().unwrap());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{ranks} ranks: {output:?}");
        assert!(text.contains(&format!("rank {} of {ranks}", ranks - 1)), "{text}");
        assert!(text.contains("agreed in"), "{text}");
    }
}

#[test]
fn one_rank_needs_no_launcher() {
    let output = Command::new(program()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("rank 0 of 1"), "{output:?}");
}

#[test]
fn a_panic_on_a_worker_thread_ends_every_rank() {
    let started = Instant::now();
    let output = finish(launch(3, &["panic"]).spawn().unwrap());
    assert_eq!(output.status.code(), Some(101), "{output:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(String::from_utf8_lossy(&output.stderr).contains("as asked"), "{output:?}");
}

#[test]
fn the_death_of_a_rank_is_noticed_and_named() {
    let mut child = launch(3, &["hold"]).spawn().unwrap();
    let (lines, seen) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = thread::spawn(move || {
        let mut text = String::new();
        for line in stdout.lines().map_while(Result::ok) {
            text += &line;
            lines.send(line).ok();
        }
        text
    });
    let mut stderr = child.stderr.take().unwrap();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).ok();
        text
    });
    let mut held = 0;
    let mut victim = None;
    while held < 3 {
        let line = seen.recv_timeout(Duration::from_secs(120)).unwrap();
        if let Some((rank, pid)) = line.split_once(" holds as process ") {
            held += 1;
            if rank == "rank 1" {
                victim = Some(pid.to_owned());
            }
        }
    }
    let victim = victim.unwrap();
    assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    let killed = Instant::now();
    let output = finish(child);
    let took = killed.elapsed();
    let text = reader.join().unwrap();
    let errors = errors.join().unwrap();
    assert!(!output.status.success());
    // Open MPI's launcher takes a second to end the survivors. MPICH's launcher takes 10 ms, too little for them to
    // report. It then reports itself that a signal killed one of the processes.
    let told = errors.contains(&format!("rank 1 (process {victim} on "));
    let told_by_launcher = !launch::open_mpi() && text.contains("Killed (signal 9)");
    assert!(told || told_by_launcher, "{errors}{text}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}
