//! Datasets created in files as users have them: made by h5py in many ways, and read by it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::tensor::{Dtype, Region, Shape};

fn python(script: &str, argument: &Path) -> String {
    let python = std::env::var("EXUVIA_PYTHON").unwrap_or("/usr/bin/python3".to_owned());
    let script = format!("import h5py, sys, os, numpy as np\nos.chdir(sys.argv[1])\n{script}");
    let output = Command::new(python).args(["-c", &script]).arg(argument).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn spec(dataset: &str, dtype: Dtype, shape: &[u64], chunk: &[u64], deflate: Option<u8>) -> OutputSpec {
    let chunk = (!chunk.is_empty()).then(|| chunk.to_vec());
    OutputSpec { dataset: dataset.to_owned(), dtype, shape: Shape::new(shape).unwrap(), chunk, deflate }
}

/// Numbers in order, as u32.
fn fill(staging: &mut Staging, layout: &OutputLayout) {
    let whole = Region::whole(&layout.shape);
    let bytes: Vec<u8> = (0..layout.shape.elements() as u32).flat_map(u32::to_ne_bytes).collect();
    if let Storage::Compressed { .. } = layout.storage {
        let chunks = compress_chunks(layout, &whole, &bytes).unwrap();
        staging.write_chunks(layout, &chunks).unwrap();
    } else {
        Writer::open(layout).unwrap().write(&whole, &bytes).unwrap();
    }
}

fn create(file: &Path, specs: &[OutputSpec]) -> Vec<String> {
    let mut staging = Staging::begin(file, "test").unwrap();
    for layout in staging.create(specs).unwrap() {
        fill(&mut staging, &layout);
    }
    let notes = staging.take_notes();
    staging.publish().unwrap();
    notes
}

fn refusal(file: &Path, dataset: &str) -> String {
    let before = fs::read(file).unwrap();
    let early = may_create(file, dataset).unwrap_err().to_string();
    let mut staging = Staging::begin(file, "test").unwrap();
    let late = staging.create(&[spec(dataset, Dtype::U32, &[4], &[], None)]).unwrap_err().to_string();
    drop(staging);
    assert_eq!(fs::read(file).unwrap(), before);
    assert_eq!(early, late);
    late
}

const KINDS: &str = r#"
P, F = h5py.h5p, h5py.h5f
def make(name, latest=False, **kind):
    fapl, fcpl = P.create(P.FILE_ACCESS), P.create(P.FILE_CREATE)
    if latest: fapl.set_libver_bounds(F.LIBVER_LATEST, F.LIBVER_LATEST)
    if 'block' in kind: fcpl.set_userblock(kind['block'])
    if 'sizes' in kind: fcpl.set_sizes(*kind['sizes'])
    if 'page' in kind: fcpl.set_file_space_strategy(F.FSPACE_STRATEGY_PAGE, kind['persist'], 1); fcpl.set_file_space_page_size(kind['page'])
    if 'none' in kind: fcpl.set_file_space_strategy(F.FSPACE_STRATEGY_NONE, False, 1)
    if 'order' in kind: fcpl.set_link_creation_order(P.CRT_ORDER_TRACKED | P.CRT_ORDER_INDEXED)
    with h5py.File(F.create(name.encode(), F.ACC_TRUNC, fcpl, fapl)) as f:
        d = f.create_dataset('keep/plain', data=np.arange(3000.)); d.attrs['units'] = 'm'; d.make_scale('x')
        f.create_dataset('keep/packed', data=np.arange(6000).reshape(100, 60), chunks=(7, 9), compression='gzip')
        f['keep/packed'].attrs['of'] = d.ref
        f['gone'] = np.arange(20000)
        del f['gone']
    if 'block' in kind:
        with open(name, 'r+b') as raw: raw.write(b'a block of the user')
make('old.h5'); make('latest.h5', True)
make('block.h5', block=512); make('block-latest.h5', True, block=4096)
make('page.h5', page=4096, persist=False); make('page-latest.h5', True, page=512, persist=True, block=1024)
make('none.h5', none=1); make('order.h5', order=1)
make('sizes.h5', sizes=(4, 4))
"#;

#[test]
fn bytes_lie_where_hdf5_looks_for_them_in_files_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    python(KINDS, folder.path());
    let specs = [
        spec("plain", Dtype::U32, &[50, 7], &[], None),
        spec("a/b/chunked", Dtype::U32, &[50, 7], &[3, 2], None),
        spec("one", Dtype::U32, &[50, 7], &[50, 7], None),
        spec("many", Dtype::U32, &[9001], &[3], None),
        spec("large", Dtype::U32, &[6000], &[2000], None),
        spec("packed", Dtype::U32, &[50, 7], &[3, 2], Some(3)),
        spec("scalar", Dtype::U32, &[], &[], None),
    ];
    let files: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 9);
    for file in &files {
        assert_eq!(create(file, &specs), [""; 0]);
        // Another time, where the datasets are already.
        assert_eq!(create(file, &specs[1..4]), [""; 0]);
    }
    let check = r#"
