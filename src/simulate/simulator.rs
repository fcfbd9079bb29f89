//! The event loop: ranks, cores and links of a machine, and what happens on them. What a rank does from stage to stage
//! is in `phases`.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::exchange::deals;
use super::phases::{Phase, Run, runs};
use super::workers::Worker;
use super::{Setup, Simulation, StageTimes};
use crate::plan::Plan;
use crate::sched::{Action, Event, Message, Scheduler, Span, Team};
use crate::simulate::block_costs::Work;
use crate::simulate::cpu_sharing::{Cores, Thread};
use crate::simulate::event_queue::{Queue, Slots};
use crate::simulate::machine::Machine;
use crate::simulate::main_thread::MainThreadJob;
use crate::simulate::network::Links;
use crate::simulate::stage_model::{StageWorld, stage_world};

/// What is going to happen to a rank, or, where it says so, to a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum SimEvent {
    /// Tasks have ended on cores of their own.
    Ends,
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
    TensorMessage {
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

/// What runs on cores that are shared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    Worker { rank: u32, worker: u32 },
    Main { rank: u32 },
    Poll,
    Compiler,
}

/// What one rank sends another beside the messages of schedulers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TensorMessage {
    /// Of an input.
    Shard,
    /// Of the broadcast input of this number.
    Broadcast(usize),
    /// Partial results, on this level.
    Partial(usize),
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
    pub early: Vec<(usize, TensorMessage)>,
    pub early_messages: Vec<(usize, u32, Message)>,
    pub chores: VecDeque<MainThreadJob>,
    pub workers: SmallVec<[Worker; 1]>,
    pub entered_ns: u64,
    pub optimized: bool,
    /// When the first of its tasks ends that are on cores of their own, and when it looks after them.
    pub ends_ns: Option<u64>,
    pub watched_ns: u64,
    poll: Option<Thread>,
}

impl Rank {
    /// See [`Simulator::look_ahead`].
    fn prefetch(&self) -> u64 {
        let scheduler = self.scheduler.as_ref().map_or(0, Scheduler::prefetch);
        let lengths = self.chores.len() ^ self.workers.len() ^ self.early.len() ^ self.early_messages.len();
        scheduler ^ lengths as u64 ^ self.run as u64 ^ self.entered_ns ^ self.watched_ns ^ u64::from(self.shards)
    }
}

pub(super) struct Simulator<'a> {
    pub plan: &'a Plan,
    pub setup: &'a Setup,
    pub machine: &'a Machine,
    pub stages: Vec<StageWorld>,
    pub runs: Vec<Run>,
    pub ranks: Vec<Rank>,
    teams: Vec<Team>,
    pub links: Links,
    pub cores: Option<Cores<Job>>,
    pub threads: u32,
    pub now_ns: u64,
    /// When the event that is being dealt with happened: what is caught up with lies before it.
    event_ns: u64,
    queue: Queue<(u32, SimEvent)>,
    pub messages: Slots<(usize, u32, Message)>,
    pub parcels: Slots<(usize, TensorMessage)>,
    pieces: Slots<Span>,
    pub sent: u64,
    pub ranks_over: u32,
    /// By run: ranks at its barrier.
    pub arrived: Vec<u32>,
    /// By run and rank: how long it took; and when the last rank left it.
    pub walls: Vec<Vec<u64>>,
    pub left_ns: Vec<u64>,
    pub times: Vec<StageTimes>,
    pub optimized_at_ns: Option<u64>,
}

