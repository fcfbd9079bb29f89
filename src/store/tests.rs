use std::fs;
use std::path::Path;

use super::*;
use crate::tensor::{Dtype, Region, Shape, copy_region};

fn spec(dataset: &str, dtype: Dtype, shape: &[u64], chunk: Option<&[u64]>, deflate: Option<u8>) -> OutputSpec {
    let shape = Shape::new(shape).unwrap();
    OutputSpec { dataset: dataset.to_owned(), dtype, shape, chunk: chunk.map(<[u64]>::to_vec), deflate }
}

fn region(offset: &[u64], extent: &[u64]) -> Region {
    Region { offset: offset.to_vec(), extent: extent.to_vec() }
}

fn pattern(bytes: usize) -> Vec<u8> {
    // Small enough in every byte to be a finite number in all float types.
    (0..bytes).map(|i| (i * 7 % 60) as u8).collect()
}

/// Writes a dataset in bands of `rows`, as ranks would.
fn write(file: &Path, spec: &OutputSpec, rows: u64) -> Vec<u8> {
    let mut staging = Staging::begin(file, "test").unwrap();
    let layout = staging.create(std::slice::from_ref(spec)).unwrap().remove(0);
    let bytes = pattern(spec.shape.elements() as usize * spec.dtype.size_bytes());
    let row_bytes = bytes.len() as u64 / spec.shape[0];
    let mut start = 0;
    while start < spec.shape[0] {
        let count = rows.min(spec.shape[0] - start);
        let mut band = Region::whole(&spec.shape);
        (band.offset[0], band.extent[0]) = (start, count);
        let part = &bytes[(start * row_bytes) as usize..((start + count) * row_bytes) as usize];
        match layout.storage {
            Storage::Compressed { .. } => {
                let chunks = compress_chunks(&layout, &band, part).unwrap();
                let mut again = vec![0; part.len()];
                for (clipped, bytes) in expand_chunks(&layout, &chunks).unwrap() {
                    copy_region(&bytes, &clipped, &mut again, &band, &clipped, spec.dtype.size_bytes());
                }
                assert_eq!(again, part);
                staging.write_chunks(&layout, &chunks).unwrap();
            }
            _ => {
                let mut writer = Writer::open(&layout).unwrap();
                writer.write(&band, part).unwrap();
                assert_eq!(writer.read(&band).unwrap(), part);
                // Less than a chunk.
                let corner = Region { offset: band.offset.clone(), extent: vec![1; band.rank()] };
                assert_eq!(writer.read(&corner).unwrap(), part[..spec.dtype.size_bytes()]);
            }
        }
        start += count;
    }
    assert!(!file.exists() || rows == u64::MAX, "nothing to be seen before it is published");
    staging.publish().unwrap();
    bytes
}

#[test]
fn every_dtype_and_storage_survives_the_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in Dtype::ALL {
        for (chunk, deflate) in [(None, None), (Some(&[2u64, 3][..]), None), (Some(&[2, 3][..]), Some(4))] {
            let file = folder.path().join(format!("{dtype}-{}.h5", chunk.is_some() as u8 + deflate.is_some() as u8));
            let bytes = write(&file, &spec("a/b", dtype, &[5, 7], chunk, deflate), 2);
            let reader = Reader::open(&file, "a/b").unwrap();
            let info = reader.info();
            assert_eq!((info.dtype, info.chunk.as_deref(), info.filters.len()), (dtype, chunk, deflate.iter().len()));
            let mut got = Vec::new();
            reader.read(&Region::whole(&info.shape), &mut got).unwrap();
            assert_eq!(got, bytes, "{dtype} {chunk:?}");
            reader.read(&region(&[1, 2], &[3, 4]), &mut got).unwrap();
            let size = dtype.size_bytes();
            let want: Vec<u8> = (1..4).flat_map(|r| bytes[(r * 7 + 2) * size..(r * 7 + 6) * size].to_vec()).collect();
            assert_eq!(got, want);
            for (part, parts) in [(1, 3 - u64::from(chunk.is_some())), (8 * size as u64, 2), (1 << 20, 1)] {
                let (mut again, mut asked) = (Vec::new(), 0);
                let go_on = || -> Result<(), StoreError> {
                    asked += 1;
                    Ok(())
                };
                reader.read_in_parts(&region(&[1, 2], &[3, 4]), &mut again, part, go_on).unwrap();
                assert_eq!((again, asked), (want.clone(), parts), "{chunk:?} in parts of {part} bytes");
            }
        }
    }
    assert_eq!(list(&folder.path().join("f32-0.h5")).unwrap().datasets, ["a/b"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 36, "no temporary is left");
}

#[test]
fn h5dump_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.h5");
    write(&file, &spec("x", Dtype::U8, &[3, 2], Some(&[2, 2]), None), 2);
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions();
    assert_eq!(mode(&file), mode(&plain), "others may read it, as the umask says");
    let dump = std::process::Command::new("h5dump").args(["-d", "x", "-y", "-w", "0"]).arg(&file).output().unwrap();
    let text = String::from_utf8(dump.stdout).unwrap();
    assert!(text.contains("0, 7,") && text.contains("14, 21,") && text.contains("28, 35"), "{text}");
}

