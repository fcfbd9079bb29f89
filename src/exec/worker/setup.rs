//! What the workers of a stage are given, and the kernel call that each of them is in.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::engine::{Access, Code, Engine, Kernel, OperandSpec, StartFunction, Tier};
use crate::exec::reduce::fold::Merger;
use crate::exec::trace::recorder::Tracer;
use crate::exec::transfer::broadcast::BroadcastInput;
use crate::plan::{Plan, Role, StagePlan, Tile};

/// The parts of a run of a stage that do not change.
#[derive(Debug)]
pub(in crate::exec) struct StageSetup {
    pub plan: Arc<Plan>,
    pub stage_index: usize,
    /// The number of this run of the stage.
    pub run: u64,
    pub engine: Engine,
    pub kernel: Kernel,
    /// The kernel that merges partial results, if a kernel does.
    pub merge_kernel: Option<Kernel>,
    /// How partial results are merged, in a stage that reduces.
    pub merger: Option<Merger>,
    /// The code that the stage begins with.
    pub first_code: Code,
    pub memory_limit_bytes: u64,
    /// By operand, the inputs that all tasks share.
    pub broadcast: Vec<Option<BroadcastInput>>,
    pub swap_before_task: Option<u64>,
    pub process_start: Instant,
    pub tracer: Tracer,
}

impl StageSetup {
    pub fn stage(&self) -> &StagePlan {
        &self.plan.stages[self.stage_index]
    }

    /// Returns the operands of the kernel that computes tiles.
    pub fn operands(&self) -> Vec<OperandSpec> {
        let stage = self.stage();
        let spec = |(index, shared): (usize, &Option<BroadcastInput>)| OperandSpec {
            max_bytes: stage.operand_max_bytes(index),
            access: match (shared, stage.operands[index].role) {
                (Some(_), _) => Access::Shared,
                (None, Role::Input) => Access::In,
                (None, Role::Output) => Access::Out,
            },
        };
        self.broadcast.iter().enumerate().map(spec).collect()
    }
}

/// The kernel call that a worker is in. It serves the check of time limits.
#[derive(Clone, Debug)]
pub(in crate::exec) struct CurrentCall {
    pub started: Instant,
    pub call: KernelCall,
    pub tier: Tier,
    /// Whether the kernel is the one that merges partial results.
    pub merges: bool,
}

/// A worker's current call; none between two calls.
pub(in crate::exec) type CallSlot = Mutex<Option<CurrentCall>>;

/// The function of a module that runs.
#[derive(Clone, Debug)]
pub(in crate::exec) enum KernelCall {
    /// A start function, while an instance is made.
    Start(StartFunction),
    Task(Tile),
}
