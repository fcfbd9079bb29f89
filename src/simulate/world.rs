//! The event loop: ranks, cores and links of a machine, and what happens on them. What a rank does from stage to stage
//! is in `phases`.

use std::collections::VecDeque;

use super::chance::{Draw, bits};
use super::cores::{Cores, Thread};
use super::exchange::{Deals, Exchange, Level, Prelude, deals};
use super::links::{Links, time};
use super::phases::{Phase, Run, runs};
use super::queue::{Queue, Slots};
use super::work::Work;
use super::{Machine, Policy, Setup, Simulation, StageTimes};
use crate::plan::{Origin, Plan, Role};
use crate::sched::{Action, CostClass, Costs, Event, Message, Path, Scheduler, Span, Team};

const BASELINE: CostClass = CostClass(0);
const OPTIMIZED: CostClass = CostClass(1);

/// What is going to happen to a rank, or, where it says so, to a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Finished {
        worker: u32,
    },
    /// The first chore's bytes are read or written.
    Moved,
    /// The first of the rank's chores is done.
    ChoreDone,
    Taken {
        slot: u32,
    },
    Arrived {
        slot: u32,
    },
    Parcel {
        slot: u32,
    },
    Tick,
    /// Optimized code has come.
    Code,
    /// A thread on the cores of a node may be done.
    Node {
        epoch: u32,
    },
}

/// What a rank's main thread does, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chore {
    /// All that comes with a run of a stage, whatever its size.
    Begin,
    Fetch {
        block: u64,
    },
    Take {
        piece: Span,
    },
    Write {
        block: u64,
    },
    /// Leaves a barrier.
    Leave,
}

/// What runs on cores that are shared.
#[derive(Clone, Copy, Debug)]
enum Job {
    Worker { rank: u32, worker: u32 },
    Main { rank: u32 },
    Poll,
    Compiler,
}

/// What one rank sends another beside the messages of schedulers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parcel {
    /// Of an input.
    Shard,
    /// Of the broadcast input of this number.
    Broadcast(usize),
    /// Partial results, on this level.
    Partial(usize),
}

/// A stage and all that is known of it before it runs.
pub(super) struct StageWorld {
    /// By deal, as all that follows.
    pub work: Vec<Work>,
    /// Of the first run, and of the others.
    pub preludes: [Vec<Prelude>; 2],
    pub levels: Vec<Vec<Vec<Level>>>,
    pub steals: bool,
    /// No rank goes on before all have done their part.
    pub together: bool,
    pub costs: Option<Costs>,
    pub begin_ns: u64,
}

pub(super) struct Rank {
    /// Number of the run that it is in.
    pub run: usize,
    pub phase: Phase,
    pub scheduler: Option<Scheduler>,
    pub complete: bool,
    pub over: bool,
    pub reduced: bool,
    /// Parcels of this run that have come.
    pub shards: u32,
    pub broadcasts: u64,
    pub partials: Vec<u32>,
    pub level: usize,
    /// Those of later runs.
    pub early: Vec<(usize, Parcel)>,
    pub early_messages: Vec<(usize, u32, Message)>,
    pub chores: VecDeque<Chore>,
    pub entered_ns: u64,
    pub optimized: bool,
    poll: Option<Thread>,
}

