//! Compares both tiers with the same C source compiled natively: `cargo bench --bench kernels`.
//!
//! Each kernel runs on one core. All variants are interleaved, and the results are medians over the rounds. Native is
//! `clang -O3 -march=native`, loaded into this process; stock is wasmer's own LLVM pipeline.
#![expect(unsafe_code, reason = "calls the natively compiled kernels through dlopen")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up has nothing to report")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use exuvia::cli::kernel_build;
use exuvia::engine::{Access, Code, Cpu, Engine, Instance, Kernel, OperandSpec, Pipeline, View, optimize};
use exuvia::tensor::{Dtype, Region, Shape};

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

struct Case {
    kernel: &'static str,
    what: &'static str,
    operands: Vec<(Dtype, Vec<u64>, Access)>,
}

fn cases() -> Vec<Case> {
    use Access::{In, Out, Shared};
    use Dtype::{F32, F64, U8, U32};
    let case = |kernel, what, operands: &[(Dtype, &[u64], Access)]| Case {
        kernel,
        what,
        operands: operands.iter().map(|(dtype, shape, access)| (*dtype, shape.to_vec(), *access)).collect(),
    };
    let cube = [1, 66, 66, 66];
    vec![
        case("matmul", "f32 256^3", &[(F32, &[256, 256], In), (F32, &[256, 256], Shared), (F32, &[256, 256], Out)]),
        case("stencil2d", "f64 4 x 512^2", &[(F64, &[4, 512, 512], In), (F64, &[4, 512, 512], Out)]),
        case("dot", "f32 256 x 4096", &[(F32, &[256, 4096], In), (F32, &[256, 4096], In), (F32, &[256], Out)]),
        case(
            "axpy",
            "f64 65536",
            &[(F64, &[], Shared), (F64, &[65536], In), (F64, &[65536], In), (F64, &[65536], Out)],
        ),
        case("softmax", "f32 256 x 1024", &[(F32, &[256, 1024], In), (F32, &[256, 1024], Out)]),
        case("mix", "u32 262144", &[(U32, &[262_144], In), (U32, &[262_144], Out)]),
        case("gather", "f32 from 16384", &[(F32, &[16384], Shared), (U32, &[262_144], In), (F32, &[262_144], Out)]),
        case("conv3d", "f32 3^3 on 66^3", &[(F32, &cube, In), (F32, &[3, 3, 3], Shared), (F32, &[1, 64, 64, 64], Out)]),
        case(
            "knn",
            "u8 32 x 1257 x 64",
            &[
                (U8, &[32, 8, 8], In),
                (U8, &[1257, 1, 8, 8], Shared),
                (U8, &[1257], Shared),
                (U32, &[], Shared),
                (U8, &[32], Out),
            ],
        ),
    ]
}

/// Returns values that are harmless for every kernel: small numbers, small indices, and 3 for the scalar of knn.
fn content(dtype: Dtype, elements: u64, index: usize) -> Vec<u8> {
    let value = |i: u64| (i * 7 + index as u64 * 13) % 17;
    let element = |i| match dtype {
        Dtype::F32 => ((value(i) as f32) / 4.0 - 1.0).to_le_bytes().to_vec(),
        Dtype::F64 => ((value(i) as f64) / 4.0 - 1.0).to_le_bytes().to_vec(),
        Dtype::U32 if elements == 1 => 3u32.to_le_bytes().to_vec(),
        Dtype::U32 => ((i * 2_654_435_761 % 16384) as u32).to_le_bytes().to_vec(),
        _ => vec![value(i) as u8],
    };
    (0..elements).flat_map(element).collect()
}

fn views(case: &Case) -> Vec<View> {
    let view = |(dtype, shape, _): &(Dtype, Vec<u64>, Access)| {
        let shape = Shape::new(shape.clone()).unwrap();
        View { dtype: *dtype, region: Region::whole(&shape), halo: vec![0; shape.rank()], shape }
    };
    case.operands.iter().map(view).collect()
}

fn instance(engine: &Engine, kernel: &Kernel, code: &Code, case: &Case, views: &[View]) -> Instance {
    let spec = |((_, _, access), view): (&(Dtype, Vec<u64>, Access), &View)| OperandSpec {
        max_bytes: view.bytes(),
        access: *access,
    };
    let specs: Vec<OperandSpec> = case.operands.iter().zip(views).map(spec).collect();
    let mut instance = Instance::new(engine, kernel, code, 1 << 30, &specs).unwrap();
    for (index, ((dtype, _, access), view)) in case.operands.iter().zip(views).enumerate() {
        if *access != Access::Out {
            let bytes = content(*dtype, view.shape.elements(), index);
            instance.operand_mut(index, view.bytes()).unwrap().copy_from_slice(&bytes);
        }
    }
    instance
}

type Native = unsafe extern "C" fn(*const u8, u32) -> i32;

/// A kernel compiled for this machine, and an arena with the same views and operands.
struct NativeKernel {
    function: Native,
    arena: Vec<u8>,
    count: u32,
    output: std::ops::Range<usize>,
}

