//! Binds notation and layouts to operands: the extent of every index, the split indices, the broadcast operands.

use crate::job::{Cut, Index, Job, Operand, Source, Stage, Why};
use crate::plan::error::PlanError;
use crate::plan::model::{Distribution, IndexPlan, Layout, OperandPlan, Origin, Role};
use crate::tensor::Shape;
use std::collections::BTreeMap;

/// The largest result that is reduced along several indices.
const SMALL_RESULT_BYTES: u64 = 4 << 10;
/// The largest number of indices along which a result is reduced.
pub(super) const REDUCED_AXES: usize = 3;

/// A stage whose indices have extents and whose operands have shapes.
#[derive(Debug)]
pub(super) struct Bound {
    pub indices: Vec<IndexPlan>,
    pub operands: Vec<OperandPlan>,
    pub split: Vec<usize>,
    /// The number of reduced indices, which are the last ones of `split`.
    pub reduced: usize,
    pub notes: Vec<String>,
}

/// Binds the operands of `stage`. Takes the layouts of its inputs from `known` and adds those of its outputs.
pub(super) fn bind(job: &Job, stage: &Stage, known: &mut BTreeMap<String, Layout>) -> Result<Bound, PlanError> {
    let mut extents = Extents { job, stage, indices: Vec::new() };
    let mut operands = Vec::new();
    let mut notes = Vec::new();
    for input in &stage.compute.inputs {
        let layout = layout(job, input, known)?;
        let dims = extents.bind_input(input, &layout.shape)?;
        operands.push(operand(job, input, Role::Input, dims, layout, None));
    }
    for (name, extent) in &stage.sizes {
        extents.bind_size(stage, name, *extent)?;
    }
    for output in &stage.compute.outputs {
        let dims = extents.look_up(output)?;
        // An extent that overflows is also too large for a shape.
        let along = |(dim, index): (&usize, &Index)| extents.indices[*dim].plan.extent.saturating_mul(index.scale);
        let shape = Shape::new(dims.iter().zip(&output.indices).map(along).collect::<Vec<_>>());
        let shape = shape.map_err(|source| PlanError::OutputShape {
            at: job.excerpt(output.span.clone(), None),
            operand: output.to_string(),
            source,
        })?;
        let (layout, deflate) = created(job, output, shape, &mut notes)?;
        known.insert(output.tensor.clone(), layout.clone());
        operands.push(operand(job, output, Role::Output, dims, layout, deflate));
    }
    let mut indices: Vec<IndexPlan> = extents.indices.into_iter().map(|bound| bound.plan).collect();
    notes.extend(super::notes::undecided(&indices));
    let mut split = split(&operands, &indices);
    let reduced = reduced(&mut indices, &operands);
    split.extend(&reduced);
    for operand in &mut operands {
        // Without any split index everything is one block on rank 0, and the idle ranks need no data.
        let whole = !operand.dims.iter().any(|dim| split.contains(dim));
        if operand.role == Role::Input && whole && !split.is_empty() {
            operand.distribution = Distribution::Broadcast;
        }
    }
    Ok(Bound { indices, operands, split, reduced: reduced.len(), notes })
}

fn operand(
    job: &Job,
    operand: &Operand,
    role: Role,
    dims: Vec<usize>,
    layout: Layout,
    deflate: Option<u8>,
) -> OperandPlan {
    OperandPlan {
        tensor: operand.tensor.clone(),
        role,
        origin: match job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
            Some(Source::Inline { .. }) => Origin::Inline,
            Some(Source::Create { .. }) => Origin::Created,
            Some(Source::Scratch { .. }) => Origin::Scratch,
            _ => Origin::File,
        },
        dtype: layout.dtype,
        shape: layout.shape,
        dims,
        distribution: Distribution::Split,
        scale: operand.indices.iter().map(|index| index.scale).collect(),
        halo: operand.indices.iter().map(|index| index.halo).collect(),
        resident: false,
        chunk: layout.chunk,
        deflate,
    }
}

