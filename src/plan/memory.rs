//! Fits a stage into the memory of a rank and of a kernel instance, and counts its bytes.

use super::bind::Bound;
use super::error::iec;
use super::footprint::{Footprint, footprints};
use super::notes::{note_chunks, note_idle, note_rereads};
use super::tiling::{self, Space, Tiling};
use crate::job::{Combine, Job, Limits, Stage, Why};
use crate::plan::error::PlanError;
use crate::plan::grid_choice::Boxes;
use crate::plan::model::{
    Distribution, Machine, OperandPlan, Origin, Reduce, Role, SHARED_BYTES, StageBytes, StageKind, StagePlan,
};
use crate::plan::residency::{Residence, relabel};
use crate::tensor::Dtype;

/// The size of the split operands of one block. It is large enough for streaming reads, and small enough for the cache
/// and for many blocks.
const BLOCK_TARGET_BYTES: u64 = 4 << 20;
/// The page size of guest memory. Operands begin on their own pages, with one page in between as a guard.
const GUEST_PAGE_BYTES: u64 = 64 << 10;

/// The largest number of ranks for which the data that each rank shares on its node are computed.
const RANKS_EXAMINED: u32 = 8192;

/// The memory of one stage on one rank, without the part that depends on the cut into blocks.
struct Memory {
    threads: u64,
    /// The host copy of the broadcast inputs, or this rank's part of the copy on its node.
    broadcast_bytes: u64,
    /// The memory of an instance that the broadcast inputs take.
    guest_broadcast_bytes: u64,
    /// The part of `guest_broadcast_bytes` that belongs to copied inputs.
    guest_copied_bytes: u64,
    split_operands: u64,
    /// The number of blocks in memory at a time: one for each worker, one to be fetched and one to be written. The
    /// number doubles for blocks that wait for other ranks, where those take work.
    blocks: u64,
    /// The other bytes that a rank keeps for the whole stage.
    held_bytes: u64,
    /// Whether a kernel merges partial results.
    merges: bool,
    guest_merge_bytes: u64,
}

impl Memory {
    fn new(bound: &Bound, machine: &Machine, lends: bool, merges: bool, held_bytes: u64) -> Self {
        let (threads, on_node) = (u64::from(machine.threads), u64::from(machine.ranks.min(machine.ranks_per_node)));
        let (broadcast, split): (Vec<&OperandPlan>, Vec<&OperandPlan>) =
            bound.operands.iter().partition(|operand| operand.distribution == Distribution::Broadcast);
        let copied = broadcast.iter().filter(|operand| !operand.is_on_node());
        let in_host = |operand: &&OperandPlan| match operand.is_on_node() {
            true => shared_bytes(operand.padded_bytes(), on_node),
            false => operand.padded_bytes(),
        };
        Memory {
            // Without split indices there is a single task.
            threads: if bound.split.is_empty() { 1 } else { threads },
            broadcast_bytes: sum(broadcast.iter().map(in_host)),
            guest_broadcast_bytes: sum(broadcast.iter().map(|operand| guest_bytes(operand.padded_bytes()))),
            guest_copied_bytes: sum(copied.map(|operand| guest_bytes(operand.padded_bytes()))),
            split_operands: split.len() as u64,
            blocks: (threads + 2) * if lends { 2 } else { 1 },
            held_bytes,
            merges,
            guest_merge_bytes: 0,
        }
    }

    /// Computes the formula of [`StagePlan::peak_bytes_per_rank`].
    fn peak_bytes(&self, block_bytes: u64, arena_bytes: u64) -> u64 {
        let instances =
            self.threads.saturating_mul(sum([self.guest_copied_bytes, arena_bytes, self.guest_merge_bytes]));
        let blocks = self.blocks.saturating_mul(block_bytes);
        sum([self.held_bytes, self.broadcast_bytes, instances, blocks])
    }

    /// Returns the block size at which the peak stays within `budget_bytes` and an instance within `limit_bytes`.
    fn target_bytes(&self, budget_bytes: u64, limit_bytes: u64) -> u64 {
        let slack_bytes = self.split_operands * 2 * GUEST_PAGE_BYTES;
        let fixed_bytes = self.peak_bytes(0, slack_bytes);
        // A partial result is at most as large as a block.
        let in_guests = self.threads * if self.merges { 3 } else { 1 };
        let in_rank = budget_bytes.saturating_sub(fixed_bytes) / (in_guests + self.blocks);
        let in_guest = limit_bytes.saturating_sub(self.guest_broadcast_bytes).saturating_sub(slack_bytes);
        in_rank.min(in_guest).min(BLOCK_TARGET_BYTES)
    }
}

