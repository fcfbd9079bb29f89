//! Random modules on both tiers: results, memory and globals must be the same bits, and what fails must fail on both.
//!
//! `wasm-smith` makes a module from a seed. A kernel is added to it that calls the function its input names with the
//! arguments that stand there, and writes the results, a digest of the memory and all globals to its output. So what is
//! compared went the way of every kernel: rewriting, both compilers, operands and calls. The unit tests of the engine
//! run a few hundred modules, `examples/engine_fuzz.rs` runs as many as one likes.

use arbitrary::Unstructured;
use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{
    BlockType, CodeSection, DataCountSection, DataSection, ElementSection, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, Instruction as I, MemArg, MemorySection, MemoryType, Module, StartSection,
    TableSection, TypeSection, ValType,
};
use wasmparser::{Operator, Parser, Payload};

use crate::engine::{
    Access, Code, Cpu, Engine, EngineError, Instance, Kernel, KernelFault, OperandSpec, Pipeline, View, optimize,
};
use crate::tensor::{Dtype, Region, Shape};

/// Name of the added kernel.
pub(super) const KERNEL: &str = "exuvia kernel";
/// Loop rounds and calls until a call ends with a trap.
const FUEL: i32 = 500;
/// Bytes of a value in the kernel's input and output.
const SLOT: u64 = 16;
const MAX_VALUES: u64 = 12;
const INPUT: u64 = (1 + MAX_VALUES) * SLOT;
const OUTPUT: u64 = (MAX_VALUES + 1 + 24) * SLOT;
const LIMIT: u64 = 4 << 20;

/// What was run and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub modules: u64,
    /// Modules that are refused, or cannot be instantiated, say for data outside memory.
    pub unusable: u64,
    /// Calls, each on both tiers.
    pub executions: u64,
    /// Calls that failed on both tiers.
    pub faults: u64,
    /// Calls in which optimized code did without an access outside that can influence nothing.
    pub dropped: u64,
    /// Calls that ran out of stack on one tier only: frames differ.
    pub overflows: u64,
}

/// A small generator of pseudo-random numbers (splitmix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Bits that tell implementations apart: NaNs of all kinds, limits, small numbers, or anything.
    fn bits(&mut self) -> u64 {
        const SPECIAL: [u64; 24] = [
            0,
            1,
            u64::MAX,
            1 << 63,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
            0xfff8_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0xfff4_dead_beef_0001,
            0xffff_ffff_7fa0_0001,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_0001,
            0x7f80_0001,
            0xffbf_ffff,
            0x8000_0000,
            0x3f80_0000_3f80_0000,
            0x3ff0_0000_0000_0000,
            0x0010_0000_0000_0000,
            0x4f00_0000_0000_0001,
            0x43e0_0000_0000_0000,
            0x41df_ffff_ffc0_0000,
        ];
        match self.below(4) {
            0 | 1 => SPECIAL[self.below(SPECIAL.len() as u64) as usize],
            2 => self.below(70_000),
            _ => self.next(),
        }
    }
}

/// The module of a seed and how many functions its kernel can call.
pub fn module(seed: u64) -> (Vec<u8>, u32) {
    let mut random = Random(seed);
    // Three kinds in turn: without and with traps for Singlepass, and with 128-bit instructions.
    let kind = seed % 3;
    let (simd, traps) = (kind == 2, kind > 0);
    let config = wasm_smith::Config {
        max_imports: 0,
        min_funcs: 1,
        max_funcs: 4,
        max_instructions: 60 + random.below(200) as usize,
        max_type_size: 100,
        min_types: 2,
        max_types: 8,
        max_globals: 12,
        min_memories: 1,
        max_memory32_bytes: 2 << 16,
        max_data_segments: 4,
        max_element_segments: 4,
        max_table_elements: 64,
        max_values: 8,
        simd_enabled: simd,
        multi_value_enabled: simd,
        disallow_traps: !traps,
        allow_start_export: false,
        reference_types_enabled: false,
        exceptions_enabled: false,
        gc_enabled: false,
        compact_imports_enabled: false,
        extended_const_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        ..wasm_smith::Config::default()
    };
    let bytes: Vec<u8> = (0..512 + random.below(1024)).flat_map(|_| random.next().to_le_bytes()).collect();
    let module = wasm_smith::Module::new(config, &mut Unstructured::new(&bytes));
    let mut module = module.expect("any bytes make a module");
    let fuel = module.ensure_termination(FUEL as u32).expect("no function was left alone");
    let bytes = module.to_bytes();
    let shape = Contents::of(&bytes);
    let kernel = dispatcher(&shape, fuel);
    (with_kernel(&bytes, &kernel, &mut Tame), shape.functions.len() as u32)
}

