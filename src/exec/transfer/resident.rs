//! Tensors in the memory of the ranks, and their way to where they are needed.

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

/// What this rank has of a tensor, and which output of which stage it was, which tells what other ranks have.
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
    /// By an input (stage and operand) and the output that it reads. Iterations use them again and again, and to find them
    /// takes a look at every rank.
    routes: RefCell<BTreeMap<[usize; 4], Arc<Routes>>>,
}

/// The ways of a tensor from the ranks that have it to those that need it, as far as they concern this rank.
#[derive(Debug)]
enum Routes {
    /// All of it, from the first of these to the others.
    Broadcast { members: Vec<Rank> },
    /// Every rank begins with another one. Where nothing goes, there is no entry.
    Direct { sends: Vec<Parts>, receives: Vec<Parts>, here_bytes: u64 },
}

impl Resident {
    pub fn keep(&mut self, tensor: &str, holding: Holding) {
        self.holdings.insert(tensor.to_owned(), holding);
    }

    pub fn get(&self, tensor: &str) -> Option<&Holding> {
        self.holdings.get(tensor)
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Holding)> {
        self.holdings.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.holdings.is_empty()
    }

    /// Of this rank.
    pub fn bytes(&self) -> u64 {
        self.holdings.values().flat_map(|holding| &holding.pieces).map(|piece| piece.bytes.len() as u64).sum()
    }

    /// Two tensors change places.
    pub fn exchange(&mut self, a: &str, b: &str) {
        let (of_a, of_b) = (self.holdings.remove(a), self.holdings.remove(b));
        self.holdings.extend(of_a.map(|holding| (b.to_owned(), holding)));
        self.holdings.extend(of_b.map(|holding| (a.to_owned(), holding)));
    }

    /// The value of a resident scalar, on every rank. Collective.
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

    /// Sends what others need of input `operand` of stage `stage`, notes what this rank awaits of it, and returns what of it is
    /// here; none if the tensor is not resident (an iterated one is not at first). Collective.
    pub fn gather(
        &self,
        comm: &mut Communicator,
        plan: &Plan,
        (stage, operand): (usize, usize),
        arrivals: &mut PendingReceives,
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
        let this = Exchange { operand, element_bytes, reason };
        let (came, _) = this.carry_out(comm, &holding.pieces, sends, receives, arrivals, moved)?;
        Ok(Some([holding.pieces.clone(), came].concat()))
    }

    /// The rank that has all of an input that everyone needs whole, if one alone has any of it.
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
            let sends = to.map(|to| (to, common(&needs(to), holding.pieces.iter().map(|piece| &piece.region)).into()));
            let from = (1..size).map(|offset| (me + size - offset) % size);
            let receives = from.map(|from| (from, common(&mine, owned(from).iter()).into()));
            let some = |(_, regions): &Parts| !regions.is_empty();
            let here: u64 = common(&mine, owned(me).iter()).iter().map(Region::elements).sum();
            Arc::new(Routes::Direct {
                sends: sends.filter(some).collect(),
                receives: receives.filter(some).collect(),
                here_bytes: here * plan.stages[stage].operands[operand].dtype.size_bytes() as u64,
            })
        };
        self.routes.borrow_mut().entry(key).or_insert_with(make).clone()
    }

    /// All of a tensor to `members`, of whom the first has it.
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

/// Why ranks need what others have of a resident input.
fn reason(stage: &StagePlan, input: &OperandPlan) -> Reason {
    if input.halo.iter().any(|width| *width > 0) {
        Reason::Halo
    } else if stage.split.iter().all(|index| input.dims.contains(index)) {
        Reason::Shuffle
    } else {
        Reason::Operand
    }
}

/// What `needs` and `owned` have in common, pair by pair, in the one order that both sides know.
fn common<'a>(needs: &[Region], owned: impl Iterator<Item = &'a Region> + Clone) -> Vec<Region> {
    needs.iter().flat_map(|need| owned.clone().filter_map(|own| own.intersect(need))).collect()
}
