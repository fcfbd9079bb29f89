//! Decides which tensors stay in the memory of the ranks between stages, and counts the data that move to where they
//! are needed.

use super::bind::Bound;
use crate::job::{Job, Source};
use crate::plan::error::PlanError;
use crate::plan::model::{Layout, Machine, Role, StagePlan};
use crate::tensor::Region;
use std::collections::BTreeMap;

/// The divisor of a rank's budget that gives the memory for resident tensors.
const SHARE: u64 = 2;

/// The number of ranks for which an order of axes is evaluated.
const RANKS_LOOKED_AT: u32 = 512;

/// The output that a resident tensor comes from, as stage and operand.
type Producer = (usize, usize);

#[derive(Debug)]
pub(super) struct Residence {
    /// The producers by tensor name. The name is the one under which stages read the tensor after the first iteration.
    producers: BTreeMap<String, Producer>,
    /// The bytes of all resident tensors together, on the rank with the most.
    pub bytes_per_rank: u64,
}

impl Residence {
    /// Returns the stage and operand that a resident tensor comes from.
    pub fn producer(&self, tensor: &str) -> Option<(usize, usize)> {
        self.producers.get(tensor).copied()
    }
}

/// Marks operands as resident: tensors that a stage writes and another reads, as long as there is memory, and in any
/// case tensors that iterations feed back.
pub(super) fn decide(
    job: &Job,
    known: &BTreeMap<String, Layout>,
    stages: &mut [Bound],
    machine: &Machine,
    budget_bytes: u64,
) -> Result<Residence, PlanError> {
    let exchange = || job.iterate.iter().flat_map(|iterate| &iterate.exchange);
    check_exchange(job, known)?;
    let is_read = |tensor: &str| {
        let reads = |bound: &Bound| bound.operands.iter().any(|o| o.role == Role::Input && o.tensor == tensor);
        stages.iter().any(reads) || exchange().any(|pair| pair.written == tensor)
    };
    // Outputs of iterated stages are written to their datasets once, after the last iteration.
    let is_iterated = |stage| job.iterate.as_ref().is_some_and(|iterate| iterate.stages.contains(&stage));
    let mut candidates: Vec<(String, Producer, u64)> = Vec::new();
    for (position, bound) in stages.iter().enumerate() {
        for (operand, output) in bound.operands.iter().enumerate() {
            if output.role == Role::Output && (is_read(&output.tensor) || is_iterated(position)) {
                // Parts are not quite even, and a tensor that few ranks own is sent to others whole.
                let bytes = (output.bytes() / u64::from(machine.ranks)).saturating_mul(5) / 4;
                candidates.push((output.tensor.clone(), (position, operand), bytes));
            }
        }
    }
    // The largest tensors go to files first, until the rest fits. Iterated tensors never go to files.
    let key = |(tensor, (stage, _), bytes): &(String, Producer, u64)| (!is_iterated(*stage), *bytes, tensor.clone());
    candidates.sort_by_key(key);
    let total = |list: &[(String, Producer, u64)]| list.iter().map(|(.., bytes)| bytes).sum::<u64>();
    while total(&candidates) > budget_bytes / SHARE && candidates.last().is_some_and(|last| !is_iterated(last.1.0)) {
        candidates.pop();
    }
    let bytes_per_rank = total(&candidates);
    let mut producers: BTreeMap<String, Producer> =
        candidates.into_iter().map(|(tensor, producer, _)| (tensor, producer)).collect();
    for pair in exchange() {
        if let Some(producer) = producers.get(&pair.written) {
            producers.insert(pair.read.clone(), *producer);
        }
    }
    for operand in stages.iter_mut().flat_map(|bound| &mut bound.operands) {
        operand.resident = producers.contains_key(&operand.tensor);
    }
    Ok(Residence { producers, bytes_per_rank })
}

/// Checks that tensors that change places have the same shape and dtype.
fn check_exchange(job: &Job, known: &BTreeMap<String, Layout>) -> Result<(), PlanError> {
    let layout = |tensor: &str| match job.tensors.get(tensor).map(|decl| &decl.source) {
        Some(Source::Inline { dtype, shape, .. }) => Some((*dtype, shape.clone())),
        _ => known.get(tensor).map(|layout| (layout.dtype, layout.shape.clone())),
    };
    for pair in job.iterate.iter().flat_map(|iterate| &iterate.exchange) {
        if let (Some(read), Some(written)) = (layout(&pair.read), layout(&pair.written))
            && read != written
        {
            return Err(PlanError::Exchange {
                at: job.excerpt(pair.span.clone(), None),
                read: format!("'{}' is {} {}", pair.read, read.0, read.1),
                written: format!("'{}' is {} {}", pair.written, written.0, written.1),
            });
        }
    }
    Ok(())
}

