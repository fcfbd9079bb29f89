//! Runs over several hosts survive the failure of ranks and hosts.

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use crate::lab::hosts::{among_hosts, crash, hostfile, pids_on};
use crate::lab::launch::open_mpi;
use crate::lab::slow::{assert_tidy, expected, input, pids, record_bytes, signal, slow_job};
use crate::lab::{EXUVIA, Lab, text};
use exuvia::report::Report;

fn lab(spin: u32) -> Lab {
    let lab = Lab::bare(&["slow"]);
    input(&lab, 1.0);
    slow_job(&lab, spin);
    lab
}

fn start(lab: &Lab, ranks: u32, hosts: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(EXUVIA);
    command.args(["run", "--hostfile", hosts, "--ranks", &ranks.to_string(), "--threads", "1", "--report"]);
    command.arg(lab.path("report.json")).args(arguments).arg(lab.path("job.toml"));
    command.env("EXUVIA_CACHE_DIR", lab.path("cache"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the run adds a record.
fn await_record(lab: &Lab, run: &mut Child) {
    let before = record_bytes(lab);
    while record_bytes(lab) <= before {
        assert!(run.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Asserts that a run succeeded and that its results equal those of an undisturbed run.
fn assert_done(lab: &Lab, output: &Output) -> Report {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    let report: Report = serde_json::from_slice(&fs::read(lab.path("report.json")).unwrap()).unwrap();
    assert!(lab.results(&report) == expected(1.0), "{}", text(output));
    assert_tidy(lab);
    assert_eq!(pids(lab), [0; 0], "ranks are left");
    report
}

#[test]
fn a_lost_host_does_not_end_the_run_nor_change_its_bits() {
    among_hosts(3, || {
        let lab = lab(300_000);
        let hosts = hostfile(&lab, &[("n1", 2), ("n2", 2), ("n3", 2)]);
        let mut run = start(&lab, 6, &hosts, &[]);
        await_record(&lab, &mut run);
        assert_eq!(pids_on(&lab, "n2").len(), 2);
        crash("n2");
        let output = run.wait_with_output().unwrap();
        let (report, said) = (assert_done(&lab, &output), text(&output));
        if open_mpi() {
            let dead: Vec<(u32, &str)> = report.deaths.iter().map(|d| (d.rank, d.hostname.as_str())).collect();
            assert_eq!(dead, [(2, "n2"), (3, "n2")], "{said}");
            assert!(said.contains("ranks 2-3 (n2) failed; continuing with 4 ranks on 2 nodes"), "{said}");
            assert!(said.contains("are complete and are not computed again"), "{said}");
        } else {
            assert!(said.contains("n2 failed; restarting with 4 ranks on 2 hosts (restart 1 of 3)"), "{said}");
            assert!(report.resumed_bytes > 0, "{said}");
        }
        println!("{said}");
    });
}

#[test]
fn ranks_killed_on_other_hosts_do_not_end_the_run() {
    among_hosts(3, || {
        let lab = lab(300_000);
        let hosts = hostfile(&lab, &[("n1", 2), ("n2", 2), ("n3", 1)]);
        let mut run = start(&lab, 5, &hosts, &[]);
        // The loop kills one of two ranks of a host, then the only rank of its host, then the rank that has taken the
        // first one's place.
        for (host, ranks) in [("n2", 2), ("n3", 1), ("n2", 1)] {
            await_record(&lab, &mut run);
            let pids = pids_on(&lab, host);
            assert!(pids.len() == ranks || !open_mpi(), "{host}: {pids:?}");
            signal(&pids[..1], "-KILL");
            if !open_mpi() {
                break;
            }
        }
        let output = run.wait_with_output().unwrap();
        let (report, said) = (assert_done(&lab, &output), text(&output));
        if open_mpi() {
            let mut hosts: Vec<&str> = report.deaths.iter().map(|death| death.hostname.as_str()).collect();
            hosts.sort_unstable();
            assert_eq!(hosts, ["n2", "n2", "n3"], "{said}");
            assert!(!said.contains("starting"), "{said}");
        } else {
            assert!(said.contains("restarting them (restart 1 of 3)"), "{said}");
        }
        println!("{said}");
    });
}

#[test]
fn a_host_that_is_gone_before_ranks_start_is_left_out() {
    among_hosts(3, || {
        let lab = lab(100);
        let hosts = hostfile(&lab, &[("n1", 2), ("n2", 2), ("n3", 2)]);
        crash("n3");
        let output = start(&lab, 6, &hosts, &[]).wait_with_output().unwrap();
        let (report, said) = (assert_done(&lab, &output), text(&output));
        assert!(said.contains("note: n3 failed; restarting with 4 ranks on 2 hosts (restart 1 of 3)"), "{said}");
        let hosts: Vec<&str> = report.ranks.iter().map(|rank| rank.hostname.as_str()).collect();
        assert_eq!(hosts, ["n1", "n1", "n2", "n2"]);
        crash("n1");
        crash("n2");
        let output = start(&lab, 6, lab.path("hosts").to_str().unwrap(), &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("no host responds: n1, n2, n3"), "{}", text(&output));
    });
}

#[test]
fn signals_and_exit_statuses_pass_between_hosts() {
    among_hosts(2, || {
        let lab = lab(2_000_000);
        let hosts = hostfile(&lab, &[("n1", 1), ("n2", 2)]);
        let mut run = start(&lab, 3, &hosts, &["--tier", "baseline"]);
        await_record(&lab, &mut run);
        // Only the supervisor gets the signal.
        signal(&[run.id()], "-INT");
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{}", text(&output));
        assert!(text(&output).starts_with("error: interrupted by SIGINT\n"), "{}", text(&output));
        assert_eq!(pids(&lab), [0; 0]);
        slow_job(&lab, 10);
        let bad = "(module (memory 1) (func (export \"slow\") (param i32 i32) (result i32) (i32.const 9)))";
        fs::write(lab.path("slow.wasm"), wat::parse_str(bad).unwrap()).unwrap();
        let output = start(&lab, 3, &hosts, &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert_eq!(text(&output).matches("error: ").count(), 1, "{}", text(&output));
        let output = start(&lab, 3, "none", &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).starts_with("error: cannot read the hostfile none\n"), "{}", text(&output));
    });
}
