//! Canonicalization of the NaNs of LLVM's code, only where their bits are observable.
//!
//! Every operation that can make a NaN is followed by a selection of the canonical one: the result is then a function
//! of the operands, whatever constants LLVM folds and in whatever order it takes operands. wasmer's own way is not
//! used: it keeps a NaN that came from a constant, and forgets 128-bit operations.
//!
//! Arithmetic and comparisons do not see which NaN they get, so they may as well get the raw one; only what leaves a
//! sum has to be canonical. Both forms give the same bits wherever bits can be seen.
#![expect(unsafe_code, reason = "LLVM's C API")]

use llvm_sys::core::*;
use llvm_sys::prelude::*;
use llvm_sys::{LLVMOpcode, LLVMRealPredicate, LLVMTypeKind};

/// Intrinsics, constrained ones among them, whose result is a NaN of LLVM's choice for some operands.
const MAKING: [&str; 11] = [
    "llvm.experimental.constrained.fadd.",
    "llvm.experimental.constrained.fsub.",
    "llvm.experimental.constrained.fmul.",
    "llvm.experimental.constrained.fdiv.",
    "llvm.experimental.constrained.fpext.",
    "llvm.experimental.constrained.fptrunc.",
    "llvm.sqrt.",
    "llvm.ceil.",
    "llvm.floor.",
    "llvm.trunc.",
    "llvm.nearbyint.",
];

/// Whether `call` calls an intrinsic that can make a NaN.
///
/// # Safety
/// `call` must be a call instruction.
pub(super) unsafe fn makes_nans(call: LLVMValueRef) -> bool {
    // SAFETY: promised by the caller.
    unsafe { callee_name(call) }.is_some_and(|name| MAKING.iter().any(|making| name.starts_with(making)))
}

/// The name of the function that `call` calls.
///
/// # Safety
/// `call` must be a call instruction; the name lives as long as its module.
pub(super) unsafe fn callee_name<'a>(call: LLVMValueRef) -> Option<&'a str> {
    // SAFETY: LLVM returns null or `length` bytes that the module owns.
    unsafe {
        let mut length = 0;
        let name = LLVMGetValueName2(LLVMGetCalledValue(call), &mut length);
        if name.is_null() {
            return None;
        }
        std::str::from_utf8(std::slice::from_raw_parts(name.cast::<u8>(), length)).ok()
    }
}

/// Builds `value` with NaNs made canonical where `builder` stands.
///
/// # Safety
/// `value` must be a float, or a vector of floats, that dominates the place.
pub(super) unsafe fn canonical(builder: LLVMBuilderRef, value: LLVMValueRef) -> LLVMValueRef {
    // SAFETY: both operands have the type of the value.
    unsafe {
        let ty = LLVMTypeOf(value);
        let zero = LLVMConstNull(ty);
        let is_nan = LLVMBuildFCmp(builder, LLVMRealPredicate::LLVMRealUNO, value, zero, c"".as_ptr());
        LLVMBuildSelect(builder, is_nan, nan(ty), value, c"".as_ptr())
    }
}

/// Gives the users of `instruction` its result with NaNs made canonical.
///
/// # Safety
/// `instruction` must make a float or a vector of floats and be followed by another one.
pub(super) unsafe fn canonicalise(builder: LLVMBuilderRef, instruction: LLVMValueRef) {
    // SAFETY: the new instructions stand right behind the old one, so they dominate all its users.
    unsafe {
        let users = users(instruction);
        LLVMPositionBuilderBefore(builder, LLVMGetNextInstruction(instruction));
        let canonical = canonical(builder, instruction);
        replace_uses(instruction, canonical, |user| users.contains(&user));
    }
}

/// The canonical NaN, in every lane of a vector.
///
/// # Safety
/// `ty` must be a float or a vector of floats.
pub(super) unsafe fn nan(ty: LLVMTypeRef) -> LLVMValueRef {
    // SAFETY: the element type is asked for of vectors only.
    unsafe {
        if LLVMGetTypeKind(ty) != LLVMTypeKind::LLVMVectorTypeKind {
            return LLVMConstReal(ty, f64::NAN);
        }
        let mut lanes = vec![LLVMConstReal(LLVMGetElementType(ty), f64::NAN); LLVMGetVectorSize(ty) as usize];
        LLVMConstVector(lanes.as_mut_ptr(), lanes.len() as u32)
    }
}

