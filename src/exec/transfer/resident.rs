//! Resident tensors: they stay in the memory of the ranks between stages, and move to the ranks that need them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::exec::transfer::exchange::{Exchange, Parts};
use crate::exec::transfer::pending_receives::PendingReceives;
use crate::exec::transfer::piece::Piece;
use crate::fabric::{Payload, Rank};
use crate::plan::{OperandPlan, Plan, StagePlan};
use crate::report::{Distance, Moved, Reason};
use crate::tensor::Region;

/// This rank's pieces of a tensor. The stage and the operand that wrote it determine which parts other ranks have.
#[derive(Debug)]
pub(in crate::exec) struct Holding {
    pub stage: usize,
    pub operand: usize,
    pub pieces: Vec<Piece>,
}

/// The resident tensors, by name.
#[derive(Debug, Default)]
pub(in crate::exec) struct Resident {
    holdings: BTreeMap<String, Holding>,
    /// By the stage and operand of an input and of the output that it reads. Iterations use the same routes again and
    /// again, and computing them visits every rank.
    routes: RefCell<BTreeMap<[usize; 4], Arc<Routes>>>,
}

/// The transfers of a tensor that this rank takes part in, from ranks that have it to ranks that need it.
#[derive(Debug)]
enum Routes {
    /// The first member sends all of it to the others.
    Broadcast { members: Vec<Rank> },
    /// Ranks exchange regions; each starts with another rank. Empty transfers have no entry.
    Direct { sends: Vec<Parts>, receives: Vec<Parts>, here_bytes: u64 },
}

impl Resident {
    pub fn keep(&mut self, tensor: &str, holding: Holding) {
        self.holdings.insert(tensor.to_owned(), holding);
    }

    pub fn get(&self, tensor: &str) -> Option<&Holding> {
        self.holdings.get(tensor)
    }

