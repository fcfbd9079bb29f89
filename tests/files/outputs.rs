//! Datasets that jobs create beside the existing contents of a file.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::slow::{COLUMNS, ROWS, chance, expected, pids, record_bytes, signal, slow_lab};
use crate::lab::{EXUVIA, Lab, python_says, text};

/// Writes a job whose outputs are all in `out.h5`.
fn one_file(lab: &Lab) {
    let job = fs::read_to_string(lab.path("job.toml")).unwrap();
    fs::write(lab.path("job.toml"), job.replace("other.h5", "out.h5")).unwrap();
}

fn assert_results(lab: &Lab) {
    for (dataset, bytes) in expected(1.0) {
        assert!(lab.read("out.h5", &dataset) == bytes, "{dataset}");
    }
}

#[test]
fn what_a_file_with_a_user_block_holds_stays_byte_for_byte() {
    let lab = slow_lab(1);
    one_file(&lab);
    let make = "with h5py.File('out.h5', 'w', userblock_size=1024) as f:\n\
                \x20   f['keep'] = np.arange(1000.); f['keep'].attrs['units'] = 'm'; f['keep'].make_scale('k')\n\
                \x20   f['g/packed'] = f.create_dataset('p', data=np.arange(4000), chunks=(33,), compression='gzip')\n\
                \x20   f['p'].attrs['of'] = f['keep'].ref; f['g/packed'].dims[0].label = 'n'\n\
                open('out.h5', 'r+b').write(b'MATLAB 7.3 MAT-file, or so')\n";
    python_says(&lab, make);
    let stored = "f = h5py.File('out.h5'); d = f['p'].id\n\
                  c = [d.get_chunk_info(i) for i in range(d.get_num_chunks())]\n\
                  raw = b''.join(d.read_direct_chunk(i.chunk_offset)[1] for i in c) + f['keep'][:].tobytes()\n\
                  import hashlib; print(hashlib.sha256(raw).hexdigest(), open('out.h5', 'rb').read(1024))\n\
                  print(dict(f['keep'].attrs), f['p'].dims[0].label, f[f['p'].attrs['of']].name, sorted(f))";
    let before = python_says(&lab, stored);
    let added = before.replace("'p']", "'p', 'w', 'y', 'z']");
    for ranks in [1, 3] {
        lab.run(ranks, &["--fresh"]);
        assert_results(&lab);
        assert_eq!(python_says(&lab, stored), added, "{ranks} ranks");
    }
    let dump = Command::new("h5dump").arg("-H").arg(lab.path("out.h5")).output().unwrap();
    assert!(dump.status.success() && text(&dump).contains("USERBLOCK") || text(&dump).contains("DATASET \"z\""));
}

#[test]
fn what_is_in_the_way_is_told_before_anything_is_computed() {
    let lab = slow_lab(1);
    one_file(&lab);
    let make = "with h5py.File('out.h5', 'w') as f:\n    f['w/run1'] = np.arange(5)\n";
    python_says(&lab, make);
    let before = fs::read(lab.path("out.h5")).unwrap();
    for verb in ["plan", "run"] {
        let mut command = Command::new(EXUVIA);
        let output = command.arg(verb).arg(lab.path("job.toml")).env("EXUVIA_CACHE_DIR", lab.path("cache")).output();
        let output = output.unwrap();
        let said = text(&output);
        assert!(said.contains("dataset 'w' cannot be created") && said.contains("'w' is a group"), "{verb}: {said}");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(fs::read(lab.path("out.h5")).unwrap(), before);
    }
    let make = "with h5py.File('out.h5', 'w') as f:\n\
                \x20   f['w'] = np.arange(5); f['w'].attrs['units'] = 'm'; f['w'].attrs['_FillValue'] = 1\n";
    python_says(&lab, make);
    let said = text(&lab.output(2, &[]));
    assert!(said.contains("note: 'w' in ") && said.contains("dropped: attribute '_FillValue'"), "{said}");
    assert_results(&lab);
    assert_eq!(python_says(&lab, "print(dict(h5py.File('out.h5')['w'].attrs))").trim(), "{'units': 'm'}");
}

#[test]
fn an_unfinished_file_whose_header_is_damaged_is_made_anew_from_what_is_sound() {
    let lab = slow_lab(100_000);
    let begin = |lab: &Lab| {
        let mut child = lab.command(1, &["--tier", "baseline", "--threads", "1"]).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(120);
        while record_bytes(lab) == 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&pids(lab), "-TERM");
        assert_eq!(child.wait().unwrap().code(), Some(75));
    };
    // The file is appended to only if the job has no compressed outputs.
    let job = fs::read_to_string(lab.path("job.toml")).unwrap();
    fs::write(lab.path("job.toml"), job.replace(", deflate = 1", "")).unwrap();
    begin(&lab);
    let parts = || {
        let names = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_string_lossy().ends_with(".part")).collect::<Vec<_>>()
    };
    assert!(!parts().is_empty());
    for part in parts() {
        let mut bytes = fs::read(&part).unwrap();
        bytes[..512].fill(0);
        fs::write(&part, bytes).unwrap();
    }
    let output = lab.output(2, &[]);
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("out.h5 is damaged; its undamaged parts are copied into a new file"),
        "{said}"
    );
    assert!(said.contains("resuming an earlier run"), "{said}");
    for (dataset, bytes) in expected(1.0) {
        let file = if dataset == "w" { "other.h5" } else { "out.h5" };
        assert!(lab.read(file, &dataset) == bytes, "{dataset}");
    }
    assert_eq!(lab.read("out.h5", "y").len() as u64, ROWS * COLUMNS * 8);
}

#[test]
fn a_damaged_file_to_write_into_is_no_crash() {
    let lab = slow_lab(1);
    one_file(&lab);
    // All errors name the dataset that is replaced.
    let make = "with h5py.File('out.h5', 'w') as f:\n\
                \x20   d = f.create_dataset('w', data=np.zeros((400, 16)), chunks=(9, 16)); d.attrs['units'] = 'm'\n\
                \x20   for n in range(12): d.attrs['a%d' % n] = np.arange(n)\n\
                \x20   f['a/b'] = np.arange(5); d.make_scale('w'); f['a/b'].dims[0].attach_scale(d)\n";
    python_says(&lab, make);
    let whole = fs::read(lab.path("out.h5")).unwrap();
    let mut failed = 0;
    for seed in 0..25 {
        let mut damaged = whole.clone();
        // The metadata come first in the file.
        for flip in 0..3 {
            damaged[(chance(seed * 3 + flip) % 4000) as usize] ^= 1 << (chance(seed) % 8);
        }
        fs::write(lab.path("out.h5"), &damaged).unwrap();
        let output = lab.output(1, &["--fresh", "--tier", "baseline"]);
        let said = text(&output);
        match output.status.code() {
            // HDF5 has not noticed the damage: the results must still be right.
            Some(0) => assert_results(&lab),
            code => {
                assert!(code == Some(1) && said.contains("out.h5"), "{seed}: {:?}: {said}", output.status);
                assert!(fs::read(lab.path("out.h5")).unwrap() == damaged);
                failed += 1;
            }
        }
    }
    assert!(failed > 0);
}