pub(super) struct World<'a> {
    pub plan: &'a Plan,
    pub setup: &'a Setup,
    pub machine: &'a Machine,
    pub stages: Vec<StageWorld>,
    pub runs: Vec<Run>,
    pub ranks: Vec<Rank>,
    teams: Vec<Team>,
    pub links: Links,
    cores: Option<Cores<Job>>,
    pub threads: u32,
    pub now_ns: u64,
    queue: Queue<(u32, What)>,
    /// What each worker computes, since when, and on which code.
    running: Vec<(Span, u64, bool)>,
    messages: Slots<(usize, u32, Message)>,
    parcels: Slots<(usize, Parcel)>,
    pieces: Slots<Span>,
    sent: u64,
    pub ranks_over: u32,
    /// By run: ranks at its barrier.
    pub arrived: Vec<u32>,
    /// By run and rank: how long it took; and when the last rank left it.
    pub walls: Vec<Vec<u64>>,
    pub left_ns: Vec<u64>,
    pub times: Vec<StageTimes>,
    pub optimized_at_ns: Option<u64>,
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan, setup: &'a Setup) -> World<'a> {
        let machine = &setup.machine;
        let (ranks, threads) = (plan.machine.ranks, plan.machine.threads);
        let ranks_per_node = plan.machine.ranks_per_node.clamp(1, ranks);
        let deals = deals(plan, setup);
        let stages = (0..plan.stages.len()).map(|stage| stage_world(plan, setup, &deals, stage));
        let runs = runs(plan, setup);
        let links = Links::new(ranks, ranks_per_node);
        let shared = machine.cores_per_node > 0;
        let nodes = links.node(ranks - 1) + 1;
        let rank = || Rank {
            run: 0,
            phase: Phase::Prelude,
            scheduler: None,
            complete: false,
            over: false,
            reduced: false,
            shards: 0,
            broadcasts: 0,
            partials: Vec::new(),
            level: 0,
            early: Vec::new(),
            early_messages: Vec::new(),
            chores: VecDeque::new(),
            entered_ns: 0,
            optimized: machine.optimize_ns == 0,
            poll: None,
        };
        let nothing = Span { owner: 0, block: 0, start: 0, len: 0 };
        let name = |stage: &crate::plan::StagePlan| StageTimes { stage: stage.name.clone(), ..StageTimes::default() };
        World {
            plan,
            setup,
            machine,
            stages: stages.collect(),
            ranks: (0..ranks).map(|_| rank()).collect(),
            teams: Team::packed(ranks, ranks_per_node).collect(),
            links,
            cores: shared.then(|| Cores::new(nodes, u64::from(machine.cores_per_node))),
            threads,
            now_ns: 0,
            queue: Queue::new(),
            running: vec![(nothing, 0, true); (ranks * threads) as usize],
            messages: Slots::new(),
            parcels: Slots::new(),
            pieces: Slots::new(),
            sent: 0,
            ranks_over: 0,
            arrived: vec![0; runs.len()],
            walls: vec![vec![0; ranks as usize]; runs.len()],
            left_ns: vec![0; runs.len()],
            runs,
            times: plan.stages.iter().map(name).collect(),
            optimized_at_ns: None,
        }
    }

    pub fn run(mut self) -> Simulation {
        let ranks = self.plan.machine.ranks;
        if self.machine.optimize_ns > 0 {
            self.compute(0, self.machine.optimize_ns, Job::Compiler);
        }
        (0..ranks).for_each(|rank| self.enter(rank));
        while self.ranks_over < ranks {
            let Some((at_ns, (rank, what))) = self.queue.pop() else {
                panic!("{} of {ranks} ranks wait for ever", ranks - self.ranks_over)
            };
            self.now_ns = at_ns;
            self.happen(rank, what);
        }
        self.result()
    }

    pub fn at(&mut self, at_ns: u64, rank: u32, what: What) {
        self.queue.push(at_ns, (rank, what));
    }

    /// Lets a core work for `work_ns`: one of its own, or of those that are shared.
    fn compute(&mut self, rank: u32, work_ns: u64, job: Job) -> Option<Thread> {
        let node = self.links.node(rank);
        match &mut self.cores {
            Some(cores) => {
                let thread = cores.begin(node, self.now_ns, work_ns, job);
                self.look_at(node);
                Some(thread)
            }
            None => {
                let (rank, what) = match job {
                    Job::Worker { rank, worker } => (rank, What::Finished { worker }),
                    Job::Main { rank } => (rank, What::ChoreDone),
                    Job::Poll => return None,
                    Job::Compiler => (rank, What::Node { epoch: 0 }),
                };
                self.at(self.now_ns + work_ns, rank, what);
                None
            }
        }
    }

    /// Asks when the next thread of a node will be done.
    fn look_at(&mut self, node: usize) {
        if let Some((at_ns, epoch)) = self.cores.as_mut().and_then(|cores| cores.next(node)) {
            self.at(at_ns, node as u32, What::Node { epoch });
        }
    }

    /// The rank waits for others, looking for messages all the time.
    pub fn poll(&mut self, rank: u32) {
        if self.ranks[rank as usize].poll.is_none() {
            self.ranks[rank as usize].poll = self.compute(rank, self.machine.poll_ns, Job::Poll);
        }
    }

    pub fn poll_no_more(&mut self, rank: u32) {
        let node = self.links.node(rank);
        if let (Some(thread), Some(cores)) = (self.ranks[rank as usize].poll.take(), &mut self.cores) {
            cores.cancel(node, self.now_ns, thread);
            self.look_at(node);
        }
    }

    /// The stage that a rank is in, and which of its two deals.
    pub fn place(&self, rank: u32) -> (usize, usize) {
        let run = &self.runs[self.ranks[rank as usize].run.min(self.runs.len() - 1)];
        (run.stage, run.parity())
    }

    fn work(&self, rank: u32) -> &Work {
        let (stage, parity) = self.place(rank);
        &self.stages[stage].work[parity]
    }

    pub fn tell(&mut self, rank: u32, event: Event) {
        let now_ns = self.now_ns;
        let Some(scheduler) = &mut self.ranks[rank as usize].scheduler else { return };
        let actions = scheduler.on(now_ns, event);
        self.carry_out(rank, actions);
    }

    fn happen(&mut self, rank: u32, what: What) {
        if !matches!(what, What::Node { .. } | What::Code) {
            let (stage, _) = self.place(rank);
            self.times[stage].events += 1;
        }
        match what {
            What::Finished { worker } => self.finished(rank, worker),
            What::Moved => {
                let ns = self.chore_ns(rank);
                self.compute(rank, ns, Job::Main { rank });
            }
            What::ChoreDone => self.chore_done(rank),
            What::Taken { slot } => {
                if let Some(piece) = self.pieces.take(slot) {
                    self.taken(rank, piece);
                }
            }
            What::Arrived { slot } => {
                if let Some((run, from, message)) = self.messages.take(slot) {
                    self.hear(rank, run, from, message);
                }
            }
            What::Parcel { slot } => {
                if let Some((run, parcel)) = self.parcels.take(slot) {
                    self.receive(rank, run, parcel);
                }
            }
            What::Tick => self.tell(rank, Event::Tick),
            What::Code => self.ranks[rank as usize].optimized = true,
            What::Node { .. } if self.cores.is_none() => self.compiled(),
            What::Node { epoch } => {
                let node = rank as usize;
                let done = self.cores.as_mut().and_then(|cores| cores.done(node, self.now_ns, epoch));
                match done {
                    Some(Job::Worker { rank, worker }) => self.finished(rank, worker),
                    Some(Job::Main { rank }) => self.chore_done(rank),
                    Some(Job::Compiler) => self.compiled(),
                    Some(Job::Poll) => {}
                    None => return,
                }
                self.look_at(node);
            }
        }
    }

    /// The artifact goes down a tree of all ranks.
    fn compiled(&mut self) {
        self.optimized_at_ns = Some(self.now_ns);
        for rank in 0..self.ranks.len() as u32 {
            let hops = u64::from(32 - (rank + 1).leading_zeros() - 1);
            self.at(self.now_ns + hops * self.machine.network_latency_ns, rank, What::Code);
        }
    }

    fn finished(&mut self, rank: u32, worker: u32) {
        let (span, started_ns, optimized) = self.running[(rank * self.threads + worker) as usize];
        let elapsed_ns = self.now_ns - started_ns;
        let class = if optimized { OPTIMIZED } else { BASELINE };
        self.tell(rank, Event::Finished { span, elapsed_ns, class });
        self.tell(rank, Event::Idle { worker: worker as usize, class });
    }

    pub fn begin_stage(&mut self, rank: u32) {
        let (stage, parity) = self.place(rank);
        let world = &self.stages[stage];
        let (blocks, in_flight) = (world.work[parity].block_count(rank), u64::from(self.threads) + 2);
        let scheduler = Scheduler::new(blocks, in_flight, self.threads as usize, self.setup.granularity);
        let scheduler = scheduler.in_team(self.teams[rank as usize].clone());
        let mut scheduler = match world.costs.filter(|_| world.steals) {
            Some(costs) => scheduler.stealing(costs),
            None => scheduler,
        };
        let mut actions = scheduler.begin(self.now_ns);
        let class = if self.ranks[rank as usize].optimized { OPTIMIZED } else { BASELINE };
        for worker in 0..self.threads as usize {
            actions.extend(scheduler.on(self.now_ns, Event::Idle { worker, class }));
        }
        self.ranks[rank as usize].scheduler = Some(scheduler);
        self.carry_out(rank, actions);
    }

    fn carry_out(&mut self, rank: u32, actions: Vec<Action>) {
        let (mut complete, mut over) = (false, false);
        for action in actions {
            match action {
                Action::Fetch { block } => self.add_chore(rank, Chore::Fetch { block }),
                Action::Write { block } => self.add_chore(rank, Chore::Write { block }),
                Action::Take { piece } => {
                    self.count_stolen(rank, piece);
                    if piece.len == 0 {
                        self.add_chore(rank, Chore::Take { piece });
                    } else {
                        // Parts of blocks came with the grant.
                        let slot = self.pieces.put(piece);
                        self.at(self.now_ns, rank, What::Taken { slot });
                    }
                }
                Action::Start { worker, span } => {
                    let optimized = self.ranks[rank as usize].optimized;
                    let work_ns = self.work(rank).task_ns(rank, span, optimized);
                    let worker = worker as u32;
                    self.running[(rank * self.threads + worker) as usize] = (span, self.now_ns, optimized);
                    let (stage, _) = self.place(rank);
                    let runs = self.runs[self.ranks[rank as usize].run].times;
                    self.times[stage].tasks += runs;
                    self.times[stage].baseline_tasks += if optimized { 0 } else { runs };
                    self.compute(rank, work_ns, Job::Worker { rank, worker });
                }
                Action::Send { to, message } => self.send_message(rank, to, message),
                Action::WakeAt { ns } => self.at(ns, rank, What::Tick),
                Action::Complete => complete = true,
                Action::Over => over = true,
                Action::Merge { .. } | Action::Drop { .. } => {}
            }
        }
        // Last, since the rank may leave for its next run.
        if complete {
            self.computed(rank);
        }
        if over {
            self.knows_over(rank);
        }
    }

    fn taken(&mut self, rank: u32, piece: Span) {
        let slices = self.work(rank).slices(piece);
        self.tell(rank, Event::Taken { piece, slices });
    }

    pub fn add_chore(&mut self, rank: u32, chore: Chore) {
        let chores = &mut self.ranks[rank as usize].chores;
        chores.push_back(chore);
        if chores.len() == 1 {
            self.begin_chore(rank);
        }
    }

    /// Begins the first of the chores that wait: first what it reads or writes, then what it computes.
    fn begin_chore(&mut self, rank: u32) {
        let Some(chore) = self.ranks[rank as usize].chores.front().copied() else { return };
        let (machine, (stage, parity)) = (self.machine, self.place(rank));
        let work = &self.stages[stage].work[parity];
        let bytes = match chore {
            Chore::Begin => {
                let first = self.runs[self.ranks[rank as usize].run].first;
                self.stages[stage].preludes[usize::from(!first)][parity].read_bytes[rank as usize]
            }
            Chore::Fetch { block } => work.of(rank, block).file_bytes,
            // What was in its owner's memory came with the grant.
            Chore::Take { piece } => work.of(piece.owner, piece.block).file_bytes,
            Chore::Write { block } => work.of(rank, block).output_bytes,
            Chore::Leave => 0,
        };
        let is_write = matches!(chore, Chore::Write { .. });
        let ns_per_byte = if is_write { machine.write_ns_per_byte } else { machine.read_ns_per_byte };
        let at_ns = self.links.file(self.now_ns, machine, rank, bytes, ns_per_byte);
        if self.cores.is_some() && self.chore_ns(rank) > 0 {
            self.at(at_ns, rank, What::Moved);
        } else {
            let ns = self.chore_ns(rank);
            self.at(at_ns + ns, rank, What::ChoreDone);
        }
    }

    /// Time of the main thread for the first chore, beside reading and writing.
    fn chore_ns(&self, rank: u32) -> u64 {
        let Some(chore) = self.ranks[rank as usize].chores.front() else { return 0 };
        let (machine, (stage, parity)) = (self.machine, self.place(rank));
        let world = &self.stages[stage];
        let work = &world.work[parity];
        match chore {
            Chore::Begin => {
                let prelude = self.prelude(rank);
                let sent = prelude.sends[rank as usize].len() as u64;
                let messages = sent + u64::from(prelude.awaits[rank as usize]) + prelude.broadcasts.len() as u64;
                work.main_ns(rank, world.begin_ns + messages * machine.message_ns)
            }
            Chore::Fetch { block } => {
                let form = work.of(rank, *block);
                work.main_ns(rank, form.copy_ns) + time(form.memory_bytes, machine.memory_ns_per_byte)
            }
            Chore::Take { .. } | Chore::Write { .. } => 0,
            Chore::Leave => {
                let rounds = u64::from(u32::BITS - (self.plan.machine.ranks - 1).leading_zeros());
                work.main_ns(rank, 2 * rounds * machine.message_ns)
            }
        }
    }

    fn chore_done(&mut self, rank: u32) {
        let done = self.ranks[rank as usize].chores.pop_front();
        self.begin_chore(rank);
        match done {
            Some(Chore::Begin) => self.begun(rank),
            Some(Chore::Fetch { block }) => {
                let slices = self.work(rank).of(rank, block).slices;
                self.tell(rank, Event::Fetched { block, slices });
            }
            Some(Chore::Take { piece }) => self.taken(rank, piece),
            Some(Chore::Write { block }) => self.tell(rank, Event::Written { block }),
            Some(Chore::Leave) => self.leave(rank),
            None => {}
        }
    }

    fn send_message(&mut self, from: u32, to: u32, message: Message) {
        let (stage, _) = self.place(from);
        if !self.stages[stage].steals {
            // Where nobody steals, nobody need know when the others are done.
            return;
        }
        let bytes = self.attached_bytes(from, &message);
        let mut at_ns = self.links.send(self.now_ns, self.machine, from, to, bytes);
        self.count_moved(from, to, bytes);
        if self.machine.answer_ns > 0 && !self.ranks[to as usize].complete {
            self.sent += 1;
            at_ns += bits(self.setup.seed, Draw::Answer, self.sent, u64::from(to)) % self.machine.answer_ns;
        }
        let slot = self.messages.put((self.ranks[from as usize].run, from, message));
        self.at(at_ns, to, What::Arrived { slot });
    }

    pub fn send_parcel(&mut self, from: u32, to: u32, bytes: u64, parcel: Parcel) {
        let at_ns = self.links.send(self.now_ns, self.machine, from, to, bytes) + self.machine.message_ns;
        self.count_moved(from, to, bytes);
        let slot = self.parcels.put((self.ranks[from as usize].run, parcel));
        self.at(at_ns, to, What::Parcel { slot });
    }

    fn count_moved(&mut self, from: u32, to: u32, bytes: u64) {
        let (stage, near) = (self.place(from).0, self.links.node(from) == self.links.node(to));
        let bytes = bytes * self.runs[self.ranks[from as usize].run].times;
        let times = &mut self.times[stage];
        if near {
            times.moved_on_node_bytes += bytes;
        } else {
            times.moved_between_nodes_bytes += bytes;
        }
    }

    /// What the driver of a run would send along.
    fn attached_bytes(&self, from: u32, message: &Message) -> u64 {
        let work = self.work(from);
        match message {
            Message::Grant { pieces, .. } => pieces
                .iter()
                .map(|piece| {
                    let form = work.of(piece.owner, piece.block);
                    match piece.len {
                        0 => form.memory_bytes,
                        _ => work.part(*piece, form.file_bytes + form.memory_bytes),
                    }
                })
                .sum(),
            Message::Returned { piece, .. } => work.part(*piece, work.of(piece.owner, piece.block).returned_bytes),
            _ => 0,
        }
    }

    fn count_stolen(&mut self, thief: u32, piece: Span) {
        let work = self.work(thief);
        let bytes = work.part(piece, work.of(piece.owner, piece.block).bytes);
        let near = self.links.node(thief) == self.links.node(piece.owner);
        let (stage, _) = self.place(thief);
        if near {
            self.times[stage].stolen_on_node_bytes += bytes;
        } else {
            self.times[stage].stolen_between_nodes_bytes += bytes;
        }
    }
}