/// Returns the split indices, in the order of the first output.
fn split(operands: &[OperandPlan], indices: &[IndexPlan]) -> Vec<usize> {
    let first = operands.iter().find(|operand| operand.role == Role::Output);
    let dims = first.iter().flat_map(|output| output.dims.iter().copied());
    dims.filter(|index| indices[*index].cut == Cut::Split).collect()
}

/// Returns the indices to reduce in parts, out of those that may be reduced. A small result has several, so that each
/// rank can reduce the box that it has. Otherwise it is the longest index, since every group along all indices but the
/// last costs a partial result. The order is innermost first, so that the last index, which is cut finest, has the
/// longest contiguous runs. The other indices become whole.
fn reduced(indices: &mut [IndexPlan], operands: &[OperandPlan]) -> Vec<usize> {
    let may_be = |index: &usize| indices[*index].cut == Cut::Reduced;
    let (mut found, short): (Vec<usize>, Vec<usize>) =
        (0..indices.len()).rev().filter(may_be).partition(|index| indices[*index].extent > 1);
    let out_bytes: u64 = operands.iter().filter(|o| o.role == Role::Output).map(OperandPlan::bytes).sum();
    let most = if out_bytes <= SMALL_RESULT_BYTES { REDUCED_AXES } else { 1 };
    short.into_iter().for_each(|index| indices[index].keep(Why::OneElement));
    while found.len() > most {
        let shortest = (0..found.len()).min_by_key(|at| indices[found[*at]].extent);
        shortest.map(|at| found.remove(at)).into_iter().for_each(|index| indices[index].keep(Why::OthersAreCut));
    }
    found
}

impl IndexPlan {
    /// Makes the index whole.
    fn keep(&mut self, why: Why) {
        (self.cut, self.why) = (Cut::Whole, why);
    }
}

/// Returns the layout of an input: a constant's own layout, or the one given by the caller or an earlier stage.
fn layout(job: &Job, input: &Operand, known: &BTreeMap<String, Layout>) -> Result<Layout, PlanError> {
    if let Some(Source::Inline { dtype, shape, .. }) = job.tensors.get(&input.tensor).map(|decl| &decl.source) {
        return Ok(Layout { dtype: *dtype, shape: shape.clone(), chunk: None });
    }
    known.get(&input.tensor).cloned().ok_or_else(|| PlanError::UnknownLayout {
        at: job.excerpt(input.span.clone(), None),
        tensor: input.tensor.clone(),
    })
}

/// Returns the layout of an output of this `shape`, and its compression level.
fn created(
    job: &Job,
    output: &Operand,
    shape: Shape,
    notes: &mut Vec<String>,
) -> Result<(Layout, Option<u8>), PlanError> {
    let (dtype, chunk, deflate) = match job.tensors.get(&output.tensor).map(|decl| &decl.source) {
        Some(Source::Create { dtype, chunk, deflate, .. }) => (*dtype, chunk.clone(), *deflate),
        Some(Source::Scratch { dtype }) => (*dtype, None, None),
        _ => {
            let at = job.excerpt(output.span.clone(), None);
            return Err(PlanError::UnknownLayout { at, tensor: output.tensor.clone() });
        }
    };
    let Some(mut chunk) = chunk else {
        return Ok((Layout { dtype, shape, chunk: None }, None));
    };
    if chunk.len() != shape.rank() {
        return Err(PlanError::ChunkRank {
            at: job.excerpt(output.span.clone(), None),
            operand: output.to_string(),
            indices: shape.rank(),
            tensor: output.tensor.clone(),
            chunk,
        });
    }
    if shape.elements() == 0 {
        // HDF5 accepts no chunk larger than a dimension, and none of extent 0. An empty dataset therefore has no
        // chunks.
        return Ok((Layout { dtype, shape, chunk: None }, None));
    }
    let asked = chunk.clone();
    for (chunk, extent) in chunk.iter_mut().zip(shape.iter()) {
        *chunk = (*chunk).min(*extent);
    }
    if chunk != asked {
        notes.push(format!("chunk {asked:?} of {} is clipped to {chunk:?}, its shape is {shape}", output.tensor));
    }
    Ok((Layout { dtype, shape, chunk: Some(chunk) }, deflate))
}