/// Rewrites a function whose locals are in registers already.
///
/// # Safety
/// `function` must be a function with a body, in a module that nobody else uses.
pub(super) unsafe fn defer(function: LLVMValueRef, builder: LLVMBuilderRef) {
    // SAFETY: handles come from this function; nothing is erased, only operands are changed and instructions added.
    unsafe {
        let (mut selects, mut phis) = (Vec::new(), Vec::new());
        let mut block = LLVMGetFirstBasicBlock(function);
        while !block.is_null() {
            let mut instruction = LLVMGetFirstInstruction(block);
            while !instruction.is_null() {
                match LLVMGetInstructionOpcode(instruction) {
                    LLVMOpcode::LLVMSelect if raw(instruction).is_some() => selects.push(instruction),
                    LLVMOpcode::LLVMPHI if is_float(instruction) => phis.push(instruction),
                    _ => {}
                }
                instruction = LLVMGetNextInstruction(instruction);
            }
            block = LLVMGetNextBasicBlock(block);
        }
        let mut deferred = Vec::new();
        for phi in phis {
            defer_phi(phi, builder, &mut deferred);
        }
        for select in selects {
            if let Some(raw) = raw(select) {
                replace_uses(select, raw, |user| is_blind(user, &deferred, DEPTH) && !tests_nan(user));
            }
        }
    }
}

/// For a phi of canonical values only: lets the raw ones in, and canonicalises for those who look at bits.
unsafe fn defer_phi(phi: LLVMValueRef, builder: LLVMBuilderRef, deferred: &mut Vec<LLVMValueRef>) {
    // SAFETY: as in `defer`; the new instructions stand behind the phis of the block, so they dominate what the phi
    // does.
    unsafe {
        let incoming: Vec<LLVMValueRef> = (0..LLVMCountIncoming(phi)).map(|i| LLVMGetIncomingValue(phi, i)).collect();
        // A value that may be a NaN of another kind, a loaded one say, must come through unchanged.
        let known = |value: &LLVMValueRef| raw(*value).is_some() || is_number(*value);
        if !incoming.iter().all(known) || !incoming.iter().any(|value| raw(*value).is_some()) {
            return;
        }
        let mut next = phi;
        while LLVMGetInstructionOpcode(next) == LLVMOpcode::LLVMPHI {
            next = LLVMGetNextInstruction(next);
        }
        LLVMPositionBuilderBefore(builder, next);
        let seen: Vec<_> = users(phi).into_iter().filter(|user| *user != phi).collect();
        let canonical = canonical(builder, phi);
        replace_uses(phi, canonical, |user| seen.contains(&user) && !is_blind(user, deferred, DEPTH));
        deferred.push(phi);
        for (position, value) in (0..).zip(incoming) {
            if let Some(raw) = raw(value) {
                LLVMSetOperand(phi, position, raw);
            }
        }
    }
}

/// `x`, if `value` is `x` with NaNs made canonical as above: `select (fcmp uno x, 0), NaN, x`.
unsafe fn raw(value: LLVMValueRef) -> Option<LLVMValueRef> {
    // SAFETY: operands are asked for only of instructions that have them.
    unsafe {
        if !is(value, LLVMOpcode::LLVMSelect) || !is_float(value) {
            return None;
        }
        let (condition, chosen, x) = (LLVMGetOperand(value, 0), LLVMGetOperand(value, 1), LLVMGetOperand(value, 2));
        let tests = is(condition, LLVMOpcode::LLVMFCmp)
            && LLVMGetFCmpPredicate(condition) == LLVMRealPredicate::LLVMRealUNO
            && LLVMGetOperand(condition, 0) == x
            && (LLVMGetOperand(condition, 1) == x || is_number(LLVMGetOperand(condition, 1)));
        (tests && chosen == nan(LLVMTypeOf(value))).then_some(x)
    }
}

/// How far sums of sums are followed.
const DEPTH: u32 = 8;

