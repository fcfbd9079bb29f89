//! What stages leave for those after them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::exec::dataset::inputs::InputCache;
use crate::exec::dataset_paths::DatasetPaths;
use crate::exec::kernels::cost_history::CostHistory;
use crate::exec::recovery::checkpoint::Checkpoints;
use crate::exec::stage::steal_policy::StealPolicy;
use crate::exec::transfer::resident::Resident;
use crate::exec::worker::instances::Instances;
use crate::exec::worker::message::FromRun;
use crate::plan::Tile;

/// The places of tensors between stages, and the data that later stages reuse.
pub(in crate::exec) struct CarryOver {
    pub places: DatasetPaths,
    pub resident: Resident,
    /// What iterated stages keep from one iteration to the next, by stage: inputs that never change, instances of
    /// kernels.
    pub input_cache: InputCache,
    pub instances: BTreeMap<usize, Vec<Instances>>,
    pub costs: CostHistory,
    /// Which iterated stages steal.
    pub balance: StealPolicy,
    pub checkpoints: Checkpoints,
    /// Their blocks on this rank.
    pub tiles: BTreeMap<usize, Arc<Vec<Tile>>>,
    /// From the workers of all stages to the main thread.
    pub to_main: Sender<FromRun>,
    pub from_workers: Receiver<FromRun>,
    /// Whether outputs wait in memory for the end of an iteration, and have no datasets yet.
    pub deferred: bool,
    /// Runs of stages so far.
    runs: u64,
}

impl CarryOver {
    pub fn new(costs: CostHistory, checkpoints: Checkpoints) -> CarryOver {
        let (to_main, from_workers) = unbounded();
        CarryOver {
            places: DatasetPaths::default(),
            resident: Resident::default(),
            input_cache: InputCache::default(),
            instances: BTreeMap::new(),
            costs,
            balance: StealPolicy::default(),
            checkpoints,
            tiles: BTreeMap::new(),
            to_main,
            from_workers,
            deferred: false,
            runs: 0,
        }
    }

    /// The number of the next run of a stage.
    pub fn next_run(&self) -> u64 {
        self.runs + 1
    }

    /// The number of a new run of a stage, the same on every rank.
    pub fn begin_run(&mut self) -> u64 {
        self.runs += 1;
        self.runs
    }
}
