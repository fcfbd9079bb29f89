//! Modules that try to reach what is not theirs, on every kind of code: each ends in a fault, or is refused.

use super::tests::{LIMIT, kernel, spec, view};
use super::*;

/// Code of one kind of compiler for one module.
struct Form {
    kernel: Kernel,
    engine: Engine,
    code: Code,
}

/// The module with `body` as Singlepass, unoptimized LLVM and optimizing LLVM compile it. A function that nobody calls keeps
/// Singlepass away; modules with SIMD of their own do without that form.
fn every_form(body: &str) -> Vec<Form> {
    let simd = format!("{body} (func (drop (v128.const i64x2 0 0)))");
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let form = |kernel: &Kernel, code| Form { kernel: kernel.clone(), engine: engine.clone(), code };
    let mut forms = Vec::new();
    let (plain, vectors) = (kernel(body), kernel(&simd));
    if plain.baseline_obstacle().is_none() {
        forms.push(form(&plain, engine.start_code(&plain).unwrap()));
    }
    forms.push(form(&vectors, engine.start_code(&vectors).unwrap()));
    let artifact = optimize(&plain, engine.cpu(), Pipeline::Full).unwrap();
    forms.push(form(&plain, engine.load_artifact(&plain, &artifact).unwrap()));
    forms
}

impl Form {
    /// Calls the kernel once with `words` as its input and one output of the same size, and returns that.
    fn call(&self, words: &[u64]) -> Result<Vec<u64>, KernelFault> {
        let n = words.len() as u64;
        let operands = [spec(n, Access::In), spec(n, Access::Out)];
        let mut instance = Instance::new(&self.engine, &self.kernel, &self.code, LIMIT, &operands).unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        instance.operand_mut(0, n * 8).unwrap().copy_from_slice(&bytes);
        instance.call(&[view(n), view(n)])?;
        let out = instance.operand(1, n * 8).unwrap();
        Ok(out.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect())
    }
}

/// A kernel of one input and one output whose local 2 has the address of the input, local 3 that of the output.
fn with_operands(rest: &str, locals: &str, body: &str) -> String {
    format!(
        r#"{rest} (func (export "k") (param i32 i32) (result i32) (local i32 i32) {locals}
            (local.set 2 (i32.load (local.get 0))) (local.set 3 (i32.load offset=208 (local.get 0)))
            {body} (i32.const 0))"#
    )
}

const OFFSETS: [u32; 6] = [0, 1 << 16, 0x7fff_ffff, 0x8000_0000, 0xffff_0000, u32::MAX];
const ADDRESSES: [u32; 7] = [1 << 24, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_0000, 0xffff_fff0, u32::MAX];

/// A kernel that makes the access whose number is its first word, at the address in its second.
fn accesses(operations: &[String]) -> String {
    let mut body = "(i32.wrap_i64 (i64.load (local.get 2)))".to_owned();
    let labels = (0..=operations.len()).map(|label| label.to_string()).collect::<Vec<_>>().join(" ");
    let opened = "(block ".repeat(operations.len() + 1);
    body = format!("{opened} (br_table {labels} {body})");
    for operation in operations {
        body = format!("{body} ) {operation} (return (i32.const 7))");
    }
    with_operands("", "(local i32)", &format!("(local.set 4 (i32.load offset=8 (local.get 2))) {body} )"))
}

fn all_out_of_bounds(forms: &[Form], operations: &[String]) {
    for form in forms {
        for (number, operation) in operations.iter().enumerate() {
            for address in ADDRESSES {
                let result = form.call(&[number as u64, address.into()]);
                assert_eq!(
                    result,
                    Err(KernelFault::OutOfBounds),
                    "{operation} at {address:#x} by {}",
                    form.code.compiler()
                );
            }
        }
    }
}

