//! Files that several jobs, programs or users share.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use exuvia::store::list;
use exuvia::tensor::Dtype;

use crate::lab::slow::is_in_kernel;
use crate::lab::{EXUVIA, Lab, launch, text};

const ROWS: u64 = 40;
const COLUMNS: u64 = 3;

/// Returns a lab with an input of [`ROWS`] rows.
fn lab() -> Lab {
    let lab = Lab::bare(&["slow"]);
    lab.dataset(Dtype::F64, &[ROWS, COLUMNS], numbers(1.0));
    lab
}

/// Returns the output of a stage after so many doublings of the input.
fn numbers(factor: f64) -> Vec<u8> {
    (0..ROWS * COLUMNS).flat_map(|i| (factor * i as f64).to_le_bytes()).collect()
}

/// Writes a job that doubles the input. Each output is a file, a dataset and its storage.
fn job(lab: &Lab, name: &str, outputs: &[(&str, &str, &str)]) -> PathBuf {
    let at = |file: &str| lab.path(file).display().to_string();
    let mut job = format!(
        "[tensors]\nx = {{ file = \"{}\", dataset = \"x\" }}\nspin = {{ value = 1, dtype = \"u32\" }}\n",
        at("in.h5")
    );
    for (number, (file, dataset, stored)) in outputs.iter().enumerate() {
        job += &format!(
            "y{number} = {{ create = \"{file}\", dataset = \"{dataset}\", dtype = \"f64\"{stored} }}\n",
            file = at(file)
        );
    }
    for number in 0..outputs.len() {
        job += &stage(lab, "spin", number);
    }
    let path = lab.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, job).unwrap();
    path
}

/// Returns the stage that computes output `number`. A row takes the number of steps in the tensor `spin`.
fn stage(lab: &Lab, spin: &str, number: usize) -> String {
    let kernel = lab.path("slow.wasm").display().to_string();
    format!(
        "[[stages]]\nname = \"s{number}\"\nkernel = \"{kernel}\"\nexport = \"slow\"\n\
         compute = \"x[n,d], {spin}[] -> y{number}[n,d]\"\n"
    )
}

/// Writes a job that makes dataset `y` of `file` at once, and then runs `more`, which takes minutes: the job lasts
/// until it is killed.
fn lasting_job(lab: &Lab, name: &str, file: &str) -> PathBuf {
    let path = job(lab, name, &[(file, "y", ""), (file, "more", "")]);
    let text = fs::read_to_string(&path).unwrap();
    let lasting = text.replace(&stage(lab, "spin", 1), &stage(lab, "spins", 1));
    let constant = format!("[tensors]\nspins = {{ value = {LASTING}, dtype = \"u32\" }}\n");
    fs::write(&path, lasting.replace("[tensors]\n", &constant)).unwrap();
    path
}

/// The number of steps with which a row takes several seconds on any machine.
const LASTING: u32 = u32::MAX;

/// Makes the rest of a [`lasting_job`] take no time from now on.
fn shorten(job: &Path) {
    let text = fs::read_to_string(job).unwrap();
    fs::write(job, text.replace(&format!("value = {LASTING}"), "value = 1")).unwrap();
}

fn command(lab: &Lab, ranks: u32, job: &Path) -> Command {
    let mut command = if ranks == 1 { Command::new(EXUVIA) } else { launch::ranks(ranks, EXUVIA.as_ref()) };
    command.args(["run", "--threads", "1", "--tier", "baseline"]).arg(job);
    command.env("EXUVIA_CACHE_DIR", lab.path("cache")).env_remove("HDF5_USE_FILE_LOCKING").stdin(Stdio::null());
    command
}

