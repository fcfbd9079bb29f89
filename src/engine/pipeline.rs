//! What LLVM does to a kernel: the full `default<O3>` pipeline for the host's own CPU instead of wasmer's short pass
//! list for a generic one.
//!
//! wasmer translates every guest load and store as `volatile` and all arithmetic as constrained floating-point
//! intrinsics; neither vectorizes. WebAssembly needs neither: it has one rounding mode and no visible floating-point
//! flags, and an access out of bounds faults whether or not it is volatile. So before wasmer's passes run the function
//! is rewritten to plain operations and marked `optnone`, which those passes skip; after them it is optimized for
//! real. Both ends are wasmer's public [`LLVMCallbacks`], so no linker tricks are needed and libraries get it too.
//!
//! This is the LLVM door of the crate's `unsafe`: the C API on the module that wasmer hands over for the time of the
//! call.
#![expect(unsafe_code, reason = "LLVM's C API")]

use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::canonical;
use super::frames::Frames;
use llvm_sys::core::*;
use llvm_sys::error::{LLVMDisposeErrorMessage, LLVMGetErrorMessage};
use llvm_sys::prelude::*;
use llvm_sys::target_machine::*;
use llvm_sys::transforms::pass_builder::*;
use llvm_sys::{LLVMAttributeIndex, LLVMOpcode, LLVMRealPredicate};
use wasmer_compiler_llvm::{CompiledKind, InkwellMemoryBuffer, InkwellModule, LLVMCallbacks};

/// Attribute index of a function itself, as in llvm-c/Core.h.
const ON_FUNCTION: LLVMAttributeIndex = u32::MAX;
const MAX_OPERANDS: u32 = 2;

/// The CPU that optimized code is made for, in LLVM's words.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Cpu {
    pub name: String,
    /// `+avx2,-avx512f,...`
    pub features: String,
}

impl Cpu {
    /// The CPU this process runs on.
    pub fn host() -> Cpu {
        // SAFETY: both calls return a fresh NUL-terminated string that the caller owns.
        unsafe { Cpu { name: owned(LLVMGetHostCPUName()), features: owned(LLVMGetHostCPUFeatures()) } }
    }
}

/// Takes over a string that LLVM allocated.
///
/// # Safety
/// `text` must be a NUL-terminated string from LLVM that nobody else frees.
unsafe fn owned(text: *mut c_char) -> String {
    // SAFETY: promised by the caller.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        LLVMDisposeMessage(text);
        copy
    }
}

/// Optimizes every function of a module for `cpu`.
#[derive(Debug)]
pub(super) struct Pipeline {
    cpu: Cpu,
    /// Functions that went through; the proof that wasmer called.
    optimized: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Pipeline {
    pub fn new(cpu: Cpu) -> Pipeline {
        Pipeline { cpu, optimized: AtomicU64::new(0), error: Mutex::new(None) }
    }

    /// How many functions have been optimized.
    pub fn optimized(&self) -> u64 {
        self.optimized.load(Ordering::Relaxed)
    }

    /// The first failure, if any; the function it happened in kept its unoptimized, correct form.
    pub fn error(&self) -> Option<String> {
        self.error.lock().map_or_else(|e| e.into_inner().clone(), |e| e.clone())
    }
}

impl LLVMCallbacks for Pipeline {
    fn preopt_ir(&self, kind: &CompiledKind, module: &InkwellModule) {
        Frames.preopt_ir(kind, module);
        if let CompiledKind::Local(_) = kind {
            // SAFETY: the module is alive and nobody else uses it or its context during the callback.
            unsafe { simplify(module.as_mut_ptr()) }
        }
    }

    fn postopt_ir(&self, kind: &CompiledKind, module: &InkwellModule) {
        if let CompiledKind::Local(_) = kind {
            // SAFETY: as above.
            let result = unsafe { optimize(module.as_mut_ptr(), &self.cpu) };
            match (result, self.error.lock()) {
                (Ok(()), _) => {
                    self.optimized.fetch_add(1, Ordering::Relaxed);
                }
                (Err(message), Ok(mut error)) => *error = Some(message),
                (Err(_), Err(_)) => {}
            }
        }
    }

