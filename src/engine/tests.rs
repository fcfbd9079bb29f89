//! Both tiers on the same modules: the same bits, the same faults, and swaps in between.

use super::*;
use crate::tensor::{Dtype, Region, Shape};

pub(super) const LIMIT: u64 = 16 << 20;

pub(super) fn kernel(body: &str) -> Kernel {
    let wat = format!(r#"(module (memory (export "memory") 1) {body})"#);
    Kernel::from_bytes("test.wat", &wat::parse_str(wat).unwrap(), None).unwrap()
}

pub(super) fn view(elements: u64) -> View {
    let region = Region { offset: vec![0], extent: vec![elements] };
    View { dtype: Dtype::F64, region, halo: vec![0], shape: Shape::new(vec![elements]).unwrap() }
}

pub(super) fn codes(kernel: &Kernel) -> (Engine, Vec<Code>) {
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let artifact = optimize(kernel, engine.cpu(), Pipeline::Full).unwrap();
    let codes = vec![engine.start_code(kernel).unwrap(), engine.load_artifact(kernel, &artifact).unwrap()];
    (engine, codes)
}

pub(super) fn spec(elements: u64, access: Access) -> OperandSpec {
    OperandSpec { max_bytes: elements * 8, access }
}

/// Runs a kernel of one input and one output of f64 bits on each tier.
fn on_both(kernel: &Kernel, input: &[u64]) -> Vec<Result<Vec<u64>, KernelFault>> {
    let (engine, codes) = codes(kernel);
    let n = input.len() as u64;
    let operands = [spec(n, Access::In), spec(n, Access::Out)];
    let run = |code: &Code| {
        let mut instance = Instance::new(&engine, kernel, code, LIMIT, &operands).unwrap();
        let bytes: Vec<u8> = input.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        instance.operand_mut(0, n * 8).unwrap().copy_from_slice(&bytes);
        instance.call(&[view(n), view(n)])?;
        let out = instance.operand(1, n * 8).unwrap();
        Ok(out.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect())
    };
    codes.iter().map(run).collect()
}

/// A kernel that maps every 8 bytes of input 0 to output 1 by the given instructions; local 4 holds the input's bits.
fn map(instructions: &str) -> Kernel {
    kernel(&format!(
        r#"(func (export "k") (param i32 i32) (result i32) (local i32 i32 i64)
            (local.set 3 (i32.load offset=16 (local.get 0)))
            (block $done (loop $next
                (br_if $done (i32.ge_u (local.get 2) (local.get 3)))
                (local.set 4 (i64.load (i32.add (i32.load (local.get 0)) (i32.shl (local.get 2) (i32.const 3)))))
                (i64.store
                    (i32.add (i32.load offset=208 (local.get 0)) (i32.shl (local.get 2) (i32.const 3)))
                    {instructions})
                (local.set 2 (i32.add (local.get 2) (i32.const 1)))
                (br $next)))
            (i32.const 0))"#
    ))
}

#[test]
fn both_tiers_give_the_same_bits_nans_included() {
    let mut inputs: Vec<u64> =
        [0.0, -0.0, 1.0, -1.5, 1e300, 5e-324, 1e-40, f64::INFINITY, -f64::INFINITY, 0.1, 2.5, -2.5]
            .iter()
            .map(|v: &f64| v.to_bits())
            .collect();
    // Quiet and signalling NaNs with payloads, and narrow values in the low half for f32 operations.
    inputs.extend([0x7ff8_0000_0000_0001, 0xfff0_dead_beef_0001, 0x7ff0_0000_0000_0001, 0xffff_ffff_ffff_ffff]);
    inputs.extend([0x7fc0_0001, 0xffa0_0001, 0x7f80_0000, 0x3f80_0000, 0x0000_0001, 0x4b00_0001]);
    let wide = "(f64.reinterpret_i64 (local.get 4))";
    let narrow = "(f32.reinterpret_i32 (i32.wrap_i64 (local.get 4)))";
    let mut cases = Vec::new();
    for op in ["add", "sub", "mul", "div", "min", "max", "copysign"] {
        cases.push(format!("(i64.reinterpret_f64 (f64.{op} {wide} (f64.const 1.25)))"));
        cases.push(format!("(i64.reinterpret_f64 (f64.{op} {wide} (f64.neg {wide})))"));
        cases.push(format!("(i64.extend_i32_u (i32.reinterpret_f32 (f32.{op} {narrow} (f32.const -3))))"));
    }
    for op in ["sqrt", "floor", "ceil", "trunc", "nearest", "neg", "abs"] {
        cases.push(format!("(i64.reinterpret_f64 (f64.{op} {wide}))"));
        cases.push(format!("(i64.extend_i32_u (i32.reinterpret_f32 (f32.{op} {narrow})))"));
    }
    cases.push(format!("(i64.extend_i32_u (i32.reinterpret_f32 (f32.demote_f64 {wide})))"));
    cases.push(format!("(i64.reinterpret_f64 (f64.promote_f32 {narrow}))"));
    for op in ["eq", "ne", "lt", "gt", "le", "ge"] {
        cases.push(format!("(i64.extend_i32_u (f64.{op} {wide} (f64.const 0)))"));
    }
    for case in cases {
        let results = on_both(&map(&case), &inputs);
        assert_eq!(results[0], results[1], "{case}");
        assert!(results[0].is_ok(), "{case}");
    }
}