/// The stage to plan, with the machine and the earlier stages that its plan depends on.
pub(super) struct StageContext<'a> {
    pub job: &'a Job,
    pub stage: &'a Stage,
    pub machine: &'a Machine,
    pub budget_bytes: u64,
    pub residence: &'a Residence,
    pub earlier: &'a [StagePlan],
}

/// Plans a stage within the budget of a rank. Fails if it does not fit, with the part that is too large.
pub(super) fn fit(context: &StageContext<'_>, bound: Bound) -> Result<StagePlan, PlanError> {
    let StageContext { job, stage, machine, budget_bytes, residence, earlier } = *context;
    let is_iterated = job.iterate.as_ref().is_some_and(|iterate| iterate.stages.contains(&earlier.len()));
    // As `exec` does: iterated stages grant no work, and a rank alone has nobody to grant it to.
    let lends = machine.ranks > 1 && !is_iterated;
    let merges = stage.combine == Some(Combine::Kernel);
    let mut memory = Memory::new(&bound, machine, lends, merges, residence.bytes_per_rank);
    let limit_bytes = stage.limits.memory_bytes.min(Limits::MEMORY_MAX_BYTES);
    let extents = bound.split.iter().map(|index| bound.indices[*index].extent).collect();
    let space = tiling::space(&bound.operands, &bound.split, extents);
    let (kind, tiling) = choose_tiling(context, &bound, &space, memory.target_bytes(budget_bytes, limit_bytes));
    memory.held_bytes = sum([memory.held_bytes, held_bytes(&bound, &tiling)]);
    if merges && tiling.leaves.is_some() {
        memory.guest_merge_bytes = guest_merge_bytes(&bound, &tiling);
    }
    let mut plan = stage_plan(context, bound, kind, tiling, &memory);
    relabel(&mut plan, earlier, residence);
    let saved_bytes = plan.saved_on_node();
    memory.held_bytes = memory.held_bytes.saturating_sub(saved_bytes);
    plan.held_bytes = plan.held_bytes.saturating_sub(saved_bytes);
    plan.peak_bytes_per_rank = plan.peak_bytes_per_rank.saturating_sub(saved_bytes);
    check_guest(job, stage, &plan, &memory, limit_bytes)?;
    check_budget(job, stage, &plan, &memory, budget_bytes)?;
    count(&mut plan, &space);
    Ok(plan)
}

/// The kind of a stage, and a tiling with blocks of at most `target_bytes`.
fn choose_tiling(context: &StageContext<'_>, bound: &Bound, space: &Space, target_bytes: u64) -> (StageKind, Tiling) {
    let (operands, split, ranks) = (&bound.operands, &bound.split, context.machine.ranks);
    let boxes = Boxes {
        space,
        operands,
        split,
        reduced: bound.reduced,
        any_order: combines_in_any_order(context.stage, operands),
        ranks,
        threads: u64::from(context.machine.threads),
        target_bytes,
        earlier: context.earlier,
        residence: context.residence,
    };
    let has_halo = operands.iter().any(|operand| operand.halo.iter().any(|width| *width > 0));
    let empty = split.is_empty() || space.extents.contains(&0);
    match (bound.reduced, has_halo) {
        _ if empty => (StageKind::Map, tiling::choose(space, operands, split, ranks, target_bytes)),
        (1.., _) => (StageKind::Reduce, boxes.reduce()),
        (0, true) => (StageKind::Halo, boxes.map()),
        (0, false) if boxes.finds_boxes() => (StageKind::Map, boxes.map()),
        (0, false) => (StageKind::Map, tiling::choose(space, operands, split, ranks, target_bytes)),
    }
}

/// Whether the order in which partial results are combined never changes a bit.
fn combines_in_any_order(stage: &Stage, operands: &[OperandPlan]) -> bool {
    let exact = |o: &OperandPlan| o.role == Role::Input || !matches!(o.dtype, Dtype::F32 | Dtype::F64);
    match stage.combine {
        Some(Combine::Min | Combine::Max | Combine::ArgMin | Combine::ArgMax) => true,
        Some(Combine::Sum | Combine::Prod) => operands.iter().all(exact),
        // A kernel may do anything.
        Some(Combine::Kernel) | None => false,
    }
}