/// Runs a job to its end and asserts that it succeeds.
fn run(lab: &Lab, job: &Path) -> String {
    let output = command(lab, 1, job).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// A lock that keeps runs from replacing a file: they compute their outputs and wait with them.
struct Gate {
    path: PathBuf,
    _lock: File,
}

impl Gate {
    /// Closes the gate with the lock by which runs take turns.
    fn close(file: &Path) -> Gate {
        let name = format!(".{}.exuvia-lock", file.file_name().unwrap().to_str().unwrap());
        let path = file.with_file_name(name);
        let lock = File::create_new(&path).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        Gate { path, _lock: lock }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // A second panic would end all tests.
        let _ = fs::remove_file(&self.path);
    }
}

/// A run under way.
struct Started {
    child: Child,
    lines: BufReader<ChildStderr>,
    said: Vec<u8>,
}

fn start(lab: &Lab, ranks: u32, job: &Path) -> Started {
    let mut command = command(lab, ranks, job);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap());
    Started { child, lines, said: Vec::new() }
}

impl Started {
    /// Waits until the run prints these words.
    fn await_words(&mut self, words: &str) {
        while !String::from_utf8_lossy(&self.said).contains(words) {
            let more = self.lines.read_until(b'\n', &mut self.said).unwrap();
            assert!(more > 0, "no '{words}': {}", String::from_utf8_lossy(&self.said));
        }
    }

    /// Waits until the run waits at a [`Gate`].
    fn await_gate(&mut self) {
        self.await_words("waiting for another run that is replacing it");
    }

    fn end(mut self) -> Output {
        self.lines.read_to_end(&mut self.said).unwrap();
        let output = self.child.wait_with_output().unwrap();
        Output { stderr: self.said, ..output }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Starts a [`lasting_job`], and waits until it is in its last stage and has recorded completed work.
fn start_at_work(lab: &Lab, job: &Path) -> Started {
    let run = start(lab, 1, job);
    await_that("it computes", || is_in_kernel(run.child.id()));
    let is_noted = |manifest: &PathBuf| noted(manifest) > 0 && manifest.join("inputs.json").exists();
    await_that("something is noted", || manifests(lab).iter().all(is_noted));
    run
}

/// Returns the manifests of runs in the lab and its folders.
fn manifests(lab: &Lab) -> Vec<PathBuf> {
    hidden(lab).into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "exuvia")).collect()
}

/// Returns the number of bytes of records of completed work.
fn noted(manifest: &Path) -> u64 {
    let files = fs::read_dir(manifest).into_iter().flatten().flatten();
    let logs = files.filter(|entry| entry.path().extension().is_some_and(|e| e == "log"));
    logs.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// Waits until a condition holds.
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the hidden files of runs in the lab and its folders.
fn parts(lab: &Lab) -> Vec<PathBuf> {
    hidden(lab).into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "part")).collect()
}