/// A kernel that maps every 8 bytes of input 0 to as many numbers of 64 bits as there are `cases` in output 1.
fn map_to_all(cases: &[String]) -> Kernel {
    let store = |(place, case): (usize, &String)| format!("(i64.store offset={} (local.get 5) {case})", 8 * place);
    let stores: String = cases.iter().enumerate().map(store).collect();
    let step = 8 * cases.len();
    // A local of 128 bits keeps a module from Singlepass.
    let wide = if stores.contains("x2.") { "v128" } else { "" };
    kernel(&format!(
        r#"(func (export "k") (param i32 i32) (result i32) (local i32 i32 i64 i32 f32 f64 {wide})
            (local.set 3 (i32.load offset=16 (local.get 0)))
            (local.set 5 (i32.load offset=208 (local.get 0)))
            (block $done (loop $next
                (br_if $done (i32.ge_u (local.get 2) (local.get 3)))
                (local.set 4 (i64.load (i32.add (i32.load (local.get 0)) (i32.shl (local.get 2) (i32.const 3)))))
                {stores}
                (local.set 5 (i32.add (local.get 5) (i32.const {step})))
                (local.set 2 (i32.add (local.get 2) (i32.const 1)))
                (br $next)))
            (i32.const 0))"#
    ))
}

/// Compares all cases on both tiers and returns the numbers of baseline code, by input and case.
fn agree(cases: &[String], inputs: &[u64]) -> Vec<Vec<u64>> {
    let mut all = vec![Vec::new(); inputs.len()];
    for cases in cases.chunks(100) {
        let kernel = map_to_all(cases);
        let (engine, codes) = codes(&kernel);
        assert_eq!(codes[0].compiler(), if cases[0].contains("x2.") { "llvm -O0" } else { "singlepass" });
        let [old, new] = [0, 1].map(|tier| numbers(&engine, &kernel, &codes[tier], inputs, cases.len()));
        for (index, (old, new)) in old.iter().zip(&new).enumerate() {
            let (input, case) = (inputs[index / cases.len()], &cases[index % cases.len()]);
            assert_eq!(old, new, "{case} of {input:#x}: {old:#x} on baseline, {new:#x} on optimized code");
            all[index / cases.len()].push(*old);
        }
    }
    all
}