/// Whether nobody can tell by `user` which NaN it was given: a comparison, or an operation on floats whose result is
/// compared, made canonical, kept in a deferred phi, or an operand of such an operation again.
unsafe fn is_blind(user: LLVMValueRef, deferred: &[LLVMValueRef], depth: u32) -> bool {
    // SAFETY: walks the uses of an instruction and asks for opcodes only.
    unsafe {
        if is(user, LLVMOpcode::LLVMFCmp) {
            return true;
        }
        passes_floats_on(user)
            && depth > 0
            && users(user)
                .into_iter()
                .all(|seen| raw(seen) == Some(user) || deferred.contains(&seen) || is_blind(seen, deferred, depth - 1))
    }
}

/// Whether `user` is an operation whose result is a NaN of some kind for whichever NaN it is given.
unsafe fn passes_floats_on(user: LLVMValueRef) -> bool {
    use LLVMOpcode::{LLVMCall, LLVMFAdd, LLVMFDiv, LLVMFMul, LLVMFNeg, LLVMFPExt, LLVMFPTrunc, LLVMFSub};
    // SAFETY: the callee is asked for of calls only.
    unsafe {
        [LLVMFAdd, LLVMFSub, LLVMFMul, LLVMFDiv, LLVMFNeg, LLVMFPExt, LLVMFPTrunc].iter().any(|code| is(user, *code))
            || is(user, LLVMCall)
                && (makes_nans(user) || callee_name(user).is_some_and(|name| name.starts_with("llvm.fabs.")))
    }
}

/// A comparison that only asks whether its operand is a NaN belongs to the pattern itself and stays.
unsafe fn tests_nan(user: LLVMValueRef) -> bool {
    // SAFETY: the predicate is asked for of comparisons only.
    unsafe { is(user, LLVMOpcode::LLVMFCmp) && LLVMGetFCmpPredicate(user) == LLVMRealPredicate::LLVMRealUNO }
}

unsafe fn is(value: LLVMValueRef, opcode: LLVMOpcode) -> bool {
    // SAFETY: the opcode is asked for after it is known to be an instruction.
    unsafe { !LLVMIsAInstruction(value).is_null() && LLVMGetInstructionOpcode(value) == opcode }
}

/// A float of 32 or 64 bits, or a vector of them.
unsafe fn is_float(value: LLVMValueRef) -> bool {
    // SAFETY: every value has a type; the element type is asked for of vectors only.
    let kind = unsafe {
        let ty = LLVMTypeOf(value);
        match LLVMGetTypeKind(ty) {
            LLVMTypeKind::LLVMVectorTypeKind => LLVMGetTypeKind(LLVMGetElementType(ty)),
            kind => kind,
        }
    };
    matches!(kind, LLVMTypeKind::LLVMFloatTypeKind | LLVMTypeKind::LLVMDoubleTypeKind)
}

/// A constant that is no NaN.
unsafe fn is_number(value: LLVMValueRef) -> bool {
    // SAFETY: the double is asked for after it is known to be a constant float.
    unsafe {
        let mut inexact = 0;
        LLVMIsNull(value) != 0
            || !LLVMIsAConstantFP(value).is_null() && !LLVMConstRealGetDouble(value, &mut inexact).is_nan()
    }
}

/// Puts `new` in the place of `old` in the operands of those users that `wanted` picks.
unsafe fn replace_uses(old: LLVMValueRef, new: LLVMValueRef, wanted: impl Fn(LLVMValueRef) -> bool) {
    // SAFETY: the users are collected before any operand is changed.
    unsafe {
        for user in users(old).into_iter().filter(|user| wanted(*user)) {
            for position in 0..LLVMGetNumOperands(user) as u32 {
                if LLVMGetOperand(user, position) == old {
                    LLVMSetOperand(user, position, new);
                }
            }
        }
    }
}

/// The instructions that `value` is an operand of, once for each time.
///
/// # Safety
/// `value` must be live.
pub(super) unsafe fn users(value: LLVMValueRef) -> Vec<LLVMValueRef> {
    let mut users = Vec::new();
    // SAFETY: only walks the list of uses.
    unsafe {
        let mut used = LLVMGetFirstUse(value);
        while !used.is_null() {
            users.push(LLVMGetUser(used));
            used = LLVMGetNextUse(used);
        }
    }
    users
}