impl NativeKernel {
    fn new(case: &Case, views: &[View], folder: &Path) -> NativeKernel {
        let (clang, _) = kernel_build::find_clang().unwrap();
        let (kernel, root) = (case.kernel, Path::new(env!("CARGO_MANIFEST_DIR")));
        let (stub, library) = (folder.join("base.c"), folder.join(format!("{kernel}.so")));
        std::fs::write(&stub, "unsigned char *exuvia_base;\n").unwrap();
        let source = root.join(format!("examples/kernels/{kernel}.c"));
        let mut command = Command::new(clang);
        // wasm has no fused multiply-add; without contraction both sides compute the same numbers.
        command.args(["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-o"]);
        assert!(command.args([&library, &source, &stub]).status().unwrap().success(), "clang compiles {kernel}");
        // The last operand is the output. Each operand begins on a page of its own, as in the guest.
        let (mut at, mut arena, mut output) = (4096usize, vec![0u8; 4096], 0..0);
        for (index, ((dtype, _, _), view)) in case.operands.iter().zip(views).enumerate() {
            let encoded = view.encode(at as u64, index + 1 == views.len());
            arena[index * View::BYTES..(index + 1) * View::BYTES].copy_from_slice(&encoded);
            output = at..at + view.bytes() as usize;
            arena.extend(content(*dtype, view.shape.elements(), index));
            at = (output.end + 64).next_multiple_of(4096);
            arena.resize(at, 0);
        }
        let (name, path) = (CString::new(kernel).unwrap(), CString::new(library.to_str().unwrap()).unwrap());
        // SAFETY: the library was just built from the kernel's source, whose function has this type, and its base
        // pointer is set to an arena that lives as long as the function is used.
        let function = unsafe {
            let library = dlopen(path.as_ptr(), 2);
            assert!(!library.is_null());
            let base = dlsym(library, c"exuvia_base".as_ptr()).cast::<*mut u8>();
            *base = arena.as_mut_ptr();
            std::mem::transmute::<*mut c_void, Native>(dlsym(library, name.as_ptr()))
        };
        NativeKernel { function, arena, count: views.len() as u32, output }
    }

    fn call(&mut self) {
        // SAFETY: as above.
        let status = unsafe { (self.function)(self.arena.as_ptr(), self.count) };
        assert_eq!(status, 0);
    }
}

/// Returns the seconds per call, measured over at least 20 ms of calls.
fn time(mut call: impl FnMut()) -> f64 {
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_millis(20) {
        call();
        calls += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(calls)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "--test") { 1 } else { 11 };
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (full, stock) = (Engine::new(Cpu::host(), Pipeline::Full), Engine::new(Cpu::host(), Pipeline::Stock));
    println!(
        "time of a call over native clang -O3 -march=native -ffp-contract=off, one core, median of {rounds}; {}",
        Cpu::host().name
    );
    println!(
        "{:<10} {:<20} {:>10} {:>10} {:>10} {:>10}",
        "kernel", "size", "native us", "optimized", "wasmer", "baseline"
    );
    let mut logarithms = [0.0; 3];
    let cases = cases();
    for case in &cases {
        let wasm: PathBuf = folder.path().join(format!("{}.wasm", case.kernel));
        kernel_build::build(&root.join(format!("examples/kernels/{}.c", case.kernel)), &wasm, &[]).unwrap();
        let kernel = Kernel::load(&wasm, None).unwrap();
        let artifact = |engine: &Engine| optimize(&kernel, engine.cpu(), engine.pipeline()).unwrap();
        let codes = [
            (&full, full.load_artifact(&kernel, &artifact(&full)).unwrap()),
            (&stock, stock.load_artifact(&kernel, &artifact(&stock)).unwrap()),
            (&full, full.start_code(&kernel).unwrap()),
        ];
        let views = views(case);
        let mut native = NativeKernel::new(case, &views, folder.path());
        let mut guests = codes.map(|(engine, code)| instance(engine, &kernel, &code, case, &views));
        let mut times = vec![Vec::new(); 4];
        for _ in 0..rounds {
            times[0].push(time(|| native.call()));
            for (guest, times) in guests.iter_mut().zip(&mut times[1..]) {
                times.push(time(|| guest.call(&views).unwrap()));
            }
        }
        let last = views.len() - 1;
        for guest in &guests {
            let same = guest.operand(last, views[last].bytes()).unwrap() == &native.arena[native.output.clone()];
            assert!(same, "{} gives the bytes of the native code", case.kernel);
        }
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        let ratios: Vec<f64> = medians[1..].iter().map(|time| time / medians[0]).collect();
        for (sum, ratio) in logarithms.iter_mut().zip(&ratios) {
            *sum += ratio.ln();
        }
        println!(
            "{:<10} {:<20} {:>10.1} {:>10.2} {:>10.2} {:>10.2}",
            case.kernel,
            case.what,
            medians[0] * 1e6,
            ratios[0],
            ratios[1],
            ratios[2]
        );
    }
    let mean = |sum: f64| (sum / cases.len() as f64).exp();
    let [optimized, wasmer, baseline] = logarithms.map(mean);
    println!("{:<31} {:>10} {optimized:>10.2} {wasmer:>10.2} {baseline:>10.2}", "geometric mean", "");
}