fn stage_world(plan: &Plan, setup: &Setup, deals: &Deals, number: usize) -> StageWorld {
    let (stage, machine) = (&plan.stages[number], &setup.machine);
    let iterated = setup.iterations.as_ref().is_some_and(|iterations| iterations.stages.contains(&number));
    let exchange = |parity| Exchange { plan, iterations: setup.iterations.as_ref(), deals, stage: number, parity };
    let parities = || 0..deals[number].len();
    let work = deals[number].iter().map(|deal| Work::new(stage, plan.machine.ranks, setup, deal)).collect::<Vec<_>>();
    let is_written = stage.operands.iter().any(|o| o.role == Role::Output && o.origin == Origin::Created);
    let later = |parity| if iterated { exchange(parity).prelude(false) } else { Prelude::default() };
    StageWorld {
        costs: Some(costs(machine, &work[0])),
        work,
        preludes: [parities().map(|parity| exchange(parity).prelude(true)).collect(), parities().map(later).collect()],
        levels: parities().map(|parity| exchange(parity).combine().0).collect(),
        steals: setup.policy == Policy::Steal && plan.machine.ranks > 1 && !iterated,
        together: is_written && !iterated,
        begin_ns: setup.costs.get(&stage.name).map_or(machine.stage_ns, |costs| costs.begin_ns),
    }
}

fn costs(machine: &Machine, work: &Work) -> Costs {
    let (unfetched, fetched) = work.typical().map_or((0, 0), |form| {
        let kept = form.memory_bytes + form.returned_bytes;
        (kept, kept + form.file_bytes)
    });
    let path = |latency_ns, ns_per_byte| Path { latency_ns: latency_ns + machine.answer_ns, ns_per_byte };
    Costs {
        node: path(machine.node_latency_ns, machine.node_ns_per_byte),
        network: path(machine.network_latency_ns, machine.network_ns_per_byte),
        unfetched_block_bytes: unfetched,
        fetched_block_bytes: fetched,
    }
}
