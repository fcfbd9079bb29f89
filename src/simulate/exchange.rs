//! The exchange between ranks before a stage begins and after its blocks are computed. It follows from the plan's
//! geometry: the regions of an input that each rank needs, and those that each rank has.

use crate::plan::{Plan, Role, StagePlan, Tile};
use crate::simulate::placement::{BlockPlacement, covered};
use crate::simulate::setup::{Iterations, SimulationSetup};
use crate::tensor::Region;

/// With more ranks than this, a rank gets all that it needs from the next rank, whatever rank has it.
const PAIRS_MAX: u32 = 1024;

/// A broadcast from one rank to all others along a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broadcast {
    pub root: u32,
    pub bytes: u64,
}

/// The exchange before a run of a stage.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Prelude {
    /// Bytes that are read from files, by rank; empty if no rank reads.
    pub read_bytes: Vec<u64>,
    /// Receivers and bytes, by sender.
    pub sends: Vec<Vec<(u32, u64)>>,
    /// Number of messages to wait for, by receiver.
    pub awaits: Vec<u32>,
    pub broadcasts: Vec<Broadcast>,
    pub moved_bytes: u64,
}

impl Prelude {
    fn new(ranks: u32) -> Prelude {
        let count = ranks as usize;
        Prelude {
            read_bytes: vec![0; count],
            sends: vec![Vec::new(); count],
            awaits: vec![0; count],
            ..Prelude::default()
        }
    }

    fn send(&mut self, from: u32, to: u32, bytes: u64) {
        if bytes > 0 && from != to {
            self.sends[from as usize].push((to, bytes));
            self.awaits[to as usize] += 1;
            self.moved_bytes += bytes;
        }
    }

    fn broadcast(&mut self, root: u32, bytes: u64) {
        let others = self.awaits.len() as u64 - 1;
        if others > 0 {
            self.broadcasts.push(Broadcast { root, bytes });
            self.moved_bytes += bytes * others;
        }
    }
}

/// A level of a reduction on one rank. The rank waits for partial results, and then sends its own to another rank or
/// continues with the next level.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Level {
    /// Number of partial results to wait for.
    pub awaits: u32,
    /// Receiver and bytes of the rank's own partial result.
    pub pass: Option<(u32, u64)>,
}

/// The placements of each stage. A random placement has two, between which runs alternate.
pub(super) type StagePlacements = Vec<Vec<BlockPlacement>>;

/// The exchanges of one stage.
pub(super) struct StageExchange<'a> {
    pub plan: &'a Plan,
    pub iterations: Option<&'a Iterations>,
    pub placements: &'a StagePlacements,
    pub stage: usize,
    pub parity: usize,
}