/// The memory of an instance for the two partial results that a kernel merges.
fn guest_merge_bytes(bound: &Bound, tiling: &Tiling) -> u64 {
    let outputs = bound.operands.iter().filter(|operand| operand.role == Role::Output);
    let bytes = outputs.map(|output| guest_bytes(Footprint::new(output, &bound.split).bytes(&tiling.block)));
    sum(bytes).saturating_mul(2)
}

/// The plan of a stage before its ranks are relabelled and its bytes are counted.
fn stage_plan(context: &StageContext<'_>, bound: Bound, kind: StageKind, tiling: Tiling, memory: &Memory) -> StagePlan {
    let StageContext { stage, machine, .. } = *context;
    let block_bytes: Vec<u64> =
        footprints(&bound.operands, &bound.split).iter().map(|footprint| footprint.bytes(&tiling.block)).collect();
    let arena_bytes = sum(block_bytes.iter().map(|bytes| guest_bytes(*bytes)));
    StagePlan {
        name: stage.name.clone(),
        kind,
        indices: bound.indices,
        operands: bound.operands,
        split: bound.split,
        unit: tiling.unit,
        grid: tiling.grid,
        process_grid: tiling.process_grid,
        reduce: stage.combine.zip(tiling.leaves).map(|(combine, leaves)| Reduce {
            combine,
            axes: bound.reduced,
            leaves,
        }),
        boundary: stage.boundary,
        block_units: tiling.block_units,
        block: tiling.block,
        block_count: 0,
        bytes: StageBytes::default(),
        broadcast_bytes: memory.broadcast_bytes,
        held_bytes: memory.held_bytes,
        arena_bytes,
        peak_bytes_per_rank: memory.peak_bytes(sum(block_bytes), arena_bytes),
        keeps: false,
        notes: bound.notes,
        ranks: machine.ranks,
        ranks_per_node: machine.ranks_per_node,
    }
}

/// Lets iterated stages keep the instances and inputs that they would make or read again. All of them must fit next to
/// the largest stage.
pub(super) fn keep(job: &Job, stages: &mut [StagePlan], budget_bytes: u64) {
    let Some(iterate) = &job.iterate else { return };
    let stages = &mut stages[iterate.stages.clone()];
    let kept_bytes = |stage: &StagePlan| {
        let fixed = |o: &&OperandPlan| o.role == Role::Input && o.is_stored() && !o.resident;
        let (whole, parts): (Vec<&OperandPlan>, Vec<&OperandPlan>) =
            stage.operands.iter().filter(fixed).partition(|o| o.distribution == Distribution::Broadcast);
        let share = |operand: &&OperandPlan| operand.bytes() / u64::from(stage.ranks) * 2;
        let inputs = sum([sum(whole.iter().map(|o| o.padded_bytes())), sum(parts.iter().map(share))]);
        // This is `Memory::peak_bytes` without the blocks.
        let instances = stage.peak_bytes_per_rank - stage.held_bytes - stage.broadcast_bytes;
        sum([inputs, instances])
    };
    let all = sum(stages.iter().map(kept_bytes));
    let largest = stages.iter().map(|stage| stage.peak_bytes_per_rank).max().unwrap_or(0);
    if all.saturating_add(largest) <= budget_bytes {
        for stage in stages {
            stage.keeps = true;
            stage.held_bytes = stage.held_bytes.saturating_add(all);
            stage.peak_bytes_per_rank = stage.peak_bytes_per_rank.saturating_add(all);
        }
    }
}

fn check_guest(job: &Job, stage: &Stage, plan: &StagePlan, memory: &Memory, limit_bytes: u64) -> Result<(), PlanError> {
    // The memory of one instance: either of the tasks, or of the merges.
    let need_bytes = memory.guest_broadcast_bytes.saturating_add(plan.arena_bytes).max(memory.guest_merge_bytes);
    if need_bytes <= limit_bytes {
        return Ok(());
    }
    let Some((position, largest_bytes)) = largest(plan, |operand| plan.operand_max_bytes(operand)) else {
        return Ok(());
    };
    let help = if need_bytes < Limits::MEMORY_MAX_BYTES {
        format!("limits = {{ memory = \"{}\" }}, and what the kernel itself takes", whole_mib(need_bytes))
    } else {
        format!("linear memory ends at 4 GiB, and {}", why_so_large(plan, position))
    };
    let help = help + &or_cut(plan, position);
    Err(PlanError::GuestMemory {
        at: job.excerpt(span(stage, position), Some(help)),
        stage: stage.name.clone(),
        need_bytes,
        limit_bytes,
        largest: describe(plan, position),
        largest_bytes,
    })
}

