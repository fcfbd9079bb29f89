//! Wrong jobs, kernels and files: the run ends with one error that states the fault, its place and a remedy, and leaves
//! no files.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::launch::open_mpi;
use crate::lab::rows::{COLUMNS, ROWS, assert_no_output, input, rows_job, rows_lab, wat};
use crate::lab::slow::signal;
use crate::lab::{EXUVIA, Lab, text};

/// Runs a failing command on several ranks, and checks the messages to the user.
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
        assert!(started.elapsed() < Duration::from_secs(120), "it took {:?}", started.elapsed());
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
    with("softmax.wasm", "/dev/zero");
    refuses(&lab, 1, &[], &["cannot read kernel /dev/zero", "stage 'one'"]);
    with("dtype = \"f32\"", "dtype = \"f64\"");
    refuses(&lab, 1, &[], &["status 1", "one@n="]);
    with("[[stages]]", "[[stages]]\nexport = \"nothing\"");
    refuses(&lab, 1, &[], &["exports no function 'nothing'", "softmax"]);
    fs::write(&job, &good).unwrap();
    refuses(&lab, 2, &["--memory", "10KiB"], &["10"]);
    let module = fs::read(lab.path("softmax.wasm")).unwrap();
    fs::write(lab.path("softmax.wasm"), &module[..module.len() / 2]).unwrap();
    refuses(&lab, 1, &[], &["softmax.wasm", "not a valid kernel module"]);
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
    kernel("(i64.store offset=0xffffffff (i32.const 0x80000001) (i64.const 1))", "", &["memory it was not given"]);
}

#[test]
fn a_table_that_changes_and_an_address_space_too_small_are_refused_and_named() {
    let lab = rows_lab();
    let grows = "(module (memory 1) (table 1 funcref) (func (export \"k\") (param i32 i32) (result i32)
        (table.grow 0 (ref.null func) (i32.const 1000))))";
    fs::write(lab.path("bad.wasm"), wat::parse_str(grows).unwrap()).unwrap();
    rows_job(&lab, "bad.wasm", "");
    refuses(&lab, 1, &[], &["bad.wasm uses table.grow", "one table of functions, which never changes"]);

    rows_job(&lab, "softmax.wasm", "");
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 7000000 && exec \"$0\" \"$@\"", EXUVIA, "run", "--fresh"]).arg(lab.path("job.toml"));
    let output = shell.env("EXUVIA_CACHE_DIR", lab.path("cache")).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("softmax.wasm cannot be started") && said.contains("8.0 GiB of address space"), "{said}");
    assert!(said.contains("6.7 GiB in all: raise `ulimit -v`"), "{said}");
    assert_no_output(&lab);
}

