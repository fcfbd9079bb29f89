use super::*;

const GOOD: &str = r#"
memory = "2GiB"
[tensors.train]
file = "../data/d.h5"
dataset = "train"
[tensors.k]
value = 5
dtype = "u32"
[tensors.bias]
values = [0.5, 1]
dtype = "f32"
[tensors.out]
create = "out.h5"
dataset = "result"
dtype = "u8"
chunk = [16]
deflate = 4
[[stages]]
kernel = "k/knn.wasm"
compute = "train[n,d], k[], bias[c] -> out[n]"
limits = { memory = "64MiB", time = "250ms" }
"#;

fn error(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    Job::parse(&GOOD.replacen(from, to, 1), Path::new("jobs/j.toml")).unwrap_err().to_string()
}

#[test]
fn a_whole_job_is_read() {
    let job = Job::parse(GOOD, Path::new("jobs/j.toml")).unwrap();
    assert_eq!((job.name.as_str(), job.memory_bytes), ("j", Some(2 << 30)));
    let stage = &job.stages[0];
    assert_eq!((stage.name.as_str(), stage.kernel.to_str()), ("stage1", Some("jobs/k/knn.wasm")));
    assert_eq!(stage.limits, Limits { memory_bytes: 64 << 20, task_time: Duration::from_millis(250) });
    let Source::Inline { shape, bytes, .. } = &job.tensors["bias"].source else { panic!() };
    assert_eq!((shape.as_ref() as &[u64], bytes.len()), (&[2u64][..], 8));
    assert_eq!(&bytes[4..], 1f32.to_ne_bytes());
    assert_eq!(job.declared_dtype("k"), Some(Dtype::U32));
    assert_eq!(job.declared_dtype("train"), None);
}

#[test]
fn mistakes_are_shown_where_they_are_with_the_nearest_right_thing() {
    let typo = error("dataset = \"train\"", "datset = \"train\"");
    assert!(typo.starts_with("jobs/j.toml:5:1: unknown key 'datset'; did you mean 'dataset'?"), "{typo}");
    assert!(typo.ends_with("5 | datset = \"train\"\n  | ^"), "{typo}");
    let tensor = error("train[n,d]", "trian[n,d]");
    assert!(tensor.contains("20:12: no tensor is called 'trian'; did you mean 'train'?"), "{tensor}");
    let dtype = error("dtype = \"u8\"", "dtype = \"u3\"");
    assert!(dtype.contains("unknown dtype 'u3'; did you mean 'u"), "{dtype}");
    let notation = error("k[], bias", "k[] bias");
    assert!(notation.contains("20:28: expected '->'"), "{notation}");
    assert!(error("2GiB", "lots").contains("no size in bytes"));
    assert!(error("250ms", "soon").contains("no time"));
    assert!(error("value = 5", "value = -5").contains("-5 is no u32"));
    assert!(error("deflate = 4", "deflate = 12").contains("1 to 9"));
    assert!(error("chunk = [16]\n", "").contains("deflate needs chunk"));
    assert!(error("chunk = [16]", "chunk = [16, 2]").contains("the chunk of 'out' has 2 extents"));
    assert!(error("-> out[n]", "-> train[n]").contains("appears twice"));
    assert!(error(", bias[c] ->", " ->").contains("'bias' is used by no stage"));
    assert!(error("create = \"out.h5\"\ndataset = \"result\"", "dataset = \"result\"").contains("chunk and deflate"));
    assert!(error("[[stages]]", "[[stage]]").contains("did you mean 'stages'?"));
}

#[test]
fn data_flows_forward_only() {
    let two = r#"
[tensors.a]
file = "a.h5"
dataset = "a"
[tensors.t]
dtype = "f32"
[tensors.o]
create = "o.h5"
dataset = "o"
dtype = "f32"
[[stages]]
kernel = "k.wasm"
compute = "a[n] -> t[n]"
[[stages]]
kernel = "k.wasm"
compute = "t[n] -> o[n]"
"#;
    assert_eq!(Job::parse(two, Path::new("j.toml")).unwrap().stages[1].name, "stage2");
    let swapped =
        two.replace("a[n] -> t[n]", "x").replace("t[n] -> o[n]", "a[n] -> t[n]").replace("\"x\"", "\"t[n] -> o[n]\"");
    let error = |text: &str| Job::parse(text, Path::new("j.toml")).unwrap_err().to_string();
    assert!(error(&swapped).contains("no earlier stage writes it"), "{}", error(&swapped));
    let twice = two.replace("t[n] -> o[n]", "a[n] -> t[n]");
    assert!(error(&twice).contains("was written by stage 'stage1' already"), "{}", error(&twice));
    assert!(error("name = \"x\"").contains("no [[stages]]"));
    assert!(error("name = ").contains("j.toml:1:"));
}
