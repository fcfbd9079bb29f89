//! The blocks of a stage and what they cost.

use super::chance::{Draw, bits, lognormal, symmetric};
use super::{Machine, Setup};
use crate::plan::{Role, StagePlan, Tile};
use crate::sched::Span;

/// What blocks of one form have in common.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Form {
    pub slices: u64,
    /// Split operands: what kernels process.
    pub bytes: u64,
    /// Inputs, by where they are when the block is fetched.
    pub file_bytes: u64,
    pub memory_bytes: u64,
    pub output_bytes: u64,
    /// Outputs as a thief returns them: of a reduction, one for each slice.
    pub returned_bytes: u64,
}

/// All blocks of a stage, with costs drawn from the seed.
#[derive(Debug)]
pub(super) struct Work {
    forms: Vec<Form>,
    /// Form of each block, rank after rank.
    blocks: Vec<u32>,
    /// Where each rank's blocks begin.
    starts: Vec<usize>,
    /// Cost of a byte of each rank's shard, as a multiple of the machine's.
    shard_cost: Vec<f64>,
    /// Of each rank, as a multiple of the machine's.
    speed: Vec<f64>,
    machine: Machine,
    seed: u64,
}

impl Work {
    pub fn new(stage: &StagePlan, ranks: u32, setup: &Setup) -> Work {
        let (machine, seed) = (setup.machine.clone(), setup.seed);
        let mut speed: Vec<f64> = (0..u64::from(ranks))
            .map(|rank| lognormal(bits(seed, Draw::RankSpeed, rank, 0), machine.rank_spread))
            .collect();
        for (rank, factor) in &setup.slow {
            if let Some(speed) = speed.get_mut(*rank as usize) {
                *speed /= factor;
            }
        }
        let shard_cost = (0..u64::from(ranks))
            .map(|rank| lognormal(bits(seed, Draw::ShardCost, rank, 0), machine.shard_spread))
            .collect();
        let mut work =
            Work { forms: Vec::new(), blocks: Vec::new(), starts: vec![0], shard_cost, speed, machine, seed };
        let mut last: Option<(Vec<u64>, u32)> = None;
        for rank in 0..ranks {
            for tile in stage.blocks(rank) {
                let form = match &last {
                    Some((extent, form)) if *extent == tile.0.extent => *form,
                    _ => work.form(form(stage, &tile)),
                };
                work.blocks.push(form);
                last = Some((tile.0.extent, form));
            }
            work.starts.push(work.blocks.len());
        }
        work
    }

    /// The number of a form; there are as many as there are ways to clip a block.
    fn form(&mut self, form: Form) -> u32 {
        let known = self.forms.iter().position(|other| *other == form);
        known.unwrap_or_else(|| {
            self.forms.push(form);
            self.forms.len() - 1
        }) as u32
    }

    pub fn block_count(&self, rank: u32) -> u64 {
        (self.starts[rank as usize + 1] - self.starts[rank as usize]) as u64
    }

    pub fn of(&self, owner: u32, block: u64) -> &Form {
        &self.forms[self.blocks[self.starts[owner as usize] + block as usize] as usize]
    }

    /// The form that most blocks have, or nearly so.
    pub fn typical(&self) -> Option<&Form> {
        self.blocks.get(self.blocks.len() / 2).map(|form| &self.forms[*form as usize])
    }

    /// Slices of a piece, whose length may be left open.
    pub fn slices(&self, piece: Span) -> u64 {
        if piece.len == 0 { self.of(piece.owner, piece.block).slices } else { piece.len }
    }

    /// The part of `bytes` of a whole block that belongs to `slices` of its slices.
    pub fn part(&self, piece: Span, bytes: u64) -> u64 {
        (u128::from(bytes) * u128::from(self.slices(piece))
            / u128::from(self.of(piece.owner, piece.block).slices.max(1))) as u64
    }

    /// How long a worker of speed 1 computes `span`, without what every task takes.
    fn cost_ns(&self, span: Span) -> f64 {
        let form = self.of(span.owner, span.block);
        let block = bits(self.seed, Draw::BlockCost, u64::from(span.owner), span.block);
        let factor = self.shard_cost[span.owner as usize] * lognormal(block, self.machine.block_spread);
        // Where a slice ends on the way through the block's cost is off by up to half of the spread: so a slice is off
        // by up to all of it, and a span of any length is summed at once.
        let end = |slice: u64| match slice {
            0 => 0.0,
            _ if slice == form.slices => slice as f64,
            _ => slice as f64 + self.machine.slice_spread / 2.0 * symmetric(bits(block, Draw::SliceCost, slice, 0)),
        };
        let slices = end(span.start + span.len) - end(span.start);
        form.bytes as f64 / form.slices.max(1) as f64 * slices * self.machine.compute_ns_per_byte * factor
    }

    /// How long a worker of `rank` takes for a task.
    pub fn task_ns(&self, rank: u32, span: Span) -> u64 {
        ((self.cost_ns(span) + self.machine.task_ns as f64) / self.speed[rank as usize]) as u64
    }

    /// Sums over all blocks: slices, bytes, and the least time for the kernels on `threads` workers of each rank.
    pub fn totals(&self, threads: u32) -> (u64, u64, u64) {
        let (mut slices, mut bytes, mut cost_ns) = (0, 0, 0.0);
        for owner in 0..self.speed.len() as u32 {
            for block in 0..self.block_count(owner) {
                let form = self.of(owner, block);
                slices += form.slices;
                bytes += form.bytes;
                cost_ns += self.cost_ns(Span { owner, block, start: 0, len: form.slices });
            }
        }
        let speed: f64 = self.speed.iter().sum();
        (slices, bytes, (cost_ns / (speed * f64::from(threads))) as u64)
    }
}

fn form(stage: &StagePlan, tile: &Tile) -> Form {
    let slices = stage.slices(tile);
    let mut form = Form { slices, bytes: 0, file_bytes: 0, memory_bytes: 0, output_bytes: 0, returned_bytes: 0 };
    for (index, operand) in stage.operands.iter().enumerate().filter(|(index, _)| !stage.is_broadcast(*index)) {
        let bytes = stage.region(index, tile).elements() * operand.dtype.size_bytes() as u64;
        let in_memory = operand.resident || !operand.is_stored() || stage.is_held(index);
        match operand.role {
            Role::Output => form.output_bytes += bytes,
            Role::Input if in_memory => form.memory_bytes += bytes,
            Role::Input => form.file_bytes += bytes,
        }
    }
    form.bytes = stage.split_operand_bytes(tile);
    form.returned_bytes = form.output_bytes * if stage.reduce.is_some() { slices } else { 1 };
    form
}