#[test]
fn kernels_that_cannot_merge_are_stopped_and_named() {
    let lab = rows_lab();
    // The input is large enough for several partial results on each rank.
    input(&lab, &[20_000, COLUMNS]);
    let job = |body: &str, stage: &str| {
        let wat = format!(
            "(module (memory 1) (func (export \"k\") (param i32 i32) (result i32)
               (memory.fill (i32.load offset=208 (local.get 0)) (i32.const 0)
                 (i32.mul (i32.load offset=224 (local.get 0)) (i32.const 2)))
               (i32.const 0))
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
    // The address lies after the bytes of the sum, in the view after those that are merged into it.
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
    // Chunks of 7 columns cut the rows; one chunk of all columns leaves them whole.
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
fn functions_that_run_as_a_module_starts_are_held_to_the_time_limit() {
    let lab = rows_lab();
    let simd = "(func (param i32) (v128.store (local.get 0) (i32x4.splat (local.get 0))))";
    for (body, function) in [
        ("(func $s (loop (br 0))) (start $s)", "the start function of kernel 'bad.wasm'"),
        ("(func (export \"_initialize\") (loop (br 0)))", "the function '_initialize' of kernel 'bad.wasm'"),
    ] {
        for (more, tiers) in [("", &["baseline", "optimized"][..]), (simd, &["baseline"])] {
            let wat = format!(
                "(module (memory 1) {body} {more} (func (export \"k\") (param i32 i32) (result i32) (i32.const 0)))"
            );
            fs::write(lab.path("bad.wasm"), wat::parse_str(wat).unwrap()).unwrap();
            rows_job(&lab, "bad.wasm", "limits = { time = \"300ms\" }");
            for tier in tiers {
                refuses(&lab, 1, &["--tier", tier], &[function, tier, "stage 'one'", "300ms", "was stopped"]);
            }
        }
    }
    let wat = "(module (memory 1) (func $s unreachable) (start $s) (func (export \"k\") (param i32 i32) (result i32) \
               (i32.const 0)))";
    fs::write(lab.path("bad.wasm"), wat::parse_str(wat).unwrap()).unwrap();
    refuses(&lab, 1, &[], &["the start function of bad.wasm failed", "unreachable"]);
}

/// Builds a module of 4 KB for which LLVM takes minutes: calls of a function with a thousand results.
fn slow_to_compile(lab: &Lab) {
    let (results, numbers, drops) = (" i32".repeat(1_000), "i32.const 1 ".repeat(1_000), "drop ".repeat(1_000));
    let wat = format!(
        "(module (memory 1) (func $many (result{results}) {numbers})
         (func (export \"k\") (param i32 i32) (result i32) call $many {drops} i32.const 0))"
    );
    fs::write(lab.path("many.wasm"), wat::parse_str(wat).unwrap()).unwrap();
    rows_job(lab, "many.wasm", "");
}

#[test]
fn a_module_that_takes_minutes_to_compile_is_named_and_no_process_of_it_stays() {
    let lab = rows_lab();
    slow_to_compile(&lab);
    for ranks in [1, 2] {
        let output = lab.command(ranks, &["--tier", "baseline"]).env("EXUVIA_COMPILE_TIME", "1s").output().unwrap();
        let said = text(&output);
        assert!(output.status.code() == Some(1) || (ranks > 1 && !open_mpi()), "{said}");
        for message in ["stage 'one'", "many.wasm", "took more than it may", "s of CPU time", "EXUVIA_COMPILE_TIME"] {
            assert!(said.contains(message), "no '{message}' in: {said}");
        }
        assert_no_output(&lab);
    }
    let mut command = lab.command(1, &["--tier", "baseline"]);
    let mut run = command.stderr(Stdio::piped()).spawn().unwrap();
    let helper = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while helper().trim().is_empty() {
        assert!(Instant::now() < until, "no helper came");
        std::thread::sleep(Duration::from_millis(10));
    }
    let helper: u32 = helper().trim().parse().unwrap();
    signal(&[run.id()], "-TERM");
    assert_eq!(run.wait().unwrap().code(), Some(75));
    while exuvia::topology::process_alive(helper) {
        assert!(Instant::now() < until, "the helper goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_limit_of_the_size_of_files_is_named() {
    let lab = rows_lab();
    input(&lab, &[20_000, COLUMNS]);
    for storage in ["", "chunk = [16, 40]"] {
        let job = format!(
            "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
             [tensors.p]\ncreate = \"out.h5\"\ndataset = \"p\"\ndtype = \"f32\"\n{storage}\n\
             [[stages]]\nkernel = \"softmax.wasm\"\ncompute = \"x[n,d] -> p[n,d]\"\n"
        );
        fs::write(lab.path("job.toml"), job).unwrap();
        // The limit allows blocks of 512 bytes and a third of the output. MPI itself needs more for several ranks.
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -f 2048 && exec \"$0\" \"$@\"", EXUVIA, "run", "--fresh"]).arg(lab.path("job.toml"));
        let output = shell.env("EXUVIA_CACHE_DIR", lab.path("cache")).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("out.h5") && said.contains("File too large"), "{said}");
        assert!(said.contains("file size 1.0 MiB (ulimit -f) is too low: raise it"), "{said}");
        assert!(!lab.path("out.h5").exists());
    }
}

#[test]
fn a_plan_is_refused_where_a_run_would_be() {
    let lab = rows_lab();
    let refused = |verb: &[&str], messages: &[&str]| {
        let output = Command::new(EXUVIA).args(verb).arg(lab.path("job.toml")).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        messages.iter().for_each(|message| assert!(text(&output).contains(message), "{}", text(&output)));
    };
    for verb in [&["plan"][..], &["plan", "--ranks", "3", "--output", "json"], &["simulate", "--ranks", "2"]] {
        rows_job(&lab, "sofmax.wasm", "");
        refused(verb, &["there is no kernel", "sofmax.wasm", "stage 'one'", "did you mean 'softmax.wasm'?"]);
        let job = rows_job(&lab, "softmax.wasm", "");
        let good = fs::read_to_string(&job).unwrap();
        fs::write(&job, good.replacen("[[stages]]", "[[stages]]\nexport = \"sofmax\"", 1)).unwrap();
        refused(verb, &["no function 'sofmax'", "did you mean 'softmax'?"]);
    }
}

#[test]
fn names_cannot_write_lines_of_their_own_or_speak_to_the_terminal() {
    let lab = rows_lab();
    let name = "\u{1b}[31m\u{202e}a\nerror: forged\r";
    let mut module = wasm_encoder::Module::new();
    let mut types = wasm_encoder::TypeSection::new();
    types.ty().function([], []);
    let mut imports = wasm_encoder::ImportSection::new();
    imports.import(name, &"x".repeat(5_000), wasm_encoder::EntityType::Function(0));
    module.section(&types).section(&imports);
    fs::write(lab.path("names.wasm"), module.finish()).unwrap();
    rows_job(&lab, "names.wasm", "");
    let harmless = |output: &std::process::Output| {
        let said = text(output);
        assert!(!said.lines().any(|line| line.starts_with("error: forged")), "{said}");
        assert!(!said.contains(['\u{1b}', '\u{202e}', '\r']), "{said:?}");
        assert!(said.contains("\\u{1b}[31m\\u{202e}a\\nerror: forged\\u{d}"), "{said}");
        assert!(said.len() < 3_000, "{said}");
    };
    harmless(&lab.output(1, &[]));
    harmless(&Command::new(EXUVIA).arg("inspect").arg(lab.path("names.wasm")).output().unwrap());
    let job = rows_job(&lab, "softmax.wasm", "");
    let good = fs::read_to_string(&job).unwrap();
    let quoted = "\"\\u001b[31m\\u202ea\\nerror: forged\\r\"";
    for (from, to) in [("dtype = ", format!("{quoted} = ")), ("dataset = \"x\"", format!("dataset = {quoted}"))] {
        fs::write(&job, good.replacen(from, &to, 1)).unwrap();
        harmless(&lab.output(1, &[]));
    }
}

#[test]
fn a_full_disk_is_told_before_anything_is_computed() {
    let lab = rows_lab();
    rows_job(&lab, "softmax.wasm", "");
    // The output lies in a file system of its own, which is too small for it.
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
