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
pub(super) fn on_both(kernel: &Kernel, input: &[u64]) -> Vec<Result<Vec<u64>, KernelFault>> {
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
pub(super) fn map(instructions: &str) -> Kernel {
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
