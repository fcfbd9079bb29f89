//! Stack overflow safety of all code by LLVM: frames are probed so that they hit the guard page, and traps need no
//! stack.
//!
//! wasmer traps by a call that takes a backtrace on the kernel's own stack, under locks of the process. Where that is
//! nearly full, the call overflows, the kernel is left, and the locks are held forever. So a trap becomes an
//! instruction: its signal is handled on a stack of its own, as Singlepass's traps are.
//!
//! This is a part of the LLVM door of the crate's `unsafe`.
#![expect(unsafe_code, reason = "LLVM's C API")]

use llvm_sys::LLVMInlineAsmDialect::LLVMInlineAsmDialectATT;
use llvm_sys::LLVMOpcode;
use llvm_sys::core::*;
use llvm_sys::prelude::*;
use wasmer_compiler_llvm::{CompiledKind, InkwellMemoryBuffer, InkwellModule, LLVMCallbacks};

use super::llvm_functions::{add_text_attribute, defined_functions};

/// Changes each function before wasmer's passes run.
#[derive(Debug)]
pub(super) struct Frames;

impl LLVMCallbacks for Frames {
    fn preopt_ir(&self, _: &CompiledKind, module: &InkwellModule) {
        // SAFETY: the module is alive and nobody else uses it or its context during the callback.
        unsafe {
            probe_frames(module.as_mut_ptr());
            if cfg!(target_arch = "x86_64") {
                trap_without_calls(module.as_mut_ptr());
            }
        }
    }

    fn postopt_ir(&self, _: &CompiledKind, _: &InkwellModule) {}

    fn obj_memory_buffer(&self, _: &CompiledKind, _: &InkwellMemoryBuffer) {}
}

/// Has each function touch its frame every 2 KiB, from above, before it uses it. By default that is every 4 KiB, and
/// the red zone and the alignment of vectors come on top: a frame could then reach over the guard page of 4 KiB below a
/// stack.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile.
unsafe fn probe_frames(module: LLVMModuleRef) {
    // SAFETY: the attribute is made in the context of the module.
    unsafe {
        let context = LLVMGetModuleContext(module);
        for function in defined_functions(module) {
            add_text_attribute(context, function, "stack-probe-size", "2048");
        }
    }
}

/// Puts an instruction in the place of each call of `wasmer_vm_raise_trap`.
///
/// # Safety
/// `module` must be valid and not be used by anyone else meanwhile.
unsafe fn trap_without_calls(module: LLVMModuleRef) {
    // SAFETY: all handles come from this module; a call is erased after its successor was taken, and has no users.
    unsafe {
        let raise = LLVMGetNamedFunction(module, c"wasmer_vm_raise_trap".as_ptr());
        if raise.is_null() {
            return;
        }
        let builder = LLVMCreateBuilderInContext(LLVMGetModuleContext(module));
        let mut used = LLVMGetFirstUse(raise);
        while !used.is_null() {
            let call = LLVMGetUser(used);
            used = LLVMGetNextUse(used);
            if LLVMGetInstructionOpcode(call) == LLVMOpcode::LLVMCall && LLVMGetCalledValue(call) == raise {
                LLVMPositionBuilderBefore(builder, call);
                build_trap(builder, call);
                LLVMInstructionEraseFromParent(call);
            }
        }
        LLVMDisposeBuilder(builder);
    }
}

/// Builds the instruction that wasmer's signal handler knows, with the code of the trap in its last byte: `ud1` on
/// registers. A code that is chosen when it runs is one of three.
///
/// # Safety `call` must be a call of `wasmer_vm_raise_trap` in a module that nobody else uses, and `builder` be
/// positioned there.
unsafe fn build_trap(builder: LLVMBuilderRef, call: LLVMValueRef) {
    let ud1 = |code: u64| format!(".byte 0x0f, 0xb9, {:#x}", 0xc0 | code);
    // SAFETY: the operand is the code, a number of 32 bits; LLVM copies both texts.
    unsafe {
        let code = LLVMGetOperand(call, 0);
        let is_constant = !LLVMIsAConstantInt(code).is_null();
        let (mut text, mut constraints) = if is_constant {
            (ud1(LLVMConstIntGetZExtValue(code)), String::new())
        } else {
            // Overflow, division by zero, or no number to convert.
            let text =
                format!("cmpl $$6, $0\njne 2f\n{}\n2:\ncmpl $$7, $0\njne 3f\n{}\n3:\n{}", ud1(6), ud1(7), ud1(8));
            (text, "r,~{flags}".to_owned())
        };
        let (mut types, mut arguments) = ([LLVMTypeOf(code)], [code]);
        let count = u32::from(!is_constant);
        let void = LLVMVoidTypeInContext(LLVMGetTypeContext(types[0]));
        let function = LLVMFunctionType(void, types.as_mut_ptr(), count, 0);
        let assembly = LLVMGetInlineAsm(
            function,
            text.as_mut_ptr().cast(),
            text.len(),
            constraints.as_mut_ptr().cast(),
            constraints.len(),
            1,
            0,
            LLVMInlineAsmDialectATT,
            0,
        );
        LLVMBuildCall2(builder, function, assembly, arguments.as_mut_ptr(), count, c"".as_ptr());
    }
}
