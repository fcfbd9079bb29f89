//! Restrictions on valid modules: features that are refused, and features that Singlepass cannot compile.
//!
//! A swap of code creates a new instance of the module on the memory and the mutable globals of the old one. These must
//! be everything that a kernel can change, so operators that change tables or drop segments are refused by name. This
//! also closes the doors that LLVM's code leaves open: it reads base and bound of a table once per function, and
//! extends an index with its sign.

use wasmparser::{
    BlockType, FuncType, FuncValidator, FuncValidatorAllocations, FunctionBody, Operator, OperatorsReader, Parser,
    Payload, ValType, ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

/// The features of a kernel module, except those that [`refusal`] names: WebAssembly 2.0, which both tiers together
/// support.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::WASM2;
/// Browsers have the same limit. An index must stay positive as a signed number of 32 bits.
const MAX_TABLE_ENTRIES: u64 = 10_000_000;
/// Singlepass moves the stack pointer over a whole frame, or over the arguments of a call, before it touches them. This
/// many, at 8 bytes each, and the registers that it saves are less than the guard page below a stack.
const MAX_SINGLEPASS_SLOTS: u32 = 400;
/// Singlepass copies its state, locals and operands, at the begin of each block and keeps it to the block's end.
const MAX_SINGLEPASS_STATES: usize = 4_000_000;
/// Singlepass walks the operands at each branch.
const MAX_SINGLEPASS_STEPS: usize = 100_000_000;

/// The refused feature that a valid module uses, and advice for its author.
pub(super) fn refusal(bytes: &[u8]) -> Option<(String, &'static str)> {
    let (mut types, mut left) = (Vec::new(), None);
    for payload in Parser::new(0).parse_all(bytes).flatten() {
        match payload {
            Payload::TypeSection(section) => {
                types = section.into_iter_err_on_gc_types().flatten().collect();
                if types.iter().any(returns_over_its_context) {
                    let advice = "return the 128 bits first, or through memory";
                    return Some(("functions that return two values of 32 bits and one of 128".to_owned(), advice));
                }
            }
            Payload::TableSection(section) => {
                let large = section.into_iter().flatten().find(|table| table.ty.initial > MAX_TABLE_ENTRIES);
                if let Some(table) = large {
                    let what = format!("a table of {} entries", table.ty.initial);
                    return Some((what, "10,000,000 is the most"));
                }
            }
            Payload::CodeSectionEntry(body) => {
                let mut operators = body.get_operators_reader().ok()?.into_iter().flatten();
                if let Some((name, advice)) = operators.find_map(|operator| refused_operator(&operator)) {
                    return Some((name.to_owned(), advice));
                }
                if left.is_none() && leaves_parameters(&body, &types) {
                    let what = format!("{LEFT_PARAMETERS} (function at byte {:#x})", body.range().start);
                    left = Some((what, "build it without the multi-value feature"));
                }
            }
            _ => {}
        }
    }
    let references = WasmFeatures::REFERENCE_TYPES.difference(WasmFeatures::CALL_INDIRECT_OVERLONG);
    match Validator::new_with_features(FEATURES.difference(references)).validate_all(bytes) {
        Err(error) => {
            Some((format!("reference types ({}, at byte {:#x})", error.message(), error.offset()), CONSTANT_TABLE))
        }
        Ok(_) => left,
    }
}

const CONSTANT_TABLE: &str = "it has one table of functions, which never changes; this is what C, C++ and Rust make of \
                              function pointers";

fn refused_operator(operator: &Operator<'_>) -> Option<(&'static str, &'static str)> {
    let name = match operator {
        Operator::TableGet { .. } => "table.get",
        Operator::TableSet { .. } => "table.set",
        Operator::TableGrow { .. } => "table.grow",
        Operator::TableSize { .. } => "table.size",
        Operator::TableFill { .. } => "table.fill",
        Operator::TableInit { .. } => "table.init",
        Operator::TableCopy { .. } => "table.copy",
        Operator::ElemDrop { .. } => "elem.drop",
        Operator::DataDrop { .. } => return Some(("data.drop", "it keeps its data segments; leave that out")),
        _ => return None,
    };
    Some((name, CONSTANT_TABLE))
}

/// Whether functions of this type would write what they return over what wasmer keeps of their instance: its translator
/// for LLVM calls them as if results came back in registers, and compiles them as if in memory.
fn returns_over_its_context(ty: &FuncType) -> bool {
    use ValType::{F32, I32, V128};
    matches!(ty.results(), [I32 | F32, I32 | F32, V128])
}

/// What a block is called that wasmer's translator for LLVM gets wrong.
pub(super) const LEFT_PARAMETERS: &str = "a block with parameters that control never leaves at its end";

/// Whether a block has parameters and ends behind a branch. wasmer's translator for LLVM takes the parameters for
/// operands of what follows then, and another value for theirs.
fn leaves_parameters(body: &FunctionBody<'_>, types: &[FuncType]) -> bool {
    let Ok(reader) = body.get_operators_reader() else { return false };
    // For each open block that control reaches, whether it has parameters; and how many blocks are open behind a
    // branch.
    let (mut open, mut dead) = (vec![false], 0);
    for operator in reader.into_iter().flatten() {
        match operator {
            Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } if dead == 0 => {
                let parameters = |ty: u32| types.get(ty as usize).is_some_and(|ty| !ty.params().is_empty());
                open.push(matches!(blockty, BlockType::FuncType(ty) if parameters(ty)));
            }
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => dead += 1,
            Operator::Else | Operator::End if dead <= 1 => {
                if dead == 1 && open.last() == Some(&true) {
                    return true;
                }
                dead = 0;
                if matches!(operator, Operator::End) {
                    open.pop();
                }
            }
            Operator::End => dead -= 1,
            Operator::Br { .. } | Operator::BrTable { .. } | Operator::Return | Operator::Unreachable if dead == 0 => {
                dead = 1;
            }
            _ => {}
        }
    }
    false
}

