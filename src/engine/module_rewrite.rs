//! Rewrites a kernel module so that two compiled forms of it can share one memory.
//!
//! Memory and mutable globals become imports that the host owns. Active data segments and the start function are
//! removed, and the host applies them once. Tables stay in the module.
//!
//! Both forms must give the same NaNs: every operation that makes one makes the canonical one, and `neg`, `abs`,
//! `copysign` and moves see that. Where a compiler does not do so, the code says it: a multiplication by 1
//! canonicalises and changes nothing else, a pair of `reinterpret` lets Singlepass put nothing off.

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{
    CodeSection, DataCountSection, DataSection, ElementSection, EntityType, ExportKind, ExportSection, FunctionSection,
    GlobalSection, ImportSection, Instruction, MemoryType, Module, TableSection, TypeSection,
};
use wasmparser::{DataKind, Operator, Parser, Payload};

use super::arena::HOST_PAGE;
use super::first_page;

/// Version of this rewrite; part of every artifact's fingerprint.
pub(super) const REWRITE_VERSION: u32 = 2;

/// Names of the imports of a rewritten module.
pub(super) const HOST_MODULE: &str = "exuvia";
pub(super) const MEMORY: &str = "memory";
/// Pages that 32-bit addresses reach.
const MAX_PAGES: u64 = 65_536;
/// Export of the former start function.
pub(super) const START: &str = "exuvia:start";

pub(super) fn global_name(index: usize) -> String {
    format!("global{index}")
}

/// Initial value of a mutable global, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Initial {
    I32(i32),
    I64(i64),
    F32(u32),
    F64(u64),
    V128(u128),
}

/// A rewritten module for each compiler, and the host's part of its state.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub baseline: Vec<u8>,
    pub optimizable: Vec<u8>,
    pub state: HostState,
}

/// The initial state of an instance that the host owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostState {
    pub memory_pages: u32,
    /// The declared maximum of its memory.
    pub max_pages: u32,
    /// Size of its function table.
    pub table_bytes: u64,
    /// Mutable globals, in the order of their imports.
    pub globals: Vec<Initial>,
    /// Address and bytes of each active data segment.
    pub data: Vec<(u32, Vec<u8>)>,
    pub has_start: bool,
    /// Whether it declares the first page of its memory unused, and has no data there.
    pub leaves_first_page: bool,
}

/// Why a valid module cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewriteError {
    #[error("{0}")]
    Parse(#[from] wasmparser::BinaryReaderError),
    #[error("{0}")]
    Encode(String),
    #[error("the initial value of {0} is not a constant")]
    NotConstant(String),
}

impl From<reencode::Error> for RewriteError {
    fn from(error: reencode::Error) -> Self {
        RewriteError::Encode(error.to_string())
    }
}

/// Rewrites a validated module without imports.
pub(super) fn rewrite(bytes: &[u8]) -> Result<Rewritten, RewriteError> {
    let (optimizable, state) = rewrite_for(bytes, TargetCompiler::Optimizable)?;
    let (baseline, _) = rewrite_for(bytes, TargetCompiler::Baseline)?;
    Ok(Rewritten { baseline, optimizable, state })
}

/// Which compiler a module is rewritten for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TargetCompiler {
    /// Singlepass.
    Baseline,
    /// LLVM, with NaNs made canonical by `nan_canonicalization.rs`.
    Optimizable,
}

