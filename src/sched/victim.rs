//! A rank's search for work: one question at a time, in rounds, with pauses in between that grow.

use smallvec::SmallVec;

use crate::sched::peers::ROUND;
use crate::sched::peers::Team;
use crate::sched::span::TARGET_TASK_NS;

/// The first pause after a round in which nobody had work to give ...
const PAUSE_NS: u64 = 2_000_000;
/// ... and the longest.
const PAUSE_MAX_NS: u64 = 100_000_000;

/// How many busy ranks a thief remembers: the more it has seen, the busier the one it goes to.
const KNOWN: usize = 8;
/// One in so many questions goes to a rank that chance chooses, though a busy one is known.
const EXPLORE_EVERY: u64 = 2;

/// What a hungry rank does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Ask {
        victim: u32,
        attempt: u64,
    },
    WaitUntil(u64),
    /// An answer or the end of a pause is still to come.
    Nothing,
}

#[derive(Debug)]
pub(super) struct VictimSearch {
    /// Of the last question; never used again.
    attempt: u64,
    /// Who has not answered yet, and since when.
    asked: Option<(u32, u64)>,
    /// How long answers take, by the last ones.
    wait_ns: u64,
    /// Questions of this round.
    turn: u32,
    pause_ns: u64,
    paused_until: Option<u64>,
    /// Ranks with most work among those that have answered, and when they would end alone; the last to end first.
    busy: SmallVec<[(u64, u32); KNOWN + 1]>,
    /// Whether anyone in this round had work at all.
    met_busy: bool,
}

impl Default for VictimSearch {
    fn default() -> Self {
        VictimSearch {
            attempt: 0,
            asked: None,
            wait_ns: 0,
            turn: 0,
            pause_ns: PAUSE_NS,
            paused_until: None,
            busy: SmallVec::new(),
            met_busy: false,
        }
    }
}

impl VictimSearch {
    /// See [`Scheduler::prefetch`](crate::sched::scheduler::Scheduler::prefetch).
    pub fn prefetch(&self) -> u64 {
        self.attempt ^ self.wait_ns ^ self.busy.last().map_or(0, |(end_ns, _)| *end_ns)
    }

    pub fn next(&mut self, now_ns: u64, team: &Team) -> Step {
        if self.asked.is_some() || self.paused_until.is_some_and(|until| now_ns < until) {
            return Step::Nothing;
        }
        self.paused_until = None;
        while self.turn < ROUND {
            self.attempt += 1;
            let known = if self.attempt.is_multiple_of(EXPLORE_EVERY) { None } else { self.busiest(now_ns) };
            let Some(victim) = known.or_else(|| team.victim(self.attempt, self.turn)) else {
                self.turn += 1;
                continue;
            };
            self.asked = Some((victim, now_ns));
            return Step::Ask { victim, attempt: self.attempt };
        }
        let until = now_ns + self.pause_ns;
        self.paused_until = Some(until);
        // Where all are out of work the end is near, and questions only disturb.
        let growth = if self.met_busy { 2 } else { 4 };
        self.pause_ns = (self.pause_ns * growth).min(PAUSE_MAX_NS);
        (self.turn, self.met_busy) = (0, false);
        Step::WaitUntil(until)
    }

    /// Whether this answers the open question; if so it is closed.
    fn close(&mut self, now_ns: u64, from: u32, attempt: u64) -> bool {
        let Some((_, since_ns)) = self.asked.filter(|(asked, _)| *asked == from && self.attempt == attempt) else {
            return false;
        };
        self.asked = None;
        let waited_ns = now_ns.saturating_sub(since_ns);
        self.wait_ns = if self.wait_ns == 0 { waited_ns } else { (3 * self.wait_ns + waited_ns) / 4 };
        true
    }

    /// Takes the busiest of the known ranks, if it has so much work that asking pays.
    fn busiest(&mut self, now_ns: u64) -> Option<u32> {
        let (end_ns, rank) = self.busy.first().copied()?;
        self.busy.remove(0);
        (end_ns > now_ns + 2 * TARGET_TASK_NS).then_some(rank)
    }

    fn remember(&mut self, rank: u32, end_ns: u64) {
        self.busy.retain(|(_, known)| *known != rank);
        let place = self.busy.partition_point(|(end, _)| *end > end_ns);
        self.busy.insert(place, (end_ns, rank));
        self.busy.truncate(KNOWN);
    }

