//! Stealing: requests to victims, grants to thieves, and returned results.

use super::{Block, Scheduler};
use crate::sched::event::Action;
use crate::sched::grant::GrantRequest;
use crate::sched::message::Message;
use crate::sched::message::Question;
use crate::sched::span::{Span, TARGET_TASK_NS};
use crate::sched::steal::{StealCounts, Stolen, key};
use crate::sched::victim::Step;

impl Scheduler {
    pub fn steal_counts(&self) -> StealCounts {
        self.stealing.as_ref().map(|stealing| stealing.counts).unwrap_or_default()
    }

    pub(super) fn handle_message(&mut self, now_ns: u64, from: u32, message: Message, actions: &mut Vec<Action>) {
        match message {
            Message::Done => self.handle_done(from, actions),
            Message::Over => self.handle_over(actions),
            _ if self.finish.over => {}
            Message::Steal(question) => {
                if let Some(answer) = self.answer(now_ns, from, question) {
                    actions.push(Action::Send { to: from, message: answer });
                    self.fetch_more(actions);
                }
            }
            Message::Grant { attempt, ns_per_slice, busy_ns, hint, pieces } => {
                let Some(stealing) = &mut self.stealing else { return };
                stealing.search.note_hint(now_ns, &self.team, hint);
                let wanted = stealing.search.granted(now_ns, from, attempt, busy_ns);
                stealing.granted(wanted, from, attempt, ns_per_slice, pieces, actions);
            }
            Message::Refuse { attempt, busy_ns, hint } => {
                if let Some(stealing) = &mut self.stealing {
                    stealing.search.note_hint(now_ns, &self.team, hint);
                    stealing.search.refused(now_ns, from, attempt, busy_ns);
                }
            }
            Message::Returned { attempt, piece, ns_per_slice } => {
                self.returned((from, ns_per_slice), attempt, piece, actions);
            }
            Message::Decline { attempt } => {
                let pieces = self.stealing.as_mut().map(|stealing| stealing.leases.cancel(from, attempt));
                self.restore(pieces.unwrap_or_default(), actions);
            }
        }
    }

    /// How long a slice takes on one worker; `None` while no task has shown it.
    fn ns_per_slice(&self, now_ns: u64) -> Option<f64> {
        let measured = self.class.and_then(|class| self.costs.ns_per_slice(class));
        measured.or_else(|| {
            // The first task takes at least as long as it has by now.
            let (started_ns, slices) = self.stealing.as_ref()?.first?;
            Some(now_ns.saturating_sub(started_ns) as f64 / slices.max(1) as f64)
        })
    }

    /// The answer to a thief; none if it has been answered.
    fn answer(&mut self, now_ns: u64, thief: u32, question: Question) -> Option<Message> {
        let Question { attempt, ns_per_slice, busy_ns: thief_busy_ns, wait_ns, free_blocks } = question;
        let pace_ns = self.ns_per_slice(now_ns).unwrap_or(0.0);
        let own_ns_per_slice = pace_ns / self.worker_count as f64;
        let Some(stealing) = &self.stealing else {
            return Some(Message::Refuse { attempt, busy_ns: 0, hint: None });
        };
        if stealing.leases.contains(thief, attempt) {
            return None;
        }
        let (costs, slices_per_block) = (stealing.costs, stealing.slices_per_block.max(1));
        let (unfetched, fetched) = (self.unfetched_count(), self.ready.own_slices());
        let bytes_per_slice = |block_bytes: u64| block_bytes as f64 / slices_per_block as f64;
        let blocks = GrantRequest {
            slices: unfetched * slices_per_block + fetched,
            own_ns_per_slice,
            thief_ns_per_slice: stealing.pace_of(thief, own_ns_per_slice, ns_per_slice as f64),
            thief_busy_ns,
            thief_wait_ns: wait_ns,
            path: if self.team.is_near(thief) { costs.node } else { costs.network },
            bytes_per_slice: bytes_per_slice(costs.unfetched_block_bytes),
            unit: slices_per_block,
        };
        let parts = GrantRequest { bytes_per_slice: bytes_per_slice(costs.fetched_block_bytes), unit: 1, ..blocks };
        let limit = free_blocks.max(1) as usize;
        let mut pieces = Vec::new();
        if pace_ns > 0.0 && unfetched > 0 {
            pieces = self.lend_blocks((blocks.slices() / slices_per_block).min(limit as u64));
        }
        if pace_ns > 0.0 && fetched > 0 && pieces.is_empty() {
            pieces = self.lend_slices(parts.slices(), limit);
        }
        let left = self.unfetched_count() * slices_per_block + self.ready.own_slices();
        let busy_ns = (left as f64 * own_ns_per_slice) as u64;
        let stealing = self.stealing.as_mut()?;
        let hint = stealing.search.hint(now_ns).filter(|(rank, _)| *rank != thief);
        if pieces.is_empty() {
            return Some(Message::Refuse { attempt, busy_ns, hint });
        }
        stealing.leases.add(thief, attempt, pieces.clone());
        Some(Message::Grant { attempt, ns_per_slice: pace_ns as u64, busy_ns, hint, pieces })
    }

    /// Gives away up to `count` blocks that are not fetched, those that would come last.
    fn lend_blocks(&mut self, count: u64) -> Vec<Span> {
        let owner = self.team.rank();
        let last = || self.untouched.pop().or_else(|| self.unfetched.next_back());
        let blocks = std::iter::from_fn(last).take(count as usize);
        let pieces: Vec<Span> = blocks.map(|block| Span { owner, block, start: 0, len: 0 }).collect();
        if let Some(stealing) = &mut self.stealing {
            stealing.counts.blocks_lent += pieces.len() as u64;
        }
        pieces
    }

