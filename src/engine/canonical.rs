//! Takes NaN canonicalisation out of loops that only add up.
//!
//! wasmer canonicalises a NaN when a float reaches a local, so a sum in a loop waits for an addition, a comparison and a
//! selection in every round. Arithmetic and comparisons do not see which NaN they get, so they may as well get the raw
//! one; only what leaves the loop has to be canonical. Both forms give the same bits wherever bits can be seen.
#![expect(unsafe_code, reason = "LLVM's C API")]

use llvm_sys::core::*;
use llvm_sys::prelude::*;
use llvm_sys::{LLVMOpcode, LLVMRealPredicate, LLVMTypeKind};

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
    // SAFETY: as in `defer`; the new instructions stand behind the phis of the block, so they dominate what the phi does.
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
        let ty = LLVMTypeOf(phi);
        let is_nan = LLVMBuildFCmp(builder, LLVMRealPredicate::LLVMRealUNO, phi, LLVMConstNull(ty), c"".as_ptr());
        let canonical = LLVMBuildSelect(builder, is_nan, LLVMConstReal(ty, f64::NAN), phi, c"".as_ptr());
        replace_uses(phi, canonical, |user| {
            user != is_nan && user != canonical && user != phi && !is_blind(user, deferred, DEPTH)
        });
        deferred.push(phi);
        for (position, value) in (0..).zip(incoming) {
            if let Some(raw) = raw(value) {
                LLVMSetOperand(phi, position, raw);
            }
        }
    }
}

/// `x`, if `value` is `x` with NaNs made canonical, as wasmer writes it: `select (fcmp uno x, 0), NaN, x`.
unsafe fn raw(value: LLVMValueRef) -> Option<LLVMValueRef> {
    // SAFETY: operands are asked for only of instructions that have them.
    unsafe {
        if !is(value, LLVMOpcode::LLVMSelect) || !is_float(value) {
            return None;
        }
        let (condition, nan, x) = (LLVMGetOperand(value, 0), LLVMGetOperand(value, 1), LLVMGetOperand(value, 2));
        let tests = is(condition, LLVMOpcode::LLVMFCmp)
            && LLVMGetFCmpPredicate(condition) == LLVMRealPredicate::LLVMRealUNO
            && LLVMGetOperand(condition, 0) == x
            && (LLVMGetOperand(condition, 1) == x || is_number(LLVMGetOperand(condition, 1)));
        (tests && nan == LLVMConstReal(LLVMTypeOf(value), f64::NAN)).then_some(x)
    }
}

/// How far sums of sums are followed.
const DEPTH: u32 = 8;

/// Whether nobody can tell by `user` which NaN it was given: a comparison, or arithmetic whose result is compared, made
/// canonical, kept in a deferred phi, or an operand of such arithmetic again.
unsafe fn is_blind(user: LLVMValueRef, deferred: &[LLVMValueRef], depth: u32) -> bool {
    use LLVMOpcode::{LLVMFAdd, LLVMFCmp, LLVMFDiv, LLVMFMul, LLVMFSub};
    // SAFETY: walks the uses of an instruction and asks for opcodes only.
    unsafe {
        if is(user, LLVMFCmp) {
            return true;
        }
        let is_arithmetic = [LLVMFAdd, LLVMFSub, LLVMFMul, LLVMFDiv].into_iter().any(|opcode| is(user, opcode));
        is_arithmetic
            && depth > 0
            && users(user)
                .into_iter()
                .all(|seen| raw(seen) == Some(user) || deferred.contains(&seen) || is_blind(seen, deferred, depth - 1))
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

/// A scalar of 32 or 64 bits.
unsafe fn is_float(value: LLVMValueRef) -> bool {
    // SAFETY: every value has a type.
    let kind = unsafe { LLVMGetTypeKind(LLVMTypeOf(value)) };
    matches!(kind, LLVMTypeKind::LLVMFloatTypeKind | LLVMTypeKind::LLVMDoubleTypeKind)
}

/// A constant that is no NaN.
unsafe fn is_number(value: LLVMValueRef) -> bool {
    // SAFETY: the double is asked for after it is known to be a constant float.
    unsafe {
        let mut inexact = 0;
        !LLVMIsAConstantFP(value).is_null() && !LLVMConstRealGetDouble(value, &mut inexact).is_nan()
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

unsafe fn users(value: LLVMValueRef) -> Vec<LLVMValueRef> {
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