/// The feature of a valid module that Singlepass cannot compile within bounds of stack, memory and time.
pub(super) fn baseline_obstacle(bytes: &[u8]) -> Option<&'static str> {
    let lacking = [(WasmFeatures::SIMD, "SIMD128 instructions"), (WasmFeatures::MULTI_VALUE, "multi-value blocks")];
    let without = |feature| Validator::new_with_features(FEATURES.difference(feature)).validate_all(bytes).is_err();
    lacking.into_iter().find(|(feature, _)| without(*feature)).map(|(_, what)| what).or_else(|| too_large(bytes))
}

fn too_large(bytes: &[u8]) -> Option<&'static str> {
    let mut validator = Validator::new_with_features(FEATURES);
    let mut allocations = FuncValidatorAllocations::default();
    let mut steps = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.ok()?;
        if let Payload::TypeSection(section) = &payload {
            let mut types = section.clone().into_iter_err_on_gc_types().flatten();
            if types.any(|ty| ty.params().len() > MAX_SINGLEPASS_SLOTS as usize) {
                return Some("functions of more than 400 parameters");
            }
        }
        if let ValidPayload::Func(function, body) = validator.payload(&payload).ok()? {
            let mut function = function.into_validator(allocations);
            let obstacle = too_large_function(&mut function, &body, &mut steps).ok()?;
            if obstacle.is_some() {
                return obstacle;
            }
            allocations = function.into_allocations();
        }
    }
    None
}

