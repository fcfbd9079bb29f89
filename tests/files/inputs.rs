//! Input files of jobs: links, virtual datasets, raw files, filters, damage.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use exuvia::store::{self, Reader, StoreError};
use exuvia::tensor::Region;

use crate::lab::slow::is_in_kernel;
use crate::lab::{EXUVIA, Lab, text};

/// A kernel that copies tiles of any type and shape.
const COPY: &str = r#"#include "exuvia.h"
EXUVIA_EXPORT(copy) int32_t copy(const exuvia_view *v, uint32_t count)
{
    uint32_t d = v[0].dtype;
    if (count != 2 || d != v[1].dtype || v[0].rank != v[1].rank) return 7;
    uint32_t n = d == 5 || d == 9 ? 1 : d == 1 || d == 2 || d == 6 || d == 10 ? 2 : d == 3 || d == 7 || d == 11 ? 4 : 8;
    for (uint32_t i = 0; i < v[0].rank; i++) n *= v[1].extent[i];
    const uint8_t *x = exuvia_data(&v[0]);
    uint8_t *y = exuvia_data(&v[1]);
    for (uint32_t i = 0; i < n; i++) y[i] = x[i];
    return 0;
}
"#;

pub fn files() -> Lab {
    Lab::bare(&[])
}

/// Runs Python in the lab, with h5py as `h5` and numpy as `np`.
pub fn make(lab: &Lab, script: &str) {
    let program = std::env::var("EXUVIA_PYTHON").unwrap_or("/usr/bin/python3".to_owned());
    let script = format!("import h5py as h5, numpy as np, os, sys\n{script}");
    let made = Command::new(program).arg("-c").arg(script).current_dir(lab.path("")).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

/// Writes a job that copies dataset `x` of a file, with these indices, to `y` of `out.h5`.
fn copying(lab: &Lab, file: &str, dataset: &str, indices: &str, dtype: &str) {
    if !lab.path("copy.wasm").exists() {
        fs::write(lab.path("copy.c"), COPY).unwrap();
        exuvia::cli::kernel_build::build(&lab.path("copy.c"), &lab.path("copy.wasm"), &[]).unwrap();
    }
    let job = format!(
        "[tensors.x]\nfile = \"{file}\"\ndataset = \"{dataset}\"\n[tensors.y]\ncreate = \"out.h5\"\ndataset = \"y\"\n\
         dtype = \"{dtype}\"\n[[stages]]\nkernel = \"copy.wasm\"\ncompute = \"x[{indices}] -> y[{indices}]\"\n"
    );
    fs::write(lab.path("job.toml"), job).unwrap();
}

fn exuvia(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXUVIA);
    command.args(arguments).current_dir(lab.path("")).env("EXUVIA_CACHE_DIR", lab.path("cache")).stdin(Stdio::null());
    command.output().unwrap()
}

/// Returns the reason why a dataset cannot be read, in one line.
fn refusal(lab: &Lab, file: &str, dataset: &str) -> String {
    let error = store::describe(&lab.path(file), dataset).expect_err(dataset);
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        line.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    line.replace(&format!("{}/", lab.path("").display()).replace("//", "/"), "")
}

/// Asserts that all elements, and then boxes of them, equal those of `NAME.bin`, which h5py wrote.
fn is_as_h5py_reads(lab: &Lab, file: &str, dataset: &str, expected: &str) {
    let expected = fs::read(lab.path(expected)).unwrap();
    store::describe(&lab.path(file), dataset).unwrap();
    let reader = Reader::open(&lab.path(file), dataset).unwrap();
    let whole = Region::whole(&reader.info().shape);
    let (mut bytes, size) = (Vec::new(), reader.info().dtype.size_bytes());
    reader.read(&whole, &mut bytes).unwrap();
    assert!(bytes == expected, "{file}:{dataset} differs from what h5py reads");
    for step in 1..8u64 {
        let mut part = whole.clone();
        for d in 0..part.rank() {
            part.offset[d] = (whole.extent[d] * step / 11).min(whole.extent[d] - 1);
            part.extent[d] = (whole.extent[d] / (step + 1)).clamp(1, whole.extent[d] - part.offset[d]);
        }
        let mut cut = vec![0; part.elements() as usize * size];
        exuvia::tensor::copy_region(&expected, &whole, &mut cut, &part, &part, size);
        reader.read(&part, &mut bytes).unwrap();
        assert!(bytes == cut, "{file}:{dataset}: {part} differs from what h5py reads");
    }
}

