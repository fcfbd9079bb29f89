//! What moves between ranks before a stage begins and after its blocks are computed, from the plan's closed forms: what
//! each rank needs of an input, and what each has of it.

use super::{Iterations, Setup};
use crate::plan::{Plan, Role, StagePlan, Tile};
use crate::simulate::placement::{BlockPlacement, covered};
use crate::tensor::Region;

/// With more ranks than this it is not asked who has what a rank needs: all of it comes from the next rank.
const PAIRS_MAX: u32 = 1024;

/// Bytes from one rank to all others, along a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broadcast {
    pub root: u32,
    pub bytes: u64,
}

/// What comes before a run of a stage.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Prelude {
    /// From files, by rank; none if nobody reads.
    pub read_bytes: Vec<u64>,
    /// Receivers and bytes, by sender.
    pub sends: Vec<Vec<(u32, u64)>>,
    /// Messages to wait for, by receiver.
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

    /// What `rank` has to know to begin.
    pub fn of(&self, rank: u32) -> (Vec<(u32, u64)>, Vec<Broadcast>) {
        (self.sends[rank as usize].clone(), self.broadcasts.clone())
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

/// A rank's part in combining results: it goes from level to level, waits on each for so many messages, and passes its
/// own on, or goes to the next level.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Level {
    pub awaits: u32,
    pub pass: Option<(u32, u64)>,
}

/// Who has the blocks of each stage. Where each run deals them out anew there are two, for runs in turn.
pub(super) type Deals = Vec<Vec<BlockPlacement>>;

/// What is asked for: the exchanges of one stage.
pub(super) struct Exchange<'a> {
    pub plan: &'a Plan,
    pub iterations: Option<&'a Iterations>,
    pub deals: &'a Deals,
    pub stage: usize,
    pub parity: usize,
}

