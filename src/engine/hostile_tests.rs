//! Modules that try to reach what is not theirs, on every kind of code: each ends in a fault, or is refused.

use super::tests::{LIMIT, kernel, spec, view};
use super::*;

/// Code of one kind of compiler for one module.
struct Form {
    kernel: Kernel,
    engine: Engine,
    code: Code,
}

/// The module with `body` as Singlepass, unoptimized LLVM and optimizing LLVM compile it. A function that nobody calls
/// keeps Singlepass away; modules with SIMD of their own do without that form.
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

/// Recursion on frames of every size. Locals are loaded from memory that a call may change, so they must be kept over
/// it.
#[test]
fn frames_of_any_size_end_at_the_end_of_the_stack() {
    let mut bodies = Vec::new();
    for count in [1usize, 60, 250, 398, 520] {
        let load = |n| format!("(local.set {} (i64.load offset={} (i32.const 0)))", n + 1, n * 8);
        let set = (0..count).map(load);
        let used = (0..count).map(|n| format!("(i64.store offset={} (i32.const 0) (local.get {}))", n * 8, n + 1));
        let (set, used) = (set.collect::<String>(), used.collect::<String>());
        let locals = "i64 ".repeat(count);
        bodies.push(format!(
            "(func $deep (param i32) (result i64) (local {locals}) {set}
                (call $deep (i32.add (local.get 0) (i32.const 1))) {used})
             (func (export \"k\") (param i32 i32) (result i32) (i32.wrap_i64 (call $deep (local.get 1))))"
        ));
    }
    for count in [8, 100, 400, 600] {
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

/// Whatever traps, calls the host or overflows when the stack is nearly full does so in a fault. A trap that is taken
/// on the kernel's own stack would hang here: it overflows under a lock of the process, and the next trap waits for
/// that.
#[test]
fn traps_and_calls_of_the_host_on_a_nearly_full_stack_are_faults() {
    let operations = [
        "unreachable",
        "(drop (i32.div_s (local.get 0) (local.get 0)))",
        "(drop (i32.trunc_f64_s (f64.const nan)))",
        "(call_indirect (local.get 0))",
        "(call_indirect (i32.const 9))",
        "(i32.store (i32.const -1) (i32.const 1))",
        "(drop (f64.nearest (f64.convert_i32_s (local.get 0))))",
        "(drop (memory.grow (i32.const 1)))",
    ];
    let chosen = |(number, operation)| format!("(if (i32.eq (local.get 1) (i32.const {number})) (then {operation}))");
    let operation: String = operations.iter().enumerate().map(chosen).collect();
    // Large frames, so that an unwinder has few to walk, then small ones to come near the end.
    let load = |n| format!("(local.set {} (i32.load offset={} (i32.const 0)))", n + 3, n * 4);
    let store = |n| format!("(i32.store offset={} (i32.const 0) (local.get {}))", n * 4, n + 3);
    let (load, store): (String, String) = ((0..200).map(load).collect(), (0..200).map(store).collect());
    let locals = "i32 ".repeat(200);
    let forms = every_form(&with_operands(
        &format!(
            r#"(table 2 funcref)
               (func $small (param i32 i32) (result i32)
                   (if (i32.eqz (local.get 0)) (then {operation}))
                   (if (i32.le_s (local.get 0) (i32.const 0)) (then (return (i32.const 0))))
                   (i32.add (call $small (i32.sub (local.get 0) (i32.const 1)) (local.get 1)) (local.get 0)))
               (func $large (param i32 i32 i32) (result i32) (local {locals})
                   (if (i32.eqz (local.get 0)) (then (return (call $small (local.get 1) (local.get 2)))))
                   {load} (call $large (i32.sub (local.get 0) (i32.const 1)) (local.get 1) (local.get 2)) {store})"#
        ),
        "",
        "(drop (call $large
            (i32.load (local.get 2)) (i32.load offset=8 (local.get 2)) (i32.load offset=16 (local.get 2))))",
    ));
    for form in forms {
        let overflows = |words: [u64; 3]| matches!(form.call(&words), Err(KernelFault::StackOverflow { .. }));
        let (mut fits, mut beyond) = (0u64, 1 << 16);
        while beyond - fits > 1 {
            let depth = (fits + beyond) / 2;
            *(if overflows([depth, 0, 0]) { &mut beyond } else { &mut fits }) = depth;
        }
        let last = (0..1000).find(|small| overflows([fits, *small, 0])).expect("small frames overflow too");
        for number in 1..operations.len() as u64 {
            let found: Vec<bool> =
                (last.saturating_sub(20)..last + 3).map(|small| overflows([fits, small, number])).collect();
            assert!(found.contains(&true), "{} by {}", operations[number as usize], form.code.compiler());
        }
    }
}

/// What a start function does wrong is an error of the instance, as is a table larger than the memory allows.
#[test]
fn instances_that_cannot_be_made_say_why() {
    let limit = 16 << 20;
    for (body, named) in [
        ("(start $s) (func $s unreachable)", "unreachable"),
        ("(start $s) (func $s (i32.store offset=0xffffffff (i32.const -1) (i32.const 1)))", "memory it was not given"),
        ("(start $s) (func $s (call $s))", "stack"),
        (r#"(func (export "_initialize") (drop (i32.div_u (i32.const 1) (i32.const 0))))"#, "divide by zero"),
        ("(table 2 funcref) (elem (i32.const 2) $f) (func $f)", "out of bounds"),
        ("(table 2 funcref) (elem (i32.const -1) $f) (func $f)", "out of bounds"),
        ("(table 2000000 funcref)", "table of functions"),
        ("(table 1040000 funcref) (func (export \"_initialize\"))", "16777216"),
    ] {
        let kernel = r#"(func (export "k") (param i32 i32) (result i32) (i32.const 0))"#;
        for Form { kernel, engine, code } in every_form(&format!("{body} {kernel}")) {
            let error = Instance::new(&engine, &kernel, &code, limit, &[spec(1 << 16, Access::Out)]).unwrap_err();
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let text = causes.map(|error| error.to_string()).collect::<Vec<_>>().join(": ");
            assert!(text.contains(named), "{body} by {}: {text}", code.compiler());
        }
    }
}

/// Globals of 128 bits are state too, which the host keeps.
#[test]
fn a_swap_keeps_globals_of_128_bits() {
    let kernel = kernel(
        r#"(global $g (mut v128) (v128.const i64x2 7 9)) (func (export "k") (param i32 i32) (result i32)
             (global.set $g (i64x2.add (global.get $g) (v128.const i64x2 1 1)))
             (v128.store align=1 (i32.load (local.get 0)) (global.get $g)) (i32.const 0))"#,
    );
    let (engine, codes) = super::tests::codes(&kernel);
    let mut instance = Instance::new(&engine, &kernel, &codes[0], LIMIT, &[spec(2, Access::Out)]).unwrap();
    for call in 1..5u64 {
        instance.swap(&codes[(call % 2) as usize]).unwrap();
        instance.call(&[view(2)]).unwrap();
        let expected = [(7 + call).to_le_bytes(), (9 + call).to_le_bytes()].concat();
        assert_eq!(instance.operand(0, 16).unwrap(), expected);
    }
}