for name in sorted(os.listdir()):
    with h5py.File(name) as f:
        for k in ['plain', 'a/b/chunked', 'one', 'packed']: assert (f[k][:] == np.arange(350).reshape(50, 7)).all(), (name, k)
        assert (f['many'][:] == np.arange(9001)).all() and (f['large'][:] == np.arange(6000)).all() and f['scalar'][()] == 0, name
        d, p = f['keep/plain'], f['keep/packed']
        assert (d[:] == np.arange(3000.)).all() and (p[:] == np.arange(6000).reshape(100, 60)).all(), name
        assert d.attrs['units'] == 'm' and h5py.h5ds.is_scale(d.id) and f[p.attrs['of']] == d, name
        block = f.userblock_size
    assert not block or open(name, 'rb').read(19) == b'a block of the user', name
    assert os.system(f'h5dump -H {name} > /dev/null') == 0, name
"#;
    python(check, folder.path());
}

#[test]
fn a_hundred_thousand_chunks_lie_in_a_row_and_are_found_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut staging = Staging::begin(&folder.path().join("x.h5"), "test").unwrap();
    let layout = staging.create(&[spec("x", Dtype::U32, &[200_000], &[2], None)]).unwrap().remove(0);
    let Storage::Chunked { runs, .. } = &layout.storage else { panic!("{layout:?}") };
    assert_eq!((runs.len(), runs[0].first), (1, 0));
    fill(&mut staging, &layout);
    staging.publish().unwrap();
    let mut bytes = Vec::new();
    let reader = Reader::open(&folder.path().join("x.h5"), "x").unwrap();
    reader.read(&Region::whole(&layout.shape), &mut bytes).unwrap();
    assert!(bytes.chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).eq(0..200_000));
}

#[test]
fn only_datasets_give_way_and_links_are_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
with h5py.File('other.h5', 'w') as f: f['x'] = np.arange(7)
with h5py.File('out.h5', 'w') as f:
    f['results/run1'] = np.arange(5)
    f['type'] = np.dtype('f8')
    f['real/data'] = np.arange(3)
    f['hard'] = f['real/data']
    f['soft'] = h5py.SoftLink('/real/data'); f['near'] = h5py.SoftLink('real/data'); f['twice'] = h5py.SoftLink('soft')
    f['folder'] = h5py.SoftLink('/real'); f['gone'] = h5py.SoftLink('/real/gone'); f['round'] = h5py.SoftLink('/round')
    f['ext'] = h5py.ExternalLink('other.h5', '/x'); f['extfolder'] = h5py.ExternalLink('other.h5', '/')
