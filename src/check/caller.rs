//! Calls of the kernel of a stage, with one placement of its tiles.

use std::sync::Arc;

use crate::check::context::CheckContext;
use crate::check::finding::{CallSite, view};
use crate::engine::{Access, Code, EngineError, Instance, Kernel, KernelFault, OperandSpec, Tier, TilePlacement, View};
use crate::exec::{Merge, Merger};
use crate::job::Limits;
use crate::plan::{OperandPlan, Role, StagePlan, Tile};
use crate::tensor::{copy_box, padded};

/// The room on either side of a tile that is not at an inaccessible page.
pub(super) const SLACK_BYTES: u64 = 64 << 10;

/// The placement of the operands of a call, and the contents of outputs before it.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// The placement of runs.
    AsInRuns,
    /// All operands are at inaccessible pages at one end, and outputs are filled with a pattern.
    Bordering { place: TilePlacement, fill: u8 },
    /// One operand is at an inaccessible page; all others have room on both sides.
    One { operand: usize, place: TilePlacement },
    /// All operands have room on both sides, and inputs are writable.
    Open,
}

/// The patterns in outputs before a call, for tiles that end and for tiles that begin at an inaccessible page. They
/// differ in every bit, and as floats the first one is NaN, which does not get lost in a sum.
pub(super) const FILLS: [u8; 2] = [0xFF, 0x00];

impl Way {
    /// Tiles that end, or begin (`front`), at an inaccessible page.
    pub fn bordering(front: bool) -> Way {
        let place = if front { TilePlacement::Front(0) } else { TilePlacement::Back(0) };
        Way::Bordering { place, fill: FILLS[usize::from(front)] }
    }
}

/// The inputs of a sample, with their halos.
#[derive(Debug)]
pub(super) struct BoxInputs {
    pub cover: Tile,
    /// By operand; `None` for outputs.
    pub bytes: Vec<Option<Arc<Vec<u8>>>>,
}

impl BoxInputs {
    /// Extracts the part of an input that `view` shows; `None` for an output.
    pub fn tile_of(&self, plan: &StagePlan, operand: usize, view: &View) -> Option<Vec<u8>> {
        let mut into = vec![0; view.bytes() as usize];
        self.cut_out(plan, operand, view, &mut into).then_some(into)
    }

    /// Copies the part of an input that `view` shows to `into`; returns false for an output.
    fn cut_out(&self, plan: &StagePlan, operand: usize, view: &View, into: &mut [u8]) -> bool {
        let Some(from) = &self.bytes[operand] else { return false };
        let cover = plan.region(operand, &self.cover);
        let outer = padded(&cover, &view.halo).extent;
        let at: Vec<u64> = view.region.offset.iter().zip(&cover.offset).map(|(at, start)| at - start).collect();
        let (extent, zero) = (view.padded(), vec![0; at.len()]);
        copy_box(from, &outer, &at, into, &extent, &zero, &extent, view.dtype.size_bytes());
        true
    }
}

/// The failure of a call.
#[derive(Debug)]
pub(super) enum CallFailure {
    Fault(KernelFault),
    Engine(EngineError),
}

/// An instance of a kernel for the tiles of a sample.
pub(super) struct Caller<'a> {
    bench: &'a CheckContext,
    stage: usize,
    code: &'a Code,
    way: Way,
    specs: Vec<OperandSpec>,
    instance: Option<Instance>,
    /// After a fault, an instance is kept only to inspect its memory.
    failed: bool,
    /// Which of the inputs that all tiles share are loaded.
    written: Vec<bool>,
}