/// Takes out what no kernel may do: change tables or drop segments.
struct Tame;

impl Reencode for Tame {
    type Error = std::convert::Infallible;

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: wasmparser::FunctionBody<'_>,
    ) -> Result<(), reencode::Error> {
        let mut function = self.new_function_with_parsed_locals(&body)?;
        for operator in body.get_operators_reader()? {
            match operator? {
                Operator::TableInit { .. } | Operator::TableCopy { .. } => {
                    function.instruction(&I::Drop).instruction(&I::Drop).instruction(&I::Drop);
                }
                Operator::ElemDrop { .. } | Operator::DataDrop { .. } => {}
                operator => {
                    function.instruction(&self.instruction(operator)?);
                }
            }
        }
        code.function(&function);
        Ok(())
    }
}

/// What the added kernel has to know of a module.
#[derive(Default)]
struct Contents {
    functions: Vec<wasmparser::FuncType>,
    globals: Vec<wasmparser::ValType>,
    pages: u64,
}

impl Contents {
    fn of(bytes: &[u8]) -> Contents {
        let mut contents = Contents::default();
        let mut types = Vec::new();
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.expect("wasm-smith makes valid modules") {
                Payload::TypeSection(section) => {
                    types = section.into_iter_err_on_gc_types().flatten().collect();
                }
                Payload::FunctionSection(section) => {
                    contents.functions = section.into_iter().flatten().map(|ty| types[ty as usize].clone()).collect();
                }
                Payload::GlobalSection(section) => {
                    contents.globals = section.into_iter().flatten().map(|global| global.ty.content_type).collect();
                }
                Payload::MemorySection(section) => {
                    contents.pages = section.into_iter().flatten().map(|memory| memory.initial).sum();
                }
                _ => {}
            }
        }
        contents
    }
}

/// The kernel: `input` holds a function's index and its arguments, `output` gets results, digest and globals.
fn dispatcher(contents: &Contents, fuel: u32) -> Function {
    let [input, output, address, digest] = [2, 3, 4, 5];
    // The last ones hold a result on its way to the output; one of 128 bits would keep Singlepass from compiling this.
    let mut locals = vec![(3, ValType::I32), (1, ValType::I64)];
    locals.extend([ValType::I32, ValType::I64, ValType::F32, ValType::F64].map(|ty| (1, ty)));
    if contents.functions.iter().any(|ty| ty.results().contains(&wasmparser::ValType::V128)) {
        locals.push((1, ValType::V128));
    }
    let mut code = Function::new(locals);
    let at = |offset: u64| MemArg { offset, align: 0, memory_index: 0 };
    let mut emit = |instructions: &[I]| {
        for instruction in instructions {
            code.instruction(instruction);
        }
    };
    emit(&[I::LocalGet(0), I::I32Load(at(0)), I::LocalSet(input)]);
    emit(&[I::LocalGet(0), I::I32Load(at(View::BYTES as u64)), I::LocalSet(output)]);
    emit(&[I::I32Const(FUEL), I::GlobalSet(fuel)]);
    for (index, ty) in (0..).zip(&contents.functions) {
        emit(&[I::LocalGet(input), I::I32Load(at(0)), I::I32Const(index as i32), I::I32Eq, I::If(BlockType::Empty)]);
        for (place, ty) in (1..).zip(ty.params()) {
            emit(&[I::LocalGet(input), typed(*ty, at(place * SLOT)).0]);
        }
        emit(&[I::Call(index)]);
        for (place, ty) in (0..).zip(ty.results()).collect::<Vec<_>>().into_iter().rev() {
            let (_, store, scratch) = typed(*ty, at(place * SLOT));
            emit(&[I::LocalSet(scratch), I::LocalGet(output), I::LocalGet(scratch), store]);
        }
        emit(&[I::End]);
    }
    if contents.pages > 0 {
        emit(&[
            I::Loop(BlockType::Empty),
            I::LocalGet(digest),
            I::I64Const(0x0000_0100_0000_01b3),
            I::I64Mul,
            I::LocalGet(address),
            I::I64Load(at(0)),
            I::I64Xor,
            I::LocalSet(digest),
            I::LocalGet(address),
            I::I32Const(8),
            I::I32Add,
            I::LocalTee(address),
            I::I32Const((contents.pages << 16) as i32),
            I::I32LtU,
            I::BrIf(0),
            I::End,
        ]);
    }
    emit(&[I::LocalGet(output), I::LocalGet(digest), I::I64Store(at(MAX_VALUES * SLOT))]);
    for (index, ty) in (0..).zip(&contents.globals) {
        let store = typed(*ty, at((MAX_VALUES + 1 + u64::from(index)) * SLOT)).1;
        emit(&[I::LocalGet(output), I::GlobalGet(index), store]);
    }
    emit(&[I::I32Const(0), I::End]);
    code
}