impl StageExchange<'_> {
    fn stage(&self) -> &StagePlan {
        &self.plan.stages[self.stage]
    }

    fn placement(&self) -> &BlockPlacement {
        &self.placements[self.stage][self.parity]
    }

    fn is_iterated(&self, stage: usize) -> bool {
        self.iterations.is_some_and(|iterations| iterations.stages.contains(&stage))
    }

    /// The stage and operand that produced a resident input, and whether that was in the previous iteration; `None` if
    /// no stage has produced it yet.
    fn producer(&self, tensor: &str, first: bool) -> Option<(usize, usize, bool)> {
        let pairs = self.iterations.iter().flat_map(|iterations| &iterations.exchange);
        let exchanged = pairs.clone().find(|(read, _)| read == tensor).map(|(_, written)| written.as_str());
        let output = |tensor: &str| {
            let find = |(stage, plan): (usize, &StagePlan)| {
                let is_it = |o: &usize| plan.operands[*o].tensor == tensor;
                plan.outputs().find(is_it).map(|operand| (stage, operand))
            };
            self.plan.stages.iter().enumerate().find_map(find)
        };
        if let Some(written) = exchanged.filter(|_| !first && self.is_iterated(self.stage)) {
            let (stage, operand) = output(written)?;
            return Some((stage, operand, true));
        }
        let (stage, operand) = output(tensor)?;
        let later = stage >= self.stage;
        (!(first && later)).then_some((stage, operand, later))
    }

    /// The exchange before the `first` run of the stage, or before every later run.
    pub fn prelude(&self, first: bool) -> Prelude {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let mut prelude = Prelude::new(ranks);
        for (index, operand) in stage.operands.iter().enumerate().filter(|(_, o)| o.role == Role::Input) {
            let producer = if operand.resident { self.producer(&operand.tensor, first) } else { None };
            if let Some((from, output, earlier)) = producer {
                let parity = if earlier { (self.parity + 1) % self.placements[from].len() } else { self.parity };
                self.gather_from_memory(index, (from, output, parity), &mut prelude);
            } else if operand.is_stored() && (first || !stage.keeps) {
                self.gather_from_files(index, &mut prelude);
            } else if operand.is_stored() && self.placements[self.stage].len() > 1 && !stage.is_broadcast(index) {
                self.gather_from_last_run(index, &mut prelude);
            }
        }
        prelude
    }

    /// Elements of `needs`. A rank with one box asks for the sides of its halo one by one, so corners count twice.
    fn needed(&self, needs: &[Region]) -> u64 {
        if self.placement().blocks.is_none() { needs.iter().map(Region::elements).sum() } else { covered(needs) }
    }

    /// Elements of `needs` that are in `owned`, whose boxes do not overlap.
    fn common(&self, needs: &[Region], owned: &[Region]) -> u64 {
        let in_box = |own: &Region| {
            let parts: Vec<Region> = needs.iter().filter_map(|need| need.intersect(own)).collect();
            self.needed(&parts)
        };
        owned.iter().map(in_box).sum()
    }

    fn gather_from_memory(&self, index: usize, (from, output, parity): (usize, usize, usize), prelude: &mut Prelude) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let element_bytes = stage.operands[index].dtype.size_bytes() as u64;
        let (owner_stage, owner_placement) = (&self.plan.stages[from], &self.placements[from][parity]);
        if ranks > PAIRS_MAX {
            for rank in 0..ranks {
                let owned = owner_placement.owned(owner_stage, output, rank);
                let needs = self.placement().needs(stage, index, rank);
                let missing = self.needed(&needs) - self.common(&needs, &owned);
                prelude.send((rank + 1) % ranks, rank, missing * element_bytes);
            }
            return;
        }
        let owned: Vec<Vec<Region>> = (0..ranks).map(|rank| owner_placement.owned(owner_stage, output, rank)).collect();
        let mut owners = (0..ranks).filter(|rank| !owned[*rank as usize].is_empty());
        if stage.is_broadcast(index)
            && let (Some(only), None) = (owners.next(), owners.next())
        {
            return prelude.broadcast(only, stage.operands[index].bytes());
        }
        for to in 0..ranks {
            let needs = self.placement().needs(stage, index, to);
            // The ranks start with different senders, so that no sender is overrun.
            for from in (1..ranks).map(|offset| (to + offset) % ranks) {
                prelude.send(from, to, self.common(&needs, &owned[from as usize]) * element_bytes);
            }
        }
    }

    /// Gathers a kept input whose blocks were on other ranks in the last run; one message for each rank.
    fn gather_from_last_run(&self, index: usize, prelude: &mut Prelude) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let last = &self.placements[self.stage][(self.parity + 1) % self.placements[self.stage].len()];
        for rank in 0..ranks {
            let (needs, has) = (self.placement().needs(stage, index, rank), last.needs(stage, index, rank));
            let both = needs.iter().flat_map(|need| has.iter().filter_map(|has| need.intersect(has)));
            let missing = covered(&needs) - covered(&both.collect::<Vec<_>>());
            prelude.send((rank + 1) % ranks, rank, missing * stage.operands[index].dtype.size_bytes() as u64);
        }
    }

    fn gather_from_files(&self, index: usize, prelude: &mut Prelude) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let operand = &stage.operands[index];
        let element_bytes = operand.dtype.size_bytes() as u64;
        let needs = |rank| self.needed(&self.placement().needs(stage, index, rank)) * element_bytes;
        if stage.is_broadcast(index) {
            prelude.read_bytes[0] += operand.bytes();
            prelude.broadcast(0, operand.bytes());
        } else if stage.is_shared(index) && self.placement().blocks.is_none() {
            for rank in 0..ranks {
                prelude.read_bytes[rank as usize] += stage.share(index, rank).elements() * element_bytes;
                for from in stage.sharers(index, rank).into_iter().filter(|from| *from != rank) {
                    prelude.send(from, rank, stage.share(index, from).elements() * element_bytes);
                }
            }
        } else if stage.is_shared(index) {
            // No element is read twice: ranks get it from the one that read it. All ranks read in proportion to their
            // needs.
            let all: Vec<u64> = (0..ranks).map(needs).collect();
            let total: u64 = all.iter().sum();
            let read = |need: u64| (u128::from(operand.bytes()) * u128::from(need) / u128::from(total.max(1))) as u64;
            for (rank, need) in (0..ranks).zip(&all) {
                prelude.read_bytes[rank as usize] += read(*need);
                let missing = need.saturating_sub(read(*need));
                for from in (1..ranks).map(|offset| (rank + offset) % ranks) {
                    prelude.send(from, rank, missing / u64::from(ranks - 1));
                }
            }
        } else if stage.is_held(index) || stage.keeps || operand.resident {
            (0..ranks).for_each(|rank| prelude.read_bytes[rank as usize] += needs(rank));
        }
    }

    /// The levels at which ranks combine the partial results of a reduction, and the bytes that move.
    pub fn combine(&self) -> (Vec<Vec<Level>>, u64) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let (Some(reduce), Some(grid)) = (&stage.reduce, &stage.process_grid) else { return (Vec::new(), 0) };
        let bytes_of = |tile: &Tile| {
            let bytes = |o: usize| stage.region(o, tile).elements() * stage.operands[o].dtype.size_bytes() as u64;
            stage.outputs().map(bytes).sum::<u64>()
        };
        if self.placement().blocks.is_some() {
            return self.combine_placed(bytes_of);
        }
        let first = stage.split.len() - reduce.axes;
        let mut moved_bytes = 0;
        let levels = |rank: u32| {
            let Some(place) = stage.place(rank) else { return Vec::new() };
            let part_bytes: u64 = stage.shard(rank).iter().map(bytes_of).sum();
            let mut levels = Vec::new();
            for axis in (first..stage.split.len()).rev() {
                // One partial result for every group of the axes before this one.
                let steps = |axis: usize| grid.steps_of(axis, place[axis]);
                let sums: u64 = (first..axis).map(|axis| steps(axis).end - steps(axis).start).product();
                let has_next = place[axis] + 1 < grid.parts[axis];
                let pass = has_next.then(|| (rank + grid.stride(axis), part_bytes * sums));
                moved_bytes += pass.map_or(0, |(_, bytes)| bytes);
                levels.push(Level { awaits: u32::from(place[axis] > 0), pass });
                if has_next {
                    break;
                }
            }
            levels
        };
        let levels = (0..ranks).map(levels).collect();
        (levels, moved_bytes)
    }

    /// Partial results pass from rank to rank in their order. The time is that of sending all of them directly to the
    /// last rank, which is never slower.
    fn combine_placed(&self, bytes_of: impl Fn(&Tile) -> u64) -> (Vec<Vec<Level>>, u64) {
        let ranks = self.plan.machine.ranks as usize;
        let mut levels = vec![vec![Level::default()]; ranks];
        let mut moved_bytes = 0;
        for cell in self.placement().cells(self.stage()) {
            let Some((root, bytes)) = cell.last().map(|(root, tile)| (root, bytes_of(tile))) else { continue };
            moved_bytes += bytes * cell.windows(2).filter(|pair| pair[0].0 != pair[1].0).count() as u64;
            let mut senders: Vec<u32> = cell.iter().map(|(rank, _)| *rank).filter(|rank| rank != root).collect();
            senders.sort_unstable();
            senders.dedup();
            for sender in senders {
                // A rank with partial results of several cells sends to the root of the last one.
                if let Some((root, _)) = levels[sender as usize][0].pass.replace((*root, bytes)) {
                    levels[root as usize][0].awaits -= 1;
                }
                levels[*root as usize][0].awaits += 1;
            }
        }
        // Prevents cycles: a rank that waits for others does not send.
        for rank in 0..ranks {
            if levels[rank][0].awaits > 0
                && let Some((root, _)) = levels[rank][0].pass.take()
            {
                levels[root as usize][0].awaits -= 1;
            }
        }
        (levels, moved_bytes)
    }
}

