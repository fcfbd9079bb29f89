//! Removal of `volatile` from loads and stores that LLVM may then optimize.
//!
//! wasmer marks every access to guest memory as volatile, so that an access outside traps even if its value is of no
//! use. That stops vectorization. Here the mark goes from those that LLVM has no reason to drop: loads whose value is
//! used wherever control goes from them, and stores of anything but what is there already. The others keep it: a load
//! that nobody uses, one that is used on some paths only (it would be moved there), one of which a loop keeps the last
//! alone.
#![expect(unsafe_code, reason = "LLVM's C API")]

use std::collections::{HashMap, HashSet};

use llvm_sys::LLVMOpcode;
use llvm_sys::core::*;
use llvm_sys::prelude::*;

use crate::engine::nan_canonicalization::{callee_name, users};

/// Most users and blocks that are visited for one value; beyond that it stays volatile.
const PATIENCE: usize = 500;

/// Takes `volatile` from the accesses of a function that are safe without it.
///
/// # Safety
/// `function` must be a function with a body, in a module that nobody else uses, simplified already.
pub(super) unsafe fn release(function: LLVMValueRef) {
    // SAFETY: reads the function, then changes flags of instructions in it.
    unsafe {
        let flow = Flow::new(function);
        let phis = flow.phis();
        let mut safe = Vec::new();
        for access in flow.instructions.iter().copied() {
            match LLVMGetInstructionOpcode(access) {
                LLVMOpcode::LLVMLoad
                    if LLVMGetVolatile(access) != 0
                        && (precedes_store(access) || flow.is_used(access, &phis, false)) =>
                {
                    safe.push(access);
                }
                LLVMOpcode::LLVMStore if !stores_what_is_there(access) => safe.push(access),
                _ => {}
            }
        }
        for access in safe {
            LLVMSetVolatile(access, 0);
        }
    }
}

/// A function's blocks and how control goes from one to another.
struct Flow {
    instructions: Vec<LLVMValueRef>,
    phis: Vec<LLVMValueRef>,
    successors: HashMap<LLVMBasicBlockRef, Vec<LLVMBasicBlockRef>>,
    /// Blocks at whose end the function returns. Others without successors trap.
    returns: HashSet<LLVMBasicBlockRef>,
}

/// Where a value has an effect: in some blocks, and on some ways from one block to the next, as part of a phi.
#[derive(Default)]
struct Effects {
    blocks: HashSet<LLVMBasicBlockRef>,
    edges: HashSet<(LLVMBasicBlockRef, LLVMBasicBlockRef)>,
    /// Loops that carry it on, by their first block, with the blocks from which they come round.
    loops: HashMap<LLVMBasicBlockRef, HashSet<LLVMBasicBlockRef>>,
}

/// What is known of phis.
#[derive(Default)]
struct Phis {
    /// Those that a round of their loop may go by without using.
    useless: HashSet<LLVMValueRef>,
    /// Those that are computed from themselves, with the blocks from which their loop comes round.
    carried: HashMap<LLVMValueRef, HashSet<LLVMBasicBlockRef>>,
}

impl Flow {
    unsafe fn new(function: LLVMValueRef) -> Flow {
        let mut flow =
            Flow { instructions: Vec::new(), phis: Vec::new(), successors: HashMap::new(), returns: HashSet::new() };
        // SAFETY: walks the function.
        unsafe {
            let mut block = LLVMGetFirstBasicBlock(function);
            while !block.is_null() {
                let mut instruction = LLVMGetFirstInstruction(block);
                while !instruction.is_null() {
                    match LLVMGetInstructionOpcode(instruction) {
                        LLVMOpcode::LLVMPHI => flow.phis.push(instruction),
                        _ => flow.instructions.push(instruction),
                    }
                    instruction = LLVMGetNextInstruction(instruction);
                }
                let end = LLVMGetBasicBlockTerminator(block);
                let next = (0..LLVMGetNumSuccessors(end)).map(|i| LLVMGetSuccessor(end, i)).collect();
                flow.successors.insert(block, next);
                if LLVMGetInstructionOpcode(end) == LLVMOpcode::LLVMRet {
                    flow.returns.insert(block);
                }
                block = LLVMGetNextBasicBlock(block);
            }
        }
        flow
    }

    /// Whether `value` has an effect wherever control goes from it before it comes round again, traps aside. What a
    /// loop carries on is computed in every round, whether or not anybody wants the last. `may_return` is for phis,
    /// which no pass moves out of a loop.
    unsafe fn is_used(&self, value: LLVMValueRef, phis: &Phis, may_return: bool) -> bool {
        // SAFETY: `value` is an instruction of the function.
        let (effects, start) = unsafe { (effects(value, phis), LLVMGetInstructionParent(value)) };
        if effects.blocks.contains(&start) {
            return true;
        }
        let may_return = may_return || !effects.loops.is_empty();
        let (mut waiting, mut seen) = (vec![start], HashSet::new());
        while let Some(block) = waiting.pop() {
            if self.returns.contains(&block) && !may_return || seen.len() > PATIENCE {
                return false;
            }
            for next in self.successors.get(&block).into_iter().flatten().copied() {
                if effects.edges.contains(&(block, next)) || effects.blocks.contains(&next) {
                    continue;
                }
                match effects.loops.get(&next) {
                    Some(round) if round.contains(&block) => return false,
                    // From outside: the loop had been left.
                    Some(_) => continue,
                    None if next == start => return false,
                    None => {}
                }
                if seen.insert(next) {
                    waiting.push(next);
                }
            }
        }
        !(effects.blocks.is_empty() && effects.edges.is_empty())
    }