    /// Gives away up to `slices` of blocks in memory, those that would come last, in at most `limit` pieces.
    fn lend_slices(&mut self, mut slices: u64, limit: usize) -> Vec<Span> {
        let mut pieces = Vec::new();
        while slices > 0 && pieces.len() < limit {
            let Some(piece) = self.ready.lend(slices) else { break };
            slices -= piece.len;
            self.lent(piece);
            if let Some(stealing) = &mut self.stealing {
                stealing.counts.slices_lent += piece.len;
            }
            pieces.push(piece);
        }
        pieces
    }

    /// Takes pieces back that nobody will compute.
    fn restore(&mut self, pieces: Vec<Span>, actions: &mut Vec<Action>) {
        for piece in pieces {
            match piece.len {
                0 => self.untouched.push(piece.block),
                _ => {
                    self.take_back(piece);
                    self.ready.push_own(piece);
                }
            }
        }
        self.fetch_more(actions);
    }

    /// A thief has computed a piece of an own block.
    fn returned(&mut self, (thief, ns_per_slice): (u32, u64), attempt: u64, piece: Span, actions: &mut Vec<Action>) {
        let settled = self.stealing.as_mut().is_some_and(|stealing| stealing.leases.settle(thief, attempt, piece));
        if !settled {
            return;
        }
        if let Some(stealing) = &mut self.stealing {
            stealing.note_pace(thief, ns_per_slice);
            let slices = if piece.len == 0 { stealing.slices_per_block } else { piece.len };
            self.load.add_lent(slices, slices.saturating_mul(ns_per_slice).saturating_mul(self.worker_count));
        }
        actions.push(Action::Merge { piece, thief });
        if piece.len == 0 {
            let known = self.blocks.insert(piece.block, Block { slices: 0, finished: 0, lent: 0 });
            assert!(known.is_none(), "block {} was lent while in memory", piece.block);
            actions.push(Action::Write { block: piece.block });
        } else {
            self.take_back(piece);
            self.computed(piece, actions);
        }
    }

    /// The inputs of a stolen piece are here.
    pub(super) fn taken(&mut self, piece: Span, slices: u64, actions: &mut Vec<Action>) {
        let Some(stealing) = &mut self.stealing else { return };
        let Some(stolen) = stealing.stolen.get_mut(&key(piece)) else { return };
        stolen.slices = Some(slices);
        stealing.untaken -= 1;
        if slices > 0 {
            self.ready.push_stolen(Span { len: slices, ..piece }, stolen.ns_per_slice);
        } else {
            self.give_back(piece, actions);
        }
    }

    /// Counts slices of a stolen piece.
    pub(super) fn computed_stolen(&mut self, span: Span, elapsed_ns: u64, actions: &mut Vec<Action>) {
        let Some(stealing) = &mut self.stealing else { return };
        let Some(stolen) = stealing.find(span) else { return };
        stolen.finished += span.len;
        stolen.elapsed_ns += elapsed_ns;
        let (piece, complete) = (stolen.piece, stolen.slices == Some(stolen.finished));
        stealing.counts.slices_stolen += span.len;
        if complete {
            self.give_back(piece, actions);
        }
    }

    fn give_back(&mut self, piece: Span, actions: &mut Vec<Action>) {
        let stolen = self.stealing.as_mut().and_then(|stealing| stealing.stolen.remove(&key(piece)));
        if let Some(Stolen { attempt, finished, elapsed_ns, .. }) = stolen {
            let ns_per_slice = elapsed_ns / (finished.max(1) * self.worker_count);
            let message = Message::Returned { attempt, piece, ns_per_slice };
            actions.push(Action::Send { to: piece.owner, message });
        }
    }

    /// Asks for work if there is little left.
    pub(super) fn request_work(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let in_memory = self.blocks.len() as u64 - self.waiting.min(self.in_flight_limit);
        if self.finish.over || self.team.size() == 1 || self.unfetched_count() + self.fetching > 0 {
            return;
        }
        let pace_ns = self.ns_per_slice(now_ns).unwrap_or(0.0) / self.worker_count as f64;
        let busy_ns = (self.ready.slices() as f64 * pace_ns) as u64;
        let measured = self.class.is_some();
        let Some(stealing) = &mut self.stealing else { return };
        // Who waits long for answers asks early.
        let sated =
            busy_ns >= TARGET_TASK_NS.max(2 * stealing.search.wait_ns()) || (self.ready.slices() > 0 && !measured);
        let free_blocks = self.in_flight_limit.saturating_sub(in_memory + stealing.stolen.len() as u64);
        if sated || stealing.untaken > 0 || (free_blocks == 0 && self.ready.slices() > 0) {
            return;
        }
        match stealing.search.next(now_ns, &self.team) {
            Step::Ask { victim, attempt } => {
                stealing.counts.requests += 1;
                let ns_per_slice = if measured { pace_ns.max(1.0) as u64 } else { 0 };
                let free_blocks = free_blocks.clamp(1, u64::from(u32::MAX)) as u32;
                let wait_ns = stealing.search.wait_ns();
                let question = Question { attempt, ns_per_slice, busy_ns, wait_ns, free_blocks };
                actions.push(Action::Send { to: victim, message: Message::Steal(question) });
            }
            Step::WaitUntil(ns) => actions.push(Action::WakeAt { ns }),
            Step::Nothing => {}
        }
    }
}
