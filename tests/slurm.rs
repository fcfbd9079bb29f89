//! Real jobs in a real Slurm. A test runs itself again in a cluster of its own (`tests/slurm/cluster`), on the head
//! node, and submits jobs to the others. On a machine that has another Slurm the test runs nothing, and says so.

mod desk;

use std::fs;
use std::process::{Command, Stdio};

use desk::{CLUSTER, COLUMNS, EXUVIA, REFUSED, ROWS, in_cluster, patiently, text};
use serde_json::Value;

#[test]
fn a_job_runs_on_two_nodes_however_it_is_launched() {
    in_cluster(2, |desk| {
        let expected = desk.expected("job");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--ntasks-per-node", "2"]);
        let log = desk.exuvia(&["logs", "-f", "job"]);
        assert!(log.contains("4 on 2 nodes"), "{log}");
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected, "submitted");
        let report = desk.report(&id);
        let hosts: Vec<&str> = report.ranks.iter().map(|rank| rank.hostname.as_str()).collect();
        assert_eq!(hosts, ["n1", "n1", "n2", "n2"]);
        for script in ["run.sbatch", "mpirun.sbatch"] {
            let id = desk.submit_script(script, &["job.toml"]);
            desk.wait_for(&id, "COMPLETED");
            let log = fs::read_to_string(desk.path(&format!("exuvia-{id}.log"))).unwrap();
            assert!(log.contains("4 on 2 nodes"), "{script}: {log}");
            assert!(desk.take_output("job") == expected, "{script}");
        }
    });
}

#[test]
fn threads_are_those_that_slurm_granted() {
    in_cluster(1, |desk| {
        // The cluster binds no rank, so a rank may run on all CPUs of the machine.
        let cpus = std::thread::available_parallelism().unwrap().get().min(3);
        for (asked, threads) in [(1, 1), (3, cpus)] {
            let id = desk.submit(&["job.toml", "--cpus-per-task", &asked.to_string()]);
            desk.wait_for(&id, "COMPLETED");
            assert_eq!(desk.report(&id).environment.threads_per_rank as usize, threads, "{asked}");
        }
    });
}

#[test]
fn a_job_that_cannot_run_is_not_submitted() {
    in_cluster(1, |desk| {
        let refused = |arguments: &[&str], code: i32, why: &str| {
            let output = desk.command(EXUVIA, &[&["submit"], arguments].concat());
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
            assert!(text(&output).contains(why), "{arguments:?}: {}", text(&output));
        };
        refused(&["job.toml", "--mem", "100K"], 2, "the budget is 80.0 KiB");
        refused(&["job.toml", "--", "--tire", "auto"], 2, "--tier");
        refused(&["job.toml", "--array", "0-3"], 2, "%a");
        desk.job("none", "none");
        refused(&["none.toml"], 1, "none.wasm");
        desk.job_from("late", "softmax", "none");
        refused(&["late.toml"], 1, "none.h5");
        assert_eq!(desk.run("squeue", &["--noheader", "--states=all"]), "");
        // Slurm itself refuses this job.
        refused(&["job.toml", "--nodes", "1", "--mem", "1T"], 1, "Memory specification can not be satisfied");
        assert_eq!(desk.exuvia(&["status"]), "no jobs were submitted from this folder\n");
        // The budget of Slurm holds without an earlier check: each row needs 1.6 MB.
        desk.input("rows", [2, 400_000]);
        desk.job_from("wide", "softmax", "rows");
        let wide = fs::read_to_string(desk.path("wide.toml")).unwrap().replace("x[n,d]", "x[n]");
        fs::write(desk.path("wide.toml"), wide).unwrap();
        let id = desk.run("sbatch", &["--parsable", "--mem=1M", "--output=wide.log", "--wrap=exuvia run wide.toml"]);
        desk.wait_for(id.trim(), "FAILED");
        assert_eq!(desk.json(&["status", id.trim()])["jobs"][0]["exit_code"], 2);
        let log = fs::read_to_string(desk.path("wide.log")).unwrap();
        assert!(log.contains("the budget is 819.2 KiB"), "{log}");
    });
}