impl<'a> Simulator<'a> {
    pub fn new(plan: &'a Plan, setup: &'a Setup) -> Simulator<'a> {
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
            workers: smallvec::smallvec![Worker::IDLE; threads as usize],
            entered_ns: 0,
            optimized: machine.optimize_ns == 0,
            ends_ns: None,
            watched_ns: u64::MAX,
            poll: None,
        };
        let name = |stage: &crate::plan::StagePlan| StageTimes { stage: stage.name.clone(), ..StageTimes::default() };
        Simulator {
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
            event_ns: 0,
            queue: Queue::new(),
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
            self.look_ahead();
            let Some((at_ns, (rank, what))) = self.queue.pop() else {
                panic!("{} of {ranks} ranks wait for ever", ranks - self.ranks_over)
            };
            (self.now_ns, self.event_ns) = (at_ns, at_ns);
            self.happen(rank, what);
        }
        self.result()
    }

    /// Reads of the ranks that come next what their events will need. With many ranks none of it is in a cache, and to wait for
    /// all of it at once takes little longer than to wait for a part of it ("group prefetching": Chen, Ailamaki, Gibbons and
    /// Mowry, ICDE 2004).
    fn look_ahead(&mut self) {
        if !self.queue.open() {
            return;
        }
        let seen = self.queue.near().fold(0, |seen, (rank, _)| seen ^ self.ranks[*rank as usize].prefetch());
        std::hint::black_box(seen);
    }

    pub fn at(&mut self, at_ns: u64, rank: u32, what: SimEvent) {
        assert!(self.now_ns == self.event_ns, "rank {rank} caught up too late");
        self.queue.push(at_ns, (rank, what));
    }

    /// Lets a core work for `work_ns`: one of its own, or of those that are shared.
    pub fn compute(&mut self, rank: u32, work_ns: u64, job: Job) -> Option<Thread> {
        let node = self.links.node(rank);
        match &mut self.cores {
            Some(cores) => {
                let thread = cores.begin(node, self.now_ns, work_ns, job);
                self.look_at(node);
                Some(thread)
            }
            None => {
                let (rank, what) = match job {
                    Job::Worker { rank, worker } => {
                        self.ends_at(rank, worker, self.now_ns + work_ns);
                        return None;
                    }
                    Job::Main { rank } => (rank, SimEvent::ChoreDone),
                    Job::Poll => return None,
                    Job::Compiler => (rank, SimEvent::Node { epoch: 0 }),
                };
                self.at(self.now_ns + work_ns, rank, what);
                None
            }
        }
    }

    /// Asks when the next thread of a node will be done.
    fn look_at(&mut self, node: usize) {
        if let Some((at_ns, epoch)) = self.cores.as_mut().and_then(|cores| cores.next(node)) {
            self.at(at_ns, node as u32, SimEvent::Node { epoch });
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

    pub fn work(&self, rank: u32) -> &Work {
        let (stage, parity) = self.place(rank);
        &self.stages[stage].work[parity]
    }

    pub fn tell(&mut self, rank: u32, event: Event) {
        let now_ns = self.now_ns;
        let Some(scheduler) = &mut self.ranks[rank as usize].scheduler else { return };
        let actions = scheduler.on(now_ns, event);
        self.carry_out(rank, actions);
    }

    pub fn count_event(&mut self, rank: u32) {
        let (stage, _) = self.place(rank);
        self.times[stage].events += 1;
    }

    fn happen(&mut self, rank: u32, what: SimEvent) {
        if let SimEvent::Node { epoch } = what {
            return self.node_done(rank as usize, epoch);
        }
        self.catch_up(rank);
        if !matches!(what, SimEvent::Ends | SimEvent::Code) {
            self.count_event(rank);
        }
        match what {
            SimEvent::Ends => self.ranks[rank as usize].watched_ns = u64::MAX,
            SimEvent::Moved => {
                let ns = self.chore_ns(rank);
                self.compute(rank, ns, Job::Main { rank });
            }
            SimEvent::ChoreDone => self.chore_done(rank),
            SimEvent::Taken { slot } => {
                if let Some(piece) = self.pieces.take(slot) {
                    self.taken(rank, piece);
                }
            }
            SimEvent::Arrived { slot } => {
                if let Some((run, from, message)) = self.messages.take(slot) {
                    self.hear(rank, run, from, message);
                }
            }
            SimEvent::TensorMessage { slot } => {
                if let Some((run, parcel)) = self.parcels.take(slot) {
                    self.receive(rank, run, parcel);
                }
            }
            SimEvent::Tick => self.tell(rank, Event::Tick),
            SimEvent::Code => self.ranks[rank as usize].optimized = true,
            SimEvent::Node { .. } => {}
        }
        self.watch(rank);
    }

    /// A thread on the shared cores of a node is done, or the compiler on one of its own.
    fn node_done(&mut self, node: usize, epoch: u32) {
        let Some(cores) = &mut self.cores else { return self.compiled() };
        match cores.done(node, self.now_ns, epoch) {
            Some(Job::Worker { rank, worker }) => self.finished(rank, worker),
            Some(Job::Main { rank }) => self.chore_done(rank),
            Some(Job::Compiler) => self.compiled(),
            Some(Job::Poll) => {}
            None => return,
        }
        self.look_at(node);
    }

    /// The artifact goes down a tree of all ranks.
    fn compiled(&mut self) {
        self.optimized_at_ns = Some(self.now_ns);
        for rank in 0..self.ranks.len() as u32 {
            let hops = u64::from(32 - (rank + 1).leading_zeros() - 1);
            self.at(self.now_ns + hops * self.machine.network_latency_ns, rank, SimEvent::Code);
        }
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
        let class = self.class(rank);
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
                Action::Fetch { block } => self.add_chore(rank, MainThreadJob::Fetch { block }),
                Action::Write { block } => self.add_chore(rank, MainThreadJob::Write { block }),
                Action::Take { piece } => {
                    self.count_stolen(rank, piece);
                    if piece.len == 0 {
                        self.add_chore(rank, MainThreadJob::Take { piece });
                    } else {
                        // Parts of blocks came with the grant.
                        let slot = self.pieces.put(piece);
                        self.at(self.now_ns, rank, SimEvent::Taken { slot });
                    }
                }
                Action::Start { worker, span } => {
                    let worker = worker as u32;
                    let work_ns = self.start(rank, worker, span);
                    self.compute(rank, work_ns, Job::Worker { rank, worker });
                }
                Action::Send { to, message } => self.send_message(rank, to, message),
                Action::WakeAt { ns } => self.at(ns, rank, SimEvent::Tick),
                Action::Complete => complete = true,
                Action::Over => over = true,
                Action::Merge { .. } => {}
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

    pub fn taken(&mut self, rank: u32, piece: Span) {
        let slices = self.work(rank).slices(piece);
        self.tell(rank, Event::Taken { piece, slices });
    }
}