"#;
    python(script, folder.path());
    let file = folder.path().join("out.h5");
    for (dataset, message) in [
        ("results", "'results' is a group"),
        ("results/", "'results' is a group"),
        ("/", "the file's root"),
        (".", "the file's root"),
        ("results/run1/deep", "'results/run1' is a dataset"),
        ("type", "named datatype"),
        ("type/x", "named datatype"),
        ("gone", "'/real/gone', which does not exist"),
        ("gone/x", "'/real/gone', which does not exist"),
        ("round", "a soft link in a circle"),
        ("ext", "'ext' is a link to '/x' in another file, other.h5"),
        ("extfolder/y", "'extfolder' is a link to '/' in another file"),
        ("folder", "'real' is a group"),
    ] {
        let refused = refusal(&file, dataset);
        assert!(refused.contains(message) && refused.contains(dataset), "{dataset}: {refused}");
    }
    let plain = |name: &str| spec(name, Dtype::U32, &[6], &[], None);
    for (round, dataset) in (1..).zip(["soft", "near", "twice", "folder/data"]) {
        let notes = create(&file, &[plain(dataset), plain(&format!("folder/new{round}"))]);
        // The first finds 3 elements, and leaves 6.
        assert_eq!(notes.len(), usize::from(round == 1), "{notes:?}");
    }
    let mut both = Staging::begin(&file, "test").unwrap();
    let error = both.create(&[plain("soft"), plain("real/data")]).unwrap_err().to_string();
    assert!(error.contains("it is 'soft' by another name"), "{error}");
    drop(both);
    let check = r#"
with h5py.File('out.h5') as f:
    for k, l in [('soft', '/real/data'), ('near', 'real/data'), ('twice', 'soft'), ('folder', '/real')]:
        assert f.get(k, getlink=True).path == l
    assert f.get('ext', getlink=True).filename == 'other.h5'
    assert (f['real/data'][:] == np.arange(6)).all() and (f['hard'][:] == np.arange(3)).all()
    assert sorted(f['real']) == ['data', 'new1', 'new2', 'new3', 'new4'] and list(f['results']) == ['run1']
with h5py.File('other.h5') as f: assert list(f) == ['x']
"#;
    python(check, folder.path());
}

#[test]
fn a_dataset_made_anew_keeps_what_is_said_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
def make(name):
    with h5py.File(name, 'w') as f:
        d = f.create_dataset('d', data=np.arange(12, dtype='u4').reshape(3, 4))
        for k, n in [('y', 3), ('x', 4), ('z', 4)]: f[k] = np.arange(n, dtype='u4'); f[k].make_scale('the ' + k)
        f['e'] = np.arange(4.)
        d.dims[0].attach_scale(f['y']); d.dims[1].attach_scale(f['x']); d.dims[1].attach_scale(f['z'])
        f['e'].dims[0].attach_scale(f['x'])
        d.dims[0].label = 'height'
        d.attrs['units'] = 'm/s'; d.attrs['list'] = ['a', 'longer'] ; d.attrs['n'] = np.arange(5); d.attrs['none'] = h5py.Empty('f4')
        d.attrs['_FillValue'] = np.uint32(7); d.attrs['to'] = f['e'].ref; d.attrs['pair'] = np.array((1, 2.5), dtype='i4,f8')
        f['also'] = d
for name in ['same', 'chunked', 'type', 'shape', 'rank', 'scale', 'shorter']: make(name + '.h5')
"#;
    python(script, folder.path());
    let cases = [
        ("same", spec("d", Dtype::U32, &[3, 4], &[], None), None),
        ("chunked", spec("d", Dtype::U32, &[3, 4], &[2, 2], None), Some("was stored in another way")),
        ("type", spec("d", Dtype::I32, &[3, 4], &[], None), Some("dropped: attribute '_FillValue'")),
        ("shape", spec("d", Dtype::U32, &[3, 5], &[], None), Some("dropped: the dimension scales of axis 1")),
        ("rank", spec("d", Dtype::U32, &[4], &[], None), Some("the dimension scales of axis 0, 1")),
        ("scale", spec("x", Dtype::F32, &[4], &[], None), Some("had elements of another type")),
        ("shorter", spec("x", Dtype::U32, &[3], &[], None), Some("dropped: that it was a dimension scale")),
    ];
    for (name, spec, note) in cases {
        let notes = create(&folder.path().join(format!("{name}.h5")), std::slice::from_ref(&spec)).join("; ");
        assert!(note.map_or(notes.is_empty(), |note| notes.contains(note)), "{name}: {notes}");
        if spec.dataset == "d" && name != "same" {
            assert!(notes.contains("keeps its 1 other name"), "{notes}");
        }
    }
    let check = r#"
