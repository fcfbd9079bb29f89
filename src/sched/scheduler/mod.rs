//! The scheduler of one stage on one rank: own blocks, tasks and completion.

mod stealing;
mod termination;

use crate::sched::cost_model::{CostClass, CostTable};
use crate::sched::event::{Action, Event, Granularity};
use crate::sched::grant::Costs;
use crate::sched::load::Load;
use crate::sched::peers::Team;
use crate::sched::ready_queue::{Ready, Run};
use crate::sched::span::{LEAST_TASK_NS, Span, TARGET_TASK_NS};
use crate::sched::steal::Stealing;
use crate::sched::termination::Finish;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// An own block in memory.
#[derive(Debug)]
struct Block {
    slices: u64,
    finished: u64,
    /// Slices granted to thieves.
    lent: u64,
}

impl Block {
    /// Whether every slice is computed here or granted to a thief.
    fn is_waiting(&self) -> bool {
        self.lent > 0 && self.finished + self.lent == self.slices
    }
}

/// The scheduler of one stage on one rank.
#[derive(Debug)]
pub struct Scheduler {
    team: Team,
    block_count: u64,
    in_flight_limit: u64,
    granularity: Granularity,
    pub(super) worker_count: u64,
    /// Blocks that are neither fetched nor granted.
    unfetched: std::ops::Range<u64>,
    /// Blocks that were granted before they were fetched, and came back uncomputed.
    untouched: Vec<u64>,
    /// Blocks that are being fetched.
    fetching: u64,
    written: u64,
    complete_said: bool,
    /// Own blocks in memory, by number.
    blocks: BTreeMap<u64, Block>,
    /// The number of own blocks in memory that wait only for thieves.
    waiting: u64,
    ready: Ready,
    /// Idle workers with the class of their code, longest idle first.
    idle: SmallVec<[(usize, CostClass); 2]>,
    costs: CostTable,
    load: Load,
    /// The class of the last task.
    class: Option<CostClass>,
    /// `None` if this rank neither steals nor grants.
    stealing: Option<Stealing>,
    finish: Finish,
}

impl Scheduler {
    /// Returns the scheduler of a rank on its own; see [`Scheduler::in_team`]. Of its `block_count` blocks, at most
    /// `in_flight_limit` are in memory at a time. A rank that grants work may hold as many again that wait for thieves,
    /// and the outputs of whole blocks that thieves returned, until they are written.
    pub fn new(block_count: u64, in_flight_limit: u64, worker_count: usize, granularity: Granularity) -> Self {
        Scheduler {
            team: Team::alone(),
            block_count,
            in_flight_limit: in_flight_limit.max(1),
            granularity,
            worker_count: worker_count.max(1) as u64,
            unfetched: 0..block_count,
            untouched: Vec::new(),
            fetching: 0,
            written: 0,
            complete_said: false,
            blocks: BTreeMap::new(),
            waiting: 0,
            ready: Ready::default(),
            idle: SmallVec::new(),
            costs: CostTable::default(),
            load: Load::default(),
            class: None,
            stealing: None,
            finish: Finish::default(),
        }
    }

    /// Makes it a member of a team, whose ranks detect together that the stage is over.
    pub fn in_team(self, team: Team) -> Self {
        Scheduler { team, ..self }
    }

    /// Starts with the costs of slices that earlier runs of the stage measured.
    pub fn expecting(self, costs: CostTable) -> Self {
        Scheduler { costs, ..self }
    }

    /// Lets it steal from other ranks and grant work to them.
    pub fn stealing(self, costs: Costs) -> Self {
        Scheduler { stealing: Some(Stealing::new(costs)), ..self }
    }

    /// Returns the measured costs, for a later run of the stage.
    pub fn take_costs(&mut self) -> CostTable {
        std::mem::take(&mut self.costs)
    }

    /// Returns the time that this rank alone would have taken for the computed slices of its blocks. Slices that
    /// thieves computed are estimated.
    pub fn load_ns(&self) -> u64 {
        self.load.ns() / self.worker_count
    }

    /// Whether no worker will get another span: every slice is started, and no other rank can send one.
    pub fn is_spent(&self) -> bool {
        self.team.size() == 1 && self.ready.slices() == 0 && self.unfetched_count() + self.fetching == 0
    }

    /// Prefetches the state that the next event needs; the result has no meaning. A driver of many schedulers, which no
    /// cache holds, would otherwise wait for one cache line after another.
    pub fn prefetch(&self) -> u64 {
        let stealing = self.stealing.as_ref().map_or(0, Stealing::prefetch);
        let lengths = self.blocks.len() ^ self.idle.len() ^ self.untouched.len();
        let counts = self.block_count ^ self.unfetched.start ^ self.fetching ^ self.written ^ self.waiting;
        let others = self.ready.slices() ^ self.load.ns() ^ u64::from(self.team.rank()) ^ u64::from(self.finish.over);
        stealing ^ lengths as u64 ^ counts ^ others
    }

    /// Returns the slices that workers start next, if the scheduler returns no other action before the last of them
    /// finishes, unless another event comes first. A driver of many schedulers need not follow each of these tasks.
    pub fn quiet_run(&self) -> Option<Span> {
        let asks_others = self.unfetched_count() + self.fetching == 0;
        let quiet = self.stealing.as_ref().is_none_or(|stealing| !asks_others && stealing.has_nothing());
        self.ready.first().filter(|_| quiet).map(|run| run.span)
    }