impl TargetCompiler {
    /// Instructions to stand before `operator`, which follows `previous`, and behind it.
    fn around(
        self,
        previous: &Operator,
        operator: &Operator,
    ) -> (&'static [Instruction<'static>], Vec<Instruction<'static>>) {
        use Instruction as I;
        let once_32 = || vec![I::F32Const(1f32.into()), I::F32Mul];
        let once_64 = || vec![I::F64Const(1f64.into()), I::F64Mul];
        match (self, operator) {
            // Singlepass passes on what it was given.
            (TargetCompiler::Baseline, Operator::F64PromoteF32) => (&[], once_64()),
            (TargetCompiler::Baseline, Operator::F32DemoteF64) => (&[], once_32()),
            // Singlepass makes results of arithmetic canonical when they are first seen, which `neg` is not for it.
            (TargetCompiler::Baseline, Operator::F32Neg) if !is_settled(previous) => {
                (&[I::I32ReinterpretF32, I::F32ReinterpretI32], Vec::new())
            }
            (TargetCompiler::Baseline, Operator::F64Neg) if !is_settled(previous) => {
                (&[I::I64ReinterpretF64, I::F64ReinterpretI64], Vec::new())
            }
            // wasmer's translator folds these for constants, before anybody can make the result canonical.
            (TargetCompiler::Optimizable, Operator::F64x2PromoteLowF32x4) => {
                (&[], vec![I::F64Const(1f64.into()), I::F64x2Splat, I::F64x2Mul])
            }
            (TargetCompiler::Optimizable, Operator::F32x4DemoteF64x2Zero) => {
                (&[], vec![I::F32Const(1f32.into()), I::F32x4Splat, I::F32x4Mul])
            }
            _ => (&[], Vec::new()),
        }
    }
}

/// Whether the result of `operator` has no canonicalisation to come, for Singlepass.
fn is_settled(operator: &Operator) -> bool {
    use Operator as O;
    matches!(
        operator,
        O::LocalGet { .. }
            | O::GlobalGet { .. }
            | O::F32Load { .. }
            | O::F64Load { .. }
            | O::F32Const { .. }
            | O::F64Const { .. }
            | O::F32ReinterpretI32
            | O::F64ReinterpretI64
            | O::F32Copysign
            | O::F64Copysign
            | O::F32Min
            | O::F64Min
            | O::F32Max
            | O::F64Max
    )
}

/// Renumbers globals: mutable ones are imports now and come first.
struct Renumber {
    globals: Vec<u32>,
    compiler: TargetCompiler,
}

impl Reencode for Renumber {
    type Error = std::convert::Infallible;

    fn global_index(&mut self, global: u32) -> Result<u32, reencode::Error> {
        Ok(self.globals.get(global as usize).copied().unwrap_or(global))
    }

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: wasmparser::FunctionBody<'_>,
    ) -> Result<(), reencode::Error> {
        let mut function = self.new_function_with_parsed_locals(&body)?;
        let mut reader = body.get_operators_reader()?;
        let mut previous = Operator::Nop;
        while !reader.eof() {
            let operator = reader.read()?;
            let (before, behind) = self.compiler.around(&previous, &operator);
            for instruction in before {
                function.instruction(instruction);
            }
            function.instruction(&self.instruction(operator.clone())?);
            for instruction in &behind {
                function.instruction(instruction);
            }
            previous = operator;
        }
        code.function(&function);
        Ok(())
    }
}

#[derive(Default)]
struct Sections {
    types: TypeSection,
    imports: ImportSection,
    functions: FunctionSection,
    tables: TableSection,
    globals: GlobalSection,
    exports: ExportSection,
    elements: ElementSection,
    data_count: Option<u32>,
    code: CodeSection,
    data: DataSection,
}

impl Sections {
    fn assemble(&self, keeps_data: bool) -> Vec<u8> {
        let mut module = Module::new();
        module.section(&self.types).section(&self.imports).section(&self.functions);
        module.section(&self.tables).section(&self.globals).section(&self.exports);
        module.section(&self.elements);
        if keeps_data {
            module.section(&DataCountSection { count: self.data.len() });
        }
        module.section(&self.code);
        if keeps_data {
            module.section(&self.data);
        }
        module.finish()
    }
}