/// Returns the unfinished files and the manifests of runs in the lab and its folders.
fn hidden(lab: &Lab) -> Vec<PathBuf> {
    let mut folders = vec![lab.path("")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "part" || extension == "exuvia") {
                found.push(path);
            } else if path.is_dir() && !path.is_symlink() && !path.ends_with("cache") {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Kills a [`lasting_job`] once it has recorded completed work.
fn kill_at_work(lab: &Lab, job: &Path) {
    start_at_work(lab, job).kill();
}

/// Returns a command that runs `script` in Python, with the file open in h5py as `f`.
fn python(file: &Path, mode: &str, script: &str) -> Command {
    let mut command = Command::new(std::env::var("EXUVIA_PYTHON").as_deref().unwrap_or("/usr/bin/python3"));
    command.args(["-c", &format!("import h5py, sys, os\nf = h5py.File(sys.argv[1], '{mode}')\n{script}\nf.close()\n")]);
    command.arg(file).env_remove("HDF5_USE_FILE_LOCKING");
    command
}

fn with_h5py(file: &Path, mode: &str, script: &str) {
    let output = python(file, mode, script).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// Returns the names of the datasets in a file.
fn datasets(file: &Path) -> Vec<String> {
    let mut names = list(file).unwrap().names();
    names.sort();
    names
}

fn assert_tidy(lab: &Lab) {
    assert_eq!(parts(lab), Vec::<PathBuf>::new());
    assert!(!lab.manifest().exists());
    let names = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let locks: Vec<String> = names.filter(|name| name.contains("lock")).collect();
    assert!(locks.is_empty(), "{locks:?}");
}

const STORED: [&str; 3] = ["", ", chunk = [7, 2]", ", chunk = [7, 2], deflate = 1"];

#[test]
fn jobs_and_programs_add_to_one_file_at_a_time() {
    let lab = lab();
    with_h5py(&lab.path("old.h5"), "w", "f['keep'] = [7]; f['keep'].attrs['unit'] = 'm'");
    let jobs = STORED.iter().enumerate().map(|(number, stored)| {
        let dataset = format!("run{number}");
        job(&lab, &format!("{number}.toml"), &[("old.h5", &dataset, stored), ("new.h5", &dataset, stored)])
    });
    let gate = Gate::close(&lab.path("old.h5"));
    let start = |(at, job): (usize, PathBuf)| start(&lab, 1 + (at == 1) as u32, &job);
    let mut runs: Vec<Started> = jobs.enumerate().map(start).collect();
    runs.iter_mut().for_each(Started::await_gate);
    // All of them have a copy of the file in its former state.
    with_h5py(&lab.path("old.h5"), "a", "f['notes'] = [1, 2]");
    drop(gate);
    for run in runs {
        let output = run.end();
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("old.h5 has changed meanwhile"), "{}", text(&output));
    }
    for (file, others) in [("old.h5", &["keep", "notes"][..]), ("new.h5", &[])] {
        assert_eq!(datasets(&lab.path(file)), [others, &["run0", "run1", "run2"]].concat(), "{file}");
        (0..3).for_each(|run| assert!(lab.read(file, &format!("run{run}")) == numbers(2.0), "{file}: {run}"));
    }
    with_h5py(&lab.path("old.h5"), "r", "assert f['keep'].attrs['unit'] == 'm' and list(f['notes']) == [1, 2]");
    assert_tidy(&lab);
}

#[test]
fn what_somebody_else_has_made_meanwhile_is_not_replaced() {
    let lab = lab();
    with_h5py(&lab.path("out.h5"), "w", "f['old'] = [7]");
    let job = job(&lab, "job.toml", &[("out.h5", "mine", ""), ("out.h5", "old", "")]);
    // The run has computed its outputs and has not published them while `change` is made.
    let run_and = |change: &dyn Fn()| {
        let gate = Gate::close(&lab.path("out.h5"));
        let mut run = start(&lab, 1, &job);
        run.await_gate();
        change();
        drop(gate);
        run.end()
    };
    let output = run_and(&|| with_h5py(&lab.path("out.h5"), "a", "f['mine'] = [1, 2]"));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("another program created dataset 'mine'"), "{}", text(&output));
    with_h5py(&lab.path("out.h5"), "a", "assert list(f['mine']) == [1, 2] and list(f['old']) == [7]\ndel f['mine']");
    // No contents of the file are lost.
    let said = run(&lab, &job);
    assert!(said.contains("resuming an earlier run"), "{said}");
    ["mine", "old"].iter().for_each(|dataset| assert!(lab.read("out.h5", dataset) == numbers(2.0)));
    // The dataset existed before, so it is replaced.
    assert!(!run(&lab, &job).contains("note:"));
    // A user who deletes the file needs none of its contents.
    assert!(run_and(&|| fs::remove_file(lab.path("out.h5")).unwrap()).status.success());
    assert_eq!(datasets(&lab.path("out.h5")), ["mine", "old"]);
    assert_tidy(&lab);
}

#[test]
fn a_file_that_another_program_writes_to_is_left_alone_until_it_is_closed() {
    let lab = lab();
    let file = lab.path("out.h5");
    with_h5py(&file, "w", "f['keep'] = [7]");
    let hold = |mode: &str, script: &str| {
        let script = format!("open(sys.argv[2], 'w').close()\nsys.stdin.read()\n{script}");
        let mut holder = python(&file, mode, &script);
        let holder = holder.arg(lab.path("held")).stdin(Stdio::piped()).spawn().unwrap();
        await_that("it has the file", || lab.path("held").exists());
        fs::remove_file(lab.path("held")).unwrap();
        holder
    };
    let let_go = |mut holder: Child| {
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
    };
    let quick = job(&lab, "quick.toml", &[("out.h5", "y", "")]);
    let before = fs::metadata(&file).unwrap().ino();
    let holder = hold("r+", "f['theirs'] = [1]");
    let refused = command(&lab, 1, &quick).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("is open for writing in another program"), "{}", text(&refused));
    assert!(!text(&refused).contains("HDF5_USE_FILE_LOCKING"), "{}", text(&refused));
    assert!(fs::metadata(&file).unwrap().ino() == before && parts(&lab).is_empty());
    let_go(holder);
    // A run that has computed its outputs waits.
    let gate = Gate::close(&file);
    let mut waits = start(&lab, 1, &quick);
    waits.await_gate();
    let holder = hold("r+", "f['more'] = [2]");
    drop(gate);
    waits.await_words("waiting for the program that has it open for writing");
    let_go(holder);
    assert!(waits.end().status.success());
    assert_eq!(datasets(&file), ["keep", "more", "theirs", "y"]);
    // Readers block no run, and keep their contents.
    let holder = hold("r", "assert list(f['more']) == [2]");
    run(&lab, &quick);
    let_go(holder);
    assert!(lab.read("out.h5", "y") == numbers(2.0));
    assert_tidy(&lab);
}

