//! Locates the operand and the element of a fault, by calling the kernel again with other placements of its tiles.

use crate::check::caller::{BoxInputs, CallFailure, Caller, SLACK_BYTES, Way};
use crate::check::finding::{CallSite, element, position, view};
use crate::check::report::{Finding, FindingKind};
use crate::engine::{KernelFault, TilePlacement, View};
use crate::plan::Role;

/// Returns the finding for a call that ended with `fault`.
pub(super) fn locate(call: CallSite<'_>, inputs: &BoxInputs, fault: &KernelFault) -> Finding {
    if !matches!(fault, KernelFault::OutOfBounds | KernelFault::WroteOutside { .. }) {
        return call.fault(fault);
    }
    let code = call.bench.kernels[call.stage].codes().into_iter().find(|code| code.tier() == call.tier);
    let Some(code) = code else { return call.fault(fault) };
    // With room around every tile and writable inputs, a wrong write does not fault and can be found afterwards.
    let mut open = Caller::new(call.bench, call.stage, code, Way::Open, call.tile);
    let outcome = open.call(inputs, call.tile);
    for operand in 0..call.plan().operands.len() {
        let view = view(call.plan(), operand, call.tile);
        if let Some(finding) = changed_input(call, inputs, &open, operand, &view) {
            return finding;
        }
        if let Some(offset_bytes) = open.wrote_outside(operand) {
            return outside(call, operand, &view, offset_bytes.div_euclid(view.dtype.size_bytes() as i64), "writes");
        }
    }
    if outcome.is_ok() {
        // The call does not write out of bounds, so it reads.
        for operand in 0..call.plan().operands.len() {
            for place in [TilePlacement::Back, TilePlacement::Front] {
                let mut fails = |gap_bytes: u64| {
                    let way = Way::One { operand, place: place(gap_bytes) };
                    let mut caller = Caller::new(call.bench, call.stage, code, way, call.tile);
                    matches!(caller.call(inputs, call.tile), Err(CallFailure::Fault(KernelFault::OutOfBounds)))
                };
                if !fails(0) {
                    continue;
                }
                let view = view(call.plan(), operand, call.tile);
                let Some(reach) = reach(view.dtype.size_bytes() as u64, &mut fails) else {
                    // The fault does not depend on room around the tile, but on inputs that are read-only.
                    let message = "the kernel writes an unchanged value to an input, or reads far outside a tile";
                    return call.finding(FindingKind::WritesInput, None, None, message);
                };
                let count = view.padded().iter().product::<u64>() as i64;
                let behind = matches!(place(0), TilePlacement::Back(_));
                let offset = if behind { count - 1 + reach } else { -reach };
                return outside(call, operand, &view, offset, "reads");
            }
        }
    }
    call.finding(
        FindingKind::TouchesElsewhere,
        None,
        None,
        "the kernel accesses memory that is neither its own nor near any operand: a null pointer, a heap that exceeds the \
         module's memory, or a completely wrong address",
    )
}

/// Returns how far the kernel accesses elements outside a tile: the smallest gap, in elements, with which it does not
/// fail; `None` if it fails with any gap.
fn reach(element_bytes: u64, fails: &mut impl FnMut(u64) -> bool) -> Option<i64> {
    let most = SLACK_BYTES / element_bytes;
    let (mut fails_at, mut fine_at) = (0, 1);
    while fine_at < most && fails(fine_at * element_bytes) {
        (fails_at, fine_at) = (fine_at, (fine_at * 2).min(most));
    }
    if fine_at == most && fails(most * element_bytes) {
        return None;
    }
    while fine_at - fails_at > 1 {
        let middle = fails_at + (fine_at - fails_at) / 2;
        if fails(middle * element_bytes) { fails_at = middle } else { fine_at = middle }
    }
    Some(fine_at as i64)
}

/// Returns a finding if the kernel wrote to an input.
fn changed_input(
    call: CallSite<'_>,
    inputs: &BoxInputs,
    open: &Caller<'_>,
    operand: usize,
    view: &View,
) -> Option<Finding> {
    let its = call.plan().operands.get(operand).filter(|its| its.role == Role::Input)?;
    let after = open.bytes(operand, view).ok()?;
    let before = inputs.tile_of(call.plan(), operand, view)?;
    let size = view.dtype.size_bytes();
    let first = before.chunks_exact(size).zip(after.chunks_exact(size)).position(|(before, after)| before != after)?;
    let place = position(view, first as i64);
    let message = format!("the kernel writes to the input element {}", element(&its.tensor, &place));
    Some(call.finding(FindingKind::WritesInput, Some(operand), Some(place), message))
}

/// The finding for an access outside a tile, `offset` elements after its first one.
fn outside(call: CallSite<'_>, operand: usize, view: &View, offset: i64, what: &str) -> Finding {
    let tensor = &call.plan().operands[operand].tensor;
    let count = view.padded().iter().product::<u64>();
    let place = position(view, offset);
    let named = if place.is_empty() { format!("{tensor}[]") } else { element(tensor, &place) };
    let where_it_is = match u64::try_from(offset) {
        Ok(offset) => format!("{} after the last element of its tile", offset.saturating_sub(count) + 1),
        Err(_) => format!("{} before the first element of its tile", -offset),
    };
    let last = if count == 0 { "none".to_owned() } else { element(tensor, &position(view, count as i64 - 1)) };
    let first = element(tensor, &position(view, 0));
    let message = format!("the kernel {what} {where_it_is} ({first} to {last}), where {named} would be");
    let kind = if what == "writes" { FindingKind::WritesOutside } else { FindingKind::ReadsOutside };
    call.finding(kind, Some(operand), Some(place), message)
}
