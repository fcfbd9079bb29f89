//! Work that moves between ranks: what a thief does with it, and what its owner does meanwhile.

use std::collections::BTreeMap;

use crate::sched::event::Action;
use crate::sched::grant::{Costs, Leases};
use crate::sched::message::Message;
use crate::sched::span::Span;
use crate::sched::victim::VictimSearch;

/// Thieves whose pace an owner remembers.
const PACES: usize = 32;
/// How many times as fast as this rank a thief is taken to be, at most.
const TRUST: f64 = 4.0;

/// How much of a rank's work was stolen, and from whom it stole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StealCounts {
    /// Questions that this rank asked.
    pub requests: u64,
    /// Those that gave it work.
    pub grants: u64,
    /// Slices of other ranks' blocks that this rank computed.
    pub slices_stolen: u64,
    /// Slices in memory, and blocks not yet fetched, that this rank lent.
    pub slices_lent: u64,
    pub blocks_lent: u64,
}

/// A piece of another rank's block.
#[derive(Debug)]
pub(super) struct Stolen {
    pub piece: Span,
    pub attempt: u64,
    /// The owner's measurement.
    pub ns_per_slice: u64,
    /// None until the inputs are in memory.
    pub slices: Option<u64>,
    pub finished: u64,
    /// What its tasks took.
    pub elapsed_ns: u64,
}

/// What a rank that steals and lends keeps.
#[derive(Debug)]
pub(super) struct Stealing {
    pub costs: Costs,
    pub search: VictimSearch,
    pub leases: Leases,
    /// What this rank has stolen and not yet returned, by owner, block and first slice.
    pub stolen: BTreeMap<(u32, u64, u64), Stolen>,
    /// Stolen pieces whose inputs are not in memory.
    pub untaken: u64,
    /// Slices of the last block fetched, and so probably of the next.
    pub slices_per_block: u64,
    /// How long thieves have taken for slices of this rank, all their workers together; the last to return some comes
    /// last.
    pub paces: Vec<(u32, f64)>,
    /// When the first task began, and its slices.
    pub first: Option<(u64, u64)>,
    pub counts: StealCounts,
}

impl Stealing {
    pub fn new(costs: Costs) -> Self {
        Stealing {
            costs,
            search: VictimSearch::default(),
            leases: Leases::default(),
            stolen: BTreeMap::new(),
            untaken: 0,
            slices_per_block: 0,
            paces: Vec::new(),
            first: None,
            counts: StealCounts::default(),
        }
    }

    /// See [`Scheduler::prefetch`].
    pub fn prefetch(&self) -> u64 {
        let lengths = self.stolen.len() ^ self.paces.len();
        let counts = self.counts.requests ^ self.counts.blocks_lent ^ self.untaken;
        lengths as u64 ^ counts ^ self.search.prefetch() ^ self.costs.fetched_block_bytes
    }

    /// Whether it has nothing of other ranks.
    pub fn has_nothing(&self) -> bool {
        self.stolen.is_empty()
    }

    pub fn note_start(&mut self, now_ns: u64, span: Span) {
        self.first.get_or_insert((now_ns, span.len));
    }

    /// The piece that `span` is of. Pieces of a block do not overlap.
    pub fn find(&mut self, span: Span) -> Option<&mut Stolen> {
        let (owner, block) = (span.owner, span.block);
        self.stolen.range_mut((owner, block, 0)..=(owner, block, span.start)).next_back().map(|(_, stolen)| stolen)
    }

    /// Pieces from `owner`: takes them if they are `wanted`.
    pub fn granted(
        &mut self,
        wanted: bool,
        owner: u32,
        attempt: u64,
        ns_per_slice: u64,
        pieces: Vec<Span>,
        actions: &mut Vec<Action>,
    ) {
        if wanted {
            self.counts.grants += 1;
            for piece in pieces {
                let stolen = Stolen { piece, attempt, ns_per_slice, slices: None, finished: 0, elapsed_ns: 0 };
                self.stolen.insert(key(piece), stolen);
                self.untaken += 1;
                actions.push(Action::Take { piece });
            }
        } else if !self.holds(owner, attempt) {
            // The answer to a repeated question. Without this its owner would wait for it forever.
            actions.push(Action::Send { to: owner, message: Message::Decline { attempt } });
        }
    }

    pub fn note_pace(&mut self, thief: u32, ns_per_slice: u64) {
        let before = self.paces.iter().position(|(known, _)| *known == thief).map(|at| self.paces.remove(at).1);
        let newest = ns_per_slice.max(1) as f64;
        self.paces.push((thief, before.map_or(newest, |before| (before + newest) / 2.0)));
        if self.paces.len() > PACES {
            self.paces.remove(0);
        }
    }

    /// How long a thief will take for a slice of this rank, who takes `own` and hears that the thief took `said` for
    /// its last: by what it took for others of them; its next may be dearer, so it is not trusted to be very much
    /// faster. Of a thief that has returned nothing, less is known: where it was faster, its slices may have been
    /// cheaper.
    pub fn pace_of(&self, thief: u32, own: f64, said: f64) -> f64 {
        match self.paces.iter().find(|(known, _)| *known == thief) {
            Some((_, pace)) => pace.max(own / TRUST),
            None => own.max(said),
        }
    }

    pub fn holds(&self, owner: u32, attempt: u64) -> bool {
        self.stolen.range((owner, 0, 0)..=(owner, u64::MAX, u64::MAX)).any(|(_, stolen)| stolen.attempt == attempt)
    }
}

pub(super) fn key(piece: Span) -> (u32, u64, u64) {
    (piece.owner, piece.block, piece.start)
}