#[test]
fn outputs_go_through_links_and_files_keep_their_modes() {
    let lab = lab();
    for folder in ["scratch", "away"] {
        fs::create_dir(lab.path(folder)).unwrap();
    }
    with_h5py(&lab.path("scratch/old.h5"), "w", "f['keep'] = [7]");
    let mode = |name: &str| fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o777;
    fs::set_permissions(lab.path("scratch/old.h5"), fs::Permissions::from_mode(0o660)).unwrap();
    symlink("scratch/old.h5", lab.path("old.h5")).unwrap();
    symlink("away/deep/new.h5", lab.path("new.h5")).unwrap();
    symlink("scratch", lab.path("link")).unwrap();
    fs::hard_link(lab.path("scratch/old.h5"), lab.path("hard.h5")).unwrap();
    let names = [("old.h5", "a", ""), ("link/old.h5", "b", ""), ("scratch/../link/../old.h5", "c", STORED[1])];
    let job = job(&lab, "job.toml", &[&names[..], &[("new.h5", "d", "")]].concat());
    let said = run(&lab, &job);
    assert!(lab.path("old.h5").is_symlink() && lab.path("new.h5").is_symlink());
    assert_eq!(datasets(&lab.path("scratch/old.h5")), ["a", "b", "c", "keep"]);
    assert_eq!((mode("scratch/old.h5"), mode("away/deep/new.h5")), (0o660, mode("job.toml")));
    ["a", "b", "c"].iter().for_each(|name| assert!(lab.read("scratch/old.h5", name) == numbers(2.0)));
    assert!(lab.read("away/deep/new.h5", "d") == numbers(2.0));
    // The other name is a different file from now on, and the run reports that.
    assert_eq!(datasets(&lab.path("hard.h5")), ["keep"]);
    assert!(said.contains("had another name (a hard link), which keeps the old content"), "{said}");
    assert_tidy(&lab);
}