impl Exchange<'_> {
    fn stage(&self) -> &StagePlan {
        &self.plan.stages[self.stage]
    }

    fn deal(&self) -> &BlockPlacement {
        &self.deals[self.stage][self.parity]
    }

    fn is_iterated(&self, stage: usize) -> bool {
        self.iterations.is_some_and(|iterations| iterations.stages.contains(&stage))
    }

    /// The stage and operand that left a resident input where it is, and whether that was in the iteration before;
    /// none if nobody has yet.
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

    /// What comes before the `first` run of the stage, or before every later one.
    pub fn prelude(&self, first: bool) -> Prelude {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let mut prelude = Prelude::new(ranks);
        for (index, operand) in stage.operands.iter().enumerate().filter(|(_, o)| o.role == Role::Input) {
            let producer = if operand.resident { self.producer(&operand.tensor, first) } else { None };
            if let Some((from, output, earlier)) = producer {
                let parity = if earlier { (self.parity + 1) % self.deals[from].len() } else { self.parity };
                self.gather_from_memory(index, (from, output, parity), &mut prelude);
            } else if operand.is_stored() && (first || !stage.keeps) {
                self.gather_from_files(index, &mut prelude);
            } else if operand.is_stored() && self.deals[self.stage].len() > 1 && !stage.is_broadcast(index) {
                self.gather_from_last_run(index, &mut prelude);
            }
        }
        prelude
    }

    /// Elements of `needs`. A rank with one box asks for its halo as it lies around the box, where edges meet twice.
    fn needed(&self, needs: &[Region]) -> u64 {
        if self.deal().0.is_none() { needs.iter().map(Region::elements).sum() } else { covered(needs) }
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
        let (owner_stage, owner_deal) = (&self.plan.stages[from], &self.deals[from][parity]);
        if ranks > PAIRS_MAX {
            for rank in 0..ranks {
                let owned = owner_deal.owned(owner_stage, output, rank);
                let needs = self.deal().needs(stage, index, rank);
                let missing = self.needed(&needs) - self.common(&needs, &owned);
                prelude.send((rank + 1) % ranks, rank, missing * element_bytes);
            }
            return;
        }
        let owned: Vec<Vec<Region>> = (0..ranks).map(|rank| owner_deal.owned(owner_stage, output, rank)).collect();
        let mut owners = (0..ranks).filter(|rank| !owned[*rank as usize].is_empty());
        if stage.is_broadcast(index)
            && let (Some(only), None) = (owners.next(), owners.next())
        {
            return prelude.broadcast(only, stage.operands[index].bytes());
        }
        for to in 0..ranks {
            let needs = self.deal().needs(stage, index, to);
            // Every rank begins with another one.
            for from in (1..ranks).map(|offset| (to + offset) % ranks) {
                prelude.send(from, to, self.common(&needs, &owned[from as usize]) * element_bytes);
            }
        }
    }

    /// A kept input, whose blocks have gone to other ranks since; in one message each.
    fn gather_from_last_run(&self, index: usize, prelude: &mut Prelude) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let last = &self.deals[self.stage][(self.parity + 1) % self.deals[self.stage].len()];
        for rank in 0..ranks {
            let (needs, has) = (self.deal().needs(stage, index, rank), last.needs(stage, index, rank));
            let both = needs.iter().flat_map(|need| has.iter().filter_map(|has| need.intersect(has)));
            let missing = covered(&needs) - covered(&both.collect::<Vec<_>>());
            prelude.send((rank + 1) % ranks, rank, missing * stage.operands[index].dtype.size_bytes() as u64);
        }
    }

    fn gather_from_files(&self, index: usize, prelude: &mut Prelude) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let operand = &stage.operands[index];
        let element_bytes = operand.dtype.size_bytes() as u64;
        let needs = |rank| self.needed(&self.deal().needs(stage, index, rank)) * element_bytes;
        if stage.is_broadcast(index) {
            prelude.read_bytes[0] += operand.bytes();
            prelude.broadcast(0, operand.bytes());
        } else if stage.is_shared(index) && self.deal().0.is_none() {
            for rank in 0..ranks {
                prelude.read_bytes[rank as usize] += stage.share(index, rank).elements() * element_bytes;
                for from in stage.sharers(index, rank).into_iter().filter(|from| *from != rank) {
                    prelude.send(from, rank, stage.share(index, from).elements() * element_bytes);
                }
            }
        } else if stage.is_shared(index) {
            // Nothing is read twice: who needs an element gets it from the one that read it. Everybody reads alike.
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

    /// How the ranks combine what a reduction left with each of them; and the bytes that move.
    pub fn combine(&self) -> (Vec<Vec<Level>>, u64) {
        let (stage, ranks) = (self.stage(), self.plan.machine.ranks);
        let (Some(reduce), Some(grid)) = (&stage.reduce, &stage.process_grid) else { return (Vec::new(), 0) };
        let bytes_of = |tile: &Tile| {
            let bytes = |o: usize| stage.region(o, tile).elements() * stage.operands[o].dtype.size_bytes() as u64;
            stage.outputs().map(bytes).sum::<u64>()
        };
        if self.deal().0.is_some() {
            return self.combine_dealt(bytes_of);
        }
        let first = stage.split.len() - reduce.axes;
        let mut moved_bytes = 0;
        let levels = |rank: u32| {
            let Some(place) = stage.place(rank) else { return Vec::new() };
            let part_bytes: u64 = stage.shard(rank).iter().map(bytes_of).sum();
            let mut levels = Vec::new();
            for axis in (first..stage.split.len()).rev() {
                // One sum for every group of the axes before this one.
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

    /// Results cross from rank to rank in their order; in time, as if all went at once to where they end, which is
    /// never slower.
    fn combine_dealt(&self, bytes_of: impl Fn(&Tile) -> u64) -> (Vec<Vec<Level>>, u64) {
        let ranks = self.plan.machine.ranks as usize;
        let mut levels = vec![vec![Level::default()]; ranks];
        let mut moved_bytes = 0;
        for cell in self.deal().cells(self.stage()) {
            let Some((root, bytes)) = cell.last().map(|(root, tile)| (root, bytes_of(tile))) else { continue };
            moved_bytes += bytes * cell.windows(2).filter(|pair| pair[0].0 != pair[1].0).count() as u64;
            let mut senders: Vec<u32> = cell.iter().map(|(rank, _)| *rank).filter(|rank| rank != root).collect();
            senders.sort_unstable();
            senders.dedup();
            for sender in senders {
                // A rank with parts of several cells sends to the root of the last.
                if let Some((root, _)) = levels[sender as usize][0].pass.replace((*root, bytes)) {
                    levels[root as usize][0].awaits -= 1;
                }
                levels[*root as usize][0].awaits += 1;
            }
        }
        // Who waits for others must not have others wait for it in turn.
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
pub struct Moved {
    /// Before its first run, for inputs that come from files.
    pub once_bytes: u64,
    /// In every run: resident inputs and partial results.
    pub each_run_bytes: u64,
}

/// What each stage moves between ranks under the placement of `setup`. Stealing not counted.
pub fn moved(plan: &Plan, setup: &Setup) -> Vec<Moved> {
    let deals = deals(plan, setup);
    let of = |stage: usize| {
        let exchange = Exchange { plan, iterations: setup.iterations.as_ref(), deals: &deals, stage, parity: 0 };
        let iterated = exchange.is_iterated(stage);
        let each = if iterated { exchange.prelude(false).moved_bytes } else { 0 };
        let first = exchange.prelude(true).moved_bytes;
        let combined = exchange.combine().1;
        // Where inputs are kept, later runs move none of those that came from files.
        let keeps = plan.stages[stage].keeps;
        match (iterated, keeps) {
            (false, _) => Moved { once_bytes: first, each_run_bytes: combined },
            (true, true) => Moved { once_bytes: from_files(&exchange), each_run_bytes: each + combined },
            (true, false) => Moved { once_bytes: 0, each_run_bytes: each + combined },
        }
    };
    (0..plan.stages.len()).map(of).collect()
}

fn from_files(exchange: &Exchange<'_>) -> u64 {
    let (stage, mut prelude) = (exchange.stage(), Prelude::new(exchange.plan.machine.ranks));
    for (index, operand) in stage.operands.iter().enumerate() {
        if operand.role == Role::Input && operand.is_stored() && !operand.resident {
            exchange.gather_from_files(index, &mut prelude);
        }
    }
    prelude.moved_bytes
}

/// The blocks of all stages.
pub(super) fn deals(plan: &Plan, setup: &Setup) -> Deals {
    let (ranks, seed) = (plan.machine.ranks, setup.seed);
    let deal = |(stage, number): (&StagePlan, u64)| {
        let deal = |parity| BlockPlacement::new(stage, ranks, setup.placement, seed, 2 * number + parity);
        (0..setup.placement.deals()).map(deal).collect()
    };
    plan.stages.iter().zip(0..).map(deal).collect()
}