    unsafe fn phis(&self) -> Phis {
        let mut known = Phis::default();
        // SAFETY: the phis are the function's.
        unsafe {
            for phi in self.phis.iter().copied() {
                let round = rounds(phi);
                if !round.is_empty() {
                    known.carried.insert(phi, round);
                }
            }
            loop {
                let before = known.useless.len();
                for phi in self.phis.iter().copied().filter(|phi| !known.carried.contains_key(phi)) {
                    if !known.useless.contains(&phi) && !self.is_used(phi, &known, true) {
                        known.useless.insert(phi);
                    }
                }
                if known.useless.len() == before {
                    return known;
                }
            }
        }
    }
}

/// The blocks from which `phi` takes what was computed from it.
unsafe fn rounds(phi: LLVMValueRef) -> HashSet<LLVMBasicBlockRef> {
    // SAFETY: users are instructions; incoming values are asked for of phis.
    unsafe {
        let (mut waiting, mut seen) = (vec![phi], HashSet::new());
        while let Some(value) = waiting.pop() {
            for user in users(value) {
                if seen.len() < PATIENCE && seen.insert(user) {
                    waiting.push(user);
                }
            }
        }
        let incoming = (0..LLVMCountIncoming(phi)).filter(|i| seen.contains(&LLVMGetIncomingValue(phi, *i)));
        incoming.map(|i| LLVMGetIncomingBlock(phi, i)).collect()
    }
}

/// Where `value`, and what is computed from it alone or with others, is stored, returned, given to a call or decides
/// where control goes; or becomes part of a phi that is not useless.
unsafe fn effects(value: LLVMValueRef, phis: &Phis) -> Effects {
    use LLVMOpcode as Op;
    let mut effects = Effects::default();
    let (mut waiting, mut seen) = (vec![value], HashSet::new());
    // SAFETY: users are instructions; incoming blocks are asked for of phis, callees of calls.
    unsafe {
        while let Some(value) = waiting.pop() {
            for user in users(value) {
                let block = LLVMGetInstructionParent(user);
                match LLVMGetInstructionOpcode(user) {
                    Op::LLVMPHI if phis.useless.contains(&user) => {}
                    Op::LLVMPHI => {
                        if let Some(round) = phis.carried.get(&user) {
                            effects.loops.insert(block, round.clone());
                        }
                        for incoming in 0..LLVMCountIncoming(user) {
                            if LLVMGetIncomingValue(user, incoming) == value {
                                effects.edges.insert((LLVMGetIncomingBlock(user, incoming), block));
                            }
                        }
                    }
                    Op::LLVMCall if callee_name(user).is_none_or(|name| !name.starts_with("llvm.")) => {
                        effects.blocks.insert(block);
                    }
                    Op::LLVMStore | Op::LLVMRet | Op::LLVMBr | Op::LLVMSwitch | Op::LLVMInvoke => {
                        effects.blocks.insert(block);
                    }
                    _ if seen.len() < PATIENCE && seen.insert(user) => waiting.push(user),
                    _ => {}
                }
            }
        }
    }
    effects
}

/// Whether what `load` reads is written to at once: wasmer has such a load without users before each store.
unsafe fn precedes_store(load: LLVMValueRef) -> bool {
    use LLVMOpcode as Op;
    // SAFETY: walks from the load to the end of its block at most.
    unsafe {
        let mut next = LLVMGetNextInstruction(load);
        while !next.is_null() {
            match LLVMGetInstructionOpcode(next) {
                Op::LLVMStore => {
                    return LLVMGetOperand(next, 1) == LLVMGetOperand(load, 0)
                        && LLVMTypeOf(LLVMGetOperand(next, 0)) == LLVMTypeOf(load);
                }
                Op::LLVMLoad | Op::LLVMCall | Op::LLVMInvoke => return false,
                _ => next = LLVMGetNextInstruction(next),
            }
        }
        false
    }
}

/// Whether `store` writes what was read from the same place, maybe as another type: such a store would vanish, even
/// from pages that may not be written.
unsafe fn stores_what_is_there(store: LLVMValueRef) -> bool {
    // SAFETY: operands are asked for of instructions that have them.
    unsafe {
        let value = without_casts(LLVMGetOperand(store, 0));
        !LLVMIsALoadInst(value).is_null() && look_the_same(LLVMGetOperand(value, 0), LLVMGetOperand(store, 1), DEPTH)
    }
}

/// How far addresses are compared.
const DEPTH: u32 = 8;

/// Whether two addresses are computed alike: what they are computed from may have been loaded twice.
unsafe fn look_the_same(one: LLVMValueRef, other: LLVMValueRef, depth: u32) -> bool {
    use LLVMOpcode::{LLVMCall, LLVMInvoke, LLVMPHI};
    // SAFETY: opcodes are asked for of instructions, operands below their number.
    unsafe {
        let (one, other) = (without_casts(one), without_casts(other));
        if one == other {
            return true;
        }
        if depth == 0 || LLVMIsAInstruction(one).is_null() || LLVMIsAInstruction(other).is_null() {
            return false;
        }
        let (opcode, operands) = (LLVMGetInstructionOpcode(one), LLVMGetNumOperands(one));
        opcode == LLVMGetInstructionOpcode(other)
            && !matches!(opcode, LLVMCall | LLVMInvoke | LLVMPHI)
            && operands == LLVMGetNumOperands(other)
            && (0..operands as u32).all(|i| look_the_same(LLVMGetOperand(one, i), LLVMGetOperand(other, i), depth - 1))
    }
}

unsafe fn without_casts(mut value: LLVMValueRef) -> LLVMValueRef {
    // SAFETY: operands are asked for of casts only.
    unsafe {
        while !LLVMIsABitCastInst(value).is_null() {
            value = LLVMGetOperand(value, 0);
        }
        value
    }
}