fn rewrite_for(bytes: &[u8], compiler: TargetCompiler) -> Result<(Vec<u8>, HostState), RewriteError> {
    let mut renumber = Renumber { globals: renumbered_globals(bytes)?, compiler };
    let mut sections = Sections::default();
    let mut state = HostState::default();
    let mut passive_segments = false;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::TypeSection(s) => renumber.parse_type_section(&mut sections.types, s)?,
            Payload::FunctionSection(s) => renumber.parse_function_section(&mut sections.functions, s)?,
            Payload::TableSection(s) => {
                for table in s.clone() {
                    state.table_bytes += table?.ty.initial * 8;
                }
                renumber.parse_table_section(&mut sections.tables, s)?;
            }
            Payload::MemorySection(s) => import_memory(s, &mut sections, &mut state)?,
            Payload::GlobalSection(s) => rewrite_globals(s, &mut renumber, &mut sections, &mut state)?,
            Payload::ExportSection(s) => renumber.parse_export_section(&mut sections.exports, s)?,
            Payload::StartSection { func, .. } => {
                sections.exports.export(START, ExportKind::Func, func);
                state.has_start = true;
            }
            Payload::ElementSection(s) => renumber.parse_element_section(&mut sections.elements, s)?,
            Payload::DataCountSection { count, .. } => sections.data_count = Some(count),
            Payload::CodeSectionEntry(body) => renumber.parse_function_body(&mut sections.code, body)?,
            Payload::DataSection(s) => passive_segments |= take_active_data(s, &mut sections, &mut state)?,
            Payload::CustomSection(section) => state.leaves_first_page |= section.name() == first_page::SECTION,
            _ => {}
        }
    }
    state.leaves_first_page &= state.memory_pages > 0 && state.data.iter().all(|(at, _)| u64::from(*at) >= HOST_PAGE);
    let keeps_data = passive_segments || sections.data_count.is_some();
    Ok((sections.assemble(keeps_data), state))
}

/// Makes the module's memory an import.
fn import_memory(
    section: wasmparser::MemorySectionReader<'_>,
    sections: &mut Sections,
    state: &mut HostState,
) -> Result<(), RewriteError> {
    for memory in section {
        let memory = memory?;
        state.memory_pages = memory.initial as u32;
        state.max_pages = memory.maximum.unwrap_or(MAX_PAGES) as u32;
    }
    let memory = MemoryType {
        minimum: u64::from(state.memory_pages),
        // The host's memory decides how far it may grow: it is larger by the operands.
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    };
    sections.imports.import(HOST_MODULE, MEMORY, EntityType::Memory(memory));
    Ok(())
}

/// Hands active data segments to the host and keeps passive ones. Returns whether there are passive ones.
fn take_active_data(
    section: wasmparser::DataSectionReader<'_>,
    sections: &mut Sections,
    state: &mut HostState,
) -> Result<bool, RewriteError> {
    let mut has_passive = false;
    for segment in section {
        let segment = segment?;
        match segment.kind {
            DataKind::Passive => {
                has_passive = true;
                sections.data.passive(segment.data.iter().copied());
            }
            DataKind::Active { offset_expr, .. } => {
                let Some(Initial::I32(address)) = constant(&offset_expr)? else {
                    return Err(RewriteError::NotConstant("a data segment's address".to_owned()));
                };
                state.data.push((address as u32, segment.data.to_vec()));
                // An empty segment keeps the numbers of the later ones.
                sections.data.passive([]);
            }
        }
    }
    Ok(has_passive)
}

/// New number of each global: the mutable ones first, both kinds in their old order.
fn renumbered_globals(bytes: &[u8]) -> Result<Vec<u32>, RewriteError> {
    let mut moved = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        if let Payload::GlobalSection(section) = payload? {
            for global in section {
                moved.push(global?.ty.mutable);
            }
        }
    }
    let imports = moved.iter().filter(|m| **m).count() as u32;
    let (mut next_import, mut next_own) = (0, imports);
    let number = |imported: &bool| {
        let next = if *imported { &mut next_import } else { &mut next_own };
        *next += 1;
        *next - 1
    };
    Ok(moved.iter().map(number).collect())
}