def names(d): return [sorted(s.name for s in dim.values()) for dim in d.dims]
def users(s): return sorted(('/d' if f[r] == f['d'] else f[r].name, int(k)) for r, k in s.attrs.get('REFERENCE_LIST', []))
want = {
    'same': ([['/y'], ['/x', '/z']], [('/d', 0)], [('/d', 1), ('/e', 0)], [['/x']]),
    'chunked': ([['/y'], ['/x', '/z']], [('/d', 0)], [('/d', 1), ('/e', 0)], [['/x']]),
    'type': ([['/y'], ['/x', '/z']], [('/d', 0)], [('/d', 1), ('/e', 0)], [['/x']]),
    'shape': ([['/y'], []], [('/d', 0)], [('/e', 0)], [['/x']]),
    'rank': ([[]], [], [('/e', 0)], [['/x']]),
    'scale': ([['/y'], ['/x', '/z']], [('/d', 0)], [('/d', 1), ('/e', 0)], [['/x']]),
    'shorter': ([['/y'], ['/z']], [('/d', 0)], [], [[]]),
}
for name, (of_d, of_y, of_x, of_e) in want.items():
    with h5py.File(name + '.h5') as f:
        d = f['d']
        assert names(d) == of_d, (name, names(d))
        assert (users(f['y']), users(f['x']), names(f['e'])) == (of_y, of_x, of_e), (name, users(f['y']), users(f['x']), names(f['e']))
        assert d.attrs['units'] == 'm/s' and list(d.attrs['list']) == ['a', 'longer'] and list(d.attrs['n']) == [0, 1, 2, 3, 4]
        assert isinstance(d.attrs['none'], h5py.Empty) and f[d.attrs['to']] == f['e'] and d.attrs['pair'][1] == 2.5
        assert ('_FillValue' in d.attrs) == (name != 'type')
        assert d.dims[0].label == ('' if name == 'rank' else 'height'), name
        assert h5py.h5ds.is_scale(f['x'].id) == (name != 'shorter'), name
        assert (f['also'] == d) == (name in ['same', 'scale', 'shorter']), name
        if name == 'rank': continue
        n = d.shape[1]
        assert (d[:] == np.arange(3 * n).reshape(3, n)).all(), name
"#;
    python(check, folder.path());
}

#[test]
fn datasets_of_any_storage_give_way_and_what_they_refer_to_stays() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
six = np.arange(6, dtype='u4') + 10
with h5py.File('source.h5', 'w') as f: f['s'] = six
with h5py.File('raw.h5', 'w') as f: f.create_dataset('d', (6,), 'u4', external=[('raw.bin', 0, 24)])[:] = six
with h5py.File('virtual.h5', 'w') as f:
    v = h5py.VirtualLayout((6,), 'u4'); v[:] = h5py.VirtualSource('source.h5', 's', (6,)); f.create_virtual_dataset('d', v)
with h5py.File('compact.h5', 'w') as f:
    p = h5py.h5p.create(h5py.h5p.DATASET_CREATE); p.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(f.id, b'd', h5py.h5t.NATIVE_UINT32, h5py.h5s.create_simple((6,)), p)
with h5py.File('other-end.h5', 'w') as f: f['d'] = six.astype('>u4')
with h5py.File('never-written.h5', 'w') as f: f.create_dataset('d', (6,), 'u4')
for name, libver in [('grows', 'earliest'), ('grows-latest', 'latest')]:
    with h5py.File(name + '.h5', 'w', libver=libver) as f: f.create_dataset('d', data=six, chunks=(2,), maxshape=(None,))