/// What a kernel of one input and one output makes of `inputs`, `each` numbers for each.
fn numbers(engine: &Engine, kernel: &Kernel, code: &Code, inputs: &[u64], each: usize) -> Vec<u64> {
    let (n, results) = (inputs.len() as u64, (inputs.len() * each) as u64);
    let operands = [spec(n, Access::In), spec(results, Access::Out)];
    let mut instance = Instance::new(engine, kernel, code, LIMIT, &operands).unwrap();
    let bytes: Vec<u8> = inputs.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    instance.operand_mut(0, n * 8).unwrap().copy_from_slice(&bytes);
    instance.call(&[view(n), view(results)]).unwrap();
    let out = instance.operand(1, results * 8).unwrap();
    out.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Infinities, zeros, numbers and NaNs of all kinds, both as 64 bits and, in the low half, as 32.
const KINDS: [u64; 20] = [
    0,
    1 << 63,
    0x3ff8_0000_3fc0_0000,
    0xbff8_0000_bfc0_0000,
    0x7ff0_0000_7f80_0000,
    0xfff0_0000_ff80_0000,
    0x7ff8_0000_7fc0_0000,
    0xfff8_0000_ffc0_0000,
    0x7ff0_0000_7f80_0001,
    0xfff0_0000_ff80_0001,
    0x7ff8_0000_7fc0_0001,
    0xfff8_dead_ffc0_beef,
    0x7ff4_0000_7fa0_0000,
    0xffff_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x0000_0001_0000_0001,
    0x4330_0000_4b00_0001,
];

/// Every operation on what every other one made, NaNs among them, and on constants.
#[test]
fn operations_on_nans_that_were_just_made_agree() {
    let unary = ["neg", "abs", "ceil", "floor", "trunc", "nearest", "sqrt"];
    let binary = ["add", "sub", "mul", "div", "min", "max", "copysign"];
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    for (bits, out) in [(32, &mut narrow), (64, &mut wide)] {
        let x = match bits {
            32 => "(f32.reinterpret_i32 (i32.wrap_i64 (local.get 4)))",
            _ => "(f64.reinterpret_i64 (local.get 4))",
        };
        let other = if bits == 32 { "(f64.promote_f32" } else { "(f32.demote_f64" };
        let back = if bits == 32 { "(f32.demote_f64" } else { "(f64.promote_f32" };
        let local = if bits == 32 { 6 } else { 7 };
        let mut made: Vec<String> = ["nan:0x200001", "-nan:0x200001", "-inf", "-nan", "-0"]
            .iter()
            .map(|constant| format!("(f{bits}.const {constant})"))
            .collect();
        made.extend(unary.iter().map(|op| format!("(f{bits}.{op} {x})")));
        made.extend(binary.iter().map(|op| format!("(f{bits}.{op} {x} (f{bits}.neg {x}))")));
        made.push(format!("(f{bits}.sub {x} {x})"));
        made.push(format!("(f{bits}.div (f{bits}.const 0) (f{bits}.const -0))"));
        made.push(format!("(f{bits}.sub (f{bits}.const inf) (f{bits}.const inf))"));
        made.push(format!("{back} {other} {x}))"));
        made.push(format!("{back} {other} (f{bits}.const -nan:0x200001)))"));
        made.push(format!("(local.tee {local} (f{bits}.sub {x} {x}))"));
        made.push(format!("(select (f{bits}.sub {x} {x}) {x} (i32.wrap_i64 (local.get 4)))"));
        made.push(format!("(block (result f{bits}) (f{bits}.mul {x} (f{bits}.const -inf)))"));
        // An absolute value as a comparison and a selection.
        made.push(format!("(select (f{bits}.sub (f{bits}.const 0) {x}) {x} (f{bits}.le {x} (f{bits}.const 0)))"));
        made.push(format!("(select (f{bits}.neg {x}) {x} (f{bits}.lt {x} (f{bits}.const 0)))"));
        let see = |value: String| match bits {
            32 => format!("(i64.extend_i32_u (i32.reinterpret_f32 {value}))"),
            _ => format!("(i64.reinterpret_f64 {value})"),
        };
        for value in &made {
            out.push(see(value.clone()));
            out.extend(unary.iter().map(|op| see(format!("(f{bits}.{op} {value})"))));
            out.push(see(format!("(f{bits}.neg (f{bits}.abs {value}))")));
            out.extend(binary.iter().map(|op| see(format!("(f{bits}.{op} {value} {x})"))));
            out.extend(binary.iter().map(|op| see(format!("(f{bits}.{op} {x} {value})"))));
            out.push(see(format!("{back} {other} {value}))")));
        }
    }
    agree(&narrow, &KINDS);
    agree(&wide, &KINDS);
}

#[test]
fn a_nan_that_is_made_is_the_canonical_one_and_its_sign_changes_with_neg_alone() {
    let x = "(f64.reinterpret_i64 (local.get 4))";
    let cases = [
        format!("(i64.reinterpret_f64 (f64.sub {x} {x}))"),
        format!("(i64.reinterpret_f64 (f64.neg (f64.sub {x} {x})))"),
        format!("(i64.reinterpret_f64 (f64.abs (f64.neg (f64.sub {x} {x}))))"),
        format!("(i64.reinterpret_f64 (f64.copysign (f64.sub {x} {x}) (f64.const -1)))"),
        format!("(i64.reinterpret_f64 (f64.neg {x}))"),
        "(i64.reinterpret_f64 (f64.promote_f32 (f32.const -nan:0x123)))".to_owned(),
        format!("(i64.extend_i32_u (i32.reinterpret_f32 (f32.demote_f64 {x})))"),
        format!("(i64.reinterpret_f64 (f64.min (f64.const 1) {x}))"),
    ];
    let (nan, negative) = (0x7ff8_0000_0000_0000, 0xfff8_0000_0000_0000);
    let payload = 0xfff4_0000_0000_0007;
    let results = agree(&cases, &[f64::INFINITY.to_bits(), payload]);
    assert_eq!(results[0][..6], [nan, negative, nan, negative, f64::NEG_INFINITY.to_bits(), nan]);
    assert_eq!(results[1], [nan, negative, nan, negative, payload ^ (1 << 63), nan, 0x7fc0_0000, nan]);
}

#[test]
fn nans_in_128_bits_agree() {
    let mut cases = Vec::new();
    for (shape, splat) in
        [("f32x4", "(i32x4.splat (i32.wrap_i64 (local.get 4)))"), ("f64x2", "(i64x2.splat (local.get 4))")]
    {
        let x = splat.to_owned();
        let constant = match shape {
            "f32x4" => "(v128.const f32x4 -nan:0x200001 inf -inf -nan)",
            _ => "(v128.const f64x2 -nan:0x200001 -inf)",
        };
        let mut made = vec![x.clone(), constant.to_owned(), format!("({shape}.sub {x} {x})")];
        made.push(format!("({shape}.mul {x} {constant})"));
        made.push("(f64x2.promote_low_f32x4 (v128.const f32x4 -nan:0x200001 nan:0x200001 1 2))".to_owned());
        made.push("(f32x4.demote_f64x2_zero (v128.const f64x2 -nan:0x200001 nan:0x200001))".to_owned());
        for value in made {
            for op in ["neg", "abs", "ceil", "floor", "trunc", "nearest", "sqrt"] {
                cases.push(format!("({shape}.{op} {value})"));
            }
            for op in ["add", "sub", "mul", "div", "min", "max", "pmin", "pmax"] {
                cases.push(format!("({shape}.{op} {value} {x})"));
                cases.push(format!("({shape}.{op} {x} {value})"));
                cases.push(format!("({shape}.neg ({shape}.{op} {x} {value}))"));
                cases.push(format!("({shape}.abs (local.tee 8 ({shape}.{op} {x} {value})))"));
            }
            cases.push(format!("(f64x2.promote_low_f32x4 {value})"));
            cases.push(format!("(f32x4.demote_f64x2_zero {value})"));
        }
    }
    let lanes = |case: &String| [0, 1].map(|lane| format!("(i64x2.extract_lane {lane} {case})"));
    let cases: Vec<String> = cases.iter().flat_map(lanes).collect();
    agree(&cases, &KINDS);
}

/// Running sums and products over the input, each stored as it goes and again at the end.
#[test]
fn loops_that_carry_floats_give_the_same_bits_on_both_tiers() {
    let nan = 0xfff8_0000_0000_0007u64;
    let inputs: Vec<Vec<u64>> = vec![
        vec![1.5f64.to_bits(), (-2.25f64).to_bits(), 1e308f64.to_bits(), 1e308f64.to_bits(), f64::INFINITY.to_bits()],
        vec![1f64.to_bits(), nan, 2f64.to_bits(), 0],
        vec![f64::INFINITY.to_bits(), f64::NEG_INFINITY.to_bits(), 3f64.to_bits()],
        vec![nan],
        vec![(-0.0f64).to_bits(); 3],
    ];
    for op in ["add", "sub", "mul", "div"] {
        for last in [
            "(local.get 5)",
            "(f64.neg (local.get 5))",
            "(f64.abs (local.get 5))",
            "(f64.copysign (f64.const 1) (local.get 5))",
        ] {
            // $stores decides whether every partial result is seen, or the last one only.
            for store in ["(i32.const 1)", "(i32.eq (i32.add (local.get 2) (i32.const 1)) (local.get 3))"] {
                let kernel = kernel(&format!(
                    r#"(func (export "k") (param i32 i32) (result i32) (local i32 i32 f64 f64)
                        (local.set 3 (i32.load offset=16 (local.get 0)))
                        (block $done (loop $next
                            (br_if $done (i32.ge_u (local.get 2) (local.get 3)))
                            (local.set 4 (f64.load (i32.add (i32.load (local.get 0)) (i32.shl (local.get 2) (i32.const 3)))))
                            (local.set 5 (f64.{op} (local.get 5) (local.get 4)))
                            (if {store} (then (f64.store
                                (i32.add (i32.load offset=208 (local.get 0)) (i32.shl (local.get 2) (i32.const 3))) {last})))
                            (local.set 2 (i32.add (local.get 2) (i32.const 1)))
                            (br $next)))
                        (i32.const 0))"#
                ));
                for input in &inputs {
                    let results = on_both(&kernel, input);
                    assert!(results[0].is_ok());
                    assert_eq!(results[0], results[1], "{op} {last} {store} {input:x?}");
                }
            }
        }
    }
}