fn check_budget(
    job: &Job,
    stage: &Stage,
    plan: &StagePlan,
    memory: &Memory,
    budget_bytes: u64,
) -> Result<(), PlanError> {
    let need_bytes = plan.peak_bytes_per_rank;
    if need_bytes <= budget_bytes {
        return Ok(());
    }
    // The part of the peak that an operand causes, over all of its copies.
    let share_bytes = |operand: usize| {
        let bytes = plan.operand_max_bytes(operand);
        let copies = match plan.operands[operand].distribution {
            Distribution::Broadcast if plan.is_on_node(operand) => 1,
            Distribution::Broadcast => memory.threads + 1,
            Distribution::Split => memory.threads + memory.blocks,
        };
        sum([bytes.saturating_mul(copies), plan.part_bytes(operand)])
    };
    let Some((position, largest_bytes)) = largest(plan, share_bytes) else {
        return Ok(());
    };
    let part_bytes = plan.part_bytes(position);
    let block_bytes = plan.split_operand_bytes_max();
    let one_thread = Memory { threads: 1, ..*memory }.peak_bytes(block_bytes, plan.arena_bytes);
    let per_thread = sum([memory.guest_copied_bytes, plan.arena_bytes, block_bytes]).max(1);
    let help = match budget_bytes.checked_sub(one_thread) {
        Some(spare) => format!("--threads {} fits, or a budget of {}", 1 + spare / per_thread, whole_mib(need_bytes)),
        None if part_bytes > largest_bytes / 2 => {
            // A rank's part shrinks with every added rank; the memory of blocks does not.
            let ranks = (u128::from(plan.ranks) * u128::from(need_bytes)).div_ceil(u128::from(budget_bytes.max(1)));
            format!("a rank's part of it, {}, stays in memory: {ranks} ranks would need less each", iec(part_bytes))
        }
        None => format!("one thread needs {}, as {}", whole_mib(one_thread), why_so_large(plan, position)),
    };
    let help = help + &or_cut(plan, position);
    Err(PlanError::OverBudget {
        at: job.excerpt(span(stage, position), Some(help)),
        stage: stage.name.clone(),
        need_bytes,
        budget_bytes,
        largest: describe(plan, position),
        largest_bytes,
    })
}

/// Returns the operand with the most bytes and its bytes; the first among equals.
fn largest(plan: &StagePlan, bytes: impl Fn(usize) -> u64) -> Option<(usize, u64)> {
    (0..plan.operands.len()).rev().map(|operand| (operand, bytes(operand))).max_by_key(|(_, bytes)| *bytes)
}

/// Returns the byte range of the name of operand `position` in the job file.
fn span(stage: &Stage, position: usize) -> std::ops::Range<usize> {
    let mut operands = stage.compute.inputs.iter().chain(&stage.compute.outputs);
    operands.nth(position).map(|operand| operand.span.clone()).unwrap_or_default()
}

fn describe(plan: &StagePlan, position: usize) -> String {
    let operand = &plan.operands[position];
    match operand.distribution {
        Distribution::Broadcast => format!("tensor '{}' ({} {}, whole)", operand.tensor, operand.dtype, operand.shape),
        Distribution::Split => {
            let block = plan.extents_text(&plan.block);
            format!("tensor '{}' ({} {}, blocks of {block})", operand.tensor, operand.dtype, operand.shape)
        }
    }
}

/// Explains why operand `position` cannot be cut any smaller.
fn why_so_large(plan: &StagePlan, position: usize) -> String {
    let operand = &plan.operands[position];
    match operand.distribution {
        Distribution::Broadcast => format!("'{}' is given whole: no index of it is cut", operand.tensor),
        Distribution::Split if plan.split.is_empty() => "all is one task: no index is cut".to_owned(),
        Distribution::Split => {
            let unit = plan.extents_text(&plan.unit);
            format!("'{}' is cut in whole chunks, at least {unit}: chunk the datasets finer", operand.tensor)
        }
    }
}

