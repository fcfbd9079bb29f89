//! A single call of a stage, for `exuvia kernel call`.

use std::sync::Arc;

use crate::check::context::{CheckContext, CheckOptions};
use crate::check::error::CheckError;
use crate::check::report::Finding;
use crate::check::tensors::Tensors;
use crate::check::watch::watched;
use crate::job::Job;
use crate::plan::Role;
use crate::tensor::{Dtype, Region, Shape};

/// A complete output of a job.
#[derive(Clone, Debug)]
pub struct Computed {
    pub tensor: String,
    pub dtype: Dtype,
    pub shape: Shape,
    /// Packed, row-major, in native byte order.
    pub bytes: Vec<u8>,
}

/// Computes all outputs of the last stage of a job in this process, and the needed parts of other stages. Returns a
/// finding if a kernel does not return; its thread keeps running.
pub fn compute(job: Job, options: CheckOptions) -> Result<Result<Vec<Computed>, Box<Finding>>, CheckError> {
    let computed = watched(job.name.clone(), move |watch| {
        let bench = CheckContext::new(job, options, Arc::clone(watch))?;
        let mut tensors = Tensors::new(&bench);
        let mut computed = Vec::new();
        for operand in bench.plan.stages.last().iter().flat_map(|stage| &stage.operands) {
            if operand.role == Role::Output {
                let (tensor, dtype, shape) = (operand.tensor.clone(), operand.dtype, operand.shape.clone());
                let bytes = tensors.region(&tensor, &Region::whole(&shape))?;
                computed.push(Computed { tensor, dtype, shape, bytes });
            }
        }
        Ok(computed)
    })?;
    Ok(computed.map_err(|report| match report.findings.into_iter().next() {
        Some(finding) => Box::new(finding),
        None => unreachable!("the report contains the overdue call"),
    }))
}