#[test]
fn a_swap_keeps_memory_and_globals_and_starts_nothing_again() {
    // Counts its calls in memory and in a global, both set up by the start function.
    let kernel = kernel(
        r#"(global $calls (mut i64) (i64.const 0)) (data (i32.const 8) "\64") (start $s)
           (func $s (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
           (func (export "k") (param i32 i32) (result i32)
             (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
             (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))
             (i64.store (i32.load (local.get 0)) (global.get $calls))
             (i64.store offset=8 (i32.load (local.get 0)) (i64.load (i32.const 8)))
             (i64.store offset=16 (i32.load (local.get 0)) (i64.load (i32.const 0)))
             (i32.const 0))"#,
    );
    let (engine, codes) = codes(&kernel);
    let mut instance = Instance::new(&engine, &kernel, &codes[0], LIMIT, &[spec(3, Access::Out)]).unwrap();
    for call in 1..=6u64 {
        let code = &codes[(call % 2) as usize];
        instance.swap(code).unwrap();
        assert_eq!(instance.tier(), code.tier());
        instance.call(&[view(3)]).unwrap();
        let words: Vec<u64> = instance
            .operand(0, 24)
            .unwrap()
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(words, [call, 100 + call, 1], "calls by global, by memory, and starts");
    }
}

fn faults(body: &str, operands: &[OperandSpec]) -> Vec<KernelFault> {
    let kernel = kernel(&format!(r#"(func (export "k") (param i32 i32) (result i32) {body} (i32.const 0))"#));
    let (engine, codes) = codes(&kernel);
    let fault = |code: &Code| {
        let mut instance = Instance::new(&engine, &kernel, code, LIMIT, operands).unwrap();
        let views: Vec<View> = operands.iter().map(|o| view(o.max_bytes / 8)).collect();
        let Err(fault) = instance.call(&views) else { panic!("{body} does not fail on {code:?}") };
        assert_eq!(instance.call(&views), Err(KernelFault::Unusable));
        fault
    };
    codes.iter().map(fault).collect()
}

#[test]
fn faults_are_named_on_both_tiers() {
    let out = [spec(4, Access::Out)];
    let both = |fault: KernelFault| vec![fault.clone(), fault];
    assert_eq!(faults("(return (i32.const 7))", &out), both(KernelFault::Status(7)));
    let far = "(i64.store (i32.const -8) (i64.const 1))";
    assert_eq!(faults(far, &out), both(KernelFault::OutOfBounds));
    for fault in faults("unreachable", &out) {
        assert!(fault.to_string().contains("unreachable"), "{fault}");
    }
    // The second parameter is the number of operands: 1.
    for fault in faults("(drop (i32.div_s (i32.const 1) (i32.sub (local.get 1) (i32.const 1))))", &out) {
        assert!(fault.to_string().contains("divi"), "{fault}");
    }
}

#[test]
fn writing_outside_the_tile_is_noticed_on_both_tiers() {
    let operands = [spec(4, Access::Shared), spec(4, Access::Out)];
    let outside = |offset_bytes| KernelFault::WroteOutside { operand: 1, bytes: 32, offset_bytes };
    for (offset, fault) in [(32, outside(32)), (56, outside(56)), (-8, outside(-1)), (-64, outside(-57))] {
        let body =
            format!("(i64.store (i32.add (i32.load offset=208 (local.get 0)) (i32.const {offset})) (i64.const 1))");
        assert_eq!(faults(&body, &operands), vec![fault.clone(), fault.clone()], "at {offset}");
    }
    let input = "(i64.store (i32.load (local.get 0)) (i64.const 1))";
    for access in [Access::Shared, Access::In] {
        let operands = [spec(4, access), spec(4, Access::Out)];
        assert_eq!(faults(input, &operands), vec![KernelFault::OutOfBounds; 2], "an input is read-only");
    }
    let views = "(i32.store (local.get 0) (i32.const 1))";
    assert_eq!(faults(views, &operands), vec![KernelFault::OutOfBounds; 2], "so are the views");
    let heap = "(i64.store (i32.sub (local.get 0) (i32.const 8)) (i64.const 1))";
    assert_eq!(faults(heap, &operands), vec![KernelFault::OutOfBounds; 2], "right behind the module's own memory");
    let at_once = "(i64.store offset=64 (i32.load offset=208 (local.get 0)) (i64.const 1))";
    assert_eq!(faults(at_once, &operands), vec![KernelFault::OutOfBounds; 2], "64 bytes behind");
    for offset in [4096, 8192, 50_000] {
        let guard = format!("(i64.store offset={offset} (i32.load offset=208 (local.get 0)) (i64.const 1))");
        assert_eq!(faults(&guard, &operands), vec![KernelFault::OutOfBounds; 2], "{offset} bytes behind its output");
    }
}

/// Copies input 0 to output 1, but for what comes first: 8 bytes in front of either, or behind.
#[test]
fn what_is_beside_a_tile_and_in_an_output_is_the_same_in_every_call() {
    // Of tiles with one element less than the slot's, so that fences are where other tiles were.
    let beside = r#"(func (export "k") (param i32 i32) (result i32) (local i32 i32)
        (local.set 2 (i32.load (local.get 0))) (local.set 3 (i32.load offset=208 (local.get 0)))
        (i64.store (local.get 3) (i64.load (i32.sub (local.get 2) (i32.const 8))))
        (i64.store offset=8 (local.get 3) (i64.load offset=24 (local.get 2)))
        (i32.const 0))"#;
    let kernel = kernel(beside);
    let (engine, codes) = codes(&kernel);
    for code in &codes {
        let operands = [spec(9, Access::In), spec(9, Access::Out)];
        let mut instance = Instance::new(&engine, &kernel, code, LIMIT, &operands).unwrap();
        let mut call = |elements: u64| {
            instance.operand_mut(0, elements * 8).unwrap().fill(7);
            instance.call(&[view(elements), view(elements)]).unwrap();
            instance.operand(1, elements * 8).unwrap().to_vec()
        };
        assert_eq!(call(9)[24..], [0xFF; 48], "what a kernel does not write");
        assert_eq!(call(3), [0xFF; 24], "beside a tile, and what it does not write");
        assert_eq!(call(9)[24..], [0xFF; 48]);
        assert_eq!(call(3), [0xFF; 24]);
    }
}

#[test]
fn an_element_that_is_not_written_is_a_fault_where_all_have_to_be() {
    // Copies all but the last 8 bytes; -1 is copied as any other value is.
    let kernel = kernel(
        r#"(func (export "k") (param i32 i32) (result i32)
            (memory.copy (i32.load offset=208 (local.get 0)) (i32.load (local.get 0))
                (i32.shl (i32.sub (i32.load offset=16 (local.get 0)) (i32.load offset=80 (local.get 0))) (i32.const 3)))
            (i32.const 0))"#,
    );
    let (engine, codes) = codes(&kernel);
    for code in &codes {
        let operands = [spec(9, Access::In), spec(9, Access::Out)];
        let mut instance = Instance::new(&engine, &kernel, code, LIMIT, &operands).unwrap();
        instance.expect_all_written();
        let mut call = |left: u64, value: u8| {
            let views = [9, 9]
                .map(|elements| View { region: Region { offset: vec![left], extent: vec![elements] }, ..view(20) });
            instance.operand_mut(0, 72).unwrap().fill(value);
            instance.call(&views)
        };
        for _ in 0..20 {
            assert_eq!((call(0, 7), call(0, 0xFF)), (Ok(()), Ok(())));
        }
        assert_eq!(call(2, 7), Ok(()), "of so many that looked so, few are looked at again");
        let mut instance = Instance::new(&engine, &kernel, code, LIMIT, &operands).unwrap();
        instance.expect_all_written();
        let views =
            [9, 9].map(|elements| View { region: Region { offset: vec![2], extent: vec![elements] }, ..view(20) });
        assert_eq!(instance.call(&views), Err(KernelFault::Unwritten { operand: 1, element: 7 }));
    }
}

#[test]
fn tiles_go_to_either_end_of_a_slot_and_all_beside_them_is_watched() {
    let body = "(i64.store offset=800 (i32.load offset=208 (local.get 0)) (i64.load (i32.load (local.get 0))))";
    let kernel = kernel(&format!(r#"(func (export "k") (param i32 i32) (result i32) {body} (i32.const 0))"#));
    let (engine, codes) = codes(&kernel);
    for code in &codes {
        let fault = |place: TilePlacement| {
            let operands = [spec(1, Access::In), spec(200, Access::Out)];
            let mut instance = Instance::new(&engine, &kernel, code, LIMIT, &operands).unwrap();
            instance.watch_closely(1);
            instance.place(1, place);
            instance.operand_mut(0, 8).unwrap().fill(7);
            instance.call(&[view(1), view(1)]).unwrap_err()
        };
        assert_eq!(
            fault(TilePlacement::Front(0)),
            KernelFault::WroteOutside { operand: 1, bytes: 8, offset_bytes: 800 }
        );
        assert_eq!(fault(TilePlacement::Back(0)), KernelFault::OutOfBounds);
        assert_eq!(fault(TilePlacement::Back(799)), KernelFault::OutOfBounds);
        assert!(matches!(fault(TilePlacement::Back(800)), KernelFault::WroteOutside { offset_bytes: 800, .. }));
    }
}

#[test]
fn a_null_pointer_is_noticed_where_the_module_has_nothing_there() {
    let marked = |body: &str, rest: &str| {
        let export = format!(r#"(func (export "k") (param i32 i32) (result i32) {body} (i32.const 0))"#);
        let wat = format!(r#"(module (memory 1) {export} {rest} (@custom "{}" ""))"#, first_page::SECTION);
        Kernel::from_bytes("k", &wat::parse_str(wat).unwrap(), None).unwrap()
    };
    let run = |kernel: &Kernel| {
        let (engine, codes) = codes(kernel);
        let call = |code: &Code| Instance::new(&engine, kernel, code, LIMIT, &[]).unwrap().call(&[]);
        codes.iter().map(call).collect::<Vec<_>>()
    };
    for body in ["(i32.store (i32.const 0) (i32.const 1))", "(return (i32.load offset=4092 (i32.const 0)))"] {
        assert_eq!(run(&marked(body, "")), vec![Err(KernelFault::OutOfBounds); 2], "{body}");
        assert_eq!(run(&marked(body, r#"(data (i32.const 4000) "")"#)), vec![Ok(()); 2], "it has data there");
    }
    assert_eq!(run(&marked("(i32.store (i32.const 4096) (i32.const 1))", "")), vec![Ok(()); 2]);
}

/// Accesses outside that a compiler might leave out.
#[test]
fn loads_of_no_use_and_stores_of_what_is_there_fail_on_both_tiers() {
    let far = "(i32.const -8)";
    let out = "(i32.load (local.get 0))";
    let is_one = "(i32.eq (local.get 1) (i32.const 1))";
    let load = format!("(i64.load {far})");
    let loads = [
        format!("(drop {load})"),
        format!("(drop (i64.mul {load} (i64.const 0)))"),
        format!("(i64.store {out} (i64.and {load} (i64.const 0)))"),
        format!("(drop (f64.add (f64.load {far}) (f64.load {far})))"),
        format!("(drop (i32.add (local.get 0) (i32.load8_u (i32.wrap_i64 {load}))))"),
        format!("(if (i64.eqz {load}) (then))"),
        // Used on the way that is not taken.
        format!("(local i64) (local.set 2 {load}) (if (i32.eqz {is_one}) (then (i64.store {out} (local.get 2))))"),
        // The last round's alone is used.
        format!(
            "(local i32 i64) (loop $l
               (local.set 3 (i64.load (select {far} (i32.const 8) (i32.eqz (local.get 2)))))
               (br_if $l (i32.lt_u (local.tee 2 (i32.add (local.get 2) (i32.const 1))) (i32.const 9))))
             (i64.store {out} (local.get 3))"
        ),
        // Used in the second loop of a round, which has no rounds.
        format!(
            "(local i32 i32 i64) (loop $o
               (local.set 4 (i64.load (select {far} (i32.const 8) (i32.eqz (local.get 2)))))
               (local.set 3 (i32.const 1))
               (block $b (loop $i
                 (br_if $b (i32.ge_u (local.get 3) (local.get 1)))
                 (i64.store {out} (local.get 4))
                 (local.set 3 (i32.add (local.get 3) (i32.const 1)))
                 (br $i)))
               (br_if $o (i32.lt_u (local.tee 2 (i32.add (local.get 2) (i32.const 1))) (i32.const 9))))"
        ),
    ];
    for body in &loads {
        assert_eq!(faults(body, &[spec(4, Access::Out)]), vec![KernelFault::OutOfBounds; 2], "{body}");
    }
    let stores = [
        format!("(i64.store {out} (i64.load {out}))"),
        format!("(f64.store {out} (f64.reinterpret_i64 (i64.load {out})))"),
        format!("(i64.store {out} (i64.or (i64.load {out}) (i64.const 0)))"),
        format!(
            "(local i32) (loop $l (i64.store {out} (i64.load {out}))
           (br_if $l (i32.lt_u (local.tee 2 (i32.add (local.get 2) (i32.const 1))) (i32.const 3))))"
        ),
    ];
    for body in &stores {
        let read_only = [spec(4, Access::Shared)];
        assert_eq!(faults(body, &read_only), vec![KernelFault::OutOfBounds; 2], "{body}");
    }
}

#[test]
fn refused_growth_is_reported_when_the_call_fails() {
    let body = "(if (i32.eq (memory.grow (i32.const 4000)) (i32.const -1)) (then (return (i32.const 3))))";
    for fault in faults(body, &[spec(1, Access::Out)]) {
        let KernelFault::MemoryLimit { wanted_bytes, limit_bytes, .. } = fault else { panic!("{fault}") };
        assert!(wanted_bytes > 4000 * 65_536 && limit_bytes == LIMIT);
    }
}

#[test]
fn endless_recursion_is_a_stack_overflow_on_both_tiers() {
    let kernel = kernel(
        r#"(func $deep (param i32) (result i32)
             (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.load (local.get 0))))
           (func (export "k") (param i32 i32) (result i32) (call $deep (i32.const 0)))"#,
    );
    let (engine, codes) = codes(&kernel);
    for code in &codes {
        let mut instance = Instance::new(&engine, &kernel, code, LIMIT, &[]).unwrap();
        let fault = instance.call(&[]).unwrap_err();
        assert!(matches!(fault, KernelFault::StackOverflow { .. } | KernelFault::OutOfBounds), "{code:?}: {fault}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let kernel = kernel(
        r#"(data (i32.const 65530) "0123456789") (func (export "k") (param i32 i32) (result i32) (i32.const 0))"#,
    );
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let code = engine.start_code(&kernel).unwrap();
    let error = Instance::new(&engine, &kernel, &code, LIMIT, &[]).unwrap_err();
    assert!(matches!(error, EngineError::DataOutOfBounds { .. }), "{error}");
    let kernel = map("(local.get 4)");
    let code = engine.start_code(&kernel).unwrap();
    for limit in [1 << 10, 1 << 17] {
        let error = Instance::new(&engine, &kernel, &code, limit, &[spec(1 << 20, Access::In)]).unwrap_err();
        assert!(matches!(error, EngineError::MemoryLimit { .. }), "{error}");
    }
}

#[test]
fn a_simd_module_starts_on_unoptimized_llvm_and_agrees() {
    let kernel = map("(i64x2.extract_lane 0 (i64x2.add (i64x2.splat (local.get 4)) (i64x2.splat (i64.const 5))))");
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let code = engine.start_code(&kernel).unwrap();
    assert_eq!((code.compiler(), code.tier()), ("llvm -O0", Tier::Baseline));
    assert!(code.start_reason().unwrap().contains("SIMD128"));
    let results = on_both(&kernel, &[1, 2, u64::MAX]);
    assert_eq!(results[0], Ok(vec![6, 7, 4]));
    assert_eq!(results[0], results[1]);
}

#[test]
fn an_artifact_for_another_module_is_refused() {
    let (one, other) = (map("(local.get 4)"), map("(i64.const 0)"));
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let artifact = optimize(&one, engine.cpu(), Pipeline::Full).unwrap();
    let error = engine.load_artifact(&other, &artifact).unwrap_err().to_string();
    assert!(error.contains(one.hash()) && error.contains(other.hash()), "{error}");
}