/// Returns a suffix of a help text: the change to the job that lets operand `position` be cut along more indices.
fn or_cut(plan: &StagePlan, position: usize) -> String {
    let kept = |why: Why| {
        let indices = plan.operands[position].dims.iter().map(|index| &plan.indices[*index]);
        indices.filter(|index| index.why == why).map(|index| index.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    match (kept(Why::Undecided).as_str(), kept(Why::NamedWhole).as_str()) {
        ("", "") => String::new(),
        ("", named) => format!("; 'whole' keeps {named} from being cut"),
        (undecided, _) => {
            format!(
                "; 'reduce' may name those of {undecided} over ranges of which the kernel can compute partial results"
            )
        }
    }
}

/// Formats `bytes`, rounded up to whole MiB, in the syntax of the job file: `229MiB`.
fn whole_mib(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// Fills in the sums over ranks, and the notes that follow from them.
fn count(plan: &mut StagePlan, space: &Space) {
    let split = plan.split_footprints();
    let mut block_sums = vec![0u128; split.len()];
    let footprints: Vec<Footprint> = split.iter().map(|(_, footprint)| footprint.clone()).collect();
    // Ranks after the last unit have no work.
    let parts = plan.process_grid.as_ref().map_or(u64::from(plan.ranks), |grid| grid.parts.iter().product());
    let busy = plan.units().min(parts) as u32;
    plan.block_count =
        (0..parts.min(u64::from(plan.ranks)) as u32).map(|rank| plan.tally(rank, &footprints, &mut block_sums)).sum();

    let mut bytes = StageBytes::default();
    for ((position, _), sum) in split.iter().zip(&block_sums) {
        let operand = &plan.operands[*position];
        let total = u64::try_from(*sum).unwrap_or(u64::MAX);
        match operand.role {
            // A resident scratch tensor has no dataset.
            Role::Output if operand.resident && operand.origin == Origin::Scratch => {}
            Role::Output => bytes.written = bytes.written.saturating_add(operand.bytes()),
            Role::Input if plan.is_shared(*position) => {
                for rank in 0..plan.ranks {
                    let need: u64 = plan.needs(*position, rank).iter().map(|need| need.elements()).sum();
                    let share = plan.share(*position, rank).elements();
                    bytes.read = bytes.read.saturating_add(share * operand.dtype.size_bytes() as u64);
                    bytes.moved = bytes.moved.saturating_add((need - share) * operand.dtype.size_bytes() as u64);
                }
            }
            Role::Input if plan.is_held(*position) => {
                let needs = (0..plan.ranks).flat_map(|rank| plan.needs(*position, rank));
                let elements: u64 = needs.map(|need| need.elements()).sum();
                bytes.read = bytes.read.saturating_add(elements * operand.dtype.size_bytes() as u64);
            }
            Role::Input if operand.is_stored() && !operand.resident => {
                bytes.read = bytes.read.saturating_add(total);
            }
            Role::Input => {}
        }
    }
    let broadcast = |o: &&OperandPlan| o.distribution == Distribution::Broadcast && o.is_stored() && !o.resident;
    for operand in plan.operands.iter().filter(broadcast) {
        bytes.read = bytes.read.saturating_add(operand.bytes());
        let receivers = if operand.is_on_node() { plan.nodes() } else { plan.ranks };
        bytes.moved = bytes.moved.saturating_add(operand.bytes().saturating_mul(u64::from(receivers) - 1));
    }
    plan.bytes = bytes;
    note_rereads(plan, &split, &block_sums);
    note_idle(plan, busy);
    note_chunks(plan, space);
}

impl StagePlan {
    /// Returns the number of nodes of the ranks, according to the machine.
    pub(super) fn nodes(&self) -> u32 {
        self.ranks.div_ceil(self.ranks_per_node.max(1))
    }

    /// Returns the positions and footprints of the split operands.
    fn split_footprints(&self) -> Vec<(usize, Footprint)> {
        let split = |(_, operand): &(usize, &OperandPlan)| operand.distribution == Distribution::Split;
        let operands = self.operands.iter().enumerate().filter(split);
        operands.map(|(position, operand)| (position, Footprint::new(operand, &self.split))).collect()
    }

    /// Returns whether a rank reads its whole need of input `operand` from the dataset once, at the start of the stage,
    /// and not block by block.
    pub fn is_held(&self, operand: usize) -> bool {
        let input = &self.operands[operand];
        self.process_grid.is_some() && !input.resident && is_held(input, &self.split)
    }

    /// Returns the bytes of `operand` that rank 0 keeps for the whole stage. No rank keeps more. The result is 0 if the
    /// operand is read or written block by block.
    fn part_bytes(&self, operand: usize) -> u64 {
        let tensor = &self.operands[operand];
        let regions = match tensor.role {
            Role::Input if tensor.distribution == Distribution::Broadcast => return 0,
            Role::Input if tensor.resident || self.is_held(operand) => self.needs(operand, 0),
            Role::Output if tensor.resident => self.owned(operand, 0),
            _ => return 0,
        };
        sum(regions.iter().map(|region| region.elements() * tensor.dtype.size_bytes() as u64))
    }

    /// Returns whether ranks that need the same part of input `operand` read it together, each rank its
    /// [`StagePlan::share`].
    pub fn is_shared(&self, operand: usize) -> bool {
        let input = &self.operands[operand];
        self.is_held(operand) && input.halo.iter().all(|width| *width == 0)
    }

    /// Returns the bytes of inputs that a rank does not keep because ranks of its node share a common need.
    fn saved_on_node(&self) -> u64 {
        // Every rank is examined, since a node may hold incomplete rows of the process grid. For more ranks than this,
        // the gain is not worth the time.
        if self.ranks > RANKS_EXAMINED {
            return 0;
        }
        let saved = |operand: usize| {
            let (bytes, all) = (self.part_bytes(operand), self.sharers(operand, 0).len() as u64);
            if bytes / all < SHARED_BYTES {
                return 0;
            }
            let node = |rank: u32| rank / self.ranks_per_node.max(1);
            let near = |rank: u32| self.sharers(operand, rank).iter().filter(|r| node(**r) == node(rank)).count();
            let fewest = (0..self.ranks).filter(|rank| !self.shard(*rank).is_empty()).map(near).min();
            bytes - shared_bytes(bytes, fewest.unwrap_or(1) as u64)
        };
        sum((0..self.operands.len()).filter(|operand| self.is_shared(*operand)).map(saved))
    }

    /// Returns the largest number of bytes of split operands that a block needs.
    pub fn split_operand_bytes_max(&self) -> u64 {
        sum(footprints(&self.operands, &self.split).iter().map(|footprint| footprint.bytes(&self.block)))
    }

    /// Formats extents per axis as `q=256,k=4`.
    pub(super) fn extents_text(&self, extents: &[u64]) -> String {
        let named = self.split.iter().zip(extents);
        let named = named.map(|(index, extent)| format!("{}={extent}", self.indices[*index].name));
        let text = named.collect::<Vec<_>>().join(",");
        if text.is_empty() { "all".to_owned() } else { text }
    }
}

/// Returns whether a rank reads its whole need of an input once, at the start, because several of its blocks need the
/// same elements.
fn is_held(operand: &OperandPlan, split: &[usize]) -> bool {
    let input = operand.role == Role::Input && operand.distribution == Distribution::Split && operand.is_stored();
    let shared = operand.halo.iter().any(|width| *width > 0) || !split.iter().all(|axis| operand.dims.contains(axis));
    input && shared
}

/// Returns the bytes of inputs that a rank with the largest share keeps in a stage with a process grid. They include
/// resident inputs that are not where they are needed.
fn held_bytes(bound: &Bound, tiling: &Tiling) -> u64 {
    let Some(grid) = &tiling.process_grid else { return 0 };
    let along = |axis: usize| {
        let extent = bound.indices[bound.split[axis]].extent;
        (tiling.grid[axis].div_ceil(grid.parts[axis]) * tiling.unit[axis]).min(extent)
    };
    let part: Vec<u64> = (0..grid.parts.len()).map(along).collect();
    let held = |o: &&OperandPlan| is_held(o, &bound.split) || (o.role == Role::Input && o.resident);
    sum(bound.operands.iter().filter(held).map(|operand| Footprint::new(operand, &bound.split).bytes(&part)))
}

/// Returns the memory per rank of `bytes` that `ranks` ranks of a node share. Each rank also has bytes of its own, of
/// which the shared copy is assembled; hence the factor 2.
fn shared_bytes(bytes: u64, ranks: u64) -> u64 {
    bytes.min(bytes.saturating_mul(2).div_ceil(ranks.max(1)))
}

/// Returns the guest memory that an operand of `bytes` takes.
fn guest_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(GUEST_PAGE_BYTES).saturating_add(1).saturating_mul(GUEST_PAGE_BYTES)
}

fn sum(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}