"#;
    python(script, folder.path());
    for (name, chunk, note) in [
        ("raw", &[][..], "stored in another way"),
        ("virtual", &[], "stored in another way"),
        ("compact", &[], "stored in another way"),
        ("other-end", &[], "elements of another type"),
        ("never-written", &[2], "stored in another way"),
        ("grows", &[2], ""),
        ("grows-latest", &[2], "dropped: that it could grow"),
    ] {
        let file = folder.path().join(format!("{name}.h5"));
        let notes = create(&file, &[spec("d", Dtype::U32, &[6], chunk, None)]).join("; ");
        assert!(notes.contains(note) && notes.is_empty() == note.is_empty(), "{name}: {notes}");
    }
    let check = r#"
for name in ['raw', 'virtual', 'compact', 'other-end', 'never-written', 'grows', 'grows-latest']:
    with h5py.File(name + '.h5') as f:
        assert (f['d'][:] == np.arange(6)).all() and not f['d'].external and not f['d'].is_virtual, name
        assert f['d'].maxshape == ((None,) if name == 'grows' else (6,)), name
assert (np.fromfile('raw.bin', 'u4') == np.arange(10, 16)).all()
with h5py.File('source.h5') as f: assert (f['s'][:] == np.arange(10, 16)).all()
"#;
    python(check, folder.path());
}

#[test]
fn parts_of_divided_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
with h5py.File('family%d.h5', 'w', driver='family', memb_size=4096) as f: f['a'] = range(3000)
with h5py.File('split', 'w', driver='split') as f: f['a'] = range(3000)
f = h5py.File('open.h5', 'w', libver='latest'); f['a'] = range(10); f.swmr_mode = True; f.flush()
os._exit(0)
"#;
    python(script, folder.path());
    for (file, message) in
        [("family0.h5", "'family' driver"), ("split-m.h5", "'multi' driver"), ("open.h5", "h5clear -s")]
    {
        let error = Staging::begin(&folder.path().join(file), "test").unwrap_err().to_string();
        assert!(error.contains(message), "{file}: {error}");
    }
}

#[test]
fn a_file_damaged_on_its_way_is_neither_taken_up_nor_published() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x.h5");
    let specs = [spec("a", Dtype::U32, &[100], &[], None), spec("b", Dtype::U32, &[100], &[10], None)];
    create(&target, &specs[..1]);
    let published = fs::read(&target).unwrap();
    let mut staging = Staging::begin(&target, "test").unwrap();
    let layouts = staging.create(&specs).unwrap();
    let layouts: Vec<&OutputLayout> = layouts.iter().collect();
    let (temporary, unfinished) = (staging.temporary().to_owned(), staging.unfinished());
    staging.leave();
    let (whole, sum) = (fs::read(&temporary).unwrap(), metadata_checksum(&temporary, &layouts));
    let is_data = |at: usize| {
        let parts: Vec<(u64, u64)> = layouts.iter().flat_map(|layout| layout.parts()).collect();
        parts.iter().any(|(start, length)| (*start..*start + *length).contains(&(at as u64)))
    };
    // HDF5 itself crashes on some of these files: the checksum is looked at before.
    for at in (0..whole.len()).step_by(5) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x5a;
        fs::write(&temporary, &flipped).unwrap();
        assert_eq!(metadata_checksum(&temporary, &layouts) == sum, is_data(at), "byte {at}");
    }
    for at in [0, 1] {
        let mut cut = whole.clone();
        let found =
            cut.windows(4).enumerate().filter(|(_, bytes)| *bytes == b"TREE").map(|(at, _)| at).nth(at).unwrap();
        cut[found] = 0;
        fs::write(&temporary, &whole).unwrap();
        let mut staging = Staging::adopt(&target, "test", &unfinished, &layouts).unwrap();
        fs::write(&temporary, &cut).unwrap();
        let again = Staging::adopt(&target, "test", &unfinished, &layouts);
        assert!(again.is_err(), "{again:?}");
        assert!(staging.publish().is_err());
        staging.leave();
        assert_eq!(fs::read(&target).unwrap(), published);
    }
}
