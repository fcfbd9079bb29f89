use super::*;
use crate::tensor::{Dtype, Shape};
use insta::assert_snapshot;
use std::time::Duration;

const KNN: &str = r#"
memory = "2GiB"
[tensors.train]
file = "../data/digits.h5"
dataset = "train/images"
[tensors.test]
file = "../data/digits.h5"
dataset = "test/images"
[tensors.k]
value = 5
dtype = "u32"
[tensors.predicted]
create = "out/knn.h5"
dataset = "predicted"
dtype = "u8"
chunk = [256]
deflate = 4
[[stages]]
name = "classify"
kernel = "kernels/knn.wasm"
export = "knn"
compute = "test[q,d], train[n,d], k[] -> predicted[q]"
limits = { memory = "256MiB", time = "30s" }
"#;

fn parse(text: &str) -> Result<Job, JobError> {
    Job::parse(text, Path::new("jobs/knn.toml"))
}

/// The error that `KNN` gives with `from` replaced by `to`.
fn fault(from: &str, to: &str) -> String {
    assert!(KNN.contains(from), "{from}");
    parse(&KNN.replacen(from, to, 1)).expect_err(to).to_string()
}

#[test]
fn a_job_is_read_with_defaults_and_resolved_paths() {
    let job = parse(KNN).unwrap();
    assert_eq!(job.name, "knn");
    assert_eq!(job.memory_bytes, Some(2 << 30));
    let train = &job.tensors["train"];
    let file = PathBuf::from("jobs/../data/digits.h5");
    assert_eq!(train.source, Source::File { file, dataset: "train/images".into() });
    assert_eq!(train.line, 3);
    let k = Source::Inline { dtype: Dtype::U32, shape: Shape::default(), bytes: 5u32.to_ne_bytes().to_vec() };
    assert_eq!(job.tensors["k"].source, k);
    let predicted = Source::Create {
        file: "jobs/out/knn.h5".into(),
        dataset: "predicted".into(),
        dtype: Dtype::U8,
        chunk: Some(vec![256]),
        deflate: Some(4),
    };
    assert_eq!(job.tensors["predicted"].source, predicted);
    let stage = &job.stages[0];
    assert_eq!((stage.name.as_str(), stage.line), ("classify", 22));
    assert_eq!(stage.kernel, Path::new("jobs/kernels/knn.wasm"));
    assert_eq!(stage.export.as_deref(), Some("knn"));
    assert_eq!(stage.limits, Limits { memory_bytes: 256 << 20, task_time: Duration::from_secs(30) });
    assert_eq!(stage.compute.outputs[0].to_string(), "predicted[q]");
    assert_eq!(stage.compute.inputs[1].column, 23);
}

#[test]
fn several_stages_scratch_sizes_and_scalars() {
    let job = parse(
        r#"
        name = "two"
        stages = [
            { kernel = "a.wasm", compute = "-> tmp[i]", sizes = { i = 10 } },
            { kernel = "/abs/b.wasm", compute = """
                tmp[i], w[i]
                -> s[]""" },
        ]
        [tensors]
        tmp = { dtype = "f32" }
        w = { values = [1, 2.5, 0x10, -inf, 1_0, 6, 7, 8, 9, 10], dtype = "f32" }
        s = { create = "o.h5", dataset = "s", dtype = "f64" }
        "#,
    )
    .unwrap();
    assert_eq!(job.stages[0].name, "stage1");
    assert_eq!(job.stages[0].sizes["i"], 10);
    assert_eq!(job.stages[0].limits, Limits::default());
    assert_eq!(job.stages[1].kernel, Path::new("/abs/b.wasm"));
    assert_eq!(job.tensors["tmp"].source, Source::Scratch { dtype: Dtype::F32 });
    let Source::Inline { shape, bytes, .. } = &job.tensors["w"].source else { panic!() };
    assert_eq!(shape.to_string(), "[10]");
    assert_eq!(bytes[8..20], [16f32.to_ne_bytes(), f32::NEG_INFINITY.to_ne_bytes(), 10f32.to_ne_bytes()].concat());
    assert_eq!(job.stages[1].compute.inputs[1].column, 25);
}

