//! The event loop: the time of a stage.

use std::collections::VecDeque;

use super::links::{Links, time};
use super::queue::{Queue, Slots};
use super::work::Work;
use super::{Machine, Policy, Setup, StageTimes};
use crate::plan::{Plan, StagePlan};
use crate::sched::{Action, CostClass, Costs, Event, Message, Path, Scheduler, Span, Team};

/// All tasks run the same code.
const CLASS: CostClass = CostClass(0);

/// What is going to happen to a rank.
#[derive(Clone, Copy, Debug)]
enum What {
    Finished {
        worker: u32,
    },
    /// The first of the rank's transfers is done.
    Transferred,
    Taken {
        slot: u32,
    },
    Arrived {
        slot: u32,
    },
    Tick,
}

/// What a rank's main thread does to its file, one after the other.
#[derive(Clone, Copy, Debug)]
enum Transfer {
    Fetch { block: u64 },
    Take { piece: Span },
    Write { block: u64 },
}

struct World<'a> {
    machine: &'a Machine,
    work: Work,
    links: Links,
    schedulers: Vec<Scheduler>,
    threads: u32,
    now_ns: u64,
    queue: Queue<(u32, What)>,
    /// What each worker computes, and how long.
    running: Vec<(Span, u64)>,
    /// Of each rank, the first of which is under way.
    transfers: Vec<VecDeque<Transfer>>,
    messages: Slots<(u32, Message)>,
    pieces: Slots<Span>,
    ranks_over: u32,
    times: StageTimes,
}

/// Simulates `stage`.
pub(super) fn run(plan: &Plan, stage: &StagePlan, setup: &Setup) -> StageTimes {
    let (ranks, threads) = (plan.machine.ranks, plan.machine.threads);
    let ranks_per_node = plan.machine.ranks_per_node.clamp(1, ranks);
    let work = Work::new(stage, ranks, setup);
    let costs = costs(&setup.machine, &work);
    let schedulers = Team::packed(ranks, ranks_per_node).map(|team| {
        let (blocks, in_flight) = (work.block_count(team.rank()), u64::from(threads) + 2);
        let scheduler = Scheduler::new(blocks, in_flight, threads as usize, setup.granularity).in_team(team);
        match setup.policy {
            Policy::Steal => scheduler.stealing(costs),
            Policy::Static => scheduler,
        }
    });
    let nothing = Span { owner: 0, block: 0, start: 0, len: 0 };
    let mut world = World {
        machine: &setup.machine,
        links: Links::new(ranks, ranks_per_node),
        schedulers: schedulers.collect(),
        threads,
        now_ns: 0,
        queue: Queue::new(),
        running: vec![(nothing, 0); (ranks * threads) as usize],
        transfers: vec![VecDeque::new(); ranks as usize],
        messages: Slots::new(),
        pieces: Slots::new(),
        ranks_over: 0,
        times: StageTimes { stage: stage.name.clone(), ..StageTimes::default() },
        work,
    };
    for rank in 0..ranks {
        let mut actions = world.schedulers[rank as usize].begin(0);
        for worker in 0..threads as usize {
            actions.extend(world.schedulers[rank as usize].on(0, Event::Idle { worker, class: CLASS }));
        }
        world.carry_out(rank, actions);
    }
    while world.ranks_over < ranks {
        let Some((at_ns, (rank, what))) = world.queue.pop() else {
            panic!("{} of {ranks} ranks wait for ever", ranks - world.ranks_over)
        };
        world.now_ns = at_ns;
        world.times.events += 1;
        world.happen(rank, what);
    }
    world.result()
}

fn costs(machine: &Machine, work: &Work) -> Costs {
    let (unfetched, fetched) = work.typical().map_or((0, 0), |form| {
        let kept = form.memory_bytes + form.returned_bytes;
        (kept, kept + form.file_bytes)
    });
    Costs {
        node: Path { latency_ns: machine.node_latency_ns, ns_per_byte: machine.node_ns_per_byte },
        network: Path { latency_ns: machine.network_latency_ns, ns_per_byte: machine.network_ns_per_byte },
        unfetched_block_bytes: unfetched,
        fetched_block_bytes: fetched,
    }
}