    fn obj_memory_buffer(&self, _: &CompiledKind, _: &InkwellMemoryBuffer) {}
}

/// Adds an attribute of a function that is a pair of texts.
///
/// # Safety
/// `function` must be of a live module of `context`.
pub(super) unsafe fn add_text_attribute(context: LLVMContextRef, function: LLVMValueRef, key: &str, value: &str) {
    // SAFETY: LLVM copies both texts.
    unsafe {
        let (key_text, value_text) = (key.as_ptr().cast(), value.as_ptr().cast());
        let attribute = LLVMCreateStringAttribute(context, key_text, key.len() as u32, value_text, value.len() as u32);
        LLVMAddAttributeAtIndex(function, ON_FUNCTION, attribute);
    }
}

/// Clears `volatile`, turns constrained operations into plain ones, and hides the function from wasmer's passes.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile.
unsafe fn simplify(module: LLVMModuleRef) {
    // SAFETY: all handles below come from this module and its context; an instruction is erased only after its
    // successor was taken and its uses were replaced.
    unsafe {
        let context = LLVMGetModuleContext(module);
        let builder = LLVMCreateBuilderInContext(context);
        let strictfp = attribute_kind("strictfp");
        for function in defined_functions(module) {
            LLVMRemoveEnumAttributeAtIndex(function, ON_FUNCTION, strictfp);
            let mut block = LLVMGetFirstBasicBlock(function);
            while !block.is_null() {
                let mut instruction = LLVMGetFirstInstruction(block);
                while !instruction.is_null() {
                    let next = LLVMGetNextInstruction(instruction);
                    match LLVMGetInstructionOpcode(instruction) {
                        LLVMOpcode::LLVMLoad | LLVMOpcode::LLVMStore => LLVMSetVolatile(instruction, 0),
                        LLVMOpcode::LLVMCall => {
                            LLVMRemoveCallSiteEnumAttribute(instruction, ON_FUNCTION, strictfp);
                            replace_constrained(builder, instruction);
                        }
                        _ => {}
                    }
                    instruction = next;
                }
                block = LLVMGetNextBasicBlock(block);
            }
            for name in ["optnone", "noinline"] {
                let attribute = LLVMCreateEnumAttribute(context, attribute_kind(name), 0);
                LLVMAddAttributeAtIndex(function, ON_FUNCTION, attribute);
            }
        }
        LLVMDisposeBuilder(builder);
    }
}

/// Replaces a call of `llvm.experimental.constrained.*` by the plain instruction of the same meaning.
///
/// # Safety
/// `call` must be a call instruction in a module that nobody else uses.
unsafe fn replace_constrained(builder: LLVMBuilderRef, call: LLVMValueRef) {
    // SAFETY: operand counts are those of the intrinsics, which wasmer declared and LLVM's verifier checks.
    unsafe {
        let callee = LLVMGetCalledValue(call);
        let mut length = 0;
        let name = LLVMGetValueName2(callee, &mut length);
        if name.is_null() {
            return;
        }
        let name = std::slice::from_raw_parts(name.cast::<u8>(), length);
        let Some(operation) = name.strip_prefix(b"llvm.experimental.constrained.") else { return };
        let operation = operation.split(|b| *b == b'.').next().unwrap_or_default();
        LLVMPositionBuilderBefore(builder, call);
        let operand = |index: u32| {
            debug_assert!(index < MAX_OPERANDS);
            LLVMGetOperand(call, index)
        };
        let unnamed = c"".as_ptr();
        let result_type = LLVMTypeOf(call);
        let plain = match operation {
            b"fadd" => LLVMBuildFAdd(builder, operand(0), operand(1), unnamed),
            b"fsub" => LLVMBuildFSub(builder, operand(0), operand(1), unnamed),
            b"fmul" => LLVMBuildFMul(builder, operand(0), operand(1), unnamed),
            b"fdiv" => LLVMBuildFDiv(builder, operand(0), operand(1), unnamed),
            b"fpext" => LLVMBuildFPExt(builder, operand(0), result_type, unnamed),
            b"fptrunc" => LLVMBuildFPTrunc(builder, operand(0), result_type, unnamed),
            b"fcmp" | b"fcmps" => match predicate(LLVMGetOperand(call, 2)) {
                Some(predicate) => LLVMBuildFCmp(builder, predicate, operand(0), operand(1), unnamed),
                None => return,
            },
            _ => return,
        };
        LLVMReplaceAllUsesWith(call, plain);
        LLVMInstructionEraseFromParent(call);
    }
}

/// The comparison that the metadata operand of a constrained `fcmp` names.
///
/// # Safety
/// `metadata` must be a value of a live module.
unsafe fn predicate(metadata: LLVMValueRef) -> Option<LLVMRealPredicate> {
    let mut length = 0;
    // SAFETY: returns null for anything that is not a metadata string, else `length` bytes owned by the context.
    let text = unsafe {
        let text = LLVMGetMDString(metadata, &mut length);
        if text.is_null() {
            return None;
        }
        std::slice::from_raw_parts(text.cast::<u8>(), length as usize)
    };
    Some(match text {
        b"oeq" => LLVMRealPredicate::LLVMRealOEQ,
        b"ogt" => LLVMRealPredicate::LLVMRealOGT,
        b"oge" => LLVMRealPredicate::LLVMRealOGE,
        b"olt" => LLVMRealPredicate::LLVMRealOLT,
        b"ole" => LLVMRealPredicate::LLVMRealOLE,
        b"one" => LLVMRealPredicate::LLVMRealONE,
        b"ord" => LLVMRealPredicate::LLVMRealORD,
        b"ueq" => LLVMRealPredicate::LLVMRealUEQ,
        b"ugt" => LLVMRealPredicate::LLVMRealUGT,
        b"uge" => LLVMRealPredicate::LLVMRealUGE,
        b"ult" => LLVMRealPredicate::LLVMRealULT,
        b"ule" => LLVMRealPredicate::LLVMRealULE,
        b"une" => LLVMRealPredicate::LLVMRealUNE,
        b"uno" => LLVMRealPredicate::LLVMRealUNO,
        _ => return None,
    })
}

/// Runs `default<O3>` for `cpu` over the module.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile.
unsafe fn optimize(module: LLVMModuleRef, cpu: &Cpu) -> Result<(), String> {
    let interior_nul = |_| "a NUL in the CPU's description".to_owned();
    let name = CString::new(cpu.name.as_str()).map_err(interior_nul)?;
    let features = CString::new(cpu.features.as_str()).map_err(interior_nul)?;
    // SAFETY: handles are from this module; the target was initialised by wasmer before it translated the function;
    // everything created here is disposed of here.
    unsafe {
        let context = LLVMGetModuleContext(module);
        for function in defined_functions(module) {
            for name in ["optnone", "noinline"] {
                LLVMRemoveEnumAttributeAtIndex(function, ON_FUNCTION, attribute_kind(name));
            }
            for (key, value) in [
                // Codegen follows these rather than wasmer's generic target machine.
                ("target-cpu", cpu.name.as_str()),
                ("target-features", cpu.features.as_str()),
                // Otherwise runaway recursion becomes an endless loop instead of a stack overflow.
                ("disable-tail-calls", "true"),
                // Otherwise fill and copy loops become calls of memset and memcpy, which wasmer's loader does not know.
                ("no-builtins", ""),
            ] {
                add_text_attribute(context, function, key, value);
            }
        }
        let triple = LLVMGetTarget(module);
        let (mut target, mut message) = (null_mut(), null_mut());
        if LLVMGetTargetFromTriple(triple, &mut target, &mut message) != 0 {
            return Err(owned(message));
        }
        let machine = LLVMCreateTargetMachine(
            target,
            triple,
            name.as_ptr(),
            features.as_ptr(),
            LLVMCodeGenOptLevel::LLVMCodeGenLevelAggressive,
            LLVMRelocMode::LLVMRelocStatic,
            LLVMCodeModel::LLVMCodeModelLarge,
        );
        if machine.is_null() {
            return Err(format!("LLVM has no target machine for {}", cpu.name));
        }
        let options = LLVMCreatePassBuilderOptions();
        LLVMPassBuilderOptionsSetLoopVectorization(options, 1);
        LLVMPassBuilderOptionsSetSLPVectorization(options, 1);
        LLVMPassBuilderOptionsSetLoopInterleaving(options, 1);
        LLVMPassBuilderOptionsSetLoopUnrolling(options, 1);
        // Locals into registers first: only then is it seen which values stay inside arithmetic.
        let mut error = LLVMRunPasses(module, c"function(sroa)".as_ptr(), machine, options);
        if error.is_null() {
            let builder = LLVMCreateBuilderInContext(context);
            for function in defined_functions(module) {
                canonical::defer(function, builder);
            }
            LLVMDisposeBuilder(builder);
            error = LLVMRunPasses(module, c"default<O3>".as_ptr(), machine, options);
        }
        LLVMDisposePassBuilderOptions(options);
        LLVMDisposeTargetMachine(machine);
        if error.is_null() {
            return Ok(());
        }
        let message = LLVMGetErrorMessage(error);
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(message);
        Err(text)
    }
}

/// The functions of a module that have a body.
///
/// # Safety
/// `module` must be valid.
pub(super) unsafe fn defined_functions(module: LLVMModuleRef) -> Vec<LLVMValueRef> {
    let mut functions = Vec::new();
    // SAFETY: the list is only walked.
    unsafe {
        let mut function = LLVMGetFirstFunction(module);
        while !function.is_null() {
            if LLVMIsDeclaration(function) == 0 {
                functions.push(function);
            }
            function = LLVMGetNextFunction(function);
        }
    }
    functions
}

fn attribute_kind(name: &str) -> u32 {
    // SAFETY: looks the name up in a constant table.
    unsafe { LLVMGetEnumAttributeKindForName(name.as_ptr().cast(), name.len()) }
}