#[test]
fn an_array_runs_a_job_for_each_task() {
    in_cluster(2, |desk| {
        for task in 0..5 {
            desk.job(&format!("part-{task}"), "softmax");
        }
        let expected = desk.expected("part-0");
        let id = desk.submit(&["part-%a.toml", "--array", "0-4%3"]);
        desk.wait_for(&id, "COMPLETED");
        for task in 0..5 {
            assert!(desk.take_output(&format!("part-{task}")) == expected, "task {task}");
        }
        let jobs = &desk.json(&["status", "part"])["jobs"];
        let ids: Vec<&str> = jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4].map(|task| format!("{id}_{task}")));
        let logs = desk.exuvia(&["logs", "part"]);
        assert!(logs.contains(&format!("==> {id}_4 <==")), "{logs}");
        assert!(desk.exuvia(&["logs", &format!("{id}_2")]).contains("part-2.h5"));

        let id = desk.submit_script("array.sbatch", &["--array=1-2", "part-"]);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.has_output("part-1") && desk.has_output("part-2"));
    });
}

#[test]
fn jobs_wait_for_those_that_they_depend_on() {
    in_cluster(2, |desk| {
        desk.job_from("second", "softmax", "job");
        desk.job_from("third", "softmax", "second");
        desk.wat("trap", "unreachable");
        desk.job("wrong", "trap");
        let first = desk.submit(&["job.toml", "--nodes", "2", "--sbatch=--hold"]);
        let second = desk.submit(&["second.toml", "--dependency", &format!("afterok:{first}")]);
        let third = desk.submit(&["third.toml", "--dependency", &format!("afterok:{second}")]);
        let wrong = desk.submit(&["wrong.toml", "--dependency", &format!("afterok:{first}")]);
        let never = desk.submit(&[
            "job.toml",
            "--job-name",
            "never",
            "--dependency",
            &format!("afterok:{wrong}"),
            "--sbatch=--kill-on-invalid-dep=yes",
        ]);
        desk.run("scontrol", &["release", &first]);
        desk.wait_for(&third, "COMPLETED");
        assert_eq!((desk.state(&first), desk.state(&second)), ("COMPLETED".to_owned(), "COMPLETED".to_owned()));
        assert!(desk.has_output("third"));
        desk.wait_for(&wrong, "FAILED");
        assert_eq!(desk.json(&["status", "wrong"])["jobs"][0]["exit_code"], 1);
        desk.wait_for(&never, "CANCELLED");
    });
}

#[test]
fn a_job_is_ended_by_the_time_limit_and_another_goes_on() {
    in_cluster(2, |desk| {
        let expected = desk.unfinished();
        // Slurm counts in minutes.
        let id = desk.submit_script("run.sbatch", &["--time=1", "job.toml"]);
        desk.wait_for(&id, "TIMEOUT");
        let log = fs::read_to_string(desk.path(&format!("exuvia-{id}.log"))).unwrap();
        assert!(log.contains("DUE TO TIME LIMIT") && log.contains("interrupted by SIGTERM"), "{log}");
        assert_eq!(log.matches("error: interrupted").count(), 1, "{log}");
        assert!(!desk.has_output("job"));
        // The first stage was complete.
        desk.mend();
        let id = desk.submit(&["job.toml", "--nodes", "1", "--ntasks-per-node", "3"]);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        let report = desk.report(&id);
        assert_eq!(report.resumed_bytes, ROWS * COLUMNS * 4);
        assert_eq!(report.stages[0].counts.tasks(), 0);
    });
}