#[test]
fn no_access_of_any_width_reaches_beyond_the_memory() {
    let mut operations = Vec::new();
    for offset in OFFSETS {
        let at = format!("offset={offset} align=1 (local.get 4)");
        for load in
            ["i32.load8_s", "i32.load16_u", "i32.load", "i64.load8_u", "i64.load16_s", "i64.load32_u", "i64.load"]
        {
            operations.push(format!("({}.store (local.get 3) ({load} {at}))", &load[..3]));
        }
        operations.push(format!("(f32.store (local.get 3) (f32.load {at}))"));
        operations.push(format!("(f64.store (local.get 3) (f64.load {at}))"));
        for (store, value) in [
            ("i32.store8", "i32.const 65"),
            ("i32.store16", "i32.const 65"),
            ("i32.store", "i32.const 65"),
            ("i64.store8", "i64.const 65"),
            ("i64.store16", "i64.const 65"),
            ("i64.store32", "i64.const 65"),
            ("i64.store", "i64.const 65"),
            ("f32.store", "f32.const 65"),
            ("f64.store", "f64.const 65"),
        ] {
            operations.push(format!("({store} {at} ({value}))"));
        }
    }
    all_out_of_bounds(&every_form(&accesses(&operations)), &operations);
}

#[test]
fn no_access_of_128_bits_reaches_beyond_the_memory() {
    let mut operations = Vec::new();
    for offset in OFFSETS {
        let at = format!("offset={offset} align=1 ");
        for load in
            ["8x8_s", "16x4_u", "32x2_s", "8_splat", "16_splat", "32_splat", "64_splat", "32_zero", "64_zero", ""]
        {
            operations.push(format!("(v128.store (local.get 3) (v128.load{load} {at} (local.get 4)))"));
        }
        for lane in ["8_lane", "16_lane", "32_lane", "64_lane"] {
            let load = format!("(v128.load{lane} {at} 1 (local.get 4) (v128.const i64x2 1 2))");
            operations.push(format!("(v128.store (local.get 3) {load})"));
            operations.push(format!("(v128.store{lane} {at} 1 (local.get 4) (v128.const i64x2 1 2))"));
        }
        operations.push(format!("(v128.store {at} (local.get 4) (v128.const i64x2 1 2))"));
    }
    let forms = every_form(&accesses(&operations));
    assert_eq!(forms[0].code.compiler(), "llvm -O0");
    all_out_of_bounds(&forms, &operations);
}

#[test]
fn a_loop_that_llvm_vectorizes_reaches_no_further() {
    for access in [
        "(i64.store (local.get 6) (i64.load offset=0xffffffff (local.get 5)))",
        "(i64.store offset=0xffffffff (local.get 5) (i64.load (local.get 6)))",
        "(i32.store8 offset=0xfffffff0 (local.get 5) (i32.load8_u offset=0x80000000 (local.get 5)))",
        "(f64.store (local.get 6) (f64.add (f64.load offset=0xffffffff (local.get 5)) (f64.load (local.get 6))))",
    ] {
        let forms = every_form(&with_operands(
            "",
            "(local i32 i32 i32)",
            &format!(
                "(loop $next
                    (local.set 5 (i32.add (i32.load (local.get 2)) (i32.shl (local.get 4) (i32.const 3))))
                    (local.set 6 (i32.add (local.get 3) (i32.shl (local.get 4) (i32.const 3))))
                    {access}
                    (br_if $next (i32.lt_u
                        (local.tee 4 (i32.add (local.get 4) (i32.const 1))) (i32.load offset=8 (local.get 2)))))"
            ),
        ));
        for form in forms {
            for start in [0x8000_0001u64, 0x8000_0000, 0xffff_f000, 0xffff_ff01] {
                let mut words = [0; 64];
                (words[0], words[1]) = (start, 64);
                assert_eq!(form.call(&words), Err(KernelFault::OutOfBounds), "{access} from {start:#x}");
            }
        }
    }
}