fn rewrite_globals(
    section: wasmparser::GlobalSectionReader<'_>,
    renumber: &mut Renumber,
    sections: &mut Sections,
    state: &mut HostState,
) -> Result<(), RewriteError> {
    for global in section {
        let global = global?;
        let ty = renumber.global_type(global.ty)?;
        if global.ty.mutable {
            let initial = constant(&global.init_expr)?;
            let name = global_name(state.globals.len());
            let initial = initial.ok_or_else(|| RewriteError::NotConstant(format!("mutable {name}")))?;
            sections.imports.import(HOST_MODULE, &name, EntityType::Global(ty));
            state.globals.push(initial);
        } else {
            let initial = renumber.const_expr(global.init_expr)?;
            sections.globals.global(ty, &initial);
        }
    }
    Ok(())
}

/// The value of a constant expression. Without imports, it is a literal.
fn constant(expression: &wasmparser::ConstExpr<'_>) -> Result<Option<Initial>, RewriteError> {
    Ok(match expression.get_operators_reader().read()? {
        Operator::I32Const { value } => Some(Initial::I32(value)),
        Operator::I64Const { value } => Some(Initial::I64(value)),
        Operator::F32Const { value } => Some(Initial::F32(value.bits())),
        Operator::F64Const { value } => Some(Initial::F64(value.bits())),
        Operator::V128Const { value } => Some(Initial::V128(u128::from_le_bytes(*value.bytes()))),
        _ => None,
    })
}

/// The imports that a rewritten module may have; anything else is a bug of this file.
#[cfg(test)]
fn imports_of(bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(bytes).flatten() {
        if let Payload::ImportSection(section) = payload {
            names.extend(section.into_iter().flatten().map(|i| match i.ty {
                wasmparser::TypeRef::Memory(_) => "memory".to_owned(),
                _ => i.name.to_owned(),
            }));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmparser::{Validator, WasmFeatures};

    #[test]
    fn state_moves_to_the_host_and_the_rest_stays_valid() {
        let bytes = wat::parse_str(
            r#"(module (memory (export "m") 2 9)
                (global $base i32 (i32.const 64)) (global $sp (mut i32) (i32.const 4096))
                (global $f (mut f64) (f64.const -0.5))
                (table 2 funcref) (elem (i32.const 0) $s $k)
                (data (i32.const 64) "hi") (data $p "passive") (data (i32.const 9) "x")
                (start $s)
                (func $s (global.set $sp (i32.add (global.get $sp) (global.get $base))))
                (func $k (export "k") (param i32 i32) (result i32)
                    (memory.init $p (i32.const 0) (i32.const 0) (i32.const 7))
                    (drop (f64.promote_f32 (f32.demote_f64 (global.get $f))))
                    (global.get $sp)))"#,
        )
        .unwrap();
        let rewritten = rewrite(&bytes).unwrap();
        assert_eq!(
            rewritten.state,
            HostState {
                memory_pages: 2,
                max_pages: 9,
                table_bytes: 16,
                globals: vec![Initial::I32(4096), Initial::F64((-0.5f64).to_bits())],
                data: vec![(64, b"hi".to_vec()), (9, b"x".to_vec())],
                has_start: true,
                leaves_first_page: false,
            }
        );
        for form in [&rewritten.baseline, &rewritten.optimizable] {
            Validator::new_with_features(WasmFeatures::WASM2).validate_all(form).unwrap();
            assert_eq!(imports_of(form), ["memory", "global0", "global1"]);
        }
        let found = multiplications(&rewritten.baseline);
        assert_eq!(found, 2, "one multiplication behind each of promote and demote");
        assert_eq!(multiplications(&rewritten.optimizable), 0);
    }

    /// Multiplications in the code of a module.
    fn multiplications(bytes: &[u8]) -> usize {
        let mut count = 0;
        for payload in Parser::new(0).parse_all(bytes).flatten() {
            if let Payload::CodeSectionEntry(body) = payload {
                let operators = body.get_operators_reader().unwrap().into_iter().flatten();
                count += operators.filter(|o| matches!(o, Operator::F64Mul | Operator::F32Mul)).count();
            }
        }
        count
    }
}
