//! Where a stage's inputs come from: datasets, the memory of the ranks, constants of the job.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::RunError;
use super::link::Link;
use super::outputs::destination;
use super::resident::{self, Piece, Resident};
use crate::fabric::Payload;
use crate::job::{self, Job};
use crate::plan::{Plan, Role, StagePlan};
use crate::report::{Counts, Reason};
use crate::store::Reader;
use crate::tensor::{Boundary, Dtype, Region, clamp_edges, copy_box, copy_region, padded};

/// Where datasets are that are not where the job says: tensors that a stage of this run wrote lie in a staging file.
pub(super) type Places = BTreeMap<String, (PathBuf, String)>;

/// What an iterated stage reads once and keeps, by stage and operand.
#[derive(Default)]
pub(super) struct Kept(BTreeMap<(usize, usize), Vec<Piece>>);

/// Where a stage may find its inputs.
pub(super) struct Origins<'a> {
    pub places: &'a Places,
    pub resident: &'a Resident,
    pub kept: &'a mut Kept,
}

/// What the regions of a split input are read from.
enum Source<'a> {
    File(Reader),
    Inline {
        bytes: &'a [u8],
        whole: Region,
    },
    /// All that this rank needs of it.
    Memory(Vec<Piece>),
}

/// The inputs of a stage on one rank, by operand; outputs have neither.
pub(super) struct Inputs<'a> {
    /// What all tasks share, halo included.
    pub whole: Vec<Option<Payload>>,
    sources: Vec<Option<Source<'a>>>,
}

impl<'a> Inputs<'a> {
    /// Opens and gathers the inputs of stage `stage_index`. Counts what it reads and moves. Collective.
    pub fn gather(
        link: &mut Link,
        job: &'a Job,
        plan: &Plan,
        stage_index: usize,
        from: Origins<'_>,
        counts: &mut Counts,
    ) -> Result<Inputs<'a>, RunError> {
        let stage = &plan.stages[stage_index];
        let mut inputs = Inputs { whole: Vec::new(), sources: Vec::new() };
        for (index, operand) in stage.operands.iter().enumerate() {
            let constant = match job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
                Some(job::Source::Inline { shape, bytes, .. }) => Some((bytes.as_slice(), Region::whole(shape))),
                _ => None,
            };
            let (mut whole, mut source) = (None, None);
            if operand.role == Role::Input {
                let found =
                    if let Some(pieces) = from.resident.gather(link, plan, stage_index, index, &mut counts.moved)? {
                        Source::Memory(pieces)
                    } else if let Some((bytes, whole)) = constant {
                        Source::Inline { bytes, whole }
                    } else if let Some(pieces) = from.kept.0.get(&(stage_index, index)) {
                        Source::Memory(pieces.clone())
                    } else if stage.is_broadcast(index) {
                        Source::Memory(vec![read_and_send(link, job, stage, index, from.places, counts)?])
                    } else {
                        let (file, dataset) = place(job, &operand.tensor, from.places);
                        let file = Source::File(Reader::open(&file, &dataset)?);
                        if stage.is_shared(index) {
                            let mine = file.piece(stage.share(index, link.rank()), operand.dtype, counts)?;
                            Source::Memory(resident::share(link, plan, (stage_index, index), mine, &mut counts.moved)?)
                        } else if stage.is_held(index) || (stage.keeps && !operand.resident) {
                            let needs = stage.needs(index, link.rank()).into_iter();
                            let pieces = needs.map(|need| file.piece(need, operand.dtype, counts));
                            Source::Memory(pieces.collect::<Result<_, _>>()?)
                        } else {
                            file
                        }
                    };
                if let (Source::Memory(pieces), true, false) = (&found, stage.keeps, operand.resident) {
                    from.kept.0.insert((stage_index, index), pieces.clone());
                }
                if stage.is_broadcast(index) {
                    whole = Some(found.read(stage, index, &Region::whole(&operand.shape), counts)?.into());
                } else {
                    source = Some(found);
                }
            }
            inputs.whole.push(whole);
            inputs.sources.push(source);
        }
        Ok(inputs)
    }

    /// Whether other ranks cannot read input `operand` themselves.
    pub fn travels(&self, operand: usize) -> bool {
        matches!(self.sources[operand], Some(Source::Memory(_)))
    }

    /// The bytes of `region` of input `operand` with its halo, packed; none for outputs and what all tasks share.
    pub fn read(
        &self,
        stage: &StagePlan,
        operand: usize,
        region: &Region,
        counts: &mut Counts,
    ) -> Result<Vec<u8>, RunError> {
        match &self.sources[operand] {
            Some(source) => source.read(stage, operand, region, counts),
            None => Ok(Vec::new()),
        }
    }
}

