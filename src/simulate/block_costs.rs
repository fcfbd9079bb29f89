//! The blocks of a stage and their costs.

use crate::plan::{IndexPlan, Origin, Plan, Role, StagePlan, Tile};
use crate::sched::Span;
use crate::simulate::contention::{Slowdown, node_load};
use crate::simulate::machine::MachineModel;
use crate::simulate::placement::{BlockPlacement, PlannedBlock};
use crate::simulate::random::{Draw, bits, lognormal, symmetric};
use crate::simulate::setup::SimulationSetup;
use crate::simulate::stage_costs::StageCosts;

/// The properties that blocks of one form have in common.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct BlockForm {
    pub slices: u64,
    /// Bytes of the split operands, which kernels process.
    pub bytes: u64,
    /// Inputs that are in files when the block is fetched.
    pub file_bytes: u64,
    /// Inputs that are in memory when the block is fetched.
    pub memory_bytes: u64,
    /// Outputs that are written to files.
    pub output_bytes: u64,
    /// Outputs that a thief returns; one for each slice of a reduction.
    pub returned_bytes: u64,
    /// Time of a worker of speed 1, on optimized code, without spreads.
    pub kernel_ns: f64,
    /// Time of the main thread, without reading and writing.
    pub copy_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct CostedBlock {
    form: u32,
    /// Its cost, divided by the mean of its form.
    cost: f64,
}

/// The properties of a rank that are used together, in one cache line.
#[derive(Clone, Copy, Debug)]
struct RankWork {
    /// Number of its first block.
    first: usize,
    /// Cost of a byte of its planned share, as a multiple of the machine's.
    shard_cost: f64,
    /// Speed, as a multiple of the machine's.
    speed: f64,
}

/// Sums over all blocks of a stage.
pub(super) struct Totals {
    pub slices: u64,
    pub bytes: u64,
    /// The least time for the kernels.
    pub ideal_ns: u64,
}

/// All blocks of a stage, with costs drawn from the seed.
#[derive(Debug)]
pub(super) struct BlockCosts {
    forms: Vec<BlockForm>,
    /// The blocks of all ranks, rank after rank.
    blocks: Vec<CostedBlock>,
    ranks: Vec<RankWork>,
    /// Owner and number in the plan, where the placement is not the plan's.
    planned: Vec<PlannedBlock>,
    /// Tasks take one slice at a time.
    by_slice: bool,
    baseline_factor: f64,
    /// Time that each rank waits in each run.
    pub wait_ns: u64,
    machine: MachineModel,
    seed: u64,
}

