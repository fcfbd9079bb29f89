//! The event loop of the simulation. `phases` moves a rank from stage to stage, `main_thread` and `workers` simulate
//! its threads, `messages` its messages.

use crate::plan::{Plan, StagePlan};
use crate::sched::{Action, Event, Message, Scheduler, Span, Team};
use crate::simulate::block_costs::BlockCosts;
use crate::simulate::cpu_sharing::{NodeCores, Thread};
use crate::simulate::event::{CpuWork, SimEvent, TensorMessage};
use crate::simulate::event_queue::{EventQueue, Slots};
use crate::simulate::exchange::placements;
use crate::simulate::machine::MachineModel;
use crate::simulate::network::Network;
use crate::simulate::rank_state::{MainThreadJob, SimRank};
use crate::simulate::results::{Simulation, StageTimes};
use crate::simulate::runs::{SimRun, runs};
use crate::simulate::setup::SimulationSetup;
use crate::simulate::stage_model::{StageModel, stage_model};

pub(super) struct Simulator<'a> {
    pub plan: &'a Plan,
    pub setup: &'a SimulationSetup,
    pub machine: &'a MachineModel,
    pub stages: Vec<StageModel>,
    pub runs: Vec<SimRun>,
    pub ranks: Vec<SimRank>,
    teams: Vec<Team>,
    pub network: Network,
    pub cores: Option<NodeCores<CpuWork>>,
    pub threads: u32,
    pub now_ns: u64,
    /// Time of the current event. While a rank catches up with earlier ends of tasks, `now_ns` lies before it.
    event_ns: u64,
    queue: EventQueue<(u32, SimEvent)>,
    pub messages: Slots<(usize, u32, Message)>,
    pub tensor_messages: Slots<(usize, TensorMessage)>,
    pieces: Slots<Span>,
    pub sent: u64,
    pub ranks_over: u32,
    /// Ranks at the barrier, by run.
    pub arrived: Vec<u32>,
    /// Duration by run and rank.
    pub walls: Vec<Vec<u64>>,
    /// When the last rank left each run.
    pub left_ns: Vec<u64>,
    pub times: Vec<StageTimes>,
    pub optimized_at_ns: Option<u64>,
}

