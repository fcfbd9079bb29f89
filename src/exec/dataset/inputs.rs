//! The inputs of a stage: from datasets, from the memory of the ranks, and constants of the job.

use std::collections::BTreeMap;

use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::TaggedMessage;
use crate::exec::comm::trailer::Trailer;
use crate::exec::dataset_paths::{DatasetPaths, place};
use crate::exec::error::RunError;
use crate::exec::transfer::broadcast::{BroadcastInput, NodeBroadcast};
use crate::exec::transfer::exchange;
use crate::exec::transfer::pending_receives::{Arrived, PendingReceives};
use crate::exec::transfer::piece::{BlockInput, Piece, fill};
use crate::exec::transfer::resident::Resident;
use crate::fabric::{Payload, Rank};
use crate::job::{self, Job};
use crate::plan::{OperandPlan, Plan, Role, StagePlan, Tile};
use crate::report::{Counts, Reason};
use crate::store::Reader;
use crate::tensor::{Boundary, Region, clamp_edges, copy_box, copy_region, padded};

/// Most bytes of a read, between which a rank checks for interrupts.
const PART_BYTES: u64 = 64 << 20;

/// Inputs that an iterated stage reads once and keeps, by stage and operand.
#[derive(Default)]
pub(in crate::exec) struct InputCache {
    pieces: BTreeMap<(usize, usize), Vec<Piece>>,
    whole: BTreeMap<(usize, usize), BroadcastInput>,
}

/// A run of a stage: the index of the stage, and the number of the run.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct StageRunId {
    pub stage: usize,
    pub run: u64,
}

/// The places where a stage may find its inputs.
pub(in crate::exec) struct InputSources<'a> {
    pub places: &'a DatasetPaths,
    pub resident: &'a Resident,
    pub cache: &'a mut InputCache,
}

/// The source of the regions of a split input.
enum Source<'a> {
    External(ExternalSource<'a>),
    /// The pieces of the input that this rank needs and has.
    Memory(Vec<Piece>),
}

/// A source outside the resident tensors.
enum ExternalSource<'a> {
    File(Reader),
    Inline { bytes: &'a [u8], whole: Region },
}

/// The inputs of a stage on one rank, by operand.
pub(in crate::exec) struct Inputs<'a> {
    /// Inputs that all tasks share.
    pub whole: Vec<Option<BroadcastInput>>,
    sources: Vec<Option<Source<'a>>>,
    /// Parts of inputs that other ranks send.
    arrivals: PendingReceives,
}

impl<'a> Inputs<'a> {
    /// Makes the inputs of a stage that does not run.
    pub fn none(stage: &StagePlan, id: StageRunId) -> Inputs<'a> {
        let (whole, sources) = stage.operands.iter().map(|_| (None, None)).unzip();
        Inputs { whole, sources, arrivals: PendingReceives::new(id.stage, id.run) }
    }

    /// Opens and gathers the inputs of run `run` of stage `stage_index`: waits for those that all tasks share, sends
    /// others what they need of the rest, and notes what of it is to come. Counts what it reads and moves. Collective.
    pub fn gather(
        comm: &mut Communicator,
        job: &'a Job,
        plan: &Plan,
        id: StageRunId,
        mut from: InputSources<'_>,
        counts: &mut Counts,
    ) -> Result<Inputs<'a>, RunError> {
        let stage = &plan.stages[id.stage];
        let arrivals = PendingReceives::new(id.stage, id.run);
        let mut inputs = Inputs { whole: Vec::new(), sources: Vec::new(), arrivals };
        for (index, operand) in stage.operands.iter().enumerate() {
            let (mut whole, mut source) = (None, None);
            if operand.role == Role::Input {
                let constant = match job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
                    Some(job::Source::Inline { shape, bytes, .. }) => {
                        Some(Source::External(ExternalSource::Inline { bytes, whole: Region::whole(shape) }))
                    }
                    _ => None,
                };
                let which = InputRef { job, plan, stage: id.stage, operand: index };
                let arrivals = &mut inputs.arrivals;
                if stage.is_broadcast(index) {
                    whole = Some(which.whole(comm, constant, &mut from, arrivals, counts)?);
                } else {
                    source = Some(which.split(comm, constant, &mut from, arrivals, counts)?);
                }
            }
            inputs.whole.push(whole);
            inputs.sources.push(source);
        }
        inputs.settle();
        // For what has come by now, nothing need be put off.
        let tag = inputs.arrivals.tag();
        while !inputs.all_here()
            && let Some(message) = comm.poll(|other| other == tag)?
        {
            inputs.take(comm, message, counts)?;
        }
        Ok(inputs)
    }

    /// Takes such a message, and says which transfer has come with it, if one has.
    pub fn take(
        &mut self,
        comm: &Communicator,
        message: TaggedMessage,
        counts: &mut Counts,
    ) -> Result<Option<Arrived>, RunError> {
        let arrived = self.arrivals.take(comm, message, &mut counts.moved)?;
        self.settle();
        Ok(arrived)
    }

    /// Waits for all pending receives.
    pub fn wait(&mut self, comm: &mut Communicator, counts: &mut Counts) -> Result<(), RunError> {
        for operand in 0..self.sources.len() {
            let pieces = self.arrivals.wait(comm, operand, &mut counts.moved)?;
            pieces.into_iter().for_each(|piece| self.put(operand, piece));
        }
        Ok(())
    }

    /// Adds the pieces that have arrived to their inputs.
    fn settle(&mut self) {
        self.arrivals.take_arrived().into_iter().for_each(|(operand, piece)| self.put(operand, piece));
    }

    fn put(&mut self, operand: usize, piece: Piece) {
        match &mut self.sources[operand] {
            Some(Source::Memory(pieces)) => pieces.push(piece),
            source => unreachable!("operand {operand} is not in memory: {}", source.is_some()),
        }
    }

    /// Whether nothing is on its way to this rank.
    pub fn all_here(&self) -> bool {
        self.arrivals.all_here()
    }

    /// Returns the pending transfers that have a part of the inputs of `cover`.
    pub fn missing(&self, stage: &StagePlan, cover: &Tile) -> Vec<usize> {
        if self.all_here() {
            return Vec::new();
        }
        let inputs = (0..stage.operands.len()).filter(|index| stage.operands[*index].role == Role::Input);
        let of = |index| self.arrivals.missing(index, &stage.sources(index, &stage.region(index, cover)));
        inputs.flat_map(of).collect()
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

    /// Returns a block's part of input `operand`: `region` with its halo.
    pub fn of_block(
        &self,
        stage: &StagePlan,
        operand: usize,
        region: &Region,
        counts: &mut Counts,
    ) -> Result<BlockInput, RunError> {
        let Some(Source::Memory(pieces)) = &self.sources[operand] else {
            return self.read(stage, operand, region, counts).map(BlockInput::Packed);
        };
        let parts = stage.sources(operand, region);
        let is_needed = |piece: &&Piece| parts.iter().any(|part| part.source.intersect(&piece.region).is_some());
        Ok(BlockInput::Here(pieces.iter().filter(is_needed).cloned().collect()))
    }
}

