//! What a rank does from one run of a stage to the next: it gathers inputs, computes, combines results with others, and
//! where files are written, waits for all.

use super::exchange::Prelude;
use super::{Setup, Simulation};
use crate::plan::Plan;
use crate::sched::{Event, Message};
use crate::simulate::main_thread::MainThreadJob;
use crate::simulate::placement::Placement;
use crate::simulate::simulator::{Simulator, TensorMessage};

/// Iterations that are simulated; those after them take as long as the last, unless optimized code is still to come.
const SIMULATED: u64 = 6;

/// One run of a stage by all ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub stage: usize,
    /// 0 for stages that are not iterated.
    pub iteration: u64,
    pub first: bool,
    /// How many runs it stands for, itself included.
    pub times: u64,
    /// All ranks learn a scalar after it.
    pub asks: bool,
    dealt_anew: bool,
}

impl Run {
    /// Which of two deals it has.
    pub fn parity(&self) -> usize {
        if self.dealt_anew { (self.iteration % 2) as usize } else { 0 }
    }
}

/// All runs in their order.
pub(super) fn runs(plan: &Plan, setup: &Setup) -> Vec<Run> {
    let dealt_anew = setup.placement == Placement::Random;
    let once = |stage| Run { stage, iteration: 0, first: true, times: 1, asks: false, dealt_anew };
    let Some(iterations) = setup.iterations.as_ref().filter(|iterations| iterations.count > 0) else {
        return (0..plan.stages.len()).map(once).collect();
    };
    let count = if setup.machine.optimize_ns > 0 { iterations.count } else { iterations.count.min(SIMULATED) };
    let mut runs: Vec<Run> = (0..iterations.stages.start).map(once).collect();
    for iteration in 0..count {
        let times = if iteration + 1 == count { 1 + iterations.count - count } else { 1 };
        for stage in iterations.stages.clone() {
            let asks = iterations.until.is_some() && stage + 1 == iterations.stages.end;
            runs.push(Run { stage, iteration, first: iteration == 0, times, asks, dealt_anew });
        }
    }
    runs.extend((iterations.stages.end..plan.stages.len()).map(once));
    runs
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Until its inputs are there.
    Prelude,
    Stage,
    /// Until all are done.
    Barrier,
    /// Until all know whether to go on.
    Asking,
    Over,
}