#[test]
fn no_bulk_operation_reaches_beyond_the_memory() {
    let words = |at: [u32; 3]| at.map(u64::from);
    let get = |n: u32| format!("(i32.load offset={} (local.get 2))", n * 8);
    let (destination, source, length) = (get(0), get(1), get(2));
    let operations = [
        format!("(memory.copy {destination} {source} {length})"),
        format!("(memory.fill {destination} {source} {length})"),
        format!("(memory.init $d {destination} {source} {length})"),
    ];
    let far = [1 << 24, 0x8000_0000, u32::MAX];
    for (number, operation) in operations.iter().enumerate() {
        let forms = every_form(&with_operands("(data $d \"0123456789\")", "", operation));
        for form in &forms {
            for a in far {
                // Of the second kind only the destination is an address.
                let mut cases = vec![[a, 0, 1], [a, 0, u32::MAX], [0, 0, a], [1, 1, u32::MAX], [u32::MAX, u32::MAX, 1]];
                if number != 1 {
                    cases.extend([[0, a, 1], [0, a, u32::MAX], [0, u32::MAX, u32::MAX]]);
                }
                for case in cases {
                    assert_eq!(form.call(&words(case)), Err(KernelFault::OutOfBounds), "{operation} {case:x?}");
                }
            }
            assert!(form.call(&words([0, 0, 4])).is_ok(), "{operation} inside");
        }
    }
    // Within the memory, but over the host's guards.
    let all = "(i32.shl (memory.size) (i32.const 16))";
    for operation in [
        format!("(memory.fill (i32.const 0) (i32.const 65) {all})"),
        format!("(memory.copy (i32.const 0) (i32.const 1) (i32.sub {all} (i32.const 1)))"),
    ] {
        for form in every_form(&with_operands("", "", &operation)) {
            assert_eq!(form.call(&[0]), Err(KernelFault::OutOfBounds), "{operation}");
        }
    }
}

#[test]
fn a_memory_grows_to_the_maximum_that_the_module_declares() {
    let body = |memory: &str| {
        let grow = |word: u32, pages: u32| {
            format!(
                "(i64.store offset={} (local.get 3) (i64.extend_i32_u (memory.grow (i32.const {pages}))))",
                word * 8
            )
        };
        let body = [grow(0, 3), grow(1, 2), grow(2, 1), grow(3, 0)].concat();
        let wat = format!("(module {memory} {})", with_operands("", "", &body));
        Kernel::from_bytes("grow.wat", &wat::parse_str(wat).unwrap(), None).unwrap()
    };
    let refused = u64::from(u32::MAX);
    for (memory, grown) in
        [("(memory 1 1)", [false; 3]), ("(memory 1 3)", [false, true, false]), ("(memory 1)", [true; 3])]
    {
        let kernel = body(memory);
        let (engine, codes) = super::tests::codes(&kernel);
        for code in codes {
            let words = Form { kernel: kernel.clone(), engine: engine.clone(), code }.call(&[0; 4]).unwrap();
            // The operands count as memory, not as growth of the module's.
            let mut pages = words[3];
            for (word, (grown, delta)) in words.iter().zip(grown.into_iter().zip([3, 2, 1])).rev() {
                pages -= if grown { delta } else { 0 };
                assert_eq!(*word, if grown { pages } else { refused }, "{memory} by {delta}: {words:?}");
            }
        }
    }
}

/// Recursion on frames of every size, with a body that makes the compilers keep them.
#[test]
fn frames_of_any_size_end_at_the_end_of_the_stack() {
    let mut bodies = Vec::new();
    for count in [1usize, 60, 250, 390, 398, 520, 1100, 5000] {
        // Each local is set and used again after the call, so that it has a place of its own.
        let set = (0..count).map(|n| format!("(local.set {} (i64.extend_i32_u (local.get 0)))", n + 1));
        let used = (0..count).map(|n| format!("(i64.add (local.get {}))", n + 1));
        let (set, used) = (set.collect::<String>(), used.collect::<Vec<_>>().join(" "));
        let locals = "i64 ".repeat(count);
        bodies.push(format!(
            "(func $deep (param i32) (result i64) (local {locals}) {set}
                (call $deep (i32.add (local.get 0) (i32.const 1))) {used})
             (func (export \"k\") (param i32 i32) (result i32) (i32.wrap_i64 (call $deep (local.get 1))))"
        ));
    }
    for count in [8, 100, 400, 1000] {
        let types = "i64 ".repeat(count);
        let values: String = (0..count).map(|n| format!("(i64.add (local.get {n}) (i64.const 1))")).collect();
        let first = "(i64.const 1)".repeat(count);
        bodies.push(format!(
            "(func $deep (param {types}) (result i64) (i64.add (local.get 0) (call $deep {values})))
             (func (export \"k\") (param i32 i32) (result i32) (i32.wrap_i64 (call $deep {first})))"
        ));
    }
    for body in bodies {
        for form in every_form(&body) {
            let compiler = form.code.compiler();
            let fault = form.call(&[0]).unwrap_err();
            assert!(matches!(fault, KernelFault::StackOverflow { .. }), "{compiler}: {fault} in {}", &body[..80]);
        }
    }
}