    /// Returns the first actions: fetches up to the limit, or completion if there are no blocks.
    pub fn begin(&mut self, now_ns: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        self.fetch_more(&mut actions);
        self.check_complete(&mut actions);
        self.request_work(now_ns, &mut actions);
        actions
    }

    /// Handles an event and returns the actions that follow. `now_ns` never decreases.
    pub fn on(&mut self, now_ns: u64, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Fetched { block, slices } => self.fetched(block, slices, &mut actions),
            Event::Taken { piece, slices } => self.taken(piece, slices, &mut actions),
            Event::Idle { worker, class } => self.idle.push((worker, class)),
            Event::Finished { span, elapsed_ns, class } => {
                self.costs.record(class, span.len, elapsed_ns);
                self.class = Some(class);
                if span.owner == self.team.rank() {
                    self.load.add_own(span.len, elapsed_ns);
                    self.computed(span, &mut actions);
                } else {
                    self.computed_stolen(span, elapsed_ns, &mut actions);
                }
            }
            Event::Written { block } => {
                assert!(self.blocks.remove(&block).is_some(), "block {block} written twice");
                self.written += 1;
                self.fetch_more(&mut actions);
                self.check_complete(&mut actions);
            }
            Event::Message { from, message } => self.handle_message(now_ns, from, message, &mut actions),
            Event::Tick => {}
        }
        self.start_idle(now_ns, &mut actions);
        self.request_work(now_ns, &mut actions);
        actions
    }

    fn fetched(&mut self, block: u64, slices: u64, actions: &mut Vec<Action>) {
        self.fetching -= 1;
        let known = self.blocks.insert(block, Block { slices, finished: 0, lent: 0 });
        assert!(known.is_none(), "block {block} fetched twice");
        if let Some(stealing) = &mut self.stealing {
            stealing.slices_per_block = slices;
        }
        if slices == 0 {
            actions.push(Action::Write { block });
        } else {
            self.ready.push_own(Span { owner: self.team.rank(), block, start: 0, len: slices });
        }
    }

    /// Counts slices of an own block in memory.
    fn computed(&mut self, span: Span, actions: &mut Vec<Action>) {
        let Some(block) = self.blocks.get_mut(&span.block) else {
            panic!("finished a span of block {} which is not in memory", span.block)
        };
        let was_waiting = block.is_waiting();
        block.finished += span.len;
        assert!(block.finished <= block.slices, "a span of block {} finished twice", span.block);
        if block.finished == block.slices {
            actions.push(Action::Write { block: span.block });
        } else if block.is_waiting() && !was_waiting {
            self.waiting += 1;
            self.fetch_more(actions);
        }
    }

    /// Notes that slices of an own block in memory are granted to a thief.
    fn lent(&mut self, piece: Span) {
        if let Some(block) = self.blocks.get_mut(&piece.block) {
            block.lent += piece.len;
            self.waiting += u64::from(block.is_waiting());
        }
    }

    /// Notes that a thief no longer has these slices.
    fn take_back(&mut self, piece: Span) {
        if let Some(block) = self.blocks.get_mut(&piece.block) {
            self.waiting -= u64::from(block.is_waiting());
            block.lent -= piece.len;
        }
    }

    fn unfetched_count(&self) -> u64 {
        self.unfetched.end - self.unfetched.start + self.untouched.len() as u64
    }

    fn fetch_more(&mut self, actions: &mut Vec<Action>) {
        // If blocks that wait for thieves counted, this rank could not continue and other thieves would get nothing.
        let waiting = self.waiting.min(self.in_flight_limit);
        while self.blocks.len() as u64 - waiting + self.fetching < self.in_flight_limit {
            let Some(block) = self.untouched.pop().or_else(|| self.unfetched.next()) else { return };
            self.fetching += 1;
            actions.push(Action::Fetch { block });
        }
    }

    fn check_complete(&mut self, actions: &mut Vec<Action>) {
        if self.written == self.block_count && !self.complete_said {
            self.complete_said = true;
            actions.push(Action::Complete);
            self.check_over(actions);
        }
    }

    fn start_idle(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        while let (Some(run), Some(&(worker, class))) = (self.ready.first(), self.idle.first()) {
            let slices = self.slices_for(class, run);
            let Some(span) = self.ready.start(slices) else { return };
            if let Some(stealing) = &mut self.stealing {
                stealing.note_start(now_ns, span);
            }
            self.idle.remove(0);
            actions.push(Action::Start { worker, span });
        }
    }

    /// Returns the number of slices, at least 1, of the next task on code of `class`, which takes them from `run`.
    fn slices_for(&self, class: CostClass, run: &Run) -> u64 {
        let Granularity::Adaptive = self.granularity else {
            let Granularity::Fixed(slices) = self.granularity else { unreachable!() };
            return slices.max(1);
        };
        let mut wanted = self.costs.slices_in(class, TARGET_TASK_NS);
        if let Some(slices) = TARGET_TASK_NS.checked_div(run.ns_per_slice) {
            // Slices of another rank's blocks may be slower than the slices measured here.
            wanted = wanted.min(slices.max(1));
        }
        if self.unfetched_count() > 0 || (self.worker_count == 1 && self.team.size() == 1) {
            return wanted;
        }
        // Near the end of the stage, tasks shrink so that the workers finish together.
        let least = self.costs.slices_in(class, LEAST_TASK_NS);
        wanted.min(self.ready.slices().div_ceil(2 * self.worker_count).max(least))
    }
}
