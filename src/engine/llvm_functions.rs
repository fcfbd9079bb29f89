//! The functions of an LLVM module, and attributes of functions. A part of the LLVM door of the crate's `unsafe`.
#![expect(unsafe_code, reason = "LLVM's C API")]

use llvm_sys::LLVMAttributeIndex;
use llvm_sys::core::*;
use llvm_sys::prelude::*;

/// Attribute index of a function itself, as in llvm-c/Core.h.
pub(super) const ON_FUNCTION: LLVMAttributeIndex = u32::MAX;

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

pub(super) fn attribute_kind(name: &str) -> u32 {
    // SAFETY: looks the name up in a constant table.
    unsafe { LLVMGetEnumAttributeKindForName(name.as_ptr().cast(), name.len()) }
}
