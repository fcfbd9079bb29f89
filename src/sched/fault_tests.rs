//! The scheduler under a driver that means it ill: messages late, repeated and out of order.

use super::*;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

const SEEDS: u64 = 10_000;
/// Far more than any world here needs; reached only when nothing comes to an end.
const EVENT_LIMIT: u64 = 400_000;
const CLASS: CostClass = CostClass(0);

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(bits) * u128::from(n)) >> 64) as u64
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Spread evenly over powers of two from 1 to `most`.
    fn spread(&mut self, most: u64) -> u64 {
        let up_to = most >> self.below(u64::from(most.ilog2()) + 1);
        1 + self.below(up_to)
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Happening {
    Begin,
    Fetched { block: u64 },
    Taken { piece: Span },
    Finished { worker: usize, span: Span, elapsed_ns: u64 },
    Written { block: u64 },
    Arrived { from: u32, bytes: Vec<u8> },
    Tick,
}

struct Block {
    ns_per_slice: u64,
    /// How often the owner has counted each slice.
    counted: Vec<u8>,
    written: bool,
}

struct World {
    random: Random,
    now_ns: u64,
    /// By time, then in the order of making; the rank that it happens to.
    queue: BinaryHeap<Reverse<(u64, u64, u32, Happening)>>,
    made: u64,
    schedulers: Vec<Scheduler>,
    blocks: Vec<Vec<Block>>,
    speed: Vec<u64>,
    over: Vec<bool>,
    wake_at: Vec<Option<u64>>,
    /// Pieces whose inputs each rank has.
    holds: Vec<BTreeSet<Span>>,
    delay_ns: u64,
    repeats: bool,
    report: Report,
}

#[derive(Default, Debug)]
struct Report {
    events: u64,
    stolen: u64,
    repeated: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let size = 1 + random.below(16) as u32;
        let ranks_per_node = 1 + random.below(u64::from(size)) as u32;
        let workers = 1 + random.below(3) as usize;
        let delay_ns = random.spread(1 << 24);
        let costs = Costs {
            node: Path { latency_ns: 1000, ns_per_byte: 0.1 },
            network: Path { latency_ns: random.spread(1 << 20), ns_per_byte: 0.2 },
            unfetched_block_bytes: random.spread(1 << 22),
            fetched_block_bytes: random.spread(1 << 22),
        };
        let granularity = match random.below(4) {
            0 => Granularity::Fixed(random.spread(8)),
            _ => Granularity::Adaptive,
        };
        let (mut schedulers, mut blocks) = (Vec::new(), Vec::new());
        for team in Team::packed(size, ranks_per_node) {
            let mut own = Vec::new();
            for _ in 0..random.spread(16) - 1 {
                own.push(Block {
                    ns_per_slice: 10_000 * random.spread(128),
                    counted: vec![0; random.below(60) as usize],
                    written: false,
                });
            }
            let (limit, count) = (1 + random.below(4), own.len() as u64);
            let scheduler = Scheduler::new(count, limit, workers, granularity).in_team(team);
            schedulers.push(if random.one_in(20) { scheduler } else { scheduler.stealing(costs) });
            blocks.push(own);
        }
        let repeats = random.one_in(2);
        let n = size as usize;
        let mut world = World {
            now_ns: 0,
            queue: BinaryHeap::new(),
            made: 0,
            schedulers,
            blocks,
            speed: (0..size).map(|_| random.spread(8)).collect(),
            over: vec![false; n],
            wake_at: vec![None; n],
            holds: vec![BTreeSet::new(); n],
            delay_ns,
            repeats,
            report: Report::default(),
            random,
        };
        (0..size).for_each(|rank| world.soon(rank, Happening::Begin));
        world
    }

    fn after(&mut self, delay_ns: u64, rank: u32, happening: Happening) {
        self.made += 1;
        self.queue.push(Reverse((self.now_ns + delay_ns, self.made, rank, happening)));
    }

    fn soon(&mut self, rank: u32, happening: Happening) {
        let delay_ns = self.random.below(self.delay_ns);
        self.after(delay_ns, rank, happening);
    }

    fn run(mut self) -> Report {
        while let Some(Reverse((at_ns, _, rank, happening))) = self.queue.pop() {
            self.now_ns = at_ns;
            self.report.events += 1;
            assert!(self.report.events < EVENT_LIMIT, "it does not end: over {:?}", self.over);
            self.happen(rank, happening);
        }
        for (rank, over) in self.over.iter().enumerate() {
            assert!(over, "rank {rank} waits forever");
        }
        self.check_blocks();
        self.report.stolen = self.schedulers.iter().map(|s| s.steal_counts().slices_stolen).sum();
        self.report
    }

    fn check_blocks(&self) {
        for (owner, blocks) in self.blocks.iter().enumerate() {
            for (number, block) in blocks.iter().enumerate() {
                assert!(block.written, "block {number} of rank {owner} is not written");
                assert!(block.counted.iter().all(|n| *n == 1), "block {number} of rank {owner}: {:?}", block.counted);
            }
        }
    }

    fn happen(&mut self, rank: u32, happening: Happening) {
        let me = rank as usize;
        let event = match happening {
            Happening::Begin => {
                let mut actions = self.schedulers[me].begin(self.now_ns);
                for worker in 0..self.schedulers[me].worker_count as usize {
                    actions.extend(self.schedulers[me].on(self.now_ns, Event::Idle { worker, class: CLASS }));
                }
                return self.carry_out(rank, actions);
            }
            Happening::Fetched { block } => Event::Fetched { block, slices: self.slices(rank, block) },
            Happening::Taken { piece } => {
                let slices = if piece.len == 0 { self.slices(piece.owner, piece.block) } else { piece.len };
                Event::Taken { piece, slices }
            }
            Happening::Finished { worker, span, elapsed_ns } => {
                if span.owner == rank {
                    self.count(span);
                }
                let actions = self.schedulers[me].on(self.now_ns, Event::Finished { span, elapsed_ns, class: CLASS });
                self.carry_out(rank, actions);
                Event::Idle { worker, class: CLASS }
            }
            Happening::Written { block } => Event::Written { block },
            Happening::Arrived { from, bytes } => match Message::decode(&bytes, from, rank) {
                Some((message, [])) => Event::Message { from, message },
                other => panic!("{bytes:?} decodes to {other:?}"),
            },
            Happening::Tick if self.wake_at[me].is_some_and(|at| at > self.now_ns) => return,
            Happening::Tick => Event::Tick,
        };
        let actions = self.schedulers[me].on(self.now_ns, event);
        self.carry_out(rank, actions);
    }

    fn slices(&self, owner: u32, block: u64) -> u64 {
        self.blocks[owner as usize][block as usize].counted.len() as u64
    }

    fn count(&mut self, span: Span) {
        let block = &mut self.blocks[span.owner as usize][span.block as usize];
        assert!(!block.written);
        let range = match span.len {
            0 => 0..block.counted.len(),
            _ => span.start as usize..(span.start + span.len) as usize,
        };
        block.counted[range].iter_mut().for_each(|n| *n += 1);
    }

    fn carry_out(&mut self, rank: u32, actions: Vec<Action>) {
        let me = rank as usize;
        for action in actions {
            match action {
                Action::Fetch { block } => self.soon(rank, Happening::Fetched { block }),
                Action::Take { piece } => {
                    assert!(self.holds[me].insert(piece), "{piece:?} is taken twice");
                    self.soon(rank, Happening::Taken { piece });
                }
                Action::Start { worker, span } => {
                    assert!(span.len > 0);
                    let ns_per_slice = self.blocks[span.owner as usize][span.block as usize].ns_per_slice;
                    let elapsed_ns = ns_per_slice * span.len * self.speed[me] + self.random.below(2000);
                    self.after(elapsed_ns, rank, Happening::Finished { worker, span, elapsed_ns });
                }
                Action::Write { block } => {
                    let written = &mut self.blocks[me][block as usize].written;
                    assert!(!std::mem::replace(written, true), "block {block} of rank {rank} is written twice");
                    self.soon(rank, Happening::Written { block });
                }
                Action::Send { to, message } => self.send(rank, to, message),
                Action::Merge { piece, .. } => self.count(piece),
                Action::WakeAt { ns } => {
                    assert!(ns > self.now_ns);
                    self.wake_at[me] = Some(ns);
                    self.after(ns - self.now_ns, rank, Happening::Tick);
                }
                Action::Complete => assert!(self.blocks[me].iter().all(|block| block.written)),
                Action::Over => {
                    assert!(!std::mem::replace(&mut self.over[me], true), "over is said once");
                    self.check_blocks();
                }
            }
        }
    }

    fn send(&mut self, from: u32, to: u32, message: Message) {
        assert_ne!(from, to);
        if let Message::Returned { piece, .. } = &message {
            assert!(self.holds[from as usize].remove(piece));
        }
        let bytes = message.encode();
        while self.repeats && self.random.one_in(4) {
            self.report.repeated += 1;
            self.soon(to, Happening::Arrived { from, bytes: bytes.clone() });
        }
        self.soon(to, Happening::Arrived { from, bytes });
    }
}

/// `EXUVIA_SEED=n` replays one world.
#[test]
fn every_slice_counts_once_and_all_ranks_end() {
    let one: Option<u64> = std::env::var("EXUVIA_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut total = Report::default();
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        let Ok(report) = run else { panic!("EXUVIA_SEED={seed} replays the failure above") };
        total.events += report.events;
        total.stolen += report.stolen;
        total.repeated += report.repeated;
    }
    if one.is_none() {
        // The worlds are what they are meant to be.
        assert!(total.stolen > 100_000 && total.repeated > 100_000, "{total:?}");
    }
}