#[test]
fn links_lead_to_other_files() {
    let lab = files();
    make(
        &lab,
        r#"
os.makedirs('sub/deep')
x = np.random.default_rng(1).random(20000)
x.tofile('x.bin')
with h5.File('sub/big.h5', 'w') as f:
    f['path/to/x'] = x
    f.create_dataset('c', data=x, chunks=(1000,), compression='gzip', shuffle=True, fletcher32=True)
    f['soft'] = h5.SoftLink('/path/to/x')
    f['path/near'] = h5.SoftLink('to/x')
with h5.File('sub/deep/mid.h5', 'w') as f:
    f['on'] = h5.ExternalLink('../big.h5', '/soft')
with h5.File('link.h5', 'w') as f:
    f['x'] = h5.ExternalLink('sub/big.h5', '/path/to/x')
    f['c'] = h5.ExternalLink('sub/big.h5', 'c')
    f['g'] = h5.ExternalLink('sub/big.h5', '/')
    f['on'] = h5.ExternalLink('sub/deep/mid.h5', '/on')
    f['lost'] = h5.ExternalLink('sub/none.h5', '/x')
    f['lost2'] = h5.ExternalLink('sub/big.h5', '/path/of/x')
    f['pipe'] = h5.ExternalLink('pipe', '/x')
    f['round'] = h5.ExternalLink('link.h5', '/round')
    f['a'] = h5.SoftLink('/b'); f['b'] = h5.SoftLink('a')
    f['gone'] = h5.SoftLink('/nowhere/x')
os.mkfifo('pipe')
os.symlink('sub/big.h5', 'name.h5')
with h5.File('sub/by.h5', 'w') as f: f['x'] = h5.ExternalLink('big.h5', '/path/near')
os.symlink('sub/by.h5', 'by.h5')
"#,
    );
    for dataset in ["x", "c", "g/soft", "g/path/to/x", "g/path/near", "on", "/g//./c"] {
        is_as_h5py_reads(&lab, "link.h5", dataset, "x.bin");
    }
    is_as_h5py_reads(&lab, "name.h5", "soft", "x.bin");
    is_as_h5py_reads(&lab, "by.h5", "x", "x.bin");
    let sources = store::describe(&lab.path("link.h5"), "on").unwrap().sources;
    let places: Vec<String> = sources
        .iter()
        .map(|source| format!("{}:{}", source.file.strip_prefix(lab.path("")).unwrap().display(), source.object))
        .collect();
    assert_eq!(places, ["link.h5:/on", "sub/deep/mid.h5:/on", "sub/deep/../big.h5:/path/to/x"]);
    for (dataset, why) in [
        ("lost", "its external link 'lost' leads to '/x' in sub/none.h5, but there is no file"),
        ("lost2", "leads to '/path/of/x' in sub/big.h5, but there is no 'path/of' in"),
        ("pipe", "is not a regular file but a pipe"),
        ("round", "in a circle"),
        ("a", "in a circle"),
        ("gone", "its link 'gone' leads to '/nowhere/x', but there is no 'nowhere' in"),
        ("gonn", "did you mean 'gone'?"),
        ("g", "it is a group"),
        ("x/y", "but there is no 'path/to/x/y' in"),
        ("no/x", "there is no dataset 'no/x' in link.h5"),
    ] {
        let refusal = refusal(&lab, "link.h5", dataset);
        assert!(refusal.contains(why), "{dataset}: {refusal}");
    }
}