/// One input of a stage.
#[derive(Clone, Copy)]
struct InputRef<'a, 'b> {
    job: &'a Job,
    plan: &'b Plan,
    stage: usize,
    operand: usize,
}

impl<'a> InputRef<'a, '_> {
    fn stage(&self) -> &StagePlan {
        &self.plan.stages[self.stage]
    }

    fn operand(&self) -> &OperandPlan {
        &self.stage().operands[self.operand]
    }

    /// Whether it is the same in all iterations, and there is room to keep it.
    fn keeps(&self) -> bool {
        self.stage().keeps && !self.operand().resident
    }

    /// All of the input, for every task. Collective.
    fn whole(
        self,
        comm: &mut Communicator,
        constant: Option<Source<'a>>,
        from: &mut InputSources<'_>,
        arrivals: &mut PendingReceives,
        counts: &mut Counts,
    ) -> Result<BroadcastInput, RunError> {
        let key = (self.stage, self.operand);
        if let Some(kept) = from.cache.whole.get(&key) {
            return Ok(kept.clone());
        }
        let on_node = self.stage().is_on_node(self.operand);
        let owner = from.resident.only_owner(comm, self.plan, self.stage, self.operand).unwrap_or(0);
        let moved = &mut counts.moved;
        let found = if let Some(mut pieces) = from.resident.gather(comm, self.plan, key, arrivals, moved)? {
            pieces.extend(arrivals.wait(comm, self.operand, moved)?);
            Source::Memory(pieces)
        } else if let Some(constant) = constant {
            constant
        } else {
            let members = if on_node { comm.one_per_node(0) } else { comm.all_from(0) };
            Source::Memory(read_and_send(comm, self, &members, from.places, counts)?.into_iter().collect())
        };
        let region = Region::whole(&self.operand().shape);
        let whole = if on_node {
            let ranks = comm.ranks_on_node();
            let holder = if ranks.contains(&owner) { owner } else { ranks[0] };
            let bytes = match comm.rank() == holder {
                true => Some(found.read(self.stage(), self.operand, &region, counts)?),
                false => None,
            };
            let reason = if self.operand().resident { Reason::Operand } else { Reason::Input };
            let trailer = Trailer::operand(self.stage, self.operand);
            NodeBroadcast { ranks: &ranks, holder, trailer, reason }.run(comm, bytes, &mut counts.moved)?
        } else {
            BroadcastInput::Copied(found.read(self.stage(), self.operand, &region, counts)?.into())
        };
        if self.keeps() {
            from.cache.whole.insert(key, whole.clone());
        }
        Ok(whole)
    }

    /// Where the regions of an input come from of which every task needs its own; other ranks' parts of it may be on
    /// their way. Collective.
    fn split(
        self,
        comm: &mut Communicator,
        constant: Option<Source<'a>>,
        from: &mut InputSources<'_>,
        arrivals: &mut PendingReceives,
        counts: &mut Counts,
    ) -> Result<Source<'a>, RunError> {
        let key = (self.stage, self.operand);
        let moved = &mut counts.moved;
        if let Some(pieces) = from.resident.gather(comm, self.plan, key, arrivals, moved)? {
            return Ok(Source::Memory(pieces));
        }
        if let Some(constant) = constant {
            return Ok(constant);
        }
        if let Some(pieces) = from.cache.pieces.get(&key) {
            return Ok(Source::Memory(pieces.clone()));
        }
        let (file, dataset) = place(self.job, &self.operand().tensor, from.places);
        let reader = Reader::open(&file, &dataset)?;
        let pieces = if self.stage().is_shared(self.operand) {
            let mine = read_piece(comm, &reader, self.stage().share(self.operand, comm.rank()), counts)?;
            exchange::share(comm, self.stage(), self.operand, mine, arrivals, &mut counts.moved)?
        } else if self.stage().is_held(self.operand) || self.keeps() {
            let needs = self.stage().needs(self.operand, comm.rank()).into_iter();
            needs.map(|need| read_piece(comm, &reader, need, counts)).collect::<Result<_, _>>()?
        } else {
            return Ok(Source::External(ExternalSource::File(reader)));
        };
        if self.keeps() {
            from.cache.pieces.insert(key, pieces.clone());
        }
        Ok(Source::Memory(pieces))
    }
}

