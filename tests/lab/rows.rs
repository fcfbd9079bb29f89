//! A job over the rows of a small matrix, in two stages with a compressed dataset between them.

use std::fs;
use std::path::PathBuf;

use exuvia::tensor::Dtype;

use super::Lab;

pub const ROWS: u64 = 203;
pub const COLUMNS: u64 = 40;

/// Returns a lab with the input and the kernel softmax.
pub fn rows_lab() -> Lab {
    let lab = Lab::bare(&["softmax"]);
    input(&lab, &[ROWS, COLUMNS]);
    lab
}

/// Writes a new `in.h5` of this shape.
pub fn input(lab: &Lab, extents: &[u64]) {
    let numbers = 0..extents.iter().product();
    let bytes = numbers.flat_map(|i: u64| (((i * 37 % 101) as f32 - 50.0) / 9.0).to_le_bytes()).collect();
    lab.dataset(Dtype::F32, extents, bytes);
}

/// Instructions that write zeros to all of the output, a matrix of `f32`, of a kernel with one input.
pub const WRITE_ZEROS: &str = "(memory.fill (i32.load offset=208 (local.get 0)) (i32.const 0)
    (i32.mul (i32.const 4) (i32.mul (i32.load offset=224 (local.get 0)) (i32.load offset=228 (local.get 0)))))";

/// Builds a kernel `k` with the given body.
pub fn wat(lab: &Lab, name: &str, body: &str) {
    let text = format!("(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) {body} (i32.const 0)))");
    fs::write(lab.path(name), wat::parse_str(text).unwrap()).unwrap();
}

/// Writes the job that runs `kernel`, with these limits in both stages.
pub fn rows_job(lab: &Lab, kernel: &str, limits: &str) -> PathBuf {
    let text = format!(
        "[tensors.x]\nfile = \"in.h5\"\ndataset = \"x\"\n\
         [tensors.p]\ncreate = \"out.h5\"\ndataset = \"p\"\ndtype = \"f32\"\nchunk = [16, 40]\ndeflate = 1\n\
         [tensors.q]\ncreate = \"out.h5\"\ndataset = \"q\"\ndtype = \"f32\"\n\
         [[stages]]\nname = \"one\"\nkernel = \"{kernel}\"\ncompute = \"x[n,d] -> p[n,d]\"\n{limits}\n\
         [[stages]]\nname = \"two\"\nkernel = \"{kernel}\"\ncompute = \"p[n,e] -> q[n,e]\"\n{limits}\n"
    );
    fs::write(lab.path("job.toml"), text).unwrap();
    lab.path("job.toml")
}

/// Returns the bytes of the output and removes its file.
pub fn take_result(lab: &Lab) -> Vec<u8> {
    let result = [lab.read("out.h5", "p"), lab.read("out.h5", "q")].concat();
    fs::remove_file(lab.path("out.h5")).unwrap();
    result
}

/// Asserts that no file could be taken for a result and that no temporary file remains.
pub fn assert_no_output(lab: &Lab) {
    let names = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_output = |name: &String| ["out.h5", "scratch", ".exuvia"].iter().any(|part| name.contains(part));
    let outputs: Vec<String> = names.filter(is_output).collect();
    assert!(outputs.is_empty(), "{outputs:?}");
}
