//! The optimizing pipeline: LLVM's full `default<O3>` for the host CPU instead of wasmer's short pass list for a
//! generic CPU.
//!
//! wasmer translates every guest load and store as `volatile` and all arithmetic as constrained floating-point
//! intrinsics; neither vectorizes. WebAssembly has one rounding mode and no visible floating-point flags, and an access
//! out of bounds faults whether or not it is volatile, if only it is there. So before wasmer's passes run the function
//! is rewritten to plain operations and marked `optnone`, which those passes skip; after them it is optimized for real,
//! without `volatile` where `volatile_accesses.rs` finds no need of it. Both ends are wasmer's public
//! [`LLVMCallbacks`], so no linker tricks are needed and libraries get it too.
//!
//! This is the LLVM door of the crate's `unsafe`: the C API on the module that wasmer hands over for the time of the
//! call.
#![expect(unsafe_code, reason = "LLVM's C API")]

use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::frames::Frames;
use super::llvm_functions::{ON_FUNCTION, add_text_attribute, attribute_kind, defined_functions};
use super::volatile_accesses;
use crate::engine::nan_canonicalization;
use llvm_sys::core::*;
use llvm_sys::error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage};
use llvm_sys::prelude::*;
use llvm_sys::target_machine::*;
use llvm_sys::transforms::pass_builder::*;
use llvm_sys::{LLVMOpcode, LLVMRealPredicate};
use wasmer_compiler_llvm::{CompiledKind, InkwellMemoryBuffer, InkwellModule, LLVMCallbacks};

const MAX_OPERANDS: u32 = 2;

/// The CPU that optimized code is made for, in LLVM's terms.
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

/// The callbacks of every compile by LLVM: stack probes and canonical NaNs, and optimization if a CPU is given.
#[derive(Debug)]
pub(super) struct FullPipeline {
    cpu: Option<Cpu>,
    /// The number of optimized functions, which shows that wasmer called this.
    optimized: AtomicU64,
    error: Mutex<Option<String>>,
}