impl Source<'_> {
    fn read(
        &self,
        stage: &StagePlan,
        operand: usize,
        region: &Region,
        counts: &mut Counts,
    ) -> Result<Vec<u8>, RunError> {
        let input = &stage.operands[operand];
        let (element_bytes, outer) = (input.dtype.size_bytes(), padded(region, &input.halo));
        let mut bytes = Vec::new();
        let outside = match self {
            Source::Memory(pieces) => {
                bytes.resize(outer.elements() as usize * element_bytes, 0);
                fill(&mut bytes, pieces, stage, operand, region);
                return Ok(bytes);
            }
            Source::External(outside) => outside,
        };
        if input.halo.iter().all(|width| *width == 0) {
            outside.read(region, element_bytes, &mut bytes, counts)?;
            return Ok(bytes);
        }
        bytes.resize(outer.elements() as usize * element_bytes, 0);
        let parts = stage.sources(operand, region);
        let mut part_bytes = Vec::new();
        for part in &parts {
            outside.read(&part.source, element_bytes, &mut part_bytes, counts)?;
            let (extent, start) = (&part.source.extent, vec![0; part.at.len()]);
            copy_box(&part_bytes, extent, &start, &mut bytes, &outer.extent, &part.at, extent, element_bytes);
        }
        if let (Some(Boundary::Clamp), [part]) = (stage.boundary, parts.as_slice()) {
            clamp_edges(&mut bytes, &outer, part, element_bytes);
        }
        Ok(bytes)
    }
}

impl ExternalSource<'_> {
    /// Makes `into` the elements of `region`, which lies in the tensor.
    fn read(
        &self,
        region: &Region,
        element_bytes: usize,
        into: &mut Vec<u8>,
        counts: &mut Counts,
    ) -> Result<(), RunError> {
        match self {
            ExternalSource::File(reader) => {
                reader.read(region, into)?;
                counts.read_bytes += into.len() as u64;
            }
            ExternalSource::Inline { bytes, whole } => {
                into.resize(region.elements() as usize * element_bytes, 0);
                copy_region(bytes, whole, into, region, region, element_bytes);
            }
        }
        Ok(())
    }
}

/// A region of a dataset, for this rank to keep: it may be long to read, so that looks for whatever ends the run come
/// between.
fn read_piece(
    comm: &mut Communicator,
    reader: &Reader,
    region: Region,
    counts: &mut Counts,
) -> Result<Piece, RunError> {
    let mut bytes = Vec::new();
    if region.elements() > 0 {
        reader.read_in_parts(&region, &mut bytes, PART_BYTES, || comm.check_interrupts())?;
    }
    counts.read_bytes += bytes.len() as u64;
    Ok(Piece { region, bytes: bytes.into() })
}

/// The whole dataset of a broadcast input: rank 0 reads, the other members receive, and nobody else does. Collective.
fn read_and_send(
    comm: &mut Communicator,
    input: InputRef<'_, '_>,
    members: &[Rank],
    places: &DatasetPaths,
    counts: &mut Counts,
) -> Result<Option<Piece>, RunError> {
    if !members.contains(&comm.rank()) {
        return Ok(None);
    }
    let region = Region::whole(&input.operand().shape);
    let mut bytes = None;
    if comm.rank() == 0 {
        let (file, dataset) = place(input.job, &input.operand().tensor, places);
        let mut read = Vec::new();
        Reader::open(&file, &dataset)?.read_in_parts(&region, &mut read, PART_BYTES, || comm.check_interrupts())?;
        counts.read_bytes += read.len() as u64;
        bytes = Some(Payload::from(read));
    }
    let (bytes, source) = comm.broadcast_among(members, bytes, Some(Reason::Input))?;
    comm.received(&mut counts.moved, Reason::Input, source, bytes.len() as u64);
    Ok(Some(Piece { region, bytes: bytes.into_vec().into() }))
}