/// How a value of a type is loaded and stored, and the dispatcher's local for it.
fn typed(ty: wasmparser::ValType, at: MemArg) -> (I<'static>, I<'static>, u32) {
    match ty {
        wasmparser::ValType::I32 => (I::I32Load(at), I::I32Store(at), 6),
        wasmparser::ValType::I64 => (I::I64Load(at), I::I64Store(at), 7),
        wasmparser::ValType::F32 => (I::F32Load(at), I::F32Store(at), 8),
        wasmparser::ValType::F64 => (I::F64Load(at), I::F64Store(at), 9),
        wasmparser::ValType::V128 => (I::V128Load(at), I::V128Store(at), 10),
        wasmparser::ValType::Ref(_) => unreachable!("reference types are off"),
    }
}

/// Adds `kernel`, and an empty memory where there is none, to a valid module without imports that `copy` copies.
pub(super) fn with_kernel(
    bytes: &[u8],
    kernel: &Function,
    copy: &mut impl Reencode<Error = std::convert::Infallible>,
) -> Vec<u8> {
    let (mut types, mut functions, mut code) = (TypeSection::new(), FunctionSection::new(), CodeSection::new());
    let (mut tables, mut memories, mut globals) = (TableSection::new(), MemorySection::new(), GlobalSection::new());
    let (mut exports, mut elements, mut data) = (ExportSection::new(), ElementSection::new(), DataSection::new());
    let (mut start, mut data_count) = (None, None);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.expect("the module is valid") {
            Payload::TypeSection(s) => copy.parse_type_section(&mut types, s),
            Payload::FunctionSection(s) => copy.parse_function_section(&mut functions, s),
            Payload::TableSection(s) => copy.parse_table_section(&mut tables, s),
            Payload::MemorySection(s) => copy.parse_memory_section(&mut memories, s),
            Payload::GlobalSection(s) => copy.parse_global_section(&mut globals, s),
            Payload::ExportSection(s) => copy.parse_export_section(&mut exports, s),
            Payload::StartSection { func, .. } => {
                start = Some(StartSection { function_index: func });
                Ok(())
            }
            Payload::ElementSection(s) => copy.parse_element_section(&mut elements, s),
            Payload::DataCountSection { count, .. } => {
                data_count = Some(DataCountSection { count });
                Ok(())
            }
            Payload::CodeSectionEntry(body) => copy.parse_function_body(&mut code, body),
            Payload::DataSection(s) => copy.parse_data_section(&mut data, s),
            _ => Ok(()),
        }
        .expect("what was read can be written");
    }
    exports.export(KERNEL, ExportKind::Func, functions.len());
    functions.function(types.len());
    types.ty().function([ValType::I32, ValType::I32], [ValType::I32]);
    code.function(kernel);
    if memories.is_empty() {
        let none = MemoryType { minimum: 0, maximum: None, memory64: false, shared: false, page_size_log2: None };
        memories.memory(none);
    }
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&tables).section(&memories).section(&globals).section(&exports);
    if let Some(start) = &start {
        module.section(start);
    }
    module.section(&elements);
    if let Some(data_count) = &data_count {
        module.section(data_count);
    }
    module.section(&code).section(&data);
    module.finish()
}