impl Source<'_> {
    fn piece(&self, region: Region, dtype: Dtype, counts: &mut Counts) -> Result<Piece, RunError> {
        let mut bytes = Vec::new();
        if region.elements() > 0 {
            self.read_part(&region, dtype.size_bytes(), &mut bytes, counts)?;
        }
        Ok(Piece { region, bytes: bytes.into() })
    }

    fn read(
        &self,
        stage: &StagePlan,
        operand: usize,
        region: &Region,
        counts: &mut Counts,
    ) -> Result<Vec<u8>, RunError> {
        let input = &stage.operands[operand];
        let element_bytes = input.dtype.size_bytes();
        let mut bytes = Vec::new();
        if input.halo.iter().all(|width| *width == 0) {
            self.read_part(region, element_bytes, &mut bytes, counts)?;
            return Ok(bytes);
        }
        let outer = padded(region, &input.halo);
        bytes.resize(outer.elements() as usize * element_bytes, 0);
        let parts = stage.sources(operand, region);
        let mut part_bytes = Vec::new();
        for part in &parts {
            if let Source::Memory(pieces) = self {
                for piece in pieces {
                    piece.copy_into(&part.source, &mut bytes, &outer.extent, &part.at, element_bytes);
                }
                continue;
            }
            self.read_part(&part.source, element_bytes, &mut part_bytes, counts)?;
            let (extent, start) = (&part.source.extent, vec![0; part.at.len()]);
            copy_box(&part_bytes, extent, &start, &mut bytes, &outer.extent, &part.at, extent, element_bytes);
        }
        if let (Some(Boundary::Clamp), [part]) = (stage.boundary, parts.as_slice()) {
            clamp_edges(&mut bytes, &outer, part, element_bytes);
        }
        Ok(bytes)
    }

    /// Makes `into` the elements of `region`, which lies in the tensor.
    fn read_part(
        &self,
        region: &Region,
        element_bytes: usize,
        into: &mut Vec<u8>,
        counts: &mut Counts,
    ) -> Result<(), RunError> {
        match self {
            Source::File(reader) => {
                reader.read(region, into)?;
                counts.read_bytes += into.len() as u64;
            }
            Source::Inline { bytes, whole } => {
                into.resize(region.elements() as usize * element_bytes, 0);
                copy_region(bytes, whole, into, region, region, element_bytes);
            }
            Source::Memory(pieces) => {
                into.clear();
                into.resize(region.elements() as usize * element_bytes, 0);
                for piece in pieces {
                    piece.copy_to(region, into, element_bytes);
                }
            }
        }
        Ok(())
    }
}

/// The whole dataset of a broadcast input: rank 0 reads, the others receive. Collective.
fn read_and_send(
    link: &mut Link,
    job: &Job,
    stage: &StagePlan,
    operand: usize,
    places: &Places,
    counts: &mut Counts,
) -> Result<Piece, RunError> {
    let input = &stage.operands[operand];
    let region = Region::whole(&input.shape);
    let mut bytes = None;
    if link.rank() == 0 {
        let (file, dataset) = place(job, &input.tensor, places);
        let mut read = Vec::new();
        Reader::open(&file, &dataset)?.read(&region, &mut read)?;
        counts.read_bytes += read.len() as u64;
        bytes = Some(Payload::from(read));
    }
    let bytes = link.broadcast(bytes)?;
    if link.rank() != 0 {
        counts.moved.count(Reason::Input, link.distance(link.broadcast_source(0)), bytes.len() as u64);
    }
    Ok(Piece { region, bytes: bytes.into_vec().into() })
}

fn place(job: &Job, tensor: &str, places: &Places) -> (PathBuf, String) {
    match (places.get(tensor), job.tensors.get(tensor).map(|decl| &decl.source)) {
        (Some(place), _) => place.clone(),
        (None, Some(job::Source::File { file, dataset })) => (file.clone(), dataset.clone()),
        _ => destination(job, tensor),
    }
}