impl FullPipeline {
    pub fn new(cpu: Option<Cpu>) -> FullPipeline {
        FullPipeline { cpu, optimized: AtomicU64::new(0), error: Mutex::new(None) }
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

impl LLVMCallbacks for FullPipeline {
    fn preopt_ir(&self, kind: &CompiledKind, module: &InkwellModule) {
        Frames.preopt_ir(kind, module);
        if let CompiledKind::Local(_) = kind {
            // SAFETY: the module is alive and nobody else uses it or its context during the callback.
            unsafe { simplify(module.as_mut_ptr(), self.cpu.is_some()) }
        }
    }

    fn postopt_ir(&self, kind: &CompiledKind, module: &InkwellModule) {
        if let (CompiledKind::Local(_), Some(cpu)) = (kind, &self.cpu) {
            // SAFETY: as above.
            let result = unsafe { optimize(module.as_mut_ptr(), cpu) };
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

/// Makes NaNs canonical. For the full pipeline also turns constrained operations into plain ones, and hides the
/// function from wasmer's passes.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile.
unsafe fn simplify(module: LLVMModuleRef, full: bool) {
    // SAFETY: all handles below come from this module and its context; an instruction is erased only after its
    // successor was taken and its uses were replaced.
    unsafe {
        let context = LLVMGetModuleContext(module);
        let builder = LLVMCreateBuilderInContext(context);
        let strictfp = attribute_kind("strictfp");
        for function in defined_functions(module) {
            if full {
                LLVMRemoveEnumAttributeAtIndex(function, ON_FUNCTION, strictfp);
                for name in ["optnone", "noinline"] {
                    let attribute = LLVMCreateEnumAttribute(context, attribute_kind(name), 0);
                    LLVMAddAttributeAtIndex(function, ON_FUNCTION, attribute);
                }
            }
            let mut block = LLVMGetFirstBasicBlock(function);
            while !block.is_null() {
                let mut instruction = LLVMGetFirstInstruction(block);
                while !instruction.is_null() {
                    let next = LLVMGetNextInstruction(instruction);
                    if LLVMGetInstructionOpcode(instruction) == LLVMOpcode::LLVMCall {
                        if full {
                            LLVMRemoveCallSiteEnumAttribute(instruction, ON_FUNCTION, strictfp);
                        }
                        if !(full && replace_constrained(builder, instruction))
                            && nan_canonicalization::makes_nans(instruction)
                        {
                            nan_canonicalization::canonicalise(builder, instruction);
                        }
                    }
                    instruction = next;
                }
                block = LLVMGetNextBasicBlock(block);
            }
        }
        LLVMDisposeBuilder(builder);
    }
}

/// Replaces a call of `llvm.experimental.constrained.*` by the plain instruction of the same meaning, with NaNs made
/// canonical. False if it is another call.
///
/// # Safety
/// `call` must be a call instruction in a module that nobody else uses.
unsafe fn replace_constrained(builder: LLVMBuilderRef, call: LLVMValueRef) -> bool {
    // SAFETY: operand counts are those of the intrinsics, which wasmer declared and LLVM's verifier checks.
    unsafe {
        let name = nan_canonicalization::callee_name(call)
            .and_then(|name| name.strip_prefix("llvm.experimental.constrained."));
        let Some(operation) = name.and_then(|name| name.split('.').next()) else { return false };
        LLVMPositionBuilderBefore(builder, call);
        let operand = |index: u32| {
            debug_assert!(index < MAX_OPERANDS);
            LLVMGetOperand(call, index)
        };
        let unnamed = c"".as_ptr();
        let result_type = LLVMTypeOf(call);
        let plain = match operation {
            "fadd" if quiets_nans_only(call) => nan_canonicalization::nan(result_type),
            "fadd" => LLVMBuildFAdd(builder, operand(0), operand(1), unnamed),
            "fsub" => LLVMBuildFSub(builder, operand(0), operand(1), unnamed),
            "fmul" => LLVMBuildFMul(builder, operand(0), operand(1), unnamed),
            "fdiv" => LLVMBuildFDiv(builder, operand(0), operand(1), unnamed),
            "fpext" => LLVMBuildFPExt(builder, operand(0), result_type, unnamed),
            "fptrunc" => LLVMBuildFPTrunc(builder, operand(0), result_type, unnamed),
            "fcmp" | "fcmps" => match predicate(LLVMGetOperand(call, 2)) {
                Some(predicate) => LLVMBuildFCmp(builder, predicate, operand(0), operand(1), unnamed),
                None => return false,
            },
            _ => return false,
        };
        let replacement =
            if operation.starts_with("fcmp") { plain } else { nan_canonicalization::canonical(builder, plain) };
        LLVMReplaceAllUsesWith(call, replacement);
        LLVMInstructionEraseFromParent(call);
        true
    }
}

/// Whether `call` adds zero to a value and is looked at only where that is a NaN: so wasmer quiets NaNs in `min` and
/// `max`.
///
/// # Safety
/// `call` must be a call of a constrained `fadd`, with comparisons before it replaced by plain ones.
unsafe fn quiets_nans_only(call: LLVMValueRef) -> bool {
    // SAFETY: opcodes are asked for of instructions, operands of instructions that have them.
    unsafe {
        let value = LLVMGetOperand(call, 0);
        let tests_value = |condition: LLVMValueRef| {
            !LLVMIsAFCmpInst(condition).is_null()
                && LLVMGetFCmpPredicate(condition) == LLVMRealPredicate::LLVMRealUNO
                && LLVMGetOperand(condition, 0) == value
                && LLVMIsNull(LLVMGetOperand(condition, 1)) != 0
        };
        let chosen_for_nan = |user: &LLVMValueRef| {
            !LLVMIsASelectInst(*user).is_null()
                && LLVMGetOperand(*user, 1) == call
                && LLVMGetOperand(*user, 2) != call
                && tests_value(LLVMGetOperand(*user, 0))
        };
        let users = nan_canonicalization::users(call);
        LLVMIsNull(LLVMGetOperand(call, 1)) != 0 && !users.is_empty() && users.iter().all(chosen_for_nan)
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
        set_attributes(module, cpu);
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
        let error = run_passes(module, machine, options);
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

/// Makes the functions visible to passes again, and sets the CPU that code is made for.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile.
unsafe fn set_attributes(module: LLVMModuleRef, cpu: &Cpu) {
    // SAFETY: handles are from this module.
    unsafe {
        let context = LLVMGetModuleContext(module);
        for function in defined_functions(module) {
            for name in ["optnone", "noinline"] {
                LLVMRemoveEnumAttributeAtIndex(function, ON_FUNCTION, attribute_kind(name));
            }
            for (key, value) in [
                // Code generation follows these rather than wasmer's generic target machine.
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
    }
}

/// Runs `default<O3>`, with the deferral of NaN canonicalization and the release of volatile accesses before it.
/// Returns LLVM's error, or null.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile; `machine` and `options` must be alive.
unsafe fn run_passes(
    module: LLVMModuleRef,
    machine: LLVMTargetMachineRef,
    options: LLVMPassBuilderOptionsRef,
) -> LLVMErrorRef {
    // SAFETY: promised by the caller; the builder created here is disposed of here.
    unsafe {
        // Locals go into registers first: only then is it known which values stay inside arithmetic.
        let error = LLVMRunPasses(module, c"function(sroa,early-cse)".as_ptr(), machine, options);
        if !error.is_null() {
            return error;
        }
        let builder = LLVMCreateBuilderInContext(LLVMGetModuleContext(module));
        for function in defined_functions(module) {
            nan_canonicalization::defer(function, builder);
        }
        LLVMDisposeBuilder(builder);
        // After these passes the only unused values left are those of volatile accesses.
        let error = LLVMRunPasses(module, c"function(instcombine,simplifycfg,adce)".as_ptr(), machine, options);
        if !error.is_null() {
            return error;
        }
        for function in defined_functions(module) {
            volatile_accesses::release(function);
        }
        LLVMRunPasses(module, c"default<O3>".as_ptr(), machine, options)
    }
}