impl BlockCosts {
    pub fn new(plan: &Plan, stage: &StagePlan, setup: &SimulationSetup, placement: &BlockPlacement) -> BlockCosts {
        let (machine, seed, ranks) = (setup.machine.clone(), setup.seed, plan.machine.ranks);
        let costs = setup.costs.get(&stage.name);
        let drawn = |rank: u32| RankWork {
            first: 0,
            shard_cost: lognormal(bits(seed, Draw::ShardCost, u64::from(rank), 0), machine.shard_spread),
            speed: lognormal(bits(seed, Draw::RankSpeed, u64::from(rank), 0), machine.rank_spread),
        };
        let mut of_ranks: Vec<RankWork> = (0..ranks).map(drawn).collect();
        for (rank, factor) in &setup.slow {
            if let Some(slow) = of_ranks.get_mut(*rank as usize) {
                slow.speed /= factor;
            }
        }
        let dense = costs.filter(|costs| !costs.density.is_empty() && !stage.split.is_empty());
        let load = node_load(plan, setup.machine.cores_per_node);
        let slowdown = costs.map_or(Slowdown::NONE, |costs| costs.contention.slowdown(load));
        let mut work = BlockCosts {
            forms: Vec::new(),
            blocks: Vec::new(),
            ranks: of_ranks,
            planned: Vec::new(),
            by_slice: stage.reduce.is_some(),
            baseline_factor: costs.and_then(|costs| costs.baseline_factor).unwrap_or(machine.baseline_factor),
            wait_ns: slowdown.wait_ns as u64,
            machine,
            seed,
        };
        let mut last: Option<(Vec<u64>, u32)> = None;
        for rank in 0..ranks {
            work.ranks[rank as usize].first = work.blocks.len();
            let mut add = |work: &mut BlockCosts, tile: Tile, planned: PlannedBlock| {
                let known = last.as_ref().filter(|(extent, _)| *extent == tile.0.extent);
                let form = known.map(|(_, form)| *form);
                let form =
                    form.unwrap_or_else(|| work.form(form_of(stage, &tile, &work.machine, costs, slowdown.factor)));
                let part = |place: u64| place as f64 / stage.extent(0) as f64;
                let density = dense.map_or(1.0, |costs| costs.density_of(part(tile.0.offset[0]), part(tile.0.end(0))));
                // A block costs the same wherever it is placed.
                let drawn = lognormal(work.block_bits(planned), work.machine.block_spread);
                work.blocks
                    .push(CostedBlock { form, cost: work.ranks[planned.owner as usize].shard_cost * density * drawn });
                last = Some((tile.0.extent, form));
            };
            match &placement.blocks {
                None => stage
                    .blocks(rank)
                    .zip(0..)
                    .for_each(|(tile, number)| add(&mut work, tile, PlannedBlock { owner: rank, number })),
                Some(blocks) => {
                    for block in &blocks[rank as usize] {
                        work.planned.push(block.planned);
                        add(&mut work, block.tile.clone(), block.planned);
                    }
                }
            }
        }
        work
    }

    /// The number of a form. There are as many forms as ways to clip a block.
    fn form(&mut self, form: BlockForm) -> u32 {
        let known = self.forms.iter().position(|other| *other == form);
        known.unwrap_or_else(|| {
            self.forms.push(form);
            self.forms.len() - 1
        }) as u32
    }

    pub fn block_count(&self, rank: u32) -> u64 {
        let end = self.ranks.get(rank as usize + 1).map_or(self.blocks.len(), |next| next.first);
        (end - self.ranks[rank as usize].first) as u64
    }

    fn number(&self, owner: u32, block: u64) -> usize {
        self.ranks[owner as usize].first + block as usize
    }

    pub fn of(&self, owner: u32, block: u64) -> &BlockForm {
        &self.forms[self.blocks[self.number(owner, block)].form as usize]
    }

    /// The form of the middle block, which most blocks have.
    pub fn typical(&self) -> Option<&BlockForm> {
        self.blocks.get(self.blocks.len() / 2).map(|block| &self.forms[block.form as usize])
    }

    /// Slices of a span; length 0 means the whole block.
    pub fn slices(&self, span: Span) -> u64 {
        if span.len == 0 { self.of(span.owner, span.block).slices } else { span.len }
    }

    /// The part of a block's `bytes` that belongs to `span`.
    pub fn part(&self, span: Span, bytes: u64) -> u64 {
        (u128::from(bytes) * u128::from(self.slices(span)) / u128::from(self.of(span.owner, span.block).slices.max(1)))
            as u64
    }

    /// Random bits of a block of the plan.
    fn block_bits(&self, block: PlannedBlock) -> u64 {
        bits(self.seed, Draw::BlockCost, u64::from(block.owner), block.number)
    }

    /// Time of a worker of speed 1 for `span` on optimized code, without the fixed cost of a task.
    fn cost_ns(&self, span: Span) -> f64 {
        let at = self.number(span.owner, span.block);
        let CostedBlock { form, cost } = self.blocks[at];
        let form = &self.forms[form as usize];
        let planned = PlannedBlock { owner: span.owner, number: span.block };
        let block = self.block_bits(self.planned.get(at).copied().unwrap_or(planned));
        // The end of a slice in the block's cost is off by up to half of the spread, so the cost of a slice is off by
        // up to the whole spread, and the cost of a span needs only its two ends.
        let end = |slice: u64| match slice {
            0 => 0.0,
            _ if slice == form.slices => slice as f64,
            _ => slice as f64 + self.machine.slice_spread / 2.0 * symmetric(bits(block, Draw::SliceCost, slice, 0)),
        };
        let slices = end(span.start + span.len) - end(span.start);
        form.kernel_ns / form.slices.max(1) as f64 * slices * cost
    }