impl Simulator<'_> {
    pub fn prelude(&self, rank: u32) -> &Prelude {
        let (stage, parity) = self.place(rank);
        let first = self.runs[self.ranks[rank as usize].run].first;
        &self.stages[stage].preludes[usize::from(!first)][parity]
    }

    /// Begins the run that the rank has come to.
    pub fn enter(&mut self, rank: u32) {
        let run = self.ranks[rank as usize].run;
        let Some(this) = self.runs.get(run).copied() else {
            self.ranks[rank as usize].phase = Phase::Over;
            self.ranks_over += 1;
            return;
        };
        let levels = &self.stages[this.stage].levels[this.parity()];
        let levels = levels.get(rank as usize).map_or(0, Vec::len);
        let (now_ns, state) = (self.now_ns, &mut self.ranks[rank as usize]);
        state.phase = Phase::Prelude;
        state.entered_ns = now_ns;
        (state.complete, state.reduced, state.level) = (false, levels == 0, 0);
        state.over = !self.stages[this.stage].steals;
        (state.shards, state.broadcasts) = (0, 0);
        state.partials = vec![0; levels];
        let early = std::mem::take(&mut state.early);
        self.add_chore(rank, MainThreadJob::Begin);
        early.into_iter().for_each(|(of, parcel)| self.receive(rank, of, parcel));
    }

    /// The rank has begun its run: it gives others what they need, and waits for what it needs.
    pub fn begun(&mut self, rank: u32) {
        let (sends, broadcasts) = self.prelude(rank).of(rank);
        for (to, bytes) in sends {
            self.send_parcel(rank, to, bytes, TensorMessage::Shard);
        }
        for (number, broadcast) in broadcasts.iter().enumerate() {
            if broadcast.root == rank || self.ranks[rank as usize].broadcasts >> number & 1 == 1 {
                self.ranks[rank as usize].broadcasts |= 1 << number;
                self.pass_down(rank, number, broadcast.root, broadcast.bytes);
            }
        }
        self.ranks[rank as usize].phase = Phase::Stage;
        self.check_inputs(rank);
    }

    /// Sends a broadcast on: a binary tree of ranks, numbered from its root.
    fn pass_down(&mut self, rank: u32, number: usize, root: u32, bytes: u64) {
        let size = self.plan.machine.ranks;
        let place = (rank + size - root) % size;
        for child in [2 * place + 1, 2 * place + 2].into_iter().filter(|child| *child < size) {
            self.send_parcel(rank, (child + root) % size, bytes, TensorMessage::Broadcast(number));
        }
    }

    fn check_inputs(&mut self, rank: u32) {
        let (prelude, state) = (self.prelude(rank), &self.ranks[rank as usize]);
        if state.phase != Phase::Stage || state.scheduler.is_some() {
            return;
        }
        let all = (1u64 << prelude.broadcasts.len()) - 1;
        if state.shards < prelude.awaits[rank as usize] || state.broadcasts & all != all {
            return self.poll(rank);
        }
        let run = state.run;
        self.poll_no_more(rank);
        self.begin_stage(rank);
        let state = &mut self.ranks[rank as usize];
        let (now, later) = std::mem::take(&mut state.early_messages).into_iter().partition(|(of, ..)| *of == run);
        state.early_messages = later;
        let now: Vec<(usize, u32, Message)> = now;
        now.into_iter().for_each(|(_, from, message)| self.tell(rank, Event::Message { from, message }));
    }

    /// A parcel has come, perhaps for a run that the rank has not come to.
    pub fn receive(&mut self, rank: u32, run: usize, parcel: TensorMessage) {
        let state = &mut self.ranks[rank as usize];
        if run > state.run {
            return state.early.push((run, parcel));
        }
        match parcel {
            TensorMessage::Shard => {
                state.shards += 1;
                self.check_inputs(rank);
            }
            TensorMessage::Broadcast(number) => {
                state.broadcasts |= 1 << number;
                if state.phase == Phase::Stage {
                    let broadcast = self.prelude(rank).broadcasts[number];
                    self.pass_down(rank, number, broadcast.root, broadcast.bytes);
                    self.check_inputs(rank);
                }
            }
            TensorMessage::Partial(level) => {
                state.partials[level] += 1;
                self.combine(rank);
            }
        }
    }

    /// A message of a scheduler has come.
    pub fn hear(&mut self, rank: u32, run: usize, from: u32, message: Message) {
        let state = &mut self.ranks[rank as usize];
        if run == state.run && state.scheduler.is_some() {
            self.tell(rank, Event::Message { from, message });
        } else if run >= state.run {
            state.early_messages.push((run, from, message));
        }
    }

    /// The rank's own blocks are computed.
    pub fn computed(&mut self, rank: u32) {
        self.ranks[rank as usize].complete = true;
        self.combine(rank);
    }

    pub fn knows_over(&mut self, rank: u32) {
        self.ranks[rank as usize].over = true;
        self.check_done(rank);
    }

    /// Goes up the levels of a reduction as far as others let it.
    fn combine(&mut self, rank: u32) {
        let (stage, parity) = self.place(rank);
        if !self.ranks[rank as usize].complete {
            return;
        }
        while !self.ranks[rank as usize].reduced {
            let state = &self.ranks[rank as usize];
            let (level, levels) = (state.level, &self.stages[stage].levels[parity][rank as usize]);
            let Some(at) = levels.get(level) else {
                self.ranks[rank as usize].reduced = true;
                break;
            };
            if state.partials[level] < at.awaits {
                return self.poll(rank);
            }
            if let Some((to, bytes)) = at.pass {
                self.send_parcel(rank, to, bytes, TensorMessage::Partial(level));
                self.ranks[rank as usize].reduced = true;
            }
            self.ranks[rank as usize].level += 1;
        }
        self.check_done(rank);
    }

    fn check_done(&mut self, rank: u32) {
        let state = &self.ranks[rank as usize];
        if state.phase != Phase::Stage || !state.complete {
            return;
        }
        if !(state.over && state.reduced) {
            return self.poll(rank);
        }
        let (stage, _) = self.place(rank);
        if self.stages[stage].together && self.plan.machine.ranks > 1 {
            self.poll(rank);
            self.wait_for_all(rank, Phase::Barrier);
        } else {
            self.leave(rank);
        }
    }

    fn wait_for_all(&mut self, rank: u32, phase: Phase) {
        let (run, ranks) = (self.ranks[rank as usize].run, self.plan.machine.ranks);
        self.ranks[rank as usize].phase = phase;
        self.arrived[run] += 1;
        if self.arrived[run] == ranks {
            self.arrived[run] = 0;
            for rank in 0..ranks {
                self.poll_no_more(rank);
                self.add_chore(rank, MainThreadJob::Leave);
            }
        } else {
            self.poll(rank);
        }
    }

    /// Out of the run, and into the next.
    pub fn leave(&mut self, rank: u32) {
        self.poll_no_more(rank);
        let (run, now_ns) = (self.ranks[rank as usize].run, self.now_ns);
        let (stage, _) = self.place(rank);
        if self.ranks[rank as usize].phase != Phase::Asking {
            self.walls[run][rank as usize] = now_ns - self.ranks[rank as usize].entered_ns;
            if let Some(scheduler) = self.ranks[rank as usize].scheduler.take() {
                self.times[stage].add(scheduler.steal_counts());
            }
            if self.runs[run].asks && self.plan.machine.ranks > 1 {
                return self.wait_for_all(rank, Phase::Asking);
            }
        }
        self.left_ns[run] = self.left_ns[run].max(now_ns);
        self.ranks[rank as usize].run += 1;
        self.enter(rank);
    }

    pub fn result(self) -> Simulation {
        let (machine, ranks) = (self.machine, self.ranks.len());
        let mut stages = self.times;
        let mut more_ns = 0;
        let shared = machine.cores_per_node > 0;
        let cores = (self.links.node(ranks as u32 - 1) as u64 + 1) * u64::from(machine.cores_per_node);
        for (number, times) in stages.iter_mut().enumerate() {
            let runs = || self.runs.iter().zip(&self.walls).filter(|(run, _)| run.stage == number);
            let spent = |rank: usize| runs().map(|(run, walls)| run.times * walls[rank]).sum::<u64>();
            times.makespan_ns = (0..ranks).map(spent).max().unwrap_or(0);
            times.runs = runs().map(|(run, _)| run.times).sum();
            let work = &self.stages[number].work[0];
            let (slices, data_bytes, ideal_ns) = work.totals(self.threads, shared.then_some(cores));
            let blocks: u64 = (0..ranks as u32).map(|rank| work.block_count(rank)).sum();
            times.blocks = blocks * times.runs;
            times.slices = slices * times.runs;
            times.data_bytes = data_bytes * times.runs;
            times.ideal_ns = ideal_ns * times.runs;
            let ratio = |part: u64, whole: u64, none: f64| if whole == 0 { none } else { part as f64 / whole as f64 };
            times.efficiency = if times.ideal_ns == 0 { 1.0 } else { ratio(times.ideal_ns, times.makespan_ns, 1.0) };
            times.between_nodes = ratio(times.stolen_between_nodes_bytes, times.data_bytes, 0.0);
        }
        // What the iterations that were not simulated take on the clock: as long as the last that was.
        if let Some(last) = self.runs.iter().rposition(|run| run.times > 1) {
            let iteration = self.runs[last].iteration;
            let before = self.runs.iter().rposition(|run| run.iteration + 1 == iteration && run.times == 1);
            let before_ns = before.filter(|_| iteration > 0).map_or(0, |run| self.left_ns[run]);
            more_ns = (self.runs[last].times - 1) * self.left_ns[last].saturating_sub(before_ns);
        }
        Simulation {
            start_ns: machine.start_ns,
            makespan_ns: machine.start_ns + self.left_ns.last().copied().unwrap_or(0) + more_ns,
            optimized_at_ns: self.optimized_at_ns,
            stages,
        }
    }
}