#[test]
fn hash_is_of_name_and_text() {
    let job = parse(KNN).unwrap();
    assert_eq!(job.hash(), Job::parse(KNN, Path::new("elsewhere/knn.toml")).unwrap().hash());
    assert_ne!(job.hash(), Job::parse(KNN, Path::new("jobs/other.toml")).unwrap().hash());
    assert_ne!(job.hash(), parse(&KNN.replace("value = 5", "value = 6")).unwrap().hash());
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_snapshot!(fault("chunk =", "chunks ="), @"
    jobs/knn.toml:16:1: unknown key 'chunks' in [tensors.predicted]
       |
    16 | chunks = [256]
       | ^^^^^^
    help: did you mean 'chunk'?
    ");
    assert_snapshot!(fault("memory = \"2GiB\"", "kernels = 1"), @"
    jobs/knn.toml:2:1: unknown key 'kernels' in the job file
      |
    2 | kernels = 1
      | ^^^^^^^
    help: known keys: name, memory, tensors, stages, iterate
    ");
    assert_snapshot!(fault("time =", "timeout ="), @r#"
    jobs/knn.toml:23:31: unknown key 'timeout' in limits of stage 'classify'
       |
    23 | limits = { memory = "256MiB", timeout = "30s" }
       |                               ^^^^^^^
    help: did you mean 'time'?
    "#);
    assert_snapshot!(fault("export =", "entry ="), @r#"
    jobs/knn.toml:21:1: unknown key 'entry' in [[stages]] 1
       |
    21 | entry = "knn"
       | ^^^^^
    help: known keys: name, kernel, export, compute, sizes, combine, reduce, whole, boundary, limits
    "#);
}

#[test]
fn words_that_are_not_declared() {
    assert_snapshot!(fault("train[n,d]", "trian[n,d]"), @r#"
    jobs/knn.toml:22:23: stage 'classify' uses tensor 'trian', which is not declared
       |
    22 | compute = "test[q,d], trian[n,d], k[] -> predicted[q]"
       |                       ^^^^^
    help: did you mean 'train'?
    "#);
    assert_snapshot!(fault("k[] ->", "weights[] ->"), @r#"
    jobs/knn.toml:22:35: stage 'classify' uses tensor 'weights', which is not declared
       |
    22 | compute = "test[q,d], train[n,d], weights[] -> predicted[q]"
       |                                   ^^^^^^^
    help: declare it: [tensors.weights]
    "#);
    assert_snapshot!(fault("-> predicted[q]", "-> predicted[p]"), @r#"
    jobs/knn.toml:22:52: no input of stage 'classify' has index 'p' of output predicted[p]
       |
    22 | compute = "test[q,d], train[n,d], k[] -> predicted[p]"
       |                                                    ^
    help: give its extent: sizes = { p = ... }
    "#);
    assert_snapshot!(fault("limits = {", "sizes = { nn = 3 }\nlimits = {"), @"
    jobs/knn.toml:23:11: stage 'classify' has no index 'nn'
       |
    23 | sizes = { nn = 3 }
       |           ^^
    help: did you mean 'n'?
    ");
}

#[test]
fn values_that_cannot_be() {
    assert_snapshot!(fault("\"u8\"", "\"uint8\""), @r#"
    jobs/knn.toml:15:9: 'dtype': unknown dtype 'uint8'
       |
    15 | dtype = "uint8"
       |         ^^^^^^^
    help: did you mean 'u8'?
    "#);
    assert_snapshot!(fault("\"u8\"", "\"complex\""), @r#"
    jobs/knn.toml:15:9: 'dtype': unknown dtype 'complex'
       |
    15 | dtype = "complex"
       |         ^^^^^^^^^
    help: dtypes: f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
    "#);
    assert_snapshot!(fault("\"u8\"", "8"), @"
    jobs/knn.toml:15:9: 'dtype' takes a string, but this is a whole number
       |
    15 | dtype = 8
       |         ^
    ");
    assert_snapshot!(fault("\"256MiB\"", "\"256 potatoes\""), @r#"
    jobs/knn.toml:23:21: 'memory': '256 potatoes' is no size
       |
    23 | limits = { memory = "256 potatoes", time = "30s" }
       |                     ^^^^^^^^^^^^^^
    help: a number and a unit, such as "64MiB" or "2GiB"
    "#);
    assert_snapshot!(fault("\"256MiB\"", "\"5GiB\""), @r#"
    jobs/knn.toml:23:21: 'memory': a kernel has at most 4 GiB of linear memory
       |
    23 | limits = { memory = "5GiB", time = "30s" }
       |                     ^^^^^^
    help: write "4GiB" or less
    "#);
    assert_snapshot!(fault("\"2GiB\"", "2048"), @r#"
    jobs/knn.toml:2:10: 'memory' takes a size in quotes, such as "64MiB", but this is a whole number
      |
    2 | memory = 2048
      |          ^^^^
    "#);
    assert_snapshot!(fault("\"30s\"", "\"30\""), @r#"
    jobs/knn.toml:23:38: 'time': '30' is no duration
       |
    23 | limits = { memory = "256MiB", time = "30" }
       |                                      ^^^^
    help: a number and a unit, such as "30s", "1m 30s" or "500ms"
    "#);
    assert_snapshot!(fault("value = 5", "value = -5"), @"
    jobs/knn.toml:10:9: 'value': -5 does not fit in u32
       |
    10 | value = -5
       |         ^^
    ");
    assert_snapshot!(fault("[256]", "[16, 0]"), @"
    jobs/knn.toml:16:14: 'chunk': a chunk has at least 1 element in every dimension
       |
    16 | chunk = [16, 0]
       |              ^
    ");
    assert_snapshot!(fault("deflate = 4", "deflate = 12"), @"
    jobs/knn.toml:17:11: 'deflate': the level is from 1 (fast) to 9 (small)
       |
    17 | deflate = 12
       |           ^^
    help: leave it out for none
    ");
    assert_snapshot!(fault("chunk = [256]\n", ""), @"
    jobs/knn.toml:16:1: [tensors.predicted]: 'deflate' needs 'chunk': HDF5 compresses chunk by chunk
       |
    16 | deflate = 4
       | ^^^^^^^
    ");
    assert_snapshot!(fault("\"classify\"", "\"a b\""), @r#"
    jobs/knn.toml:19:8: 'name': 'a b' is no name
       |
    19 | name = "a b"
       |        ^^^^^
    help: letters, digits, '.', '_' and '-'
    "#);
}

#[test]
fn tables_that_do_not_fit_together() {
    assert_snapshot!(fault("dtype = \"u8\"\n", ""), @r#"
    jobs/knn.toml:12:10: [tensors.predicted] has no 'dtype'
       |
    12 | [tensors.predicted]
       |          ^^^^^^^^^
    help: add: dtype = "f32"
    "#);
    assert_snapshot!(fault("create = ", "file = \"x.h5\"\ncreate = "), @r#"
    jobs/knn.toml:14:1: [tensors.predicted]: 'file' and 'create' exclude each other
       |
    14 | create = "out/knn.h5"
       | ^^^^^^
    "#);
    assert_snapshot!(fault("value = 5", "dataset = \"k\""), @r#"
    jobs/knn.toml:10:1: [tensors.k]: 'dataset' means nothing for scratch (no file, create, value or values)
       |
    10 | dataset = "k"
       | ^^^^^^^
    "#);
    assert_snapshot!(fault("kernel = \"kernels/knn.wasm\"\n", ""), @r#"
    jobs/knn.toml:18:1: [[stages]] 1 has no 'kernel'
       |
    18 | [[stages]]
       | ^^^^^^^^^^
    help: add: kernel = "kernels/NAME.wasm"
    "#);
    assert_snapshot!(fault("[tensors.k]", "[tensors.k-means]"), @"
    jobs/knn.toml:9:10: 'tensors': 'k-means' is no tensor name
      |
    9 | [tensors.k-means]
      |          ^^^^^^^
    help: ASCII letters, digits and '_', not starting with a digit
    ");
    assert_snapshot!(fault("[[stages]]", "[stages]"), @"
    jobs/knn.toml:18:1: 'stages' takes an array of tables, [[stages]], but this is a table
       |
    18 | [stages]
       | ^^^^^^^^
    ");
    assert_snapshot!(fault("value = 5", "value = 5 5"), @"
    jobs/knn.toml:10:9: string values must be quoted, expected literal string
       |
    10 | value = 5 5
       |         ^^^
    ");
    assert_snapshot!(parse("").unwrap_err().to_string(), @r#"
    jobs/knn.toml:1:1: the job file has no 'tensors'
      |
    1 | 
      | ^
    help: add: tensors = { NAME = { file = "...", dataset = "..." } }
    "#);
}

#[test]
fn notation_faults_point_into_the_line() {
    assert_snapshot!(fault("train[n,d]", "train[n,d,n]"), @r#"
    jobs/knn.toml:22:33: index notation: index 'n' is twice in 'train'
       |
    22 | compute = "test[q,d], train[n,d,n], k[] -> predicted[q]"
       |                                 ^
    help: one letter per dimension; a diagonal is not supported
    "#);
    assert_snapshot!(fault("train[n,d]", "train"), @r#"
    jobs/knn.toml:22:28: index notation: expected '[' after tensor 'train', found ','
       |
    22 | compute = "test[q,d], train, k[] -> predicted[q]"
       |                            ^
    help: a scalar is written 'train[]'
    "#);
    assert_snapshot!(fault("test[q,d]", "test[q~1,d]"), @r#"
    jobs/knn.toml:22:17: [[stages]] 1 has no 'boundary'
       |
    22 | compute = "test[q~1,d], train[n,d], k[] -> predicted[q]"
       |                 ^^^
    help: what lies beyond the edge: boundary = "clamp", "periodic", "zero" or "none"
    "#);
    assert_snapshot!(fault("-> predicted", "=> predicted"), @r#"
    jobs/knn.toml:22:39: index notation: expected ',' or '->', found '='
       |
    22 | compute = "test[q,d], train[n,d], k[] => predicted[q]"
       |                                       ^
    help: inputs -> outputs, as in 'a[i,k], b[k,j] -> c[i,j]'
    "#);
}

#[test]
fn order_of_stages_and_roles() {
    let second = |compute: &str| {
        parse(&format!("{KNN}[[stages]]\nkernel = \"b.wasm\"\ncompute = \"{compute}\"\n")).unwrap_err().to_string()
    };
    assert_snapshot!(second("test[q,d] -> predicted[q]"), @r#"
    jobs/knn.toml:26:25: tensor 'predicted' is already written by stage 'classify'
       |
    26 | compute = "test[q,d] -> predicted[q]"
       |                         ^^^^^^^^^
    "#);
    assert_snapshot!(second("predicted[q] -> predicted[q]"), @r#"
    jobs/knn.toml:26:12: stage 'stage2' both reads and writes tensor 'predicted'
       |
    26 | compute = "predicted[q] -> predicted[q]"
       |            ^^^^^^^^^
    help: write to another tensor
    "#);
    assert_snapshot!(second("predicted[q] -> train[q]"), @r#"
    jobs/knn.toml:26:28: stage 'stage2' writes tensor 'train', but that is an existing dataset
       |
    26 | compute = "predicted[q] -> train[q]"
       |                            ^^^^^
    help: declare it with 'create', or with 'dtype' alone for scratch
    "#);
    assert_snapshot!(fault("test[q,d], train[n,d], k[]", "test[q,d], train[n,d]"), @"
    jobs/knn.toml:9:10: tensor 'k' is declared, but no stage uses it
      |
    9 | [tensors.k]
      |          ^
    help: use it in a 'compute', or remove it
    ");
    assert_snapshot!(fault("value = 5", "create = \"out/k.h5\"\ndataset = \"k\""), @r#"
    jobs/knn.toml:23:35: stage 'classify' reads tensor 'k' before any stage has written it
       |
    23 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                                   ^
    help: no stage writes it: declare it with 'file' if it exists already
    "#);
    let clash = KNN.replace("value = 5\ndtype = \"u32\"", "file = \"out/knn.h5\"\ndataset = \"/predicted\"");
    assert_snapshot!(parse(&clash).unwrap_err().to_string(), @"
    jobs/knn.toml:12:10: tensors 'k' and 'predicted' are both dataset 'predicted' of jobs/out/knn.h5
       |
    12 | [tensors.predicted]
       |          ^^^^^^^^^
    help: create it under another name
    ");
    let early = KNN.replace(
        "[[stages]]",
        "[tensors.o]\ndtype = \"u8\"\n[[stages]]\nkernel = \"b.wasm\"\ncompute = \"predicted[q] -> o[q]\"\n[[stages]]",
    );
    assert_snapshot!(parse(&early).unwrap_err().to_string(), @r#"
    jobs/knn.toml:22:12: stage 'stage1' reads tensor 'predicted' before any stage has written it
       |
    22 | compute = "predicted[q] -> o[q]"
       |            ^^^^^^^^^
    help: stage 'classify' writes it: put that stage first
    "#);
    let twin =
        format!("{KNN}[[stages]]\nname = \"classify\"\nkernel = \"b.wasm\"\ncompute = \"test[q,d] -> predicted[q]\"\n");
    assert_snapshot!(parse(&twin).unwrap_err().to_string(), @r#"
    jobs/knn.toml:25:8: 'name': an earlier stage is called 'classify' too
       |
    25 | name = "classify"
       |        ^^^^^^^^^^
    "#);
}

#[test]
fn a_missing_file_is_named() {
    let error = Job::load(Path::new("no/such/job.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read job file 'no/such/job.toml'");
    assert!(error.excerpt().is_none());
    assert_eq!(parse("a").unwrap_err().excerpt().map(|at| (at.line, at.column)), Some((1, 2)));
}

proptest::proptest! {
    /// Whatever one byte of a job file turns into, it is a job or an error that can be shown.
    #[test]
    fn no_edit_panics(at in 0..KNN.len(), to in "[ -~ü\n]{0,2}") {
        let mut text = KNN.to_owned();
        text.replace_range(at..at + 1, &to);
        if let Err(error) = parse(&text) {
            proptest::prop_assert!(error.to_string().starts_with("jobs/knn.toml:"));
        }
    }
}

/// The job in `docs/job-file.md` is a job, and each key its tables list is one that is read.
#[test]
fn the_documented_job_is_a_job() {
    let page = include_str!("../../docs/job-file.md");
    let text = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let job = parse(text).unwrap();
    assert_eq!((job.tensors.len(), job.stages.len()), (5, 1));
    for key in ["name", "memory", "file", "create", "value", "values", "dataset", "dtype", "chunk", "deflate"]
        .into_iter()
        .chain(["kernel", "export", "compute", "sizes", "limits", "time", "combine", "boundary"])
        .chain(["iterate", "count", "until", "exchange"])
    {
        assert!(page.contains(&format!("| `{key}` |")), "{key}");
    }
}
