//! Decides which iterated stages steal.
//!
//! Ranks that steal have to agree at the end of each run of a stage, and most iterations are short and balanced. So a
//! stage steals only where the ranks have measured that this pays. They compare their loads after the first iteration,
//! then after ever longer intervals. All ranks come to the same decision, which holds until they compare again.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;

/// The least gain in a run of a stage that is worth stealing: `sched` makes no smaller grants ...
const LEAST_GAIN_NS: f64 = 2e6;
/// ... and the least part of the iteration.
const LEAST_GAIN_PART: f64 = 0.1;
/// The part of the least gain that suffices for a stage that steals already: estimates vary between comparisons.
const KEEPS_STEALING: f64 = 0.5;
/// The time in which a main thread passes a message on. At the end of a run, ranks agree along a tree, up and down.
const HOP_NS: f64 = 100e3;
/// The cost of a byte that moves with stolen work.
const NS_PER_BYTE: f64 = 1.0;
/// The number of iterations between comparisons doubles until they take this time: a rank may become slow at any
/// moment.
const COMPARE_EVERY_NS: u64 = 1_000_000_000;

/// The loads of a stage in its runs since the last comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Loads {
    /// The largest load of a rank, and the sum of all: time of a rank with all its workers.
    max_ns: u64,
    sum_ns: u64,
    /// The largest number of bytes that a rank would have had to move, had others computed all of its share.
    max_bytes: u64,
}

/// The count of numbers that ranks combine for a stage.
const NUMBERS: usize = 3;

/// The loads of iterated stages, and the decisions made from them.
#[derive(Debug, Default)]
pub(in crate::exec) struct StealPolicy {
    /// This rank's loads, by stage.
    loads: BTreeMap<usize, Loads>,
    steals: BTreeMap<usize, bool>,
    /// The number of iterations so far, at the last comparison, and at the next one.
    iteration: u64,
    compared: u64,
    next: u64,
    since: Option<Instant>,
}

impl Loads {
    /// Whether stealing pays in a stage with these loads in `runs` runs, in iterations that took `iteration_ns` each.
    /// `steals` tells whether the stage steals now.
    fn pay(&self, runs: u64, ranks: u32, iteration_ns: u64, steals: bool) -> bool {
        let of_run = |sum: u64| sum as f64 / runs.max(1) as f64;
        let (max_ns, mean_ns) = (of_run(self.max_ns), of_run(self.sum_ns) / f64::from(ranks));
        let gain_ns = max_ns - mean_ns;
        if gain_ns <= 0.0 {
            return false;
        }
        let moving_ns = of_run(self.max_bytes) * NS_PER_BYTE * gain_ns / max_ns;
        let agreeing_ns = 2.0 * f64::from(ranks.ilog2()) * HOP_NS;
        let least_ns = LEAST_GAIN_NS.max(LEAST_GAIN_PART * iteration_ns as f64);
        gain_ns - moving_ns - agreeing_ns > least_ns * if steals { KEEPS_STEALING } else { 1.0 }
    }
}

/// Combines the numbers of another rank with those of this one: of each stage, then of the iteration.
fn combine(numbers: &mut [u64], theirs: &[u64]) {
    let stages = numbers.len() / NUMBERS * NUMBERS;
    for (at, (mine, theirs)) in numbers.iter_mut().zip(theirs).enumerate() {
        *mine = if at < stages && at % NUMBERS == 1 { mine.saturating_add(*theirs) } else { (*mine).max(*theirs) };
    }
}

/// Returns the iteration after which ranks compare next, if they compare after `iteration`.
fn next_comparison(iteration: u64, iteration_ns: u64) -> u64 {
    iteration + iteration.min((COMPARE_EVERY_NS / iteration_ns.max(1)).max(1))
}

impl StealPolicy {
    pub fn steals(&self, stage: usize) -> bool {
        self.steals.get(&stage).copied().unwrap_or(false)
    }

    /// Records a run of an iterated stage: how long this rank's share takes, whichever rank computed it, and how many
    /// bytes move if others compute it.
    pub fn note(&mut self, stage: usize, load_ns: u64, bytes: u64) {
        let loads = self.loads.entry(stage).or_default();
        loads.max_ns += load_ns;
        loads.sum_ns += load_ns;
        loads.max_bytes += bytes;
    }

    /// Starts over at the first iteration.
    pub fn begin(&mut self) {
        *self = StealPolicy { next: 1, since: Some(Instant::now()), ..StealPolicy::default() };
    }

