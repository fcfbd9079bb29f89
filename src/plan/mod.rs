//! Plans: the division of a [`Job`] into tiles, ranks and stages, and its cost. A plan follows from the job, the
//! layouts of its datasets and a [`Machine`].
//!
//! This module uses no I/O, clocks, environment or threads. Every rank computes the same plan from the same inputs, and
//! the ranks compare [`Plan::hash`] to detect a difference. Nothing here depends on measured speed; tasks are cut
//! during the run.
//!
//! Invariants:
//! - The shares of all ranks partition the units of a stage. Blocks partition a share, and tasks partition a block.
//! - A unit is a union of whole chunks of every chunked operand, so no two ranks touch the same chunk of an output.
//! - The memory of a plan is proportional to its stages and operands, whatever the number of ranks and units.

mod bind;
mod error;
mod explain;
mod footprint;
mod geometry;
#[cfg(test)]
mod golden_tests;
mod grid_choice;
mod memory;
mod model;
mod notes;
mod process_grid;
#[cfg(test)]
mod property_tests;
mod render;
mod residency;
#[cfg(test)]
mod tests;
mod tiling;
mod waves;

pub use error::PlanError;
pub use explain::explain;
pub use geometry::Tile;
pub use render::render;

use crate::job::Job;
pub use model::{
    Distribution, IndexPlan, Layout, Machine, OperandPlan, Origin, Plan, ProcessGrid, Reduce, Role, SHARED_BYTES,
    StageBytes, StageKind, StagePlan, Totals,
};
use std::collections::BTreeMap;

/// Plans `job` for `machine`. `layouts` describes every dataset that the job reads, by tensor name.
///
/// The function is pure: equal arguments give equal plans, on every rank.
///
/// ```
/// use exuvia::job::Job;
/// use exuvia::plan::{Layout, Machine, plan};
/// use exuvia::tensor::{Dtype, Shape};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let text = r#"
///     tensors.x = { file = "in.h5", dataset = "x" }
///     tensors.y = { create = "out.h5", dataset = "y", dtype = "f32" }
///     stages = [{ kernel = "twice.wasm", compute = "x[n] -> y[n]" }]
/// "#;
/// let job = Job::parse(text, "job.toml".as_ref())?;
/// let layout = Layout { dtype: Dtype::F32, shape: Shape::new([1000])?, chunk: None };
/// let machine = Machine { ranks: 4, ranks_per_node: 2, threads: 1, memory_bytes: 1 << 30 };
/// let plan = plan(&job, &[("x".to_owned(), layout)].into(), &machine)?;
/// assert_eq!(plan.totals().bytes.written, 4000);
/// # Ok(())
/// # }
/// ```
pub fn plan(job: &Job, layouts: &BTreeMap<String, Layout>, machine: &Machine) -> Result<Plan, PlanError> {
    if machine.ranks == 0 || machine.threads == 0 {
        return Err(PlanError::EmptyMachine { ranks: machine.ranks, threads: machine.threads });
    }
    let budget_bytes = machine.memory_bytes.min(job.memory_bytes.unwrap_or(u64::MAX));
    let mut known = layouts.clone();
    let mut stages = Vec::with_capacity(job.stages.len());
    let mut bound = Vec::with_capacity(job.stages.len());
    for stage in &job.stages {
        bound.push(bind::bind(job, stage, &mut known)?);
    }
    let residence = residency::decide(job, &known, &mut bound, machine, budget_bytes)?;
    for (stage, bound) in job.stages.iter().zip(bound) {
        let context =
            memory::StageContext { job, stage, machine, budget_bytes, residence: &residence, earlier: &stages };
        let planned = memory::fit(&context, bound)?;
        stages.push(planned);
    }
    residency::count(&mut stages, &residence);
    memory::keep(job, &mut stages, budget_bytes);
    let job_hash = blake3::Hash::from_bytes(job.hash()).to_hex().to_string();
    Ok(Plan { job_name: job.name.clone(), job_hash, machine: machine.clone(), budget_bytes, stages })
}