#[test]
fn a_cancelled_job_ends_and_leaves_no_output() {
    in_cluster(2, |desk| {
        desk.job("job", "endless");
        let id = desk.submit(&["job.toml", "--nodes", "2"]);
        let waiting = desk.submit(&["job.toml", "--job-name", "waiting", "--sbatch=--hold"]);
        desk.wait_for_work(&id, "job");
        // The head node has none of the job's processes.
        let ranks = patiently(|| {
            let output = desk.command(EXUVIA, &["top", &id, "--output", "json"]);
            let ranks = serde_json::from_slice::<Value>(&output.stdout).ok().map(|top| top["runs"][0]["ranks"].clone());
            ranks.filter(|ranks| ranks[1].is_object()).ok_or_else(|| text(&output))
        });
        let ranks = ranks.unwrap();
        assert_eq!([&ranks[0]["hostname"], &ranks[1]["hostname"]], ["n1", "n2"]);
        assert!(desk.exuvia(&["top", "--once", "job"]).contains(&format!("job (Slurm {id}): 2 ranks on 2 nodes")));
        assert_eq!(desk.exuvia(&["cancel", "job"]), format!("cancelled {id}\n"));
        desk.wait_for(&id, "CANCELLED");
        assert!(!desk.has_output("job"));
        let gone = || {
            let output = desk.command(EXUVIA, &["top", "job"]);
            (output.status.code() == Some(2)).then_some(()).ok_or_else(|| text(&output))
        };
        patiently(gone).unwrap();
        assert_eq!(desk.state(&waiting), "PENDING");
        assert_eq!(desk.exuvia(&["cancel", &waiting]), format!("cancelled {waiting}\n"));
        let again = desk.command(EXUVIA, &["cancel", &waiting]);
        assert_eq!(again.status.code(), Some(1), "{}", text(&again));
        assert_eq!(desk.command(EXUVIA, &["cancel", "nobody"]).status.code(), Some(2));
        assert!(desk.exuvia(&["status"]).contains("CANCELLED"));
        let none = desk.command(EXUVIA, &["logs", "-f", "waiting"]);
        assert!(none.status.code() == Some(1) && text(&none).contains("has no log: CANCELLED"), "{}", text(&none));
    });
}

#[test]
fn a_requeued_job_runs_again() {
    in_cluster(2, |desk| {
        let expected = desk.expected("job");
        desk.job("job", "endless");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--requeue"]);
        desk.wait_for_work(&id, "job");
        desk.run("scontrol", &["requeue", &id]);
        desk.job("job", "softmax");
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        // Both runs have one log.
        let log = desk.exuvia(&["logs", &id]);
        assert!(log.contains("interrupted by SIGTERM") && log.contains("2 on 2 nodes"), "{log}");
    });
}

#[test]
fn a_job_that_stops_before_its_time_is_over_is_put_back_and_goes_on() {
    in_cluster(2, |desk| {
        let expected = desk.unfinished();
        let id = desk.submit(&["job.toml", "--nodes", "2", "--time", "10", "--requeue"]);
        desk.wait_for_work(&id, "job");
        // Half a minute before the end is now, or when Slurm next checks the limit.
        desk.run("scontrol", &["update", &format!("JobId={id}"), "TimeLimit=1"]);
        desk.wait_for(&id, "PENDING");
        desk.mend();
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        let log = desk.exuvia(&["logs", &id]);
        assert!(log.matches("interrupted by SIGUSR1").count() == 1 && !log.contains("SIGTERM"), "{log}");
        // The first stage was complete.
        let report = desk.report(&id);
        assert_eq!(report.resumed_bytes, ROWS * COLUMNS * 4);
        assert_eq!(report.stages[0].counts.tasks(), 0);
    });
}

#[test]
fn a_job_that_others_go_before_runs_after_them() {
    in_cluster(2, |desk| {
        let expected = desk.expected("job");
        desk.job("job", "endless");
        desk.job("urgent", "softmax");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--ntasks-per-node", "4", "--requeue"]);
        desk.wait_for_work(&id, "job");
        let urgent = desk.submit(&["urgent.toml", "--nodes", "2", "--ntasks-per-node", "4", "--partition", "high"]);
        desk.wait_for(&urgent, "COMPLETED");
        desk.job("job", "softmax");
        assert!(desk.take_output("urgent") == expected && !desk.has_output("job"));
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
    });
}