/// Bytes that a stage moves between ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct MovedBytes {
    /// Bytes before its first run, for inputs that come from files.
    pub once_bytes: u64,
    /// Bytes in every run: resident inputs and partial results.
    pub each_run_bytes: u64,
}

/// Returns the bytes that each stage moves between ranks under the placement of `setup`, without stolen work.
pub fn moved(plan: &Plan, setup: &SimulationSetup) -> Vec<MovedBytes> {
    let placements = placements(plan, setup);
    let of = |stage: usize| {
        let exchange =
            StageExchange { plan, iterations: setup.iterations.as_ref(), placements: &placements, stage, parity: 0 };
        let iterated = exchange.is_iterated(stage);
        let each = if iterated { exchange.prelude(false).moved_bytes } else { 0 };
        let first = exchange.prelude(true).moved_bytes;
        let combined = exchange.combine().1;
        // Kept inputs that came from files are not moved again in later runs.
        let keeps = plan.stages[stage].keeps;
        match (iterated, keeps) {
            (false, _) => MovedBytes { once_bytes: first, each_run_bytes: combined },
            (true, true) => MovedBytes { once_bytes: from_files(&exchange), each_run_bytes: each + combined },
            (true, false) => MovedBytes { once_bytes: 0, each_run_bytes: each + combined },
        }
    };
    (0..plan.stages.len()).map(of).collect()
}

fn from_files(exchange: &StageExchange<'_>) -> u64 {
    let (stage, mut prelude) = (exchange.stage(), Prelude::new(exchange.plan.machine.ranks));
    for (index, operand) in stage.operands.iter().enumerate() {
        if operand.role == Role::Input && operand.is_stored() && !operand.resident {
            exchange.gather_from_files(index, &mut prelude);
        }
    }
    prelude.moved_bytes
}

/// The placements of the blocks of all stages.
pub(super) fn placements(plan: &Plan, setup: &SimulationSetup) -> StagePlacements {
    let (ranks, seed) = (plan.machine.ranks, setup.seed);
    let placement = |(stage, number): (&StagePlan, u64)| {
        let placement = |parity| BlockPlacement::new(stage, ranks, setup.placement, seed, 2 * number + parity);
        (0..setup.placement.alternatives()).map(placement).collect()
    };
    plan.stages.iter().zip(0..).map(placement).collect()
}