#[test]
fn one_dataset_under_two_names_is_refused_before_anything_is_done() {
    let lab = lab();
    fs::create_dir(lab.path("real")).unwrap();
    symlink("real", lab.path("link")).unwrap();
    for (other, dataset, why) in [
        ("link/out.h5", "y", "are both dataset 'y'"),
        ("real/../real/out.h5", "/./y/", "are both dataset 'y'"),
        ("link/out.h5", "y/z", "would lie inside tensor"),
    ] {
        let job = job(&lab, "job.toml", &[("real/out.h5", "y", ""), (other, dataset, "")]);
        for verb in ["plan", "run"] {
            let output = Command::new(EXUVIA).arg(verb).arg(&job).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{verb}: {}", text(&output));
            assert!(text(&output).contains(why), "{verb} {other}: {}", text(&output));
        }
    }
    assert_eq!(fs::read_dir(lab.path("real")).unwrap().count(), 0);
}

#[test]
fn links_that_others_plant_lead_nowhere() {
    let lab = lab();
    let job = lasting_job(&lab, "job.toml", "out.h5");
    let precious = lab.path("precious");
    let plant = |at: &Path| {
        fs::write(&precious, "do not touch").unwrap();
        symlink(&precious, at).unwrap();
    };
    let assert_untouched = |what: &str| assert_eq!(fs::read_to_string(&precious).unwrap(), "do not touch", "{what}");
    // A link to a foreign file takes the place of the unfinished file.
    kill_at_work(&lab, &job);
    let part = parts(&lab).remove(0);
    fs::remove_file(&part).unwrap();
    plant(&part);
    kill_at_work(&lab, &job);
    assert_untouched("the unfinished file is a link");
    assert!(!part.is_symlink(), "it is removed");
    // The manifest names a foreign file as the unfinished file.
    kill_at_work(&lab, &job);
    let header = lab.manifest().join("header.json");
    let text = fs::read_to_string(&header).unwrap();
    let named = parts(&lab).remove(0).display().to_string();
    assert!(text.contains(&named));
    fs::write(&header, text.replace(&named, precious.to_str().unwrap())).unwrap();
    kill_at_work(&lab, &job);
    assert_untouched("the manifest names it");
    // A link to a foreign file takes the place of a log, and of the manifest.
    kill_at_work(&lab, &job);
    let log = lab.manifest().join("finished-99-0.log");
    symlink(&precious, log).unwrap();
    kill_at_work(&lab, &job);
    assert_untouched("a log is a link");
    let manifest = lab.manifest();
    let elsewhere = lab.path("elsewhere");
    fs::rename(&manifest, &elsewhere).unwrap();
    symlink(&elsewhere, &manifest).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    shorten(&job);
    let said = run(&lab, &job);
    assert!(said.contains("is a link: it is not used"), "{said}");
    assert_eq!(names(), before);
    assert!(lab.read("out.h5", "y") == numbers(2.0));
}

#[test]
fn jobs_of_one_name_do_not_meet_and_one_job_under_two_names_does() {
    let lab = lab();
    let [a, b] = ["a", "b"].map(|name| lasting_job(&lab, &format!("{name}/job.toml"), &format!("out/{name}.h5")));
    fs::create_dir(lab.path("out")).unwrap();
    let under_way = start_at_work(&lab, &a);
    symlink(&a, lab.path("alias.toml")).unwrap();
    let refused = command(&lab, 1, &lab.path("alias.toml")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let expected = format!("another run is writing the outputs of this job (process {}", under_way.child.id());
    assert!(text(&refused).contains(&expected), "{}", text(&refused));
    // The other run neither waits for nor clears away the first run's completed work, whether the first is alive or has
    // failed.
    kill_at_work(&lab, &b);
    under_way.kill();
    let left = parts(&lab);
    assert_eq!(left.len(), 2, "{left:?}");
    shorten(&b);
    run(&lab, &b);
    let left = parts(&lab);
    assert!(left.len() == 1 && left[0].to_string_lossy().contains(".a.h5.exuvia-"), "{left:?}");
    shorten(&a);
    let said = run(&lab, &a);
    assert!(said.contains("resuming an earlier run"), "{said}");
    for file in ["out/a.h5", "out/b.h5"] {
        assert!(lab.read(file, "y") == numbers(2.0), "{file}");
    }
    assert_eq!(fs::read_dir(lab.path("out")).unwrap().count(), 2);
}