/// Runs `calls` calls of the seed's module on both tiers. The error says in which call of which function they differ.
pub fn compare(seed: u64, calls: u32, tally: &mut Tally) -> Result<(), String> {
    let (bytes, functions) = module(seed);
    let failed = |error: EngineError| format!("seed {seed}: {error}");
    tally.modules += 1;
    let kernel = match Kernel::from_bytes("random.wasm", &bytes, Some(KERNEL)) {
        Err(EngineError::Refused { .. }) => {
            tally.unusable += 1;
            return Ok(());
        }
        kernel => kernel.map_err(failed)?,
    };
    let engine = Engine::new(Cpu::host(), Pipeline::Full);
    let artifact = optimize(&kernel, engine.cpu(), Pipeline::Full).map_err(failed)?;
    let baseline = engine.start_code(&kernel).map_err(failed)?;
    let optimized = engine.load_artifact(&kernel, &artifact).map_err(failed)?;
    let start = |code: &Code| {
        let operand = |max_bytes, access| OperandSpec { max_bytes, access };
        Instance::new(&engine, &kernel, code, LIMIT, &[operand(INPUT, Access::In), operand(OUTPUT, Access::Out)])
    };
    let pair = || match (start(&baseline), start(&optimized)) {
        (Ok(baseline), Ok(optimized)) => Ok(Some([baseline, optimized])),
        (Err(_), Err(_)) => Ok(None),
        (baseline, optimized) => Err(format!("seed {seed}: instances {:?} and {:?}", baseline.err(), optimized.err())),
    };
    let Some(mut tiers) = pair()? else {
        tally.unusable += 1;
        return Ok(());
    };
    let mut random = Random(!seed);
    for call in 0..calls {
        let function = random.below(u64::from(functions.max(1)));
        let arguments = (0..2 * MAX_VALUES).flat_map(|_| random.bits().to_le_bytes());
        let input: Vec<u8> = u128::from(function).to_le_bytes().into_iter().chain(arguments).collect();
        let [old, new] = tiers.each_mut().map(|instance| run(instance, &input));
        let differ = |what: String| Err(format!("seed {seed}, call {call} of function {function}: {what}"));
        tally.executions += 1;
        match (&old, &new) {
            (Ok(old), Ok(new)) if old == new => continue,
            (Ok(old), Ok(new)) => {
                let place = old.iter().zip(new).position(|(old, new)| old != new).unwrap_or(0);
                let part = |bytes: &[u8]| format!("{:02x?}", &bytes[place / 16 * 16..place / 16 * 16 + 16]);
                return differ(format!("value {}: {} and {}", place / 16, part(old), part(new)));
            }
            (Err(_), Err(_)) => tally.faults += 1,
            (Err(KernelFault::StackOverflow { .. }), Ok(_)) | (Ok(_), Err(KernelFault::StackOverflow { .. })) => {
                tally.overflows += 1;
            }
            (Err(KernelFault::OutOfBounds), Ok(_)) => tally.dropped += 1,
            (old, new) => return differ(format!("{:?} and {:?}", old.as_ref().err(), new.as_ref().err())),
        }
        // Memory after an error is not to be trusted.
        match pair()? {
            Some(fresh) => tiers = fresh,
            None => return differ("started once only".to_owned()),
        }
    }
    Ok(())
}

fn run(instance: &mut Instance, input: &[u8]) -> Result<Vec<u8>, KernelFault> {
    let view = |bytes: u64| {
        let shape = Shape::new(vec![bytes]).expect("a small shape");
        View { dtype: Dtype::U8, region: Region::whole(&shape), halo: vec![0], shape }
    };
    instance.operand_mut(0, INPUT).expect("room for the input").copy_from_slice(input);
    instance.operand_mut(1, OUTPUT).expect("room for the output").fill(0);
    instance.call(&[view(INPUT), view(OUTPUT)])?;
    Ok(instance.operand(1, OUTPUT).expect("the output").to_vec())
}