fn too_large_function(
    function: &mut FuncValidator<ValidatorResources>,
    body: &FunctionBody<'_>,
    steps: &mut usize,
) -> wasmparser::Result<Option<&'static str>> {
    let mut locals = body.get_binary_reader();
    function.read_locals(&mut locals)?;
    let mut reader = OperatorsReader::new(locals);
    let locals = function.len_locals();
    if locals > MAX_SINGLEPASS_SLOTS {
        return Ok(Some("functions of more than 400 parameters and locals"));
    }
    // The size of the state of each open block, and the sum of these sizes.
    let (mut kept, mut states) = (Vec::new(), 0);
    while !reader.eof() {
        let (operator, offset) = reader.read_with_offset()?;
        let height = function.operand_stack_height() as usize;
        match &operator {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                kept.push(locals as usize + height);
                states += locals as usize + height;
            }
            Operator::End => states -= kept.pop().unwrap_or(0),
            Operator::Br { .. } | Operator::BrIf { .. } | Operator::Return => *steps += height,
            Operator::BrTable { targets } => *steps += height.saturating_mul(targets.len() as usize + 1),
            _ => {}
        }
        if states > MAX_SINGLEPASS_STATES {
            return Ok(Some("blocks that are nested so deeply"));
        }
        if *steps > MAX_SINGLEPASS_STEPS {
            return Ok(Some("so many branches over so many operands"));
        }
        function.op(offset, &operator)?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The module with `body` in its kernel and `rest` beside that.
    fn module(rest: &str, body: &str) -> Vec<u8> {
        let kernel = format!(r#"(func $k (export "k") (param i32 i32) (result i32) {body} i32.const 0)"#);
        wat::parse_str(format!("(module (memory 1) {rest} {kernel})")).unwrap()
    }

    #[test]
    fn whatever_changes_more_than_memory_and_globals_is_refused_by_name() {
        let table = "(table 2 4 funcref) (elem $e (i32.const 0) $k) (data $d \"x\")";
        let zeros = "(i32.const 0) (i32.const 0) (i32.const 0)";
        for (rest, body, named) in [
            ("", "(drop (ref.null func))", "reference types"),
            ("", "(drop (ref.null extern))", "reference types"),
            ("(global externref (ref.null extern))", "", "reference types"),
            ("(global (mut funcref) (ref.null func))", "", "reference types"),
            ("(table 1 funcref) (table 1 funcref)", "", "reference types"),
            ("(table 1 externref)", "", "reference types"),
            ("(func (param externref))", "", "reference types"),
            ("(elem declare func $k)", "(drop (ref.func $k))", "reference types"),
            (table, "(drop (table.get 0 (i32.const 0)))", "table.get"),
            (table, "(table.set 0 (i32.const 0) (ref.null func))", "table.set"),
            (table, "(drop (table.grow 0 (ref.null func) (i32.const 1)))", "table.grow"),
            (table, "(table.fill 0 (i32.const 0) (ref.null func) (i32.const 1))", "table.fill"),
            (table, "(drop (table.size 0))", "table.size"),
            (table, &format!("(table.init $e {zeros})"), "table.init"),
            (table, &format!("(table.copy {zeros})"), "table.copy"),
            (table, "(elem.drop $e)", "elem.drop"),
            (table, "(data.drop $d)", "data.drop"),
            ("(table 10000001 funcref)", "", "a table of 10000001 entries"),
            ("(table 4294967295 funcref)", "", "a table of 4294967295 entries"),
            ("(type (func (result f32 i32 v128)))", "", "functions that return two values of 32 bits"),
            ("", "i32.const 1 (block (param i32) (result i64) i64.const 7 br 0) drop", LEFT_PARAMETERS),
            ("", "i32.const 1 (loop (param i32) drop unreachable)", LEFT_PARAMETERS),
            ("", "i32.const 1 local.get 0 (if (param i32) (then return) (else drop))", LEFT_PARAMETERS),
        ] {
            let bytes = module(rest, body);
            Validator::new_with_features(FEATURES).validate_all(&bytes).unwrap();
            let refused = refusal(&bytes).unwrap_or_else(|| panic!("{rest} {body} is accepted")).0;
            assert!(refused.starts_with(named), "{rest} {body}: {refused}");
        }
    }

    #[test]
    fn what_compilers_make_of_function_pointers_and_copies_is_accepted() {
        let rest = r#"(table 10000000 funcref) (elem (i32.const 1) $k $k) (data $d "x")"#;
        let zeros = "(i32.const 0) (i32.const 0) (i32.const 0)";
        let body = format!(
            "(drop (call_indirect (param i32 i32) (result i32) (i32.const 0) (i32.const 0) (i32.const 1)))
             (memory.copy {zeros}) (memory.fill {zeros}) (memory.init $d {zeros})"
        );
        let bytes = module(rest, &body);
        assert_eq!((refusal(&bytes), baseline_obstacle(&bytes)), (None, None));
    }

    #[test]
    fn frames_and_nests_that_singlepass_cannot_bear_start_on_llvm() {
        let locals = |n: usize| format!("(local {})", "i64 ".repeat(n));
        assert_eq!(baseline_obstacle(&module("", &locals(398))), None);
        assert_eq!(
            baseline_obstacle(&module("", &locals(399))),
            Some("functions of more than 400 parameters and locals")
        );
        let parameters = |n: usize| format!("(func (param {}))", "i64 ".repeat(n));
        assert_eq!(baseline_obstacle(&module(&parameters(400), "")), None);
        assert_eq!(baseline_obstacle(&module(&parameters(401), "")), Some("functions of more than 400 parameters"));
        let nest = |n: usize| format!("{} {}", "block ".repeat(n), "end ".repeat(n));
        assert_eq!(baseline_obstacle(&module("", &nest(1000))), None);
        let deep = format!("{} {}", locals(398), nest(20_000));
        assert_eq!(baseline_obstacle(&module("", &deep)), Some("blocks that are nested so deeply"));
        let operands = 10_000;
        let branches = "local.get 0 br_if 0 ".repeat(20_000);
        let high = format!("{} {branches} {}", "local.get 0 ".repeat(operands), "drop ".repeat(operands));
        let high = format!("block {high} end");
        assert_eq!(baseline_obstacle(&module("", &high)), Some("so many branches over so many operands"));
    }
}