#[test]
fn a_job_leaves_a_node_that_is_set_down() {
    in_cluster(3, |desk| {
        let expected = desk.expected("job");
        desk.job("job", "endless");
        let id = desk.submit(&["job.toml", "--nodes", "2", "--requeue"]);
        desk.wait_for_work(&id, "job");
        desk.run("scontrol", &["update", "NodeName=n1", "State=DOWN", "Reason=test"]);
        desk.job("job", "softmax");
        desk.start_again(&id);
        desk.wait_for(&id, "COMPLETED");
        assert!(desk.take_output("job") == expected);
        let hosts: Vec<String> = desk.report(&id).ranks.into_iter().map(|rank| rank.hostname).collect();
        assert_eq!(hosts, ["n2", "n3"]);
    });
}

#[test]
fn a_sweep_fills_the_nodes_of_its_allocation_and_goes_on_when_submitted_again() {
    in_cluster(2, |desk| {
        let submit = |repeat: &str| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/slurm/strong.sbatch");
            let options = ["--parsable", "--nodes=2", "--ntasks-per-node=2", script];
            desk.run("sbatch", &[&options[..], &["job.toml", "--repeat", repeat]].concat()).trim().to_owned()
        };
        let points = || -> Vec<Value> {
            let text = fs::read_to_string(desk.path("exuvia-bench/job-strong.jsonl")).unwrap_or_default();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        // Like the time limit, this ends the run in the middle.
        let id = submit("1000");
        patiently(|| (points().len() > 3).then_some(()).ok_or_else(|| desk.state(&id))).unwrap();
        desk.run("scancel", &["--batch", "--signal=USR1", &id]);
        desk.wait_for(&id, "FAILED");
        let log = fs::read_to_string(desk.path(&format!("exuvia-{id}.log"))).unwrap();
        assert!(log.contains("note: interrupted; run the same command again to measure the missing points"), "{log}");
        let before = points();
        assert!(desk.path("exuvia-bench/job-strong.html").exists());

        let repeat = before.len() / 3 + 2;
        let id = submit(&repeat.to_string());
        desk.wait_for(&id, "COMPLETED");
        let after = points();
        assert_eq!((after.len(), &after[..before.len()]), (3 * repeat, &before[..]));
        for point in &after {
            assert!(point["launcher"].as_str().unwrap().starts_with("srun --mpi=pmi"), "{point}");
            // A node has room for two ranks, and not for four.
            let nodes = if point["ranks"] == 4 { 2 } else { 1 };
            assert_eq!(point["hosts"].as_array().unwrap().len(), nodes, "{point}");
        }
        assert!(!desk.has_output("job"));
    });
}

#[test]
fn the_cluster_ends_with_its_command_and_lets_another_slurm_alone() {
    let refused = Command::new(CLUSTER).args(["--", "true"]).env("SLURM_CONF", "/nowhere").output().unwrap();
    assert_eq!(refused.status.code(), Some(REFUSED), "{}", text(&refused));
    assert!(text(&refused).contains("SLURM_CONF=/nowhere"), "{}", text(&refused));
    if std::env::var_os("SLURM_CONF").is_some() {
        return;
    }

    // A job that would outlast the command, with a unique name.
    let sleep = format!("86400.{}", std::process::id());
    let script = format!("srun -N2 sleep {sleep} & until [ $(pgrep -cx sleep) = 2 ]; do sleep 0.1; done; exit 7");
    let output = Command::new(CLUSTER).args(["--", "bash", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    if output.status.code() == Some(REFUSED) {
        return;
    }
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    let command_line = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
    let left = fs::read_dir("/proc").unwrap().flatten().map(command_line);
    let left = left.filter(|line| line.split(|byte| *byte == 0).any(|word| word == sleep.as_bytes()));
    assert_eq!(left.count(), 0);
}