#[test]
fn other_datasets_survive_and_an_abandoned_run_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.h5");
    write(&file, &spec("one", Dtype::U8, &[4], None, None), 4);
    let before = fs::read(&file).unwrap();
    let mut abandoned = Staging::begin(&file, "test").unwrap();
    abandoned.create(&[spec("one", Dtype::F64, &[9], None, None)]).unwrap();
    drop(abandoned);
    assert_eq!(fs::read(&file).unwrap(), before);
    write(&file, &spec("two", Dtype::I16, &[4], None, None), u64::MAX);
    write(&file, &spec("one", Dtype::U32, &[3], None, None), u64::MAX);
    assert_eq!(describe(&file, "one").unwrap().dtype, Dtype::U32);
    assert_eq!(describe(&file, "two").unwrap().dtype, Dtype::I16);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_a_run_left_can_be_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.h5");
    let mut first = Staging::begin(&file, "job").unwrap();
    let layout = first.create(&[spec("x", Dtype::U16, &[6], None, None)]).unwrap().remove(0);
    Writer::open(&layout).unwrap().write(&region(&[0], &[2]), &[1, 0, 2, 0]).unwrap();
    let unfinished = first.unfinished();
    first.leave();
    let mut second = Staging::adopt(&file, "job", &unfinished, &[&layout]).unwrap();
    let mut writer = Writer::open(&layout).unwrap();
    assert_eq!(writer.read(&region(&[1], &[1])).unwrap(), [2, 0]);
    writer.write(&region(&[2], &[4]), &[3, 0, 4, 0, 5, 0, 6, 0]).unwrap();
    second.publish().unwrap();
    let mut bytes = Vec::new();
    Reader::open(&file, "x").unwrap().read(&region(&[0], &[6]), &mut bytes).unwrap();
    assert_eq!(bytes, [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]);
}

#[test]
fn big_endian_and_scalars_are_read_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("be.h5");
    let script = "import h5py, numpy, sys\nf = h5py.File(sys.argv[1], 'w')\n\
                  f['be'] = numpy.array([1, 256, -2], '>i4')\nf['s'] = numpy.float64(2.5)\nf['t'] = 'text'\n";
    let made = std::process::Command::new(std::env::var("EXUVIA_PYTHON").as_deref().unwrap_or("/usr/bin/python3"))
        .args(["-c", script])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success(), "python3 with h5py is part of the set-up");
    let mut bytes = Vec::new();
    let reader = Reader::open(&file, "be").unwrap();
    assert!(reader.info().big_endian);
    reader.read(&region(&[0], &[3]), &mut bytes).unwrap();
    assert_eq!(bytes, [1i32, 256, -2].map(i32::to_ne_bytes).concat());
    Reader::open(&file, "s").unwrap().read(&region(&[], &[]), &mut bytes).unwrap();
    assert_eq!(bytes, 2.5f64.to_ne_bytes());
    let error = Reader::open(&file, "t").unwrap_err().to_string();
    assert!(error.contains("elements of string") && error.contains("f32"), "{error}");
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_nearest_right_thing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.h5");
    write(&file, &spec("train/images", Dtype::U8, &[4], None, None), 4);
    let error = |file: &Path, dataset: &str| Reader::open(file, dataset).unwrap_err().to_string();
    assert!(error(&folder.path().join("dta.h5"), "x").contains("did you mean 'data.h5'?"));
    assert!(error(&file, "train/image").contains("did you mean 'train/images'?"));
    assert!(error(&file, "train").contains("it is a group"));
    assert!(error(folder.path(), "x").contains("is a directory"));
    let text = folder.path().join("text.h5");
    fs::write(&text, "no HDF5 at all").unwrap();
    assert!(error(&text, "x").contains("not an HDF5 file"));
    assert!(Staging::begin(&text, "test").unwrap_err().to_string().contains("not an HDF5 file"), "never overwritten");
    assert_eq!(fs::read(&text).unwrap(), b"no HDF5 at all");
}

#[test]
fn a_truncated_file_is_never_read_as_if_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.h5");
    let bytes = write(&file, &spec("x", Dtype::U64, &[300], None, None), 300);
    let whole = fs::read(&file).unwrap();
    let cut = folder.path().join("cut.h5");
    for length in (0..whole.len()).step_by(97) {
        fs::write(&cut, &whole[..length]).unwrap();
        let mut got = Vec::new();
        let read = Reader::open(&cut, "x").and_then(|reader| reader.read(&region(&[0], &[300]), &mut got));
        assert!(read.is_err() || got == bytes, "cut to {length} bytes");
        if length > 2000 {
            assert!(matches!(read, Err(StoreError::Truncated { .. })), "{length}: {read:?}");
        }
    }
}

#[test]
fn what_cannot_be_published_now_is_published_later() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.h5");
    write(&file, &spec("one", Dtype::U8, &[4], None, None), 4);
    let mut staging = Staging::begin(&file, "job").unwrap();
    let layout = staging.create(&[spec("two", Dtype::U8, &[3], None, None)]).unwrap().remove(0);
    Writer::open(&layout).unwrap().write(&region(&[0], &[3]), &[7, 8, 9]).unwrap();
    let holder = fs::File::open(&file).unwrap();
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = staging.publish_within(std::time::Duration::ZERO, &mut |_| ()).unwrap_err().to_string();
    assert!(refused.contains("is open for writing in another program"), "{refused}");
    drop(holder);
    let unfinished = staging.unfinished();
    staging.leave();
    write(&file, &spec("three", Dtype::U8, &[4], None, None), u64::MAX);
    let mut later = Staging::adopt(&file, "job", &unfinished, &[&layout]).unwrap();
    let mut moved = 0;
    let notes = later.publish_within(std::time::Duration::ZERO, &mut |_| moved += 1).unwrap();
    assert!(moved == 1 && notes.len() == 1 && notes[0].contains("has changed meanwhile"), "{notes:?}");
    assert_eq!(list(&file).unwrap().names(), ["one", "three", "two"]);
    let mut bytes = Vec::new();
    Reader::open(&file, "two").unwrap().read(&region(&[0], &[3]), &mut bytes).unwrap();
    assert_eq!(bytes, [7, 8, 9]);
    drop(later);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
}