impl World<'_> {
    fn at(&mut self, at_ns: u64, rank: u32, what: What) {
        self.queue.push(at_ns, (rank, what));
    }

    fn tell(&mut self, rank: u32, event: Event) {
        let actions = self.schedulers[rank as usize].on(self.now_ns, event);
        self.carry_out(rank, actions);
    }

    fn happen(&mut self, rank: u32, what: What) {
        match what {
            What::Finished { worker } => {
                let (span, elapsed_ns) = self.running[(rank * self.threads + worker) as usize];
                self.tell(rank, Event::Finished { span, elapsed_ns, class: CLASS });
                self.tell(rank, Event::Idle { worker: worker as usize, class: CLASS });
            }
            What::Transferred => {
                let done = self.transfers[rank as usize].pop_front();
                self.transfer(rank);
                match done {
                    Some(Transfer::Fetch { block }) => {
                        let slices = self.work.of(rank, block).slices;
                        self.tell(rank, Event::Fetched { block, slices });
                    }
                    Some(Transfer::Take { piece }) => self.taken(rank, piece),
                    Some(Transfer::Write { block }) => self.tell(rank, Event::Written { block }),
                    None => {}
                }
            }
            What::Taken { slot } => {
                if let Some(piece) = self.pieces.take(slot) {
                    self.taken(rank, piece);
                }
            }
            What::Arrived { slot } => {
                if let Some((from, message)) = self.messages.take(slot) {
                    self.tell(rank, Event::Message { from, message });
                }
            }
            What::Tick => self.tell(rank, Event::Tick),
        }
    }

    fn carry_out(&mut self, rank: u32, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Fetch { block } => self.queue_transfer(rank, Transfer::Fetch { block }),
                Action::Write { block } => self.queue_transfer(rank, Transfer::Write { block }),
                Action::Take { piece } => {
                    self.count_stolen(rank, piece);
                    if piece.len == 0 {
                        self.queue_transfer(rank, Transfer::Take { piece });
                    } else {
                        // Parts of blocks came with the grant.
                        let slot = self.pieces.put(piece);
                        self.at(self.now_ns, rank, What::Taken { slot });
                    }
                }
                Action::Start { worker, span } => {
                    let elapsed_ns = self.work.task_ns(rank, span);
                    let worker = worker as u32;
                    self.running[(rank * self.threads + worker) as usize] = (span, elapsed_ns);
                    self.times.tasks += 1;
                    self.at(self.now_ns + elapsed_ns, rank, What::Finished { worker });
                }
                Action::Send { to, message } => {
                    let bytes = self.attached_bytes(&message);
                    let at_ns = self.links.send(self.now_ns, self.machine, rank, to, bytes);
                    let slot = self.messages.put((rank, message));
                    self.at(at_ns, to, What::Arrived { slot });
                }
                Action::WakeAt { ns } => self.at(ns, rank, What::Tick),
                Action::Over => self.ranks_over += 1,
                Action::Merge { .. } | Action::Drop { .. } | Action::Complete => {}
            }
        }
    }

    fn taken(&mut self, rank: u32, piece: Span) {
        let slices = self.work.slices(piece);
        self.tell(rank, Event::Taken { piece, slices });
    }

    fn queue_transfer(&mut self, rank: u32, transfer: Transfer) {
        let transfers = &mut self.transfers[rank as usize];
        transfers.push_back(transfer);
        if transfers.len() == 1 {
            self.transfer(rank);
        }
    }

    /// Begins the first of the transfers that wait.
    fn transfer(&mut self, rank: u32) {
        let Some(transfer) = self.transfers[rank as usize].front() else { return };
        let (machine, work, links) = (self.machine, &self.work, &mut self.links);
        let mut read = |bytes| links.file(self.now_ns, machine, rank, bytes, machine.read_ns_per_byte);
        let at_ns = match *transfer {
            Transfer::Fetch { block } => {
                let form = work.of(rank, block);
                read(form.file_bytes) + time(form.memory_bytes, machine.memory_ns_per_byte)
            }
            // What was in its owner's memory came with the grant.
            Transfer::Take { piece } => read(work.of(piece.owner, piece.block).file_bytes),
            Transfer::Write { block } => {
                let bytes = work.of(rank, block).output_bytes;
                links.file(self.now_ns, machine, rank, bytes, machine.write_ns_per_byte)
            }
        };
        self.at(at_ns, rank, What::Transferred);
    }

    /// What the driver of a run would send along.
    fn attached_bytes(&self, message: &Message) -> u64 {
        match message {
            Message::Grant { pieces, .. } => pieces
                .iter()
                .map(|piece| {
                    let form = self.work.of(piece.owner, piece.block);
                    match piece.len {
                        0 => form.memory_bytes,
                        _ => self.work.part(*piece, form.file_bytes + form.memory_bytes),
                    }
                })
                .sum(),
            Message::Returned { piece, .. } => {
                self.work.part(*piece, self.work.of(piece.owner, piece.block).returned_bytes)
            }
            _ => 0,
        }
    }

    fn count_stolen(&mut self, thief: u32, piece: Span) {
        let bytes = self.work.part(piece, self.work.of(piece.owner, piece.block).bytes);
        if self.links.node(thief) == self.links.node(piece.owner) {
            self.times.stolen_on_node_bytes += bytes;
        } else {
            self.times.stolen_between_nodes_bytes += bytes;
        }
    }

    fn result(mut self) -> StageTimes {
        let mut times = std::mem::take(&mut self.times);
        self.schedulers.iter().for_each(|scheduler| times.add(scheduler.steal_counts()));
        let (slices, data_bytes, ideal_ns) = self.work.totals(self.threads);
        let ratio = |part: u64, whole: u64, none: f64| if whole == 0 { none } else { part as f64 / whole as f64 };
        StageTimes {
            makespan_ns: self.now_ns,
            ideal_ns,
            efficiency: if ideal_ns == 0 { 1.0 } else { ratio(ideal_ns, self.now_ns, 1.0) },
            blocks: self.schedulers.iter().zip(0..).map(|(_, rank)| self.work.block_count(rank)).sum(),
            slices,
            data_bytes,
            between_nodes: ratio(times.stolen_between_nodes_bytes, data_bytes, 0.0),
            moved_on_node_bytes: self.links.moved_on_node_bytes,
            moved_between_nodes_bytes: self.links.moved_between_nodes_bytes,
            ..times
        }
    }
}