    /// Ends an iteration that another one follows. Compares loads with the other ranks if that is due. Collective.
    pub fn end_iteration(&mut self, comm: &mut Communicator) -> Result<(), RunError> {
        self.iteration += 1;
        if self.iteration < self.next || comm.size() == 1 {
            return Ok(());
        }
        let runs = self.iteration - self.compared;
        let took_ns = self.since.map_or(0, |since| since.elapsed().as_nanos() as u64);
        let mine = self.loads.values().flat_map(|loads| [loads.max_ns, loads.sum_ns, loads.max_bytes]);
        let all = comm.allreduce(mine.chain([took_ns]).collect(), combine)?;
        let iteration_ns = all.last().copied().unwrap_or(0) / runs;
        for ((stage, loads), all) in self.loads.iter_mut().zip(all.chunks_exact(NUMBERS)) {
            let [max_ns, sum_ns, max_bytes] = *all else { continue };
            let (steals, all) = (self.steals.entry(*stage).or_default(), Loads { max_ns, sum_ns, max_bytes });
            *steals = all.pay(runs, comm.size(), iteration_ns, *steals);
            tracing::debug!(
                "stage {stage} after iteration {}: steals {steals}, {all:?} in {runs} runs",
                self.iteration
            );
            *loads = Loads::default();
        }
        self.compared = self.iteration;
        self.next = next_comparison(self.iteration, iteration_ns);
        self.since = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn loads(ms: &[u64]) -> Loads {
        let sum_ns = ms.iter().sum::<u64>() * MS;
        Loads { max_ns: ms.iter().max().unwrap() * MS, sum_ns, max_bytes: 0 }
    }

    fn pay(ms: &[u64], iteration_ms: u64) -> bool {
        loads(ms).pay(1, ms.len() as u32, iteration_ms * MS, false)
    }

    #[test]
    fn a_rank_with_more_to_do_than_others_is_stolen_from() {
        assert!(pay(&[100, 10, 10, 10], 100));
        assert!(pay(&[20, 10], 20));
        assert!(!pay(&[100, 99, 101, 100], 101));
        // Enough of this stage, but not of the whole iteration.
        assert!(!pay(&[20, 10], 1000));
        // Too short.
        assert!(!pay(&[3, 0], 3));
        assert!(!pay(&[0, 0], 0));
    }

    #[test]
    fn moved_bytes_and_agreement_among_many_ranks_cost() {
        let moving = |bytes| Loads { max_bytes: bytes, ..loads(&[20, 10]) }.pay(1, 2, 20 * MS, false);
        assert!(moving(1 << 20) && !moving(16 << 20));
        let on = |ranks: u32| {
            let sum_ns = 10 * MS * u64::from(ranks);
            Loads { max_ns: 15 * MS, sum_ns, max_bytes: 0 }.pay(1, ranks, 15 * MS, false)
        };
        assert!(on(1000) && !on(1 << 20));
    }

    #[test]
    fn runs_are_averaged_and_a_smaller_gain_keeps_a_stage_stealing() {
        let all = loads(&[30, 22]);
        let pay = |runs, steals| all.pay(runs, 2, 30 * MS / runs, steals);
        assert!(pay(1, false) && pay(1, true));
        assert!(!pay(2, false) && pay(2, true));
        assert!(!pay(10, true));
    }

    #[test]
    fn ranks_combine_numbers_of_stages_and_the_longest_iteration() {
        let (mut all, mine) = (vec![5, 5, 100, 1, 1, 0, 70], [7, 7, 90, 0, 0, u64::MAX, 80]);
        combine(&mut all, &mine);
        assert_eq!(all, [7, 12, 100, 1, 1, u64::MAX, 80]);
        combine(&mut all, &[0, u64::MAX, 0, 0, 0, 0, 0]);
        assert_eq!(all[1], u64::MAX);
    }

    #[test]
    fn intervals_between_comparisons_grow_to_about_a_second() {
        let after = |iteration_ns| {
            let mut at = vec![1];
            while at.len() < 8 {
                at.push(next_comparison(at[at.len() - 1], iteration_ns));
            }
            at
        };
        assert_eq!(after(1000), [1, 2, 4, 8, 16, 32, 64, 128]);
        assert_eq!(after(100 * MS), [1, 2, 4, 8, 16, 26, 36, 46]);
        assert_eq!(after(5000 * MS), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(after(0), after(1000));
    }

    #[test]
    fn ranks_decide_alike_from_the_loads_since_they_last_compared() {
        // What two ranks take for a stage in each iteration: they compare after the first, the second and the fourth.
        let times = [[60, 0], [30, 30], [8, 0], [8, 0]];
        let iterate = |rank: usize, fabric| {
            let mut comm = Communicator::new(fabric, crate::exec::comm::signal::Signal::default());
            let (mut balance, mut decided) = (StealPolicy::default(), Vec::new());
            balance.begin();
            for ms in times {
                balance.note(4, ms[rank] * MS, 0);
                balance.end_iteration(&mut comm).unwrap();
                decided.push((balance.steals(4), balance.steals(3)));
            }
            decided
        };
        std::thread::scope(|scope| {
            let ranks = (0..).zip(crate::fabric::local(2));
            let ranks: Vec<_> = ranks.map(|(rank, fabric)| scope.spawn(move || iterate(rank, fabric))).collect();
            for rank in ranks {
                let decided = rank.join().unwrap();
                assert_eq!(decided, [true, false, false, true].map(|steals| (steals, false)));
            }
        });
    }
}
