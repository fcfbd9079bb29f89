//! Jobs, kernels and files that are wrong: the run ends with one error that says what, where and what to do, and leaves nothing.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod lab;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::launch::open_mpi;
use lab::rows::{COLUMNS, ROWS, assert_no_output, input, rows_job, rows_lab, wat};
use lab::{EXUVIA, Lab, text};

/// Runs what must fail, on several ranks, and checks what the user is told.
fn refuses(lab: &Lab, code: i32, arguments: &[&str], messages: &[&str]) {
    for ranks in [1, 3, 7] {
        let started = Instant::now();
        let output = lab.output(ranks, arguments);
        let said = text(&output);
        // MPICH's launcher kills the others when the first rank fails, and may report that.
        let status = output.status.code();
        assert!(status == Some(code) || (ranks > 1 && !open_mpi() && status == Some(9)), "{status:?}: {said}");
        for message in messages {
            assert!(said.contains(message), "{ranks} ranks: no '{message}' in: {said}");
        }
        assert_eq!(said.matches("error: ").count(), 1, "printed once: {said}");
        assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
        assert_no_output(lab);
    }
}

#[test]
fn wrong_jobs_and_files_are_refused_with_a_way_out() {
    let lab = rows_lab();
    let job = rows_job(&lab, "softmax.wasm", "");
    let good = fs::read_to_string(&job).unwrap();
    let with = |from: &str, to: &str| fs::write(&job, good.replacen(from, to, 1)).unwrap();
    with("dataset = \"x\"", "datset = \"x\"");
    refuses(&lab, 2, &[], &["datset", "dataset"]);
    with("file = \"in.h5\"", "file = \"inn.h5\"");
    refuses(&lab, 1, &[], &["no file", "inn.h5", "did you mean 'in.h5'?"]);
    with("dataset = \"x\"", "dataset = \"y\"");
    refuses(&lab, 1, &[], &["no dataset 'y'"]);
    with("softmax.wasm", "sofmax.wasm");
    refuses(&lab, 1, &[], &["sofmax.wasm", "stage 'one'"]);
    with("dtype = \"f32\"", "dtype = \"f64\"");
    refuses(&lab, 1, &[], &["status 1", "one@n="]);
    with("[[stages]]", "[[stages]]\nexport = \"nothing\"");
    refuses(&lab, 1, &[], &["exports no function 'nothing'", "softmax"]);
    fs::write(&job, &good).unwrap();
    refuses(&lab, 2, &["--memory", "10KiB"], &["10"]);
    let module = fs::read(lab.path("softmax.wasm")).unwrap();
    fs::write(lab.path("softmax.wasm"), &module[..module.len() / 2]).unwrap();
    refuses(&lab, 1, &[], &["softmax.wasm", "no valid kernel module"]);
    fs::write(lab.path("softmax.wasm"), &module).unwrap();
    let data = fs::read(lab.path("in.h5")).unwrap();
    fs::write(lab.path("in.h5"), &data[..data.len() - 1000]).unwrap();
    refuses(&lab, 1, &[], &["in.h5 is truncated"]);
}

#[test]
fn kernels_that_break_the_rules_are_stopped_and_named() {
    let lab = rows_lab();
    let kernel = |body: &str, limits: &str, messages: &[&str]| {
        wat(&lab, "bad.wasm", body);
        rows_job(&lab, "bad.wasm", limits);
        for tier in ["baseline", "optimized"] {
            let mut wanted = vec!["one@n=", "bad.wasm", tier];
            wanted.extend(messages);
            refuses(&lab, 1, &["--tier", tier], &wanted);
        }
    };
    kernel("unreachable", "", &["trapped", "unreachable"]);
    kernel("(return (i32.const 42))", "", &["status 42"]);
    kernel("(loop (br 0))", "limits = { time = \"300ms\" }", &["300ms", "was stopped"]);
    kernel(
        "(if (i32.lt_s (memory.grow (i32.const 60000)) (i32.const 0)) (then (return (i32.const 9))))",
        "limits = { memory = \"8MiB\" }",
        &["limit is 8388608", "status 9"],
    );
    kernel(
        "(i32.store (i32.add (i32.load offset=208 (local.get 0)) (i32.mul (i32.load offset=224 (local.get 0)) \
         (i32.const 160))) (i32.const 1))",
        "",
        &["wrote outside operand 1"],
    );
    kernel("(i32.store (i32.const -4) (i32.const 1))", "", &["memory it was not given"]);
}

