//! Faults of kernels, and what is watched around their tiles.

use super::tests::*;
use super::*;
use crate::tensor::Region;

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
