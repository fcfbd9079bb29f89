//! The sums over a whole simulation.

use crate::simulate::results::Simulation;
use crate::simulate::simulator::Simulator;

impl Simulator<'_> {
    /// Adds up the times of all ranks and runs.
    pub fn result(self) -> Simulation {
        let (machine, ranks) = (self.machine, self.ranks.len());
        let mut stages = self.times;
        let mut more_ns = 0;
        let shared = machine.cores_per_node > 0;
        let cores = (self.network.node(ranks as u32 - 1) as u64 + 1) * u64::from(machine.cores_per_node);
        for (number, times) in stages.iter_mut().enumerate() {
            let runs = || self.runs.iter().zip(&self.walls).filter(|(run, _)| run.stage == number);
            let spent = |rank: usize| runs().map(|(run, walls)| run.times * walls[rank]).sum::<u64>();
            times.makespan_ns = (0..ranks).map(spent).max().unwrap_or(0);
            times.runs = runs().map(|(run, _)| run.times).sum();
            let work = &self.stages[number].work[0];
            let totals = work.totals(self.threads, shared.then_some(cores));
            let blocks: u64 = (0..ranks as u32).map(|rank| work.block_count(rank)).sum();
            times.blocks = blocks * times.runs;
            times.slices = totals.slices * times.runs;
            times.data_bytes = totals.bytes * times.runs;
            times.ideal_ns = totals.ideal_ns * times.runs;
            let ratio = |part: u64, whole: u64, none: f64| if whole == 0 { none } else { part as f64 / whole as f64 };
            times.efficiency = if times.ideal_ns == 0 { 1.0 } else { ratio(times.ideal_ns, times.makespan_ns, 1.0) };
            times.between_nodes = ratio(times.stolen_between_nodes_bytes, times.data_bytes, 0.0);
        }
        // Iterations that were not simulated take as long as the last that was.
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
