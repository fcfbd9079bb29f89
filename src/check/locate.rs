//! From a fault to the operand and the element that it is about, by calling the kernel again on tiles that lie otherwise.

use super::caller::{BoxInputs, Caller, Failure, SLACK_BYTES, Way};
use super::finding::{Call, Finding, Kind, element, position, view};
use crate::engine::{KernelFault, TilePlacement, View};
use crate::plan::Role;

/// What is wrong with a call that ended with `fault`.
pub(super) fn locate(call: Call<'_>, inputs: &BoxInputs, fault: &KernelFault) -> Finding {
    if !matches!(fault, KernelFault::OutOfBounds | KernelFault::WroteOutside { .. }) {
        return call.fault(fault);
    }
    let code = call.bench.kernels[call.stage].codes().into_iter().find(|code| code.tier() == call.tier);
    let Some(code) = code else { return call.fault(fault) };
    // With room around every tile, and inputs that can be written, writes go on and leave traces.
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
        // Then it reads.
        for operand in 0..call.plan().operands.len() {
            for place in [TilePlacement::Back, TilePlacement::Front] {
                let mut fails = |gap_bytes: u64| {
                    let way = Way::One { operand, place: place(gap_bytes) };
                    let mut caller = Caller::new(call.bench, call.stage, code, way, call.tile);
                    matches!(caller.call(inputs, call.tile), Err(Failure::Fault(KernelFault::OutOfBounds)))
                };
                if !fails(0) {
                    continue;
                }
                let view = view(call.plan(), operand, call.tile);
                let Some(reach) = reach(view.dtype.size_bytes() as u64, &mut fails) else {
                    // Room does not help, but it does where inputs can be written.
                    let message = "the kernel writes to an input what is there already, or reads far beside a tile";
                    return call.finding(Kind::WritesInput, None, None, message);
                };
                let count = view.padded().iter().product::<u64>() as i64;
                let behind = matches!(place(0), TilePlacement::Back(_));
                let offset = if behind { count - 1 + reach } else { -reach };
                return outside(call, operand, &view, offset, "reads");
            }
        }
    }
    call.finding(
        Kind::TouchesElsewhere,
        None,
        None,
        "the kernel touches memory that is neither its own nor near any operand: a null pointer, a heap that runs over the \
         module's memory, or an address that is wrong by far",
    )
}

/// How many elements the kernel goes beyond a tile: the least gap, in elements, with which it does not fail; none if it fails with
/// any.
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

/// An input that the kernel wrote to.
fn changed_input(
    call: Call<'_>,
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
    let message = format!("{} is written, but it is an input", element(&its.tensor, &place));
    Some(call.finding(Kind::WritesInput, Some(operand), Some(place), message))
}

/// Of an access to the element `offset` elements behind the first one of a tile, which is not in it.
fn outside(call: Call<'_>, operand: usize, view: &View, offset: i64, what: &str) -> Finding {
    let tensor = &call.plan().operands[operand].tensor;
    let count = view.padded().iter().product::<u64>();
    let place = position(view, offset);
    let named = if place.is_empty() { format!("{tensor}[]") } else { element(tensor, &place) };
    let where_it_is = match u64::try_from(offset) {
        Ok(offset) => format!("{} behind the last element of its tile", offset.saturating_sub(count) + 1),
        Err(_) => format!("{} before the first element of its tile", -offset),
    };
    let last = if count == 0 { "none".to_owned() } else { element(tensor, &position(view, count as i64 - 1)) };
    let first = element(tensor, &position(view, 0));
    let message = format!("the kernel {what} {where_it_is} ({first} to {last}), where {named} would be");
    let kind = if what == "writes" { Kind::WritesOutside } else { Kind::ReadsOutside };
    call.finding(kind, Some(operand), Some(place), message)
}
