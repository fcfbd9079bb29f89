//! The measured costs of slices, in this run and in earlier ones. They determine the sizes of tasks and the estimate of
//! a job's run time.
//!
//! A cost belongs to a kernel's export, a CPU, a tier and a *shape class*: the sizes of the operands of a slice, each
//! rounded up to a power of two. Costs are estimates: they decide which rank computes a slice and when, and never
//! change a result.

use std::collections::BTreeMap;

use crate::encode::encode;
use crate::engine::{Cache, Cpu, Kernel, Tier};
use crate::exec::comm::communicator::Communicator;
use crate::exec::error::RunError;
use crate::fabric::Payload;
use crate::plan::StagePlan;
use crate::report::RankReport;
use crate::sched::{CostClass, CostTable};

/// The most entries that the cache keeps for a kernel.
const ENTRIES: usize = 256;
/// The weight of the newest run against earlier ones.
const NEWEST_WEIGHT: f64 = 0.5;

const TIERS: [Tier; 2] = [Tier::Baseline, Tier::Optimized];

/// Nanoseconds per slice, by [`key`].
type KnownCosts = BTreeMap<String, f64>;

/// The costs of all kernels of a run, as [`crate::exec::kernels::tier_up::TierUp`] numbers them.
#[derive(Debug, Default)]
pub(in crate::exec) struct CostHistory {
    cpu: String,
    /// By kernel, the costs of earlier runs.
    known: Vec<KnownCosts>,
    measured: Vec<KnownCosts>,
    /// By stage and tier. Iterations need the same keys again and again.
    keys: BTreeMap<usize, [String; 2]>,
    /// By stage, the costs of its last run.
    tables: BTreeMap<usize, CostTable>,
}

/// The key of a cost within its module.
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
    /// Loads the costs that rank 0's cache has. Collective.
    pub fn load(comm: &mut Communicator, cache: Option<&Cache>, kernels: &[Kernel]) -> Result<CostHistory, RunError> {
        let mut encoded = None;
        if comm.rank() == 0 {
            let notes = |kernel: &Kernel| cache.map_or_else(KnownCosts::new, |cache| notes(cache, kernel));
            let known: Vec<KnownCosts> = kernels.iter().map(notes).collect();
            encoded = Some(Payload::from(encode(&known)?));
        }
        let encoded = comm.broadcast(encoded)?;
        let wrong = |_| RunError::Protocol { rank: 0, what: "its kernel costs" };
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

    /// Returns the expected costs of stage number `number`, which runs kernel number `index`.
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

    /// Records the costs that a run of the stage has measured, after [`CostHistory::expected`].
    pub fn note(&mut self, number: usize, index: usize, costs: CostTable) {
        let Some(keys) = self.keys.get(&number) else { return };
        for (class, ns) in costs.measured() {
            if let Some(key) = TIERS.iter().zip(keys).find_map(|(tier, key)| (*tier as u8 == class.0).then_some(key)) {
                self.measured[index].insert(key.clone(), ns);
            }
        }
        self.tables.insert(number, costs);
    }

    /// The costs that this rank has measured for kernel number `index`.
    pub fn measured(&self, index: usize) -> &KnownCosts {
        &self.measured[index]
    }
}

fn notes(cache: &Cache, kernel: &Kernel) -> KnownCosts {
    cache.notes(kernel).and_then(|notes| serde_json::from_slice(&notes).ok()).unwrap_or_default()
}

/// Saves the costs that the ranks have measured for later runs. If that fails, later runs measure them again.
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

/// Returns the time that a slice of `stage` took in earlier runs on code of this tier: on a CPU like this one's, or
/// else on the slowest known CPU. Compute nodes and the node where a job is submitted share a cache.
pub fn known_ns_per_slice(cache: &Cache, stage: &StagePlan, kernel: &Kernel, tier: Tier) -> Option<f64> {
    let known = notes(cache, kernel);
    let elsewhere = || {
        let any_cpu = key("", stage, kernel, tier);
        let those = known.range(any_cpu.clone()..).take_while(|(key, _)| key.starts_with(&any_cpu));
        those.map(|(_, ns)| *ns).max_by(f64::total_cmp)
    };
    known.get(&key(&Cpu::host().name, stage, kernel, tier)).copied().or_else(elsewhere)
}