    /// All resident tensors, ordered by name.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Holding)> {
        self.holdings.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.holdings.is_empty()
    }

    /// The number of bytes on this rank.
    pub fn bytes(&self) -> u64 {
        self.holdings.values().flat_map(|holding| &holding.pieces).map(|piece| piece.bytes.len() as u64).sum()
    }

    /// Exchanges the names of two tensors.
    pub fn exchange(&mut self, a: &str, b: &str) {
        let (of_a, of_b) = (self.holdings.remove(a), self.holdings.remove(b));
        self.holdings.extend(of_a.map(|holding| (b.to_owned(), holding)));
        self.holdings.extend(of_b.map(|holding| (a.to_owned(), holding)));
    }

    /// Returns the value of a resident scalar on every rank. Collective.
    pub fn scalar(&self, comm: &mut Communicator, plan: &Plan, tensor: &str) -> Result<f64, RunError> {
        let missing = || RunError::Protocol { rank: comm.rank(), what: "the scalar of 'until'" };
        let holding = self.holdings.get(tensor).ok_or_else(missing)?;
        let owned = |rank: &Rank| !plan.stages[holding.stage].owned(holding.operand, *rank).is_empty();
        let owner = (0..comm.size()).find(owned).ok_or_else(missing)?;
        let mine =
            (comm.rank() == owner).then(|| holding.pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect());
        let members = comm.all_from(owner);
        let (bytes, _) = comm.broadcast_among(&members, mine.map(|bytes: Vec<u8>| bytes.into()), None)?;
        let dtype = plan.stages[holding.stage].operands[holding.operand].dtype;
        dtype.to_f64(&bytes).ok_or(RunError::Protocol { rank: owner, what: "the scalar of 'until'" })
    }

    /// Sends the parts of input `operand` of stage `stage` that others need, adds the parts that this rank expects to
    /// `pending`, and returns the parts that are here. Returns none if the tensor is not resident, as an iterated one
    /// is not at first. Collective.
    pub fn gather(
        &self,
        comm: &mut Communicator,
        plan: &Plan,
        (stage, operand): (usize, usize),
        pending: &mut PendingReceives,
        moved: &mut Moved,
    ) -> Result<Option<Vec<Piece>>, RunError> {
        let input = &plan.stages[stage].operands[operand];
        let Some(holding) = self.holdings.get(&input.tensor) else { return Ok(None) };
        let routes = self.routes(comm, plan, (stage, operand), holding);
        let (sends, receives, here_bytes) = match &*routes {
            Routes::Broadcast { members } => return self.broadcast(comm, holding, members, input, moved).map(Some),
            Routes::Direct { sends, receives, here_bytes } => (sends, receives, *here_bytes),
        };
        let element_bytes = input.dtype.size_bytes();
        let reason = reason(&plan.stages[stage], input);
        moved.count(reason, Distance::Rank, here_bytes);
        let exchange = Exchange { operand, element_bytes, reason };
        let exchanged = exchange.run(comm, &holding.pieces, sends, receives, pending, moved)?;
        Ok(Some([holding.pieces.clone(), exchanged.received].concat()))
    }

    /// The rank that has all of a broadcast input, if a single rank has it.
    pub fn only_owner(&self, comm: &Communicator, plan: &Plan, stage: usize, operand: usize) -> Option<Rank> {
        let holding = self.holdings.get(&plan.stages[stage].operands[operand].tensor)?;
        match &*self.routes(comm, plan, (stage, operand), holding) {
            Routes::Broadcast { members } => members.first().copied(),
            Routes::Direct { .. } => None,
        }
    }

    fn routes(
        &self,
        comm: &Communicator,
        plan: &Plan,
        (stage, operand): (usize, usize),
        holding: &Holding,
    ) -> Arc<Routes> {
        let key = [stage, operand, holding.stage, holding.operand];
        let make = || {
            let owned = |rank: Rank| plan.stages[holding.stage].owned(holding.operand, rank);
            let mut receivers = None;
            if plan.stages[stage].is_broadcast(operand) {
                let mut owners = (0..comm.size()).filter(|rank| !owned(*rank).is_empty());
                let only = owners.next().filter(|_| owners.next().is_none());
                let members = match plan.stages[stage].is_on_node(operand) {
                    true => comm.one_per_node(only.unwrap_or(0)),
                    false => comm.all_from(only.unwrap_or(0)),
                };
                if only.is_some() {
                    return Arc::new(Routes::Broadcast { members });
                }
                receivers = Some(BTreeSet::from_iter(members));
            }
            let receives = |rank: Rank| receivers.as_ref().is_none_or(|receivers| receivers.contains(&rank));
            let needs = |rank: Rank| if receives(rank) { plan.stages[stage].needs(operand, rank) } else { Vec::new() };
            let (me, mine, size) = (comm.rank(), needs(comm.rank()), comm.size());
            let to = (1..size).map(|offset| (me + offset) % size);
            let here = || holding.pieces.iter().map(|piece| &piece.region);
            let sends = to.map(|rank| Parts { rank, regions: common(&needs(rank), here()).into() });
            let from = (1..size).map(|offset| (me + size - offset) % size);
            let receives = from.map(|rank| Parts { rank, regions: common(&mine, owned(rank).iter()).into() });
            let some = |parts: &Parts| !parts.regions.is_empty();
            let here_elements: u64 = common(&mine, owned(me).iter()).iter().map(Region::elements).sum();
            Arc::new(Routes::Direct {
                sends: sends.filter(some).collect(),
                receives: receives.filter(some).collect(),
                here_bytes: here_elements * plan.stages[stage].operands[operand].dtype.size_bytes() as u64,
            })
        };
        self.routes.borrow_mut().entry(key).or_insert_with(make).clone()
    }

    /// Broadcasts a tensor to `members`, of which the first has it.
    fn broadcast(
        &self,
        comm: &mut Communicator,
        holding: &Holding,
        members: &[Rank],
        input: &OperandPlan,
        moved: &mut Moved,
    ) -> Result<Vec<Piece>, RunError> {
        let whole = Region::whole(&input.shape);
        if !members.contains(&comm.rank()) {
            return Ok(Vec::new());
        }
        let mine = (comm.rank() == members[0]).then(|| {
            let mut piece = vec![0; input.bytes() as usize];
            for part in &holding.pieces {
                part.copy_to(&whole, &mut piece, input.dtype.size_bytes());
            }
            Payload::from(piece)
        });
        let (bytes, source) = comm.broadcast_among(members, mine, Some(Reason::Operand))?;
        comm.received(moved, Reason::Operand, source, bytes.len() as u64);
        Ok(vec![Piece { region: whole, bytes: bytes.into_vec().into() }])
    }
}

/// The reason for which parts of a resident input move between ranks.
fn reason(stage: &StagePlan, input: &OperandPlan) -> Reason {
    if input.halo.iter().any(|width| *width > 0) {
        Reason::Halo
    } else if stage.split.iter().all(|index| input.dims.contains(index)) {
        Reason::Shuffle
    } else {
        Reason::Operand
    }
}

/// The intersections of `needs` and `owned`, pair by pair, in the order that both sides know.
fn common<'a>(needs: &[Region], owned: impl Iterator<Item = &'a Region> + Clone) -> Vec<Region> {
    needs.iter().flat_map(|need| owned.clone().filter_map(|own| own.intersect(need))).collect()
}