/// The extents of indices, each with its first source.
struct Extents<'a> {
    job: &'a Job,
    stage: &'a Stage,
    indices: Vec<BoundIndex>,
}

struct BoundIndex {
    plan: IndexPlan,
    given_by: String,
}

impl Extents<'_> {
    fn position(&self, name: &str) -> Option<usize> {
        self.indices.iter().position(|bound| bound.plan.name == name)
    }

    fn push(&mut self, name: &str, extent: u64, given_by: String) -> usize {
        let (cut, why) = self.stage.cut(name);
        let plan = IndexPlan { name: name.to_owned(), extent, cut, why };
        self.indices.push(BoundIndex { plan, given_by });
        self.indices.len() - 1
    }

    fn bind_input(&mut self, input: &Operand, shape: &Shape) -> Result<Vec<usize>, PlanError> {
        if input.indices.len() != shape.rank() {
            return Err(PlanError::RankMismatch {
                at: self.job.excerpt(input.span.clone(), None),
                operand: input.to_string(),
                indices: input.indices.len(),
                tensor: input.tensor.clone(),
                shape: shape.clone(),
            });
        }
        let mut dims = Vec::with_capacity(shape.rank());
        for (dim, (index, extent)) in input.indices.iter().zip(shape.iter()).enumerate() {
            let here = format!("{input} (dimension {dim} of {shape})");
            if index.halo > *extent {
                let help = format!("at most {}", Index { halo: *extent, ..index.clone() });
                return Err(PlanError::WideHalo {
                    at: self.job.excerpt(index.span.clone(), Some(help)),
                    operand: input.to_string(),
                    dim,
                    halo: index.halo,
                    extent: *extent,
                });
            }
            if !extent.is_multiple_of(index.scale) {
                let less = extent - extent % index.scale;
                let help = format!("{less} or {} would do", less.saturating_add(index.scale));
                return Err(PlanError::UnevenExtent {
                    at: self.job.excerpt(index.span.clone(), Some(help)),
                    index: index.to_string(),
                    scale: index.scale,
                    extent: *extent,
                    here,
                });
            }
            // This is the extent of the index, not of the dimension.
            let extent = extent / index.scale;
            match self.position(&index.name) {
                None => dims.push(self.push(&index.name, extent, here)),
                Some(position) => {
                    let bound = &self.indices[position];
                    if bound.plan.extent != extent {
                        return Err(PlanError::ExtentMismatch {
                            at: self.job.excerpt(index.span.clone(), None),
                            index: index.name.clone(),
                            extent,
                            here,
                            other_extent: bound.plan.extent,
                            there: bound.given_by.clone(),
                        });
                    }
                    dims.push(position);
                }
            }
        }
        Ok(dims)
    }

    fn bind_size(&mut self, stage: &Stage, name: &str, extent: u64) -> Result<(), PlanError> {
        let Some(position) = self.position(name) else {
            self.push(name, extent, "'sizes'".to_owned());
            return Ok(());
        };
        let bound = &self.indices[position];
        if bound.plan.extent == extent {
            return Ok(());
        }
        let indices = stage.compute.inputs.iter().flat_map(|input| &input.indices);
        let span = indices.filter(|index| index.name == name).map(|index| index.span.clone()).next();
        let help = format!("remove '{name}' from 'sizes': the data give it");
        Err(PlanError::ExtentMismatch {
            at: self.job.excerpt(span.unwrap_or_default(), Some(help)),
            index: name.to_owned(),
            extent,
            here: "'sizes'".to_owned(),
            other_extent: bound.plan.extent,
            there: bound.given_by.clone(),
        })
    }

    fn look_up(&self, output: &Operand) -> Result<Vec<usize>, PlanError> {
        let position = |index: &Index| {
            self.position(&index.name).ok_or_else(|| PlanError::UnboundIndex {
                at: self.job.excerpt(index.span.clone(), Some(format!("sizes = {{ {} = ... }}", index.name))),
                index: index.name.clone(),
                operand: output.to_string(),
            })
        };
        output.indices.iter().map(position).collect()
    }
}
