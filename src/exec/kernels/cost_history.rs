//! What slices of a stage have cost, in this run and in earlier ones: the sizes of tasks come from it, and what a job will take
//! can be reckoned with it.
//!
//! Costs are of a kernel's export, a CPU, a tier and a *shape class*: the sizes of what a slice reads and writes, each to a power
//! of two. They are estimates: they decide who computes what and when, never what comes out.

use std::collections::BTreeMap;

use crate::encode::encode;
use crate::engine::{Cache, Cpu, Kernel, Tier};
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::fabric::Payload;
use crate::plan::StagePlan;
use crate::report::RankReport;
use crate::sched::{CostClass, CostTable};

/// Entries that are kept of a kernel.
const ENTRIES: usize = 256;
/// Weight of a run against those before it.
const NEWEST_WEIGHT: f64 = 0.5;

const TIERS: [Tier; 2] = [Tier::Baseline, Tier::Optimized];

/// Nanoseconds per slice, by what [`key`] makes.
type KnownCosts = BTreeMap<String, f64>;

/// The costs of all kernels of a run, as [`crate::exec::kernels::tier_up::TierUp`] numbers them.
#[derive(Debug, Default)]
pub(in crate::exec) struct CostHistory {
    cpu: String,
    /// From earlier runs.
    known: Vec<KnownCosts>,
    measured: Vec<KnownCosts>,
    /// Of each stage, by tier: iterations need them again and again.
    keys: BTreeMap<usize, [String; 2]>,
    /// Of stages that ran before.
    tables: BTreeMap<usize, CostTable>,
}

/// What a cost is of, apart from the module.
fn key(cpu: &str, stage: &StagePlan, kernel: &Kernel, tier: Tier) -> String {
    let slice = stage.blocks(0).next().map(|block| stage.task(&block, 0, stage.slices(&block).min(1)));
    let sizes = slice.iter().flat_map(|slice| {
        (0..stage.operands.len()).map(|operand| {
            let bytes = stage.region(operand, slice).elements() * stage.operands[operand].dtype.size_bytes() as u64;
            bytes.next_power_of_two().trailing_zeros().to_string()
        })
    });
    let shape = sizes.collect::<Vec<_>>().join(",");
    format!("{} {shape} {} {cpu}", kernel.export(), tier.name())
}

impl CostHistory {
    /// What rank 0's cache knows. Collective.
    pub fn load(comm: &mut Communicator, cache: Option<&Cache>, kernels: &[Kernel]) -> Result<CostHistory, RunError> {
        let mut encoded = None;
        if comm.rank() == 0 {
            let notes = |kernel: &Kernel| cache.map_or_else(KnownCosts::new, |cache| notes(cache, kernel));
            let known: Vec<KnownCosts> = kernels.iter().map(notes).collect();
            encoded = Some(Payload::from(encode(&known)?));
        }
        let encoded = comm.broadcast(encoded)?;
        let wrong = |_| RunError::Protocol { rank: 0, what: "what kernels cost" };
        let mut known: Vec<KnownCosts> = serde_json::from_slice(&encoded).map_err(wrong)?;
        known.resize(kernels.len(), KnownCosts::new());
        Ok(CostHistory {
            cpu: Cpu::host().name,
            known,
            measured: vec![KnownCosts::new(); kernels.len()],
            keys: BTreeMap::new(),
            tables: BTreeMap::new(),
        })
    }

    /// What to expect of stage number `number`, which runs kernel number `index`.
    pub fn expected(&mut self, (number, stage): (usize, &StagePlan), index: usize, kernel: &Kernel) -> CostTable {
        if let Some(table) = self.tables.remove(&number) {
            return table;
        }
        let cpu = &self.cpu;
        let keys = self.keys.entry(number).or_insert_with(|| TIERS.map(|tier| key(cpu, stage, kernel, tier)));
        let costs = TIERS.iter().zip(keys).filter_map(|(tier, key)| {
            let ns = self.known[index].get(key)?;
            Some((CostClass(*tier as u8), *ns))
        });
        CostTable::expecting(costs)
    }

    /// Takes note of what a run of the stage, which had been [`CostHistory::expected`], has measured.
    pub fn note(&mut self, number: usize, index: usize, costs: CostTable) {
        let Some(keys) = self.keys.get(&number) else { return };
        for (class, ns) in costs.measured() {
            if let Some(key) = TIERS.iter().zip(keys).find_map(|(tier, key)| (*tier as u8 == class.0).then_some(key)) {
                self.measured[index].insert(key.clone(), ns);
            }
        }
        self.tables.insert(number, costs);
    }

    /// What this rank has measured of kernel number `index`.
    pub fn measured(&self, index: usize) -> &KnownCosts {
        &self.measured[index]
    }
}

fn notes(cache: &Cache, kernel: &Kernel) -> KnownCosts {
    cache.notes(kernel).and_then(|notes| serde_json::from_slice(&notes).ok()).unwrap_or_default()
}

/// Keeps what the ranks have measured for later runs. That it cannot be kept is no error: it is measured again.
pub(in crate::exec) fn save(cache: &Cache, kernels: &[Kernel], ranks: &[RankReport]) {
    let mut modules: BTreeMap<&str, (&Kernel, KnownCosts)> = BTreeMap::new();
    for (index, kernel) in kernels.iter().enumerate() {
        let (_, known) = modules.entry(kernel.hash()).or_insert_with(|| (kernel, notes(cache, kernel)));
        let mut measured: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (key, ns) in ranks.iter().filter_map(|rank| rank.kernels.get(index)).flat_map(|k| &k.ns_per_slice) {
            measured.entry(key).or_default().push(*ns);
        }
        for (key, mut ns) in measured {
            ns.sort_by(f64::total_cmp);
            let median = ns[ns.len() / 2];
            known.entry(key.to_owned()).and_modify(|old| *old += NEWEST_WEIGHT * (median - *old)).or_insert(median);
        }
    }
    for (kernel, mut known) in modules.into_values() {
        while known.len() > ENTRIES {
            known.pop_first();
        }
        match encode(&known).map(|notes| cache.put_notes(kernel, &notes)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// What a slice of `stage` took in earlier runs on code of this tier: on a CPU like this one's, or else on the slowest of those
/// that it ran on. Compute nodes keep their costs in the same cache as the node where a job is submitted.
pub fn known_ns_per_slice(cache: &Cache, stage: &StagePlan, kernel: &Kernel, tier: Tier) -> Option<f64> {
    let known = notes(cache, kernel);
    let elsewhere = || {
        let any_cpu = key("", stage, kernel, tier);
        let those = known.range(any_cpu.clone()..).take_while(|(key, _)| key.starts_with(&any_cpu));
        those.map(|(_, ns)| *ns).max_by(f64::total_cmp)
    };
    known.get(&key(&Cpu::host().name, stage, kernel, tier)).copied().or_else(elsewhere)
}
