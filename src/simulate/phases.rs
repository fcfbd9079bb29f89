//! The phases of a rank in a run of a stage: it gathers inputs, computes, combines partial results with other ranks,
//! and waits for all ranks where files are written.

use crate::sched::{Event, Message};
use crate::simulate::event::TensorMessage;
use crate::simulate::exchange::Prelude;
use crate::simulate::rank_state::{MainThreadJob, Phase};
use crate::simulate::simulator::Simulator;

impl Simulator<'_> {
    /// The exchange before the rank's current run.
    pub fn prelude(&self, rank: u32) -> &Prelude {
        let (stage, parity) = self.place(rank);
        let first = self.runs[self.ranks[rank as usize].run].first;
        &self.stages[stage].preludes[usize::from(!first)][parity]
    }

    /// Begins the rank's current run.
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
        state.phase = Phase::Start;
        state.entered_ns = now_ns;
        (state.complete, state.reduced, state.level) = (false, levels == 0, 0);
        state.over = !self.stages[this.stage].steals;
        (state.inputs, state.broadcasts) = (0, 0);
        state.partials = vec![0; levels];
        let early = std::mem::take(&mut state.early_tensors);
        self.add_main_thread_job(rank, MainThreadJob::BeginRun);
        early.into_iter().for_each(|(of, message)| self.receive_tensor(rank, of, message));
    }

    /// The rank has begun its run: it sends inputs that others need, and waits for those that it needs.
    pub fn on_run_started(&mut self, rank: u32) {
        let prelude = self.prelude(rank);
        let (sends, broadcasts) = (prelude.sends[rank as usize].clone(), prelude.broadcasts.clone());
        for (to, bytes) in sends {
            self.send_tensor(rank, to, bytes, TensorMessage::Input);
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

    /// Forwards a broadcast down a binary tree of ranks, numbered from its root.
    fn pass_down(&mut self, rank: u32, number: usize, root: u32, bytes: u64) {
        let size = self.plan.machine.ranks;
        let place = (rank + size - root) % size;
        for child in [2 * place + 1, 2 * place + 2].into_iter().filter(|child| *child < size) {
            self.send_tensor(rank, (child + root) % size, bytes, TensorMessage::Broadcast(number));
        }
    }

    fn check_inputs(&mut self, rank: u32) {
        let (prelude, state) = (self.prelude(rank), &self.ranks[rank as usize]);
        if state.phase != Phase::Stage || state.scheduler.is_some() {
            return;
        }
        let all = (1u64 << prelude.broadcasts.len()) - 1;
        if state.inputs < prelude.awaits[rank as usize] || state.broadcasts & all != all {
            return self.start_polling(rank);
        }
        let run = state.run;
        self.stop_polling(rank);
        self.begin_stage(rank);
        let state = &mut self.ranks[rank as usize];
        let (now, later) = std::mem::take(&mut state.early_messages).into_iter().partition(|(of, ..)| *of == run);
        state.early_messages = later;
        let now: Vec<(usize, u32, Message)> = now;
        now.into_iter().for_each(|(_, from, message)| self.notify_scheduler(rank, Event::Message { from, message }));
    }

    /// A tensor message has arrived, perhaps for a later run.
    pub fn receive_tensor(&mut self, rank: u32, run: usize, message: TensorMessage) {
        let state = &mut self.ranks[rank as usize];
        if run > state.run {
            return state.early_tensors.push((run, message));
        }
        match message {
            TensorMessage::Input => {
                state.inputs += 1;
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

    /// A message of a scheduler has arrived, perhaps for a later run.
    pub fn receive_message(&mut self, rank: u32, run: usize, from: u32, message: Message) {
        let state = &mut self.ranks[rank as usize];
        if run == state.run && state.scheduler.is_some() {
            self.notify_scheduler(rank, Event::Message { from, message });
        } else if run >= state.run {
            state.early_messages.push((run, from, message));
        }
    }

    /// The rank's own blocks are computed.
    pub fn on_blocks_computed(&mut self, rank: u32) {
        self.ranks[rank as usize].complete = true;
        self.combine(rank);
    }

    /// The rank knows that the stage is over on all ranks.
    pub fn on_stage_over(&mut self, rank: u32) {
        self.ranks[rank as usize].over = true;
        self.check_done(rank);
    }

    /// Goes up the levels of a reduction as far as partial results have arrived.
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
                return self.start_polling(rank);
            }
            if let Some((to, bytes)) = at.pass {
                self.send_tensor(rank, to, bytes, TensorMessage::Partial(level));
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
            return self.start_polling(rank);
        }
        let (stage, _) = self.place(rank);
        if self.stages[stage].has_barrier && self.plan.machine.ranks > 1 {
            self.start_polling(rank);
            self.wait_for_all(rank, Phase::Barrier);
        } else {
            self.leave_run(rank);
        }
    }

    fn wait_for_all(&mut self, rank: u32, phase: Phase) {
        let (run, ranks) = (self.ranks[rank as usize].run, self.plan.machine.ranks);
        self.ranks[rank as usize].phase = phase;
        self.arrived[run] += 1;
        if self.arrived[run] == ranks {
            self.arrived[run] = 0;
            for rank in 0..ranks {
                self.stop_polling(rank);
                self.add_main_thread_job(rank, MainThreadJob::LeaveBarrier);
            }
        } else {
            self.start_polling(rank);
        }
    }

    /// Leaves the run and enters the next.
    pub fn leave_run(&mut self, rank: u32) {
        self.stop_polling(rank);
        let (run, now_ns) = (self.ranks[rank as usize].run, self.now_ns);
        let (stage, _) = self.place(rank);
        if self.ranks[rank as usize].phase != Phase::Decision {
            self.walls[run][rank as usize] = now_ns - self.ranks[rank as usize].entered_ns;
            if let Some(scheduler) = self.ranks[rank as usize].scheduler.take() {
                self.times[stage].add(scheduler.steal_counts());
            }
            if self.runs[run].decides && self.plan.machine.ranks > 1 {
                return self.wait_for_all(rank, Phase::Decision);
            }
        }
        self.left_ns[run] = self.left_ns[run].max(now_ns);
        self.ranks[rank as usize].run += 1;
        self.enter(rank);
    }
}