    /// Time of a worker of `rank` for a task.
    pub fn task_ns(&self, rank: u32, span: Span, optimized: bool) -> u64 {
        let tasks = if self.by_slice { span.len } else { 1 };
        let factor = if optimized { 1.0 } else { self.baseline_factor };
        let ns = self.cost_ns(span) * factor + (tasks * self.machine.task_ns) as f64;
        (ns / self.ranks[rank as usize].speed) as u64
    }

    /// Time of the main thread of `rank` for work that takes `ns` at speed 1.
    pub fn main_ns(&self, rank: u32, ns: u64) -> u64 {
        (ns as f64 / self.ranks[rank as usize].speed) as u64
    }

    /// Sums over all blocks, for `threads` workers of each rank that share at most `cores` cores.
    pub fn totals(&self, threads: u32, cores: Option<u64>) -> Totals {
        let (mut slices, mut bytes, mut cost_ns) = (0, 0, 0.0);
        for owner in 0..self.ranks.len() as u32 {
            for block in 0..self.block_count(owner) {
                let form = self.of(owner, block);
                slices += form.slices;
                bytes += form.bytes;
                cost_ns += self.cost_ns(Span { owner, block, start: 0, len: form.slices });
            }
        }
        let speed = self.ranks.iter().map(|rank| rank.speed).sum::<f64>() * f64::from(threads);
        let speed = cores.map_or(speed, |cores| speed.min(cores as f64));
        Totals { slices, bytes, ideal_ns: (cost_ns / speed) as u64 }
    }
}

/// Points of the iteration space in `tile`. The time of a kernel that visits all of them is in proportion to it.
fn points(stage: &StagePlan, tile: &Tile) -> f64 {
    let extent = |(index, plan): (usize, &IndexPlan)| {
        let axis = stage.split.iter().position(|split| *split == index);
        axis.map_or(plan.extent, |axis| tile.0.extent[axis]) as f64
    };
    stage.indices.iter().enumerate().map(extent).product()
}

fn form_of(
    stage: &StagePlan,
    tile: &Tile,
    machine: &MachineModel,
    costs: Option<&StageCosts>,
    contention: f64,
) -> BlockForm {
    let slices = stage.slices(tile);
    let (mut file_bytes, mut memory_bytes, mut output_bytes, mut returned_bytes) = (0, 0, 0, 0);
    for (index, operand) in stage.operands.iter().enumerate().filter(|(index, _)| !stage.is_broadcast(*index)) {
        let bytes = stage.region(index, tile).elements() * operand.dtype.size_bytes() as u64;
        let in_memory = operand.resident || !operand.is_stored() || stage.is_held(index) || stage.keeps;
        match operand.role {
            Role::Output => {
                returned_bytes += bytes;
                // Reductions write after all results are combined, iterated stages after the last iteration.
                let written = operand.origin == Origin::Created && stage.reduce.is_none() && !stage.keeps;
                output_bytes += if written { bytes } else { 0 };
            }
            Role::Input if in_memory => memory_bytes += bytes,
            Role::Input => file_bytes += bytes,
        }
    }
    returned_bytes *= if stage.reduce.is_some() { slices } else { 1 };
    let bytes = stage.split_operand_bytes(tile);
    let all: f64 = stage.indices.iter().map(|index| index.extent as f64).product();
    let share = points(stage, tile) / all.max(1.0);
    let (kernel_ns, copy_ns) = match costs {
        Some(costs) => (costs.kernel_ns * share * contention, (costs.copy_ns * share * contention) as u64),
        None => (bytes as f64 * machine.compute_ns_per_byte, 0),
    };
    BlockForm { slices, bytes, file_bytes, memory_bytes, output_bytes, returned_bytes, kernel_ns, copy_ns }
}