    /// How long this rank has waited for answers lately.
    pub fn wait_ns(&self) -> u64 {
        self.wait_ns
    }

    /// The busiest rank that this one knows of, and for how long it will be, for thieves that ask here.
    pub fn hint(&self, now_ns: u64) -> Option<(u32, u64)> {
        self.busy.first().filter(|(end_ns, _)| *end_ns > now_ns).map(|(end_ns, rank)| (*rank, end_ns - now_ns))
    }

    /// Takes note of a rank that is said to be busy.
    pub fn note_hint(&mut self, now_ns: u64, team: &Team, hint: Option<(u32, u64)>) {
        if let Some((rank, busy_ns)) = hint
            && rank < team.size()
            && rank != team.rank()
            && !self.busy.iter().any(|(_, known)| *known == rank)
        {
            self.remember(rank, now_ns.saturating_add(busy_ns));
        }
    }

    /// A refusal from a rank that has work for `busy_ns`.
    pub fn refused(&mut self, now_ns: u64, from: u32, attempt: u64, busy_ns: u64) {
        if self.close(now_ns, from, attempt) {
            self.turn += 1;
            self.met_busy |= busy_ns > 0;
        }
    }

    /// A grant from a rank that still has work for `busy_ns`; false if it answers no open question.
    pub fn granted(&mut self, now_ns: u64, from: u32, attempt: u64, busy_ns: u64) -> bool {
        let wanted = self.close(now_ns, from, attempt);
        if wanted {
            self.remember(from, now_ns.saturating_add(busy_ns));
            let busy = std::mem::take(&mut self.busy);
            *self = VictimSearch { attempt: self.attempt, wait_ns: self.wait_ns, busy, ..VictimSearch::default() };
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(search: &mut VictimSearch, team: &Team, now_ns: u64, busy_ns: u64) -> u64 {
        for _ in 0..=ROUND {
            match search.next(now_ns, team) {
                Step::Ask { victim, attempt } => {
                    assert_eq!(search.next(now_ns, team), Step::Nothing);
                    search.refused(now_ns, victim, attempt, busy_ns);
                }
                Step::WaitUntil(until) => return until - now_ns,
                Step::Nothing => panic!("nothing to wait for"),
            }
        }
        panic!("a round does not end")
    }

    #[test]
    fn pauses_grow_to_a_limit_and_faster_where_all_are_idle() {
        let team = Team::packed(8, 4).next().unwrap();
        let pauses = |busy_ns| {
            let (mut search, mut now_ns) = (VictimSearch::default(), 0);
            let mut pauses = Vec::new();
            for _ in 0..6 {
                let pause = round(&mut search, &team, now_ns, busy_ns);
                assert_eq!(search.next(now_ns + pause - 1, &team), Step::Nothing);
                now_ns += pause;
                pauses.push(pause / 1_000_000);
            }
            pauses
        };
        assert_eq!(pauses(1), [2, 4, 8, 16, 32, 64]);
        assert_eq!(pauses(0), [2, 8, 32, 100, 100, 100]);
    }

    #[test]
    fn who_gave_is_asked_again_and_answers_count_once() {
        let team = Team::packed(8, 4).next().unwrap();
        let mut search = VictimSearch::default();
        let Step::Ask { victim, attempt } = search.next(0, &team) else { panic!() };
        let far_ns = 1_000_000_000;
        assert!(!search.granted(0, victim + 1, attempt, far_ns) && !search.granted(0, victim, attempt + 1, far_ns));
        assert!(search.granted(0, victim, attempt, far_ns) && !search.granted(0, victim, attempt, far_ns));
        let Step::Ask { victim: again, attempt: next } = search.next(0, &team) else { panic!() };
        assert!(again == victim && next > attempt);
    }

    #[test]
    fn of_the_ranks_known_the_one_that_ends_last_is_asked() {
        let team = Team::packed(8, 4).next().unwrap();
        let mut search = VictimSearch::default();
        for (rank, busy_ns) in [(5, 300_000_000), (2, 900_000_000), (7, 600_000_000)] {
            search.note_hint(0, &team, Some((rank, busy_ns)));
        }
        let Step::Ask { victim, .. } = search.next(0, &team) else { panic!() };
        assert_eq!(victim, 2);
    }
}