#[test]
fn virtual_datasets_are_read_part_by_part() {
    let lab = files();
    make(
        &lab,
        r#"
from h5py import h5s, h5p, h5d, h5t
rng = np.random.default_rng(2)
os.mkdir('d')
for i in range(5):
    with h5.File(f'd/p{i}.h5', 'w') as f:
        f['x'] = rng.random(250)
        f['m'] = rng.random((20, 30))
        f['n'] = rng.integers(0, 100, 250).astype('>i2')
        f.create_dataset('z', data=rng.random((20, 30)), chunks=(7, 4), compression='gzip', fletcher32=True)
        f[f'x{i}'] = rng.random(100)
def write(name, shape, put, dtype='f8', fill=0):
    layout = h5.VirtualLayout(shape=shape, dtype=dtype)
    put(layout)
    with h5.File('v.h5', 'a') as f: f.create_virtual_dataset(name, layout, fillvalue=fill)
    h5.File('v.h5', 'r')[name][()].tofile(name + '.bin')
s = lambda i, d='x', shape=(250,), **k: h5.VirtualSource(f'd/p{i}.h5', d, shape=shape, **k)
def one(l): l[:] = s(0)
write('one', (250,), one)
def row(l):
    for i in range(4): l[i * 250:(i + 1) * 250] = s(i)
write('row', (1000,), row)
def stack(l):
    for i in range(4): l[i] = s(i)
write('stack', (4, 250), stack)
def columns(l):
    for i in range(4): l[:, i] = s(i)
write('columns', (250, 4), columns)
def woven(l):
    for i in range(4): l[i::4] = s(i)
write('woven', (1000,), woven)
def some(l): l[100:225] = s(0)[::2]; l[10:20] = s(1)[5:15]
write('some', (300,), some, fill=7.5)
def over(l): l[:250] = s(0); l[100:350] = s(1)
write('over', (350,), over)
def tiles(l):
    for i in range(4): l[i // 2 * 20:i // 2 * 20 + 20, i % 2 * 30:i % 2 * 30 + 30] = s(i, 'z', (20, 30))
write('tiles', (40, 60), tiles)
def parts(l): l[0, 3:23, ::2] = s(0, 'm', (20, 30)); l[1, :10, 30:45] = s(1, 'z', (20, 30))[::2, 5:20]; l[2, 1:4, :] = s(2, 'm', (20, 30))[3:9, 0:30]
write('cube', (3, 25, 60), parts, fill=np.nan)
def wider(l): l[:] = s(0, 'n', dtype='>i2')
write('wider', (250,), wider, dtype='f4')
def scattered(l): l[[1, 4, 5, 9]] = s(0, 'm', (20, 30))[2:6, :][:, :]
write('scattered', (12, 30), scattered, fill=3)
def picked(l): l[2:6] = s(3, 'z', (20, 30))[[0, 3, 4, 17], :]
write('picked', (7, 30), picked)
with h5.File('v.h5', 'a') as f: f['own'] = rng.random(100)
layout = h5.VirtualLayout(shape=(2, 100), dtype='f8')
layout[0] = h5.VirtualSource('.', 'own', shape=(100,)); layout[1] = h5.VirtualSource('.', 'row', shape=(1000,))[50:550:5]
with h5.File('v.h5', 'a') as f: f.create_virtual_dataset('nested', layout)
h5.File('v.h5', 'r')['nested'][()].tofile('nested.bin')
def low(name, space, maps, dtype=h5t.IEEE_F64LE):
    dc = h5p.create(h5p.DATASET_CREATE)
    for to, file, dset, of in maps: dc.set_virtual(to, file, dset, of)
    with h5.File('v.h5', 'a') as f: h5d.create(f.id, name.encode(), dtype, space, dc)
    h5.File('v.h5', 'r')[name][()].tofile(name + '.bin')
simple = h5s.create_simple
low('all', simple((250,)), [(simple((250,)), b'd/p0.h5', b'x', simple((250,)))])
low('reshaped', simple((10, 60)), [(simple((10, 60)), b'd/p1.h5', b'm', simple((20, 30)))])
to, of = simple((8, 60)), simple((20, 30))
to.select_hyperslab((2, 0), (5, 1), block=(1, 60)); of.select_hyperslab((5, 0), (10, 1), block=(1, 30))
low('reshaped2', simple((8, 60)), [(to, b'd/p1.h5', b'z', of)])
u = h5s.UNLIMITED
to = simple((1250,), (u,)); to.select_hyperslab((0,), (u,), stride=(250,), block=(250,))
low('series', simple((0,), (u,)), [(to, b'd/p%b.h5', b'x', simple((250,)))])
with h5.File('names.h5', 'w') as f:
    for i in range(3): f[f'x{i}'] = rng.random(100)
to = simple((300,), (u,)); to.select_hyperslab((0,), (u,), stride=(100,), block=(100,))
low('names', simple((0,), (u,)), [(to, b'names.h5', b'x%b', simple((100,)))])
with h5.File('grow.h5', 'w') as f: f.create_dataset('g', data=rng.random((6, 30)), maxshape=(None, 30), chunks=(2, 30))
to, of = simple((6, 30), (u, 30)), simple((6, 30), (u, 30))
to.select_hyperslab((0, 0), (u, 1), block=(1, 30)); of.select_hyperslab((0, 0), (u, 1), block=(1, 30))
low('endless', simple((0, 30), (u, 30)), [(to, b'grow.h5', b'g', of)])
"#,
    );
    for dataset in [
        "one",
        "row",
        "stack",
        "columns",
        "woven",
        "some",
        "over",
        "tiles",
        "cube",
        "wider",
        "scattered",
        "picked",
        "nested",
        "all",
        "reshaped",
        "reshaped2",
        "series",
        "endless",
    ] {
        is_as_h5py_reads(&lab, "v.h5", dataset, &format!("{dataset}.bin"));
    }
    let described = store::describe(&lab.path("v.h5"), "series").unwrap();
    assert_eq!((described.shape[0], described.sources.len()), (1250, 6));
    // Ranks read only the parts that they need.
    copying(&lab, "v.h5", "tiles", "n,m", "f64");
    lab.run(3, &[]);
    assert_eq!(lab.read("out.h5", "y"), fs::read(lab.path("tiles.bin")).unwrap());
}

#[test]
fn a_part_that_cannot_be_read_is_an_error_that_names_it() {
    let lab = files();
    make(
        &lab,
        r#"
from h5py import h5s, h5p, h5d, h5t
os.mkdir('d')
for i in range(4):
    with h5.File(f'd/p{i}.h5', 'w') as f: f['x'] = np.arange(250.) + 250 * i
with h5.File('d/other.h5', 'w') as f: f['other'] = np.arange(250.); f['short'] = np.arange(249.); f['text'] = 'x'; f['flat'] = np.zeros((25, 10)); f['wide'] = np.zeros(250, 'i8')
open('d/torn.h5', 'wb').write(open('d/p2.h5', 'rb').read()[:700])
os.mkfifo('d/pipe.h5')
def write(name, file, dataset='x'):
    layout = h5.VirtualLayout(shape=(1000,), dtype='f8')
    for i in range(4):
        layout[i * 250:(i + 1) * 250] = h5.VirtualSource(file if i == 2 else f'd/p{i}.h5', dataset if i == 2 else 'x', shape=(250,))
    with h5.File('v.h5', 'a') as f: f.create_virtual_dataset(name, layout, fillvalue=0)
write('missing', 'd/none.h5'); write('nodset', 'd/other.h5'); write('torn', 'd/torn.h5'); write('pipe', 'd/pipe.h5')
write('short', 'd/other.h5', 'short'); write('text', 'd/other.h5', 'text'); write('wide', 'd/other.h5', 'wide')
layout = h5.VirtualLayout(shape=(100,), dtype='f8'); layout[:] = h5.VirtualSource('d/other.h5', 'short', shape=(250,))[150:]
with h5.File('v.h5', 'a') as f: f.create_virtual_dataset('shorter', layout)
layout = h5.VirtualLayout(shape=(100,), dtype='f8'); layout[:] = h5.VirtualSource('d/other.h5', 'flat', shape=(250,))[150:]
with h5.File('v.h5', 'a') as f: f.create_virtual_dataset('flat', layout)
write('self', '.', 'self'); 
for a, b in (('ring1', 'ring2'), ('ring2', 'ring1')):
    layout = h5.VirtualLayout(shape=(1000,), dtype='f8'); layout[:] = h5.VirtualSource('.', b, shape=(1000,))
    with h5.File('v.h5', 'a') as f: f.create_virtual_dataset(a, layout)

u = h5s.UNLIMITED
def series(name, file, dset):
    dc = h5p.create(h5p.DATASET_CREATE)
    to = h5s.create_simple((1000,), (u,)); to.select_hyperslab((0,), (u,), stride=(250,), block=(250,))
    dc.set_virtual(to, file, dset, h5s.create_simple((250,)))
    with h5.File('v.h5', 'a') as f: h5d.create(f.id, name, h5t.IEEE_F64LE, h5s.create_simple((0,), (u,)), dc)
series(b'series', b'd/p%b.h5', b'x')
"#,
    );
    for (dataset, why) in [
        ("missing", "its part 'x' in d/none.h5: there is no file"),
        ("nodset", "its part 'x' in d/other.h5: there is no dataset 'x'"),
        ("torn", "its part 'x' in d/torn.h5: d/torn.h5 is truncated"),
        ("pipe", "its part 'x' in d/pipe.h5: d/pipe.h5 is not a regular file"),
        ("short", "249 elements of it are mapped onto 250"),
        ("shorter", "more of it is mapped than it has: its shape is [249]"),
        ("text", "has elements of string"),
        ("flat", "it is mapped with 1 dimensions, but has 2"),
        ("wide", "its elements are i64, not all of which are f64 as well"),
        ("self", "it is a part of itself"),
        ("ring1", "it is a part of itself"),
    ] {
        let refusal = refusal(&lab, "v.h5", dataset);
        assert!(refusal.contains(why), "{dataset}: {refusal}");
    }
    // No rank substitutes the fill value for a part that it cannot read, even if a part vanishes later.
    let reader = Reader::open(&lab.path("v.h5"), "missing").unwrap();
    let mut bytes = Vec::new();
    reader.read(&Region { offset: vec![0], extent: vec![500] }, &mut bytes).unwrap();
    reader.read(&Region { offset: vec![250], extent: vec![300] }, &mut bytes).unwrap_err();
    // A run reports this too, and inspect continues with the rest of the file.
    copying(&lab, "v.h5", "missing", "n", "f64");
    let run = exuvia(&lab, &["run", "job.toml"]);
    assert!(!run.status.success() && text(&run).contains("its part 'x' in d/none.h5"), "{}", text(&run));
    let inspected = exuvia(&lab, &["inspect", "v.h5"]);
    assert!(
        inspected.status.success() && text(&inspected).contains("its part 'x' in d/none.h5"),
        "{}",
        text(&inspected)
    );
    assert_eq!(store::describe(&lab.path("v.h5"), "series").unwrap().shape[0], 1000);
    fs::rename(lab.path("d/p1.h5"), lab.path("d/q1.h5")).unwrap();
    let missing = refusal(&lab, "v.h5", "series");
    assert!(missing.contains("its part d/p1.h5 is missing, though p"), "{missing}");
    fs::rename(lab.path("d/torn.h5"), lab.path("d/p1.h5")).unwrap();
    let torn = refusal(&lab, "v.h5", "series");
    assert!(torn.contains("its part 'x' in d/p1.h5: d/p1.h5 is truncated"), "{torn}");
}

#[test]
fn raw_files_are_as_long_as_they_must_be() {
    let lab = files();
    make(
        &lab,
        r#"
x = np.arange(1000.)
x[:400].tofile('a.raw'); np.concatenate([np.zeros(3), x[400:]]).tofile('b.raw')
with h5.File('r.h5', 'w') as f:
    here = os.getcwd() + '/'
    f.create_dataset('x', (1000,), 'f8', external=[(here + 'a.raw', 0, 3200), (here + 'b.raw', 24, 4800)])
    f.create_dataset('beside', (400,), 'f8', external=[('a.raw', 0, 3200)])
x.tofile('x.bin')
"#,
    );
    is_as_h5py_reads(&lab, "r.h5", "x", "x.bin");
    assert_eq!(store::describe(&lab.path("r.h5"), "x").unwrap().sources.len(), 3);
    assert!(refusal(&lab, "r.h5", "beside").contains("HDF5_EXTFILE_PREFIX"));
    fs::File::options().write(true).open(lab.path("b.raw")).unwrap().set_len(4000).unwrap();
    let short = refusal(&lab, "r.h5", "x");
    assert!(short.contains("its elements end at byte 4824 of b.raw, which ends at 4000"), "{short}");
}

/// A kernel that copies doubles at a few milliseconds a task, and fails on the first NaN.
const UNTIL_NAN: &str = r#"#include "exuvia.h"
EXUVIA_EXPORT(copy) int32_t copy(const exuvia_view *v, uint32_t count)
{
    const double *x = exuvia_data(&v[0]);
    double *y = exuvia_data(&v[1]);
    for (volatile uint32_t i = 0; i < 600000; i++) {}
    for (uint32_t i = 0; i < v[1].extent[0]; i++) {
        if (x[i] != x[i]) return 9;
        y[i] = x[i];
    }
    return 0;
}
"#;

/// Files behind links and in virtual datasets are inputs like the named file: work completed from them counts only
/// while they are unchanged.
#[test]
fn a_run_that_goes_on_notices_changes_behind_links_and_in_parts() {
    for dataset in ["x", "v"] {
        let lab = files();
        let real = |values: &str| {
            let write =
                format!("h5.File('new.h5', 'w')['x'] = np.full(4000, {values})\nos.replace('new.h5', 'real.h5')");
            make(&lab, &write);
        };
        make(&lab, "x = np.full(4000, 1.); x[3990:] = np.nan; h5.File('real.h5', 'w')['x'] = x");
        make(
            &lab,
            r#"
with h5.File('link.h5', 'w') as f:
    f['x'] = h5.ExternalLink('real.h5', '/x')
    l = h5.VirtualLayout(shape=(4000,), dtype='f8'); l[:2000] = h5.VirtualSource('real.h5', 'x', shape=(4000,))[:2000]; l[2000:] = h5.VirtualSource('real.h5', 'x', shape=(4000,))[2000:]
    f.create_virtual_dataset('v', l)
"#,
        );
        copying(&lab, "link.h5", dataset, "n", "f64");
        fs::write(lab.path("copy.c"), UNTIL_NAN).unwrap();
        exuvia::cli::kernel_build::build(&lab.path("copy.c"), &lab.path("copy.wasm"), &[]).unwrap();
        let run = || exuvia(&lab, &["run", "job.toml", "--threads", "1", "--task-slices", "40", "--tier", "baseline"]);
        let first = run();
        assert!(!first.status.success() && text(&first).contains("completed work is kept"), "{}", text(&first));
        let again = run();
        assert!(!again.status.success() && text(&again).contains("resuming an earlier run"), "{}", text(&again));
        real("2.");
        let changed = run();
        assert!(changed.status.success(), "{}", text(&changed));
        assert!(text(&changed).contains("its input 'x' has changed"), "{}", text(&changed));
        assert!(lab.read("out.h5", "y") == 2f64.to_ne_bytes().repeat(4000), "{dataset}: old and new rows");
        // They must not change while a run reads them either.
        fs::remove_file(lab.path("out.h5")).unwrap();
        make(&lab, "h5.File('later.h5', 'w')['x'] = np.full(4000, 3.)");
        // The run takes seconds on any machine, and has completed some of the work.
        fs::write(lab.path("copy.c"), UNTIL_NAN.replace("600000", "5000000")).unwrap();
        exuvia::cli::kernel_build::build(&lab.path("copy.c"), &lab.path("copy.wasm"), &[]).unwrap();
        let arguments = ["run", "job.toml", "--threads", "1", "--task-slices", "20", "--tier", "baseline"];
        let mut command = Command::new(EXUVIA);
        command.args(arguments).current_dir(lab.path("")).env("EXUVIA_CACHE_DIR", lab.path("cache"));
        let mut running = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while !is_in_kernel(running.id()) {
            assert!(running.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(2));
        }
        fs::rename(lab.path("later.h5"), lab.path("real.h5")).unwrap();
        let ended = running.wait_with_output().unwrap();
        let said = text(&ended);
        assert!(
            !ended.status.success() && said.contains("real.h5 was changed or replaced while the run read it"),
            "{said}"
        );
        assert!(!lab.path("out.h5").exists());
    }
}

/// Circles of hard links, damaged links and many datasets are listed in linear time, each group once.
#[test]
fn listing_ends_and_takes_links_for_links() {
    let lab = files();
    make(
        &lab,
        r#"
with h5.File('c.h5', 'w') as f:
    f['entry/data/x'] = np.arange(100.)
    f['entry/data/self'] = f['entry']
    f['entry/root'] = f['/']
    f['again'] = f['entry/data']
    f['type'] = np.dtype('f8')
    f['soft'] = h5.SoftLink('/entry/data/x'); f['entry/gone'] = h5.SoftLink('none'); f['out'] = h5.ExternalLink('no.h5', '/x')
    f['loop'] = h5.SoftLink('/loop')
with h5.File('many.h5', 'w', libver='latest') as f:
    for i in range(20000): f.create_dataset('d%d' % i, (1,), dtype='f4')
with h5.File('damaged.h5', 'w') as f:
    f['good'] = np.arange(3.); f['bad'] = np.arange(3.)
    at = h5.h5o.get_info(f['bad'].id).addr
with open('damaged.h5', 'r+b') as f: f.seek(at); f.write(b'\xff' * 16)
"#,
    );
    let listing = store::list(&lab.path("c.h5")).unwrap();
    assert_eq!(listing.datasets, ["again/x"], "by the first way to its group");
    let links: Vec<String> =
        listing.links.iter().map(|link| format!("{} {} {:?}", link.path, link.target, link.leads)).collect();
    assert_eq!(
        links,
        ["entry/gone none Some(false)", "loop /loop Some(false)", "out /x None", "soft /entry/data/x Some(true)"]
    );
    let inspected = text(&exuvia(&lab, &["inspect", "c.h5"]));
    assert!(inspected.contains("c.h5:entry/gone -> none (dangling)"), "{inspected}");
    assert!(inspected.contains("c.h5:out -> no.h5:/x\n"), "{inspected}");
    copying(&lab, "c.h5", "entry/data/self/data/x", "n", "f64");
    lab.run(1, &[]);
    // Existing objects do not prevent the creation of outputs.
    let job = fs::read_to_string(lab.path("job.toml")).unwrap().replace("out.h5", "c.h5");
    fs::write(lab.path("job.toml"), job).unwrap();
    lab.run(1, &[]);
    assert_eq!(lab.read("c.h5", "y").len(), 800);

    // Quadratic listing would take too long for the test.
    assert_eq!(store::list(&lab.path("many.h5")).unwrap().datasets.len(), 20_000);
    assert!(refusal(&lab, "many.h5", "d2000O").contains("did you mean 'd2000'?"));
    assert!(refusal(&lab, "many.h5", "xyz").contains("and 19988 more"));
    assert_eq!(store::list(&lab.path("damaged.h5")).unwrap().damaged, ["bad"]);
    let damaged = exuvia(&lab, &["inspect", "damaged.h5"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged).contains("damaged.h5:good f64"), "{}", text(&damaged));
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let lab = files();
    make(&lab, "os.mkfifo('pipe'); h5.File('x.h5', 'w')['x'] = np.arange(3.)");
    assert!(refusal(&lab, "pipe", "x").contains("is not a regular file but a pipe"));
    assert!(matches!(store::describe(Path::new("/dev/zero"), "x"), Err(StoreError::NotRegular { .. })));
    for (key, place) in [("file", "pipe"), ("kernel", "pipe")] {
        copying(&lab, "x.h5", "x", "n", "f64");
        let job = fs::read_to_string(lab.path("job.toml")).unwrap();
        let (from, to) = if key == "file" { ("x.h5", place) } else { ("copy.wasm", place) };
        fs::write(lab.path("job.toml"), job.replace(from, to)).unwrap();
        let run = exuvia(&lab, &["run", "job.toml"]);
        assert!(!run.status.success() && text(&run).contains("regular file but a pipe"), "{key}: {}", text(&run));
    }
    for verb in ["run", "plan", "inspect"] {
        let run = exuvia(&lab, &[verb, "pipe"]);
        assert!(!run.status.success() && text(&run).contains("regular file but a pipe"), "{verb}: {}", text(&run));
    }
}

#[test]
fn what_cannot_be_decoded_is_named_before_a_run() {
    let lab = files();
    make(
        &lab,
        r#"
x = np.random.default_rng(0).integers(0, 1000, 5000).astype('i4')
x.tofile('x.bin')
with h5.File('in.h5', 'w') as f:
    f.create_dataset('gzip', data=x, chunks=(333,), compression='gzip', shuffle=True)
    f.create_dataset('scaled', data=x, chunks=(333,), scaleoffset=0)
    f.create_dataset('bad', data=x, chunks=(333,), fletcher32=True)
    f.create_dataset('null', data=h5.Empty('f8'))
    f['nothing'] = np.zeros((4, 0))
    for name, mask in (('blosc', 0), ('without', 1)):
        d = h5.h5p.create(h5.h5p.DATASET_CREATE); d.set_chunk((333,)); d.set_filter(32001, h5.h5z.FLAG_OPTIONAL, (2, 2, 4, 1332, 5, 1, 1))
        ds = h5.h5d.create(f.id, name.encode(), h5.h5t.NATIVE_INT32, h5.h5s.create_simple((5000,)), d)
        for i in range(0, 5000, 333):
            c = np.zeros(333, 'i4'); c[:len(x[i:i + 333])] = x[i:i + 333]; ds.write_direct_chunk((i,), c.tobytes(), mask)
    d = h5.h5p.create(h5.h5p.DATASET_CREATE); d.set_chunk((10,)); d.set_filter(32015, h5.h5z.FLAG_OPTIONAL, ())
    h5.h5d.create(f.id, b'unwritten', h5.h5t.NATIVE_INT32, h5.h5s.create_simple((50,)), d)
    at = f['bad'].id.get_chunk_info(4).byte_offset
with open('in.h5', 'r+b') as f: f.seek(at + 40); f.write(b'\xff\xff\xff')
"#,
    );
    for dataset in ["gzip", "scaled", "without"] {
        is_as_h5py_reads(&lab, "in.h5", dataset, "x.bin");
    }
    assert_eq!(lab.read("in.h5", "unwritten"), [0; 200]);
    assert_eq!(store::describe(&lab.path("in.h5"), "nothing").unwrap().shape.to_vec(), [4, 0]);
    assert!(refusal(&lab, "in.h5", "null").contains("a null dataspace"));
    copying(&lab, "in.h5", "blosc", "n", "i32");
    for verb in ["plan", "run"] {
        let output = text(&exuvia(&lab, &[verb, "job.toml"]));
        assert!(output.contains("filter 32001 (blosc)") && output.contains("HDF5_PLUGIN_PATH"), "{verb}: {output}");
    }
    copying(&lab, "in.h5", "bad", "n", "i32");
    let run = exuvia(&lab, &["run", "job.toml"]);
    assert!(!run.status.success() && text(&run).contains("of 'bad'"), "{}", text(&run));
    assert!(!lab.path("out.h5").exists());
}

#[test]
fn paths_that_are_not_utf8_are_refused_or_read() {
    let lab = files();
    make(&lab, "h5.File('x.h5', 'w')['x'] = np.arange(3.)");
    copying(&lab, "x.h5", "x", "n", "f64");
    let folder = lab.path("").join(std::ffi::OsStr::from_bytes(b"lat\xe9in"));
    fs::create_dir(&folder).unwrap();
    for file in ["job.toml", "copy.wasm", "x.h5"] {
        fs::copy(lab.path(file), folder.join(file)).unwrap();
    }
    for verb in ["run", "plan"] {
        let output = Command::new(EXUVIA).arg(verb).arg(folder.join("job.toml")).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains("bytes that are not UTF-8"), "{}", text(&output));
    }
    // The run starts inside the folder, so that the given path is UTF-8.
    let output = Command::new(EXUVIA).args(["run", "job.toml"]).current_dir(&folder).output().unwrap();
    assert!(text(&output).contains("bytes that are not UTF-8"), "{}", text(&output));
    for output in [&["--output", "json"][..], &[]] {
        let inspected = Command::new(EXUVIA).arg("inspect").args(output).arg(folder.join("x.h5")).output().unwrap();
        assert!(inspected.status.success() && text(&inspected).contains("f64"), "{}", text(&inspected));
    }
}