impl<'a> Caller<'a> {
    /// Creates a caller for tiles of `cover`.
    pub fn new(bench: &'a CheckContext, stage: usize, code: &'a Code, way: Way, cover: &Tile) -> Caller<'a> {
        let plan = &bench.plan.stages[stage];
        let room = match way {
            Way::AsInRuns | Way::Bordering { .. } => 0,
            Way::One { .. } | Way::Open => 2 * SLACK_BYTES,
        };
        let spec = |(operand, its): (usize, &OperandPlan)| OperandSpec {
            max_bytes: view(plan, operand, cover).bytes() + room,
            access: match (&way, its.role) {
                (Way::Open, _) => Access::InOut,
                (_, Role::Input) => Access::In,
                (_, Role::Output) => Access::Out,
            },
        };
        let specs: Vec<OperandSpec> = plan.operands.iter().enumerate().map(spec).collect();
        Caller { bench, stage, code, way, specs, instance: None, failed: false, written: Vec::new() }
    }

    fn tier(&self) -> Tier {
        self.code.tier()
    }

    fn make(&self) -> Result<Instance, EngineError> {
        let kernel = &self.bench.kernels[self.stage].kernel;
        let room: u64 = self.specs.iter().map(|spec| spec.max_bytes).sum();
        // The job's memory limit applies to the tiles of runs, not to samples.
        let limit_bytes = self.bench.job.stages[self.stage].limits.memory_bytes.saturating_add(room);
        let limit_bytes = limit_bytes.min(Limits::MEMORY_MAX_BYTES);
        let mut instance = Instance::new(&self.bench.engine, kernel, self.code, limit_bytes, &self.specs)?;
        for operand in 0..self.specs.len() {
            let place = match self.way {
                Way::AsInRuns => TilePlacement::Aligned,
                Way::Bordering { place, .. } => place,
                Way::One { operand: one, place } if one == operand => place,
                Way::One { .. } | Way::Open => TilePlacement::Front(SLACK_BYTES),
            };
            instance.place(operand, place);
        }
        match self.way {
            Way::AsInRuns => {}
            Way::Bordering { fill, .. } => instance.watch_closely(fill),
            Way::One { .. } | Way::Open => instance.watch_closely(FILLS[0]),
        }
        Ok(instance)
    }

    /// Calls the kernel on `tile`; returns its results by output.
    pub fn call(&mut self, inputs: &BoxInputs, tile: &Tile) -> Result<Vec<Vec<u8>>, CallFailure> {
        let (bench, stage) = (self.bench, self.stage);
        let plan = &bench.plan.stages[stage];
        let views: Vec<View> = (0..plan.operands.len()).map(|operand| view(plan, operand, tile)).collect();
        let call = CallSite { bench, stage, tile, tier: self.tier(), merges: false };
        let limit = bench.job.stages[stage].limits.task_time;
        if self.failed || self.instance.is_none() {
            // The start function of the module may not return either.
            let made = bench.watch.call(limit, || call.endless(), || self.make());
            self.instance = Some(made.map_err(CallFailure::Engine)?);
            self.written = vec![false; views.len()];
        }
        let Some(instance) = &mut self.instance else { unreachable!("it was just created") };
        for (operand, its) in views.iter().enumerate() {
            let keeps = !matches!(self.way, Way::Open) && plan.is_broadcast(operand);
            if keeps && self.written[operand] {
                continue;
            }
            // The instance fills outputs itself, except those that the kernel may read.
            if inputs.bytes[operand].is_none() && !matches!(self.way, Way::Open) {
                continue;
            }
            let into = instance.operand_mut(operand, its.bytes()).ok_or_else(|| too_large(operand, its))?;
            if !inputs.cut_out(plan, operand, its, into) {
                into.fill(FILLS[0]);
            }
            self.written[operand] = keeps;
        }
        let result = bench.watch.call(limit, || call.endless(), || instance.call(&views));
        bench.watch.count_task(stage);
        self.failed = result.is_err();
        result.map_err(CallFailure::Fault)?;
        plan.outputs().map(|operand| self.bytes(operand, &views[operand])).collect()
    }

    /// The bytes of an operand after a call.
    pub fn bytes(&self, operand: usize, view: &View) -> Result<Vec<u8>, CallFailure> {
        let found = self.instance.as_ref().and_then(|instance| instance.operand(operand, view.bytes()));
        found.map(<[u8]>::to_vec).ok_or_else(|| too_large(operand, view))
    }

    /// The offset of the nearest byte that the last call wrote outside an operand's tile, relative to the start of the
    /// tile.
    pub fn wrote_outside(&self, operand: usize) -> Option<i64> {
        self.instance.as_ref()?.wrote_outside(operand)
    }
}

fn too_large(operand: usize, view: &View) -> CallFailure {
    let message = format!("{} bytes do not fit operand {operand}", view.bytes());
    CallFailure::Engine(EngineError::Instantiate { name: "the kernel".to_owned(), message })
}

/// An instance of the kernel that merges the partial results of a stage.
pub(super) struct Merging<'a> {
    bench: &'a CheckContext,
    stage: usize,
    merger: Merger,
    kernel: Option<(&'a Kernel, &'a Code)>,
    place: TilePlacement,
    instance: Option<Instance>,
}

impl<'a> Merging<'a> {
    /// Returns `None` for a stage without a reduction.
    pub fn new(bench: &'a CheckContext, stage: usize, code: &'a Code, place: TilePlacement) -> Option<Merging<'a>> {
        let merger = Merger::new(&bench.plan.stages[stage])?;
        let kernel = bench.kernels[stage].merge.as_ref().map(|kernel| (kernel, code));
        Some(Merging { bench, stage, merger, kernel, place, instance: None })
    }

    /// Merges `next` into `sum`, both of `tile`.
    pub fn merge(&mut self, sum: &mut Vec<Vec<u8>>, next: Vec<Vec<u8>>, tile: &Tile) -> Result<(), CallFailure> {
        let Some((kernel, code)) = self.kernel else {
            let mut merge = Merge { sum: std::mem::take(sum), next: vec![next] };
            self.merger.merge(&mut merge);
            *sum = merge.sum;
            return Ok(());
        };
        let (bench, stage) = (self.bench, self.stage);
        let plan = &bench.plan.stages[stage];
        let views: Vec<View> = plan.outputs().chain(plan.outputs()).map(|operand| view(plan, operand, tile)).collect();
        let count = sum.len();
        let call = CallSite { bench, stage, tile, tier: code.tier(), merges: true };
        let limit = bench.job.stages[stage].limits.task_time;
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => {
                let spec = |(at, view): (usize, &View)| OperandSpec {
                    max_bytes: view.bytes(),
                    access: if at < count { Access::In } else { Access::InOut },
                };
                let specs: Vec<OperandSpec> = views.iter().enumerate().map(spec).collect();
                let limit_bytes = bench.job.stages[stage].limits.memory_bytes;
                let make = || Instance::new(&bench.engine, kernel, code, limit_bytes, &specs);
                let instance = bench.watch.call(limit, || call.endless(), make);
                let mut instance = instance.map_err(CallFailure::Engine)?;
                (0..views.len()).for_each(|operand| instance.place(operand, self.place));
                instance.watch_closely(FILLS[0]);
                instance
            }
        };
        for (operand, bytes) in next.iter().chain(sum.iter()).enumerate() {
            let room = instance.operand_mut(operand, bytes.len() as u64);
            room.ok_or_else(|| too_large(operand, &views[operand]))?.copy_from_slice(bytes);
        }
        bench.watch.call(limit, || call.endless(), || instance.call(&views)).map_err(CallFailure::Fault)?;
        for (operand, bytes) in (count..).zip(sum) {
            let found = instance.operand(operand, bytes.len() as u64);
            bytes.copy_from_slice(found.ok_or_else(|| too_large(operand, &views[operand]))?);
        }
        self.instance = Some(instance);
        Ok(())
    }
}