impl<'a> Simulator<'a> {
    pub fn new(plan: &'a Plan, setup: &'a SimulationSetup) -> Simulator<'a> {
        let machine = &setup.machine;
        let (ranks, threads) = (plan.machine.ranks, plan.machine.threads);
        let ranks_per_node = plan.machine.ranks_per_node.clamp(1, ranks);
        let placements = placements(plan, setup);
        let stages = (0..plan.stages.len()).map(|stage| stage_model(plan, setup, &placements, stage));
        let runs = runs(plan, setup);
        let network = Network::new(ranks, ranks_per_node);
        let shared = machine.cores_per_node > 0;
        let nodes = network.node(ranks - 1) + 1;
        let times = |stage: &StagePlan| StageTimes { stage: stage.name.clone(), ..StageTimes::default() };
        Simulator {
            plan,
            setup,
            machine,
            stages: stages.collect(),
            ranks: (0..ranks).map(|_| SimRank::new(threads, machine.optimize_ns == 0)).collect(),
            teams: Team::packed(ranks, ranks_per_node).collect(),
            network,
            cores: shared.then(|| NodeCores::new(nodes, u64::from(machine.cores_per_node))),
            threads,
            now_ns: 0,
            event_ns: 0,
            queue: EventQueue::new(),
            messages: Slots::new(),
            tensor_messages: Slots::new(),
            pieces: Slots::new(),
            sent: 0,
            ranks_over: 0,
            arrived: vec![0; runs.len()],
            walls: vec![vec![0; ranks as usize]; runs.len()],
            left_ns: vec![0; runs.len()],
            runs,
            times: plan.stages.iter().map(times).collect(),
            optimized_at_ns: None,
        }
    }

    pub fn run(mut self) -> Simulation {
        let ranks = self.plan.machine.ranks;
        if self.machine.optimize_ns > 0 {
            self.compute(0, self.machine.optimize_ns, CpuWork::Compiler);
        }
        (0..ranks).for_each(|rank| self.enter(rank));
        while self.ranks_over < ranks {
            self.prefetch_ranks();
            let Some((at_ns, (rank, event))) = self.queue.pop() else {
                panic!("{} of {ranks} ranks wait forever", ranks - self.ranks_over)
            };
            (self.now_ns, self.event_ns) = (at_ns, at_ns);
            self.handle(rank, event);
        }
        self.result()
    }

    /// Prefetches the state of the ranks whose events come next. With many ranks none of it is in a cache, and waiting
    /// for all of it at once takes little longer than waiting for one part ("group prefetching": Chen, Ailamaki,
    /// Gibbons and Mowry, ICDE 2004). It has no effect on the result.
    fn prefetch_ranks(&mut self) {
        if !self.queue.open() {
            return;
        }
        let seen = self.queue.near().fold(0, |seen, (rank, _)| seen ^ self.ranks[*rank as usize].prefetch());
        std::hint::black_box(seen);
    }

    pub fn at(&mut self, at_ns: u64, rank: u32, event: SimEvent) {
        assert!(self.now_ns == self.event_ns, "rank {rank} caught up too late");
        self.queue.push(at_ns, (rank, event));
    }

    /// Starts work that takes `work_ns` on a core of its own, or on the shared cores of the node.
    pub fn compute(&mut self, rank: u32, work_ns: u64, work: CpuWork) -> Option<Thread> {
        let node = self.network.node(rank);
        match &mut self.cores {
            Some(cores) => {
                let thread = cores.begin(node, self.now_ns, work_ns, work);
                self.schedule_thread_end(node);
                Some(thread)
            }
            None => {
                let (rank, event) = match work {
                    CpuWork::Worker { rank, worker } => {
                        self.set_task_end(rank, worker, self.now_ns + work_ns);
                        return None;
                    }
                    CpuWork::MainThread { rank } => (rank, SimEvent::MainThreadJobDone),
                    CpuWork::Poll => return None,
                    CpuWork::Compiler => (rank, SimEvent::ThreadDone { epoch: 0 }),
                };
                self.at(self.now_ns + work_ns, rank, event);
                None
            }
        }
    }

    /// Schedules the event of the next thread of a node that will be done.
    fn schedule_thread_end(&mut self, node: usize) {
        if let Some((at_ns, epoch)) = self.cores.as_mut().and_then(|cores| cores.next(node)) {
            self.at(at_ns, node as u32, SimEvent::ThreadDone { epoch });
        }
    }

    /// Lets the rank poll for messages, which keeps a shared core busy for a while.
    pub fn start_polling(&mut self, rank: u32) {
        if self.ranks[rank as usize].poll.is_none() {
            self.ranks[rank as usize].poll = self.compute(rank, self.machine.poll_ns, CpuWork::Poll);
        }
    }

    pub fn stop_polling(&mut self, rank: u32) {
        let node = self.network.node(rank);
        if let (Some(thread), Some(cores)) = (self.ranks[rank as usize].poll.take(), &mut self.cores) {
            cores.cancel(node, self.now_ns, thread);
            self.schedule_thread_end(node);
        }
    }

    /// The stage that a rank is in, and the number of its placement.
    pub fn place(&self, rank: u32) -> (usize, usize) {
        let run = &self.runs[self.ranks[rank as usize].run.min(self.runs.len() - 1)];
        (run.stage, run.parity())
    }

    /// The blocks of the stage that a rank is in.
    pub fn work(&self, rank: u32) -> &BlockCosts {
        let (stage, parity) = self.place(rank);
        &self.stages[stage].work[parity]
    }

    /// Passes an event to the scheduler of a rank, and carries out the actions that it returns.
    pub fn notify_scheduler(&mut self, rank: u32, event: Event) {
        let now_ns = self.now_ns;
        let Some(scheduler) = &mut self.ranks[rank as usize].scheduler else { return };
        let actions = scheduler.on(now_ns, event);
        self.carry_out(rank, actions);
    }

    pub fn count_event(&mut self, rank: u32) {
        let (stage, _) = self.place(rank);
        self.times[stage].events += 1;
    }

    fn handle(&mut self, rank: u32, event: SimEvent) {
        if let SimEvent::ThreadDone { epoch } = event {
            return self.on_thread_done(rank as usize, epoch);
        }
        self.catch_up(rank);
        if !matches!(event, SimEvent::TasksEnded | SimEvent::OptimizedCode) {
            self.count_event(rank);
        }
        match event {
            SimEvent::TasksEnded => self.ranks[rank as usize].watched_ns = u64::MAX,
            SimEvent::BytesMoved => {
                let ns = self.main_thread_job_ns(rank);
                self.compute(rank, ns, CpuWork::MainThread { rank });
            }
            SimEvent::MainThreadJobDone => self.on_main_thread_job_done(rank),
            SimEvent::SpanTaken { slot } => {
                if let Some(piece) = self.pieces.take(slot) {
                    self.on_span_taken(rank, piece);
                }
            }
            SimEvent::SchedulerMessage { slot } => {
                if let Some((run, from, message)) = self.messages.take(slot) {
                    self.receive_message(rank, run, from, message);
                }
            }
            SimEvent::TensorMessage { slot } => {
                if let Some((run, message)) = self.tensor_messages.take(slot) {
                    self.receive_tensor(rank, run, message);
                }
            }
            SimEvent::Tick => self.notify_scheduler(rank, Event::Tick),
            SimEvent::OptimizedCode => self.ranks[rank as usize].optimized = true,
            SimEvent::ThreadDone { .. } => {}
        }
        self.watch(rank);
    }

    /// A thread on the shared cores of a node is done, or the compiler on a core of its own.
    fn on_thread_done(&mut self, node: usize, epoch: u32) {
        let Some(cores) = &mut self.cores else { return self.on_compiled() };
        match cores.done(node, self.now_ns, epoch) {
            Some(CpuWork::Worker { rank, worker }) => self.on_task_finished(rank, worker),
            Some(CpuWork::MainThread { rank }) => self.on_main_thread_job_done(rank),
            Some(CpuWork::Compiler) => self.on_compiled(),
            Some(CpuWork::Poll) => {}
            None => return,
        }
        self.schedule_thread_end(node);
    }

    /// The optimized code is sent down a tree of all ranks.
    fn on_compiled(&mut self) {
        self.optimized_at_ns = Some(self.now_ns);
        for rank in 0..self.ranks.len() as u32 {
            let hops = u64::from(32 - (rank + 1).leading_zeros() - 1);
            self.at(self.now_ns + hops * self.machine.network_latency_ns, rank, SimEvent::OptimizedCode);
        }
    }

    pub fn begin_stage(&mut self, rank: u32) {
        let (stage, parity) = self.place(rank);
        let model = &self.stages[stage];
        let (blocks, in_flight) = (model.work[parity].block_count(rank), u64::from(self.threads) + 2);
        let scheduler = Scheduler::new(blocks, in_flight, self.threads as usize, self.setup.granularity);
        let scheduler = scheduler.in_team(self.teams[rank as usize].clone());
        let mut scheduler = match model.costs.filter(|_| model.steals) {
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
                Action::Fetch { block } => self.add_main_thread_job(rank, MainThreadJob::Fetch { block }),
                Action::Write { block } => self.add_main_thread_job(rank, MainThreadJob::Write { block }),
                Action::Take { piece } => {
                    self.count_stolen(rank, piece);
                    if piece.len == 0 {
                        self.add_main_thread_job(rank, MainThreadJob::Take { span: piece });
                    } else {
                        // Parts of blocks came with the grant.
                        let slot = self.pieces.put(piece);
                        self.at(self.now_ns, rank, SimEvent::SpanTaken { slot });
                    }
                }
                Action::Start { worker, span } => {
                    let worker = worker as u32;
                    let work_ns = self.start(rank, worker, span);
                    self.compute(rank, work_ns, CpuWork::Worker { rank, worker });
                }
                Action::Send { to, message } => self.send_message(rank, to, message),
                Action::WakeAt { ns } => self.at(ns, rank, SimEvent::Tick),
                Action::Complete => complete = true,
                Action::Over => over = true,
                Action::Merge { .. } => {}
            }
        }
        // Last, since the rank may enter its next run.
        if complete {
            self.on_blocks_computed(rank);
        }
        if over {
            self.on_stage_over(rank);
        }
    }

    pub fn on_span_taken(&mut self, rank: u32, piece: Span) {
        let slices = self.work(rank).slices(piece);
        self.notify_scheduler(rank, Event::Taken { piece, slices });
    }
}

/// Simulates all stages of `plan` in their order, iterated ones as often as `setup` says.
pub fn simulate(plan: &Plan, setup: &SimulationSetup) -> Simulation {
    Simulator::new(plan, setup).run()
}