#[test]
fn kernels_that_cannot_merge_are_stopped_and_named() {
    let lab = rows_lab();
    // Enough for some partial results on each rank.
    input(&lab, &[20_000, COLUMNS]);
    let job = |body: &str, stage: &str| {
        let wat = format!(
            "(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) (i32.const 0))
             (func (export \"m\") (param i32 i32) (result i32) {body} (i32.const 0))
             (func (export \"odd\") (param i32)))"
        );
        fs::write(lab.path("k.wasm"), wat::parse_str(wat).unwrap()).unwrap();
        let text = format!(
            "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
             [tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\ndtype = \"f16\"\n\
             [[stages]]\nname = \"one\"\nkernel = \"k.wasm\"\nexport = \"k\"\ncompute = \"x[n,d] -> y[d]\"\n{stage}\n"
        );
        fs::write(lab.path("job.toml"), text).unwrap();
    };
    let merge = |body: &str, limits: &str, messages: &[&str]| {
        job(body, &format!("combine = {{ export = \"m\" }}\n{limits}"));
        for tier in ["baseline", "optimized"] {
            let code = format!("kernel 'k.wasm' (merge, {tier})");
            refuses(&lab, 1, &["--tier", tier], &[&["one@d=", code.as_str()], messages].concat());
        }
    };
    merge("unreachable", "", &["trapped", "unreachable"]);
    merge("(return (i32.const 7))", "", &["status 7"]);
    merge("(loop (br 0))", "limits = { time = \"300ms\" }", &["300ms", "was stopped"]);
    // Behind the bytes of the sum, the view after those that are merged into it.
    let beyond = "(i32.store (i32.add (i32.load offset=208 (local.get 0)) (i32.mul (i32.load offset=224 (local.get 0)) \
                  (i32.const 2))) (i32.const 1))";
    merge(beyond, "", &["wrote outside operand 1"]);
    let refused = |combine: &str, code: i32, messages: &[&str]| {
        job("", combine);
        refuses(&lab, code, &[], messages);
    };
    let exports = ["k.wasm", "stage 'one'", "takes (i32, i32) and returns i32", "its kernels are: k, m"];
    refused("combine = { export = \"mm\" }", 1, &[&["no function 'mm'"], &exports[..]].concat());
    refused("combine = { export = \"odd\" }", 1, &[&["no function 'odd'"], &exports[..]].concat());
    refused(
        "combine = { exprt = \"m\" }",
        2,
        &["unknown key 'exprt'", "combine of stage 'one'", "did you mean 'export'?"],
    );
    refused("combine = { kernel = \"m\" }", 2, &["unknown key 'kernel'", "known keys: export"]);
    refused("combine = {}", 2, &["combine of stage 'one' has no 'export'"]);
    refused("combine = \"m\"", 2, &["'m' is none of them", "sum", "{ export = \"...\" }"]);
}

#[test]
fn a_kernel_of_whole_rows_computes_any_columns_and_refuses_pieces_of_rows() {
    let lab = rows_lab();
    // Chunks of 7 columns cut the rows; one chunk of everything leaves them whole.
    let softmax = |compute: &str, chunk: &str| {
        let job = format!(
            "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
             [tensors.p]\ncreate = \"out.h5\"\ndataset = \"p\"\ndtype = \"f32\"\nchunk = {chunk}\n\
             [[stages]]\nkernel = \"softmax.wasm\"\ncompute = {compute}\n"
        );
        fs::write(lab.path("job.toml"), job).unwrap();
        let output = lab.output(2, &[]);
        let p = if output.status.success() { lab.read("out.h5", "p") } else { Vec::new() };
        (output.status.code(), p, text(&output))
    };
    let columns = "\"x[n,d] -> p[n,c]\"\nsizes = { c = 40 }";
    let (whole, cut) = (softmax(columns, "[203, 40]"), softmax(columns, "[16, 7]"));
    assert!(whole.0 == Some(0) && cut.0 == Some(0), "{}{}", whole.2, cut.2);
    assert!(whole.1 == cut.1 && whole.1.len() == (ROWS * COLUMNS * 4) as usize);
    let sum: f32 = whole.1[..160].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).sum();
    assert!((sum - 1.0).abs() < 1e-6, "the first row adds up to {sum}");
    let (code, _, message) = softmax("\"x[n,d] -> p[n,d]\"", "[16, 7]");
    assert!(code == Some(1) && message.contains("status 2"), "{message}");
}

#[test]
fn a_full_disk_is_told_before_anything_is_computed() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    // A file system of its own, too small for the output.
    let folder = lab.path("");
    let folder = folder.display();
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {folder}/small && sed -i 's,create = \"out.h5\",create = \"small/out.h5\",' \
         {folder}/job.toml && {EXUVIA} run {folder}/job.toml; code=$?; ls -A {folder}/small; exit $code"
    );
    fs::create_dir(lab.path("small")).unwrap();
    let big = fs::read_to_string(lab.path("job.toml")).unwrap();
    fs::write(lab.path("job.toml"), big.replace("dtype = \"f32\"\n[[stages]]", "dtype = \"f64\"\n[[stages]]")).unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    let output = unshare.env("EXUVIA_CACHE_DIR", lab.path("cache")).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no space left") && said.contains("out.h5"), "{said}");
    assert!(output.stdout.is_empty(), "nothing is left: {}", String::from_utf8_lossy(&output.stdout));
}