/// Adds the bytes that move between ranks: partial results, and resident inputs from the ranks that own them to the
/// ranks that need them. For an iterated stage the count is that of one iteration other than the first.
pub(super) fn count(stages: &mut [StagePlan], residence: &Residence) {
    for position in 0..stages.len() {
        let stage = &stages[position];
        let mut moved = partial_results(stage);
        for (operand, input) in stage.operands.iter().enumerate() {
            let producer = residence.producers.get(&input.tensor);
            let (Role::Input, true, Some((from, output))) = (input.role, input.resident, producer) else { continue };
            let element_bytes = input.dtype.size_bytes() as u64;
            let shared = stage.is_on_node(operand);
            let mut owners = (0..stage.ranks).filter(|rank| !stages[*from].owned(*output, *rank).is_empty());
            // Each node gets one copy: its lowest rank receives it, unless a rank of the node already has all of it.
            let home = owners.next().filter(|_| owners.next().is_none()).map(|only| only / stage.ranks_per_node.max(1));
            for rank in 0..stage.ranks {
                let node = rank / stage.ranks_per_node.max(1);
                if shared && (rank % stage.ranks_per_node.max(1) > 0 || home == Some(node)) {
                    continue;
                }
                let owned = stages[*from].owned(*output, rank);
                let elements = stage.needs(operand, rank).iter().map(|need| missing(need, &owned)).sum::<u64>();
                moved = moved.saturating_add(elements * element_bytes);
            }
        }
        stages[position].bytes.moved = stages[position].bytes.moved.saturating_add(moved);
    }
}

/// Numbers the ranks of a stage with a process grid so that its resident inputs move least. The search tries all orders
/// of the axes that are cut. The other axes keep the places that [`Boxes`](crate::plan::grid_choice::Boxes) gave them.
pub(super) fn relabel(stage: &mut StagePlan, earlier: &[StagePlan], residence: &Residence) {
    let Some(grid) = &stage.process_grid else { return };
    let cut: Vec<usize> = (0..grid.order.len()).filter(|place| grid.parts[grid.order[*place]] > 1).collect();
    let first = grid.order.clone();
    let mut best = (unmet_bytes(stage, earlier, residence), first.clone());
    permute(&mut cut.iter().map(|place| first[*place]).collect(), 0, &mut |axes| {
        let mut order = first.clone();
        cut.iter().zip(axes).for_each(|(place, axis)| order[*place] = *axis);
        if let Some(grid) = &mut stage.process_grid {
            grid.order = order.clone();
        }
        let moved = unmet_bytes(stage, earlier, residence);
        if moved < best.0 {
            best = (moved, order);
        }
    });
    if let Some(grid) = &mut stage.process_grid {
        grid.order = best.1;
    }
}

/// Returns the bytes of a stage's resident inputs that ranks need and do not have. Of many ranks, only some are
/// counted.
fn unmet_bytes(stage: &StagePlan, earlier: &[StagePlan], residence: &Residence) -> u64 {
    let step = stage.ranks.div_ceil(RANKS_LOOKED_AT).max(1);
    let mut moved = 0;
    for (operand, input) in stage.operands.iter().enumerate().filter(|(_, o)| o.role == Role::Input && o.resident) {
        let Some((from, output)) = residence.producer(&input.tensor) else { continue };
        let Some(producer) = earlier.get(from).filter(|_| !stage.is_broadcast(operand)) else { continue };
        for rank in (0..stage.ranks).step_by(step as usize) {
            let owned = producer.owned(output, rank);
            let elements = stage.needs(operand, rank).iter().map(|need| missing(need, &owned)).sum::<u64>();
            moved += elements * input.dtype.size_bytes() as u64;
        }
    }
    moved
}

/// Visits all orders of `axes` from place `at` on.
fn permute(axes: &mut Vec<usize>, at: usize, see: &mut impl FnMut(&[usize])) {
    if at >= axes.len() {
        return see(axes);
    }
    for other in at..axes.len() {
        axes.swap(at, other);
        permute(axes, at + 1, see);
        axes.swap(at, other);
    }
}

/// Returns the number of elements of `need` that are in none of `owned`, whose regions do not overlap.
fn missing(need: &Region, owned: &[Region]) -> u64 {
    let own: u64 = owned.iter().filter_map(|own| own.intersect(need)).map(|common| common.elements()).sum();
    need.elements() - own
}

/// Returns the bytes of partial results. Along each reduced axis they move from each part to the next, once for every
/// group of the axes before it.
fn partial_results(stage: &StagePlan) -> u64 {
    let (Some(reduce), Some(grid)) = (&stage.reduce, &stage.process_grid) else { return 0 };
    let outputs = stage.operands.iter().filter(|operand| operand.role == Role::Output);
    let bytes: u64 = outputs.map(|operand| operand.bytes()).sum();
    let mut passes = 0;
    let mut chains = 1;
    for axis in stage.split.len() - reduce.axes..stage.split.len() {
        passes += chains * (grid.parts[axis] - 1);
        chains *= grid.steps[axis];
    }
    bytes * passes
}
