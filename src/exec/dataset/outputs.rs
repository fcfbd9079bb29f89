//! Where a stage's outputs go: into the memory of the rank, and into datasets. Every rank writes its bytes into the
//! staging file itself, but compressed chunks, whose places depend on one another, go through rank 0.

use std::collections::btree_map::Entry;

use crate::encode::encode;
use crate::exec::comm::communicator::Communicator;
use crate::exec::comm::tag::{StageMessage, Tag, TaggedMessage};
use crate::exec::comm::trailer::Trailer;
use crate::exec::dataset_paths::DatasetPaths;
use crate::exec::dataset_paths::destination;
use crate::exec::error::RunError;
use crate::exec::recovery::record::{CompletionRecord, StoredAt};
use crate::exec::recovery::staging::Stagings;
use crate::exec::transfer::piece::Piece;
use crate::exec::transfer::resident::{Holding, Resident};
use crate::fabric::Payload;
use crate::job::{Job, Source};
use crate::plan::{OperandPlan, Origin, Plan, Role, StagePlan};
use crate::report::{Counts, Moved, OutputReport, Reason};
use crate::store::{OutputLayout, OutputSpec, Staging, Storage, Writer, compress_chunks, expand_chunks};
use crate::tensor::{Region, copy_region};

/// Number and stored bytes of a chunk.
type StoredChunk = (u64, Vec<u8>);

/// The outputs of a stage, as this rank writes them, in the order of the stage's operands.
pub(in crate::exec) struct Outputs {
    outputs: Vec<Output>,
    /// Messages with compressed chunks, from this rank to rank 0.
    sent: u64,
    /// The same on rank 0, from all others, and how many they said they had sent.
    received: u64,
    expected: u64,
    run: u64,
}

struct Output {
    tensor: String,
    operand: usize,
    element_bytes: usize,
    dataset: Option<Dataset>,
    /// This rank's part, if it stays in memory.
    resident: Option<Vec<(Region, Vec<u8>)>>,
}

impl Output {
    /// Copies what of these bytes stays in the memory of this rank.
    fn keep(&mut self, region: &Region, bytes: &[u8]) {
        for (own, target) in self.resident.iter_mut().flatten() {
            if let Some(common) = own.intersect(region) {
                copy_region(bytes, region, target, own, &common, self.element_bytes);
            }
        }
    }
}

struct Dataset {
    layout: OutputLayout,
    /// None for compressed datasets.
    writer: Option<Writer>,
}

impl Outputs {
    /// Makes room for the outputs of a stage. Rank 0 creates their datasets, those of `datasets`, and everyone learns
    /// where they lie. Collective.
    pub fn create(
        comm: &mut Communicator,
        job: &Job,
        plan: &StagePlan,
        datasets: bool,
        run: u64,
        places: &mut DatasetPaths,
        stagings: &mut Stagings,
    ) -> Result<Outputs, RunError> {
        let stored = |operand: &OperandPlan| datasets && !(operand.resident && operand.origin == Origin::Scratch);
        let mut layouts: Vec<OutputLayout> = Vec::new();
        if plan.operands.iter().any(|operand| operand.role == Role::Output && stored(operand)) {
            let mut encoded = None;
            if comm.rank() == 0 {
                let outputs = plan.operands.iter().filter(|operand| operand.role == Role::Output && stored(operand));
                let created = outputs.map(|operand| create_dataset(job, operand, stagings));
                let created = created.collect::<Result<Vec<_>, _>>()?;
                encoded = Some(Payload::from(encode(&created)?));
            }
            layouts = serde_json::from_slice(&comm.broadcast(encoded)?)
                .map_err(|_| RunError::Protocol { rank: 0, what: "the places of the outputs" })?;
        }
        let mut layouts = layouts.into_iter();
        let mut outputs = Vec::new();
        for (index, operand) in plan.operands.iter().enumerate().filter(|(_, operand)| operand.role == Role::Output) {
            let mut dataset = None;
            if stored(operand)
                && let Some(layout) = layouts.next()
            {
                places.insert(operand.tensor.clone(), (layout.temporary.clone(), layout.dataset.clone()));
                stagings.manifest.writes_to(&layout.temporary);
                let compressed = matches!(layout.storage, Storage::Compressed { .. });
                let writer = if compressed { None } else { Some(Writer::open(&layout)?) };
                dataset = Some(Dataset { layout, writer });
            }
            let element_bytes = operand.dtype.size_bytes();
            let room = |region: Region| {
                let bytes = vec![0; region.elements() as usize * element_bytes];
                (region, bytes)
            };
            let resident = operand.resident.then(|| plan.owned(index, comm.rank()).into_iter().map(room).collect());
            outputs.push(Output { tensor: operand.tensor.clone(), operand: index, element_bytes, dataset, resident });
        }
        Ok(Outputs { outputs, sent: 0, received: 0, expected: 0, run })
    }

    /// Takes a region of the output of this number. Returns how many bytes that took in a file, and where a later run
    /// finds them, if it can.
    pub fn write(
        &mut self,
        comm: &mut Communicator,
        number: usize,
        region: &Region,
        bytes: &[u8],
        stagings: &mut Stagings,
    ) -> Result<(u64, Option<StoredAt>), RunError> {
        let output = &mut self.outputs[number];
        output.keep(region, bytes);
        let Some(dataset) = &mut output.dataset else { return Ok((0, None)) };
        if let Some(writer) = &mut dataset.writer {
            let written = writer.write(region, bytes)?;
            return Ok((written, Some(StoredAt::InPlace(crc32fast::hash(bytes)))));
        }
        let chunks = compress_chunks(&dataset.layout, region, bytes)?;
        let encoded = encode_chunks(number, &chunks);
        let stored = stagings.manifest.store(&encoded);
        self.give_chunks(comm, number, &chunks, encoded, stagings)?;
        Ok((chunks.iter().map(|(_, stored)| stored.len() as u64).sum(), stored))
    }

    /// Brings compressed chunks, also in their `encoded` form, to rank 0.
    fn give_chunks(
        &mut self,
        comm: &mut Communicator,
        number: usize,
        chunks: &[StoredChunk],
        mut encoded: Vec<u8>,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        if comm.rank() == 0 {
            return self.write_chunks(number, chunks, stagings);
        }
        let (begun, bytes) = (comm.tracer.begin(), encoded.len() as u64);
        Trailer::run(self.run).put(&mut encoded);
        comm.send(0, Tag::stage(StageMessage::Chunks, self.run), encoded.into())?;
        comm.sent(begun, 0, Reason::Output, bytes);
        self.sent += 1;
        Ok(())
    }

    /// Takes up what earlier runs have finished of the stage: their share of it goes into datasets that are not theirs,
    /// and into the memory of this rank what it has of it.
    pub fn recover(
        &mut self,
        comm: &mut Communicator,
        plan: &StagePlan,
        stagings: &mut Stagings,
    ) -> Result<(), RunError> {
        for (at, finished) in stagings.manifest.earlier(&plan.name).to_vec().into_iter().enumerate() {
            comm.check_interrupts()?;
            let is_mine = at as u64 % u64::from(comm.size()) == u64::from(comm.rank());
            for (number, stored) in finished.outputs.iter().enumerate() {
                let output = &self.outputs[number];
                let region = plan.region(output.operand, &finished.tile);
                let Some(dataset) = &output.dataset else { continue };
                let is_near = output.resident.iter().flatten().any(|(own, _)| own.intersect(&region).is_some());
                let missing = || RunError::Lost { tensor: output.tensor.clone() };
                match stored {
                    StoredAt::InPlace(_) => {
                        let layout = stagings.manifest.earlier_layout(&output.tensor).ok_or_else(missing)?;
                        let is_elsewhere = *layout != dataset.layout;
                        if is_near || (is_mine && is_elsewhere) {
                            let bytes = Writer::open(layout)?.read(&region)?;
                            let output = &mut self.outputs[number];
                            output.keep(&region, &bytes);
                            let writer = output.dataset.as_mut().and_then(|dataset| dataset.writer.as_mut());
                            if let Some(writer) = writer.filter(|_| is_mine && is_elsewhere) {
                                writer.write(&region, &bytes)?;
                            }
                        }
                    }
                    StoredAt::Beside(payload) if is_near || is_mine => {
                        let encoded = stagings.manifest.payload(payload).ok_or_else(missing)?;
                        let (_, chunks) = decode_chunks(&encoded).ok_or_else(missing)?;
                        for (region, bytes) in expand_chunks(&dataset.layout, &chunks)? {
                            self.outputs[number].keep(&region, &bytes);
                        }
                        if is_mine {
                            self.give_chunks(comm, number, &chunks, encoded, stagings)?;
                        }
                    }
                    StoredAt::Beside(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Writes what an iteration left in memory to datasets made for it now. Collective.
    #[expect(clippy::too_many_arguments, reason = "what Outputs::create takes, and what of it is kept and counted")]
    pub fn flush(
        comm: &mut Communicator,
        job: &Job,
        plan: &StagePlan,
        run: u64,
        resident: &Resident,
        places: &mut DatasetPaths,
        stagings: &mut Stagings,
        counts: &mut Counts,
    ) -> Result<(), RunError> {
        let mut outputs = Outputs::create(comm, job, plan, true, run, places, stagings)?;
        let held: Vec<Option<&Holding>> = outputs.outputs.iter().map(|output| resident.get(&output.tensor)).collect();
        outputs.outputs.iter_mut().for_each(|output| output.resident = None);
        for (at, mut tile) in plan.shard(comm.rank()).into_iter().enumerate() {
            plan.widen(&mut tile);
            let mut kept = Vec::with_capacity(held.len());
            for (number, holding) in held.iter().enumerate() {
                let Some(piece) = holding.and_then(|holding| holding.pieces.get(at)) else { continue };
                let (written, stored) = outputs.write(comm, number, &piece.region, &piece.bytes, stagings)?;
                counts.written_bytes += written;
                kept.extend(stored);
            }
            if !held.is_empty() && kept.len() == held.len() {
                stagings.manifest.record(&CompletionRecord {
                    stage: plan.name.clone(),
                    tile,
                    outputs: kept,
                    leaves: None,
                });
            }
        }
        let sent = comm.gather(outputs.sent.to_le_bytes().to_vec())?;
        for (rank, sent) in (0..).zip(sent.iter().flatten()).skip(1) {
            let wrong = |_| RunError::Protocol { rank, what: "the end of its outputs" };
            for _ in 0..u64::from_le_bytes(sent.as_slice().try_into().map_err(wrong)?) {
                let chunks = Tag::stage(StageMessage::Chunks, run);
                let message = TaggedMessage { source: rank, tag: chunks, bytes: comm.receive(rank, chunks)? };
                outputs.receive(comm, message, stagings, &mut counts.moved)?;
            }
        }
        comm.barrier()?;
        stagings.settle()?;
        Ok(())
    }

    /// Leaves in memory what stays there, unless it is there already, as what a stage that did not run has left
    /// earlier.
    pub fn keep(&mut self, stage: usize, ran: bool, resident: &mut Resident) {
        for output in self.outputs.drain(..) {
            if let Some(pieces) = output.resident.filter(|_| ran || resident.get(&output.tensor).is_none()) {
                let pieces = pieces.into_iter().map(|(region, bytes)| Piece { region, bytes: bytes.into() }).collect();
                resident.keep(&output.tensor, Holding { stage, operand: output.operand, pieces });
            }
        }
    }

    /// Compressed chunks from another rank.
    pub fn receive(
        &mut self,
        comm: &Communicator,
        mut message: TaggedMessage,
        stagings: &mut Stagings,
        moved: &mut Moved,
    ) -> Result<(), RunError> {
        Trailer::run(self.run).check(&mut message.bytes, message.source, "compressed chunks")?;
        comm.received(moved, Reason::Output, message.source, message.bytes.len() as u64);
        let decoded = decode_chunks(&message.bytes).filter(|(output, _)| *output < self.outputs.len());
        let wrong = || RunError::Protocol { rank: message.source, what: "compressed chunks" };
        let (output, chunks) = decoded.ok_or_else(wrong)?;
        self.received += 1;
        self.write_chunks(output, &chunks, stagings)
    }

    fn write_chunks(&self, output: usize, chunks: &[StoredChunk], stagings: &mut Stagings) -> Result<(), RunError> {
        let Some(Dataset { layout, .. }) = &self.outputs[output].dataset else { return Ok(()) };
        if let Some(staging) = stagings.files.values_mut().find(|staging| staging.temporary() == layout.temporary) {
            staging.write_chunks(layout, chunks)?;
        }
        Ok(())
    }

    /// Whether anything goes into a file.
    pub fn has_datasets(&self) -> bool {
        self.outputs.iter().any(|output| output.dataset.is_some())
    }

    /// Messages that rank 0 has to [`Outputs::expect`] from this rank.
    pub fn messages_sent(&self) -> u64 {
        self.sent
    }

    /// Another rank says how many messages it has sent.
    pub fn expect(&mut self, messages: u64) {
        self.expected += messages;
    }

    pub fn all_received(&self) -> bool {
        self.received == self.expected
    }
}

fn create_dataset(job: &Job, operand: &OperandPlan, stagings: &mut Stagings) -> Result<OutputLayout, RunError> {
    if let Some(layout) = stagings.manifest.adopted(&operand.tensor) {
        return Ok(layout.clone());
    }
    let (file, dataset) = destination(job, &operand.tensor);
    let staging = match stagings.files.entry(file) {
        Entry::Occupied(staging) => staging.into_mut(),
        Entry::Vacant(room) => {
            let (target, tag) = (room.key(), stagings.manifest.tag());
            let is_scratch = operand.origin == Origin::Scratch;
            let staging = if is_scratch { Staging::anew(target, &tag)? } else { Staging::begin(target, &tag)? };
            room.insert(staging)
        }
    };
    let spec = OutputSpec {
        dataset,
        dtype: operand.dtype,
        shape: operand.shape.clone(),
        chunk: operand.chunk.clone(),
        deflate: operand.deflate,
    };
    let layout = staging.create(&[spec])?.remove(0);
    stagings.notes.extend(staging.take_notes());
    stagings.manifest.begin_writing(staging, &operand.tensor, &layout);
    Ok(layout)
}

/// Gives every output its name and says where it is, and what a person should know of that.
pub(in crate::exec) fn publish(
    job: &Job,
    plan: &Plan,
    stagings: &mut Stagings,
) -> Result<(Vec<OutputReport>, Vec<String>), RunError> {
    let created = |tensor: &str| matches!(job.tensors.get(tensor).map(|d| &d.source), Some(Source::Create { .. }));
    let (mut outputs, mut notes) = (Vec::new(), Vec::new());
    for operand in plan.stages.iter().flat_map(|stage| &stage.operands) {
        if operand.role == Role::Output && created(&operand.tensor) {
            let (file, dataset) = destination(job, &operand.tensor);
            if let Some(staging) = stagings.files.get_mut(&file) {
                let manifest = &mut stagings.manifest;
                notes.extend(staging.publish_and(&mut |staging| manifest.note_moved(job, staging))?);
                stagings.files.remove(&file);
            }
            outputs.push(OutputReport {
                tensor: operand.tensor.clone(),
                file: file.canonicalize().unwrap_or(file).display().to_string(),
                dataset,
                dtype: operand.dtype.to_string(),
                shape: operand.shape.to_vec(),
            });
        }
    }
    // What is left is scratch: dropping it removes it.
    stagings.files.clear();
    Ok((outputs, notes))
}

/// Output number, then number, length and bytes of each chunk.
fn encode_chunks(output: usize, chunks: &[StoredChunk]) -> Vec<u8> {
    let mut bytes = (output as u64).to_le_bytes().to_vec();
    for (number, stored) in chunks {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(stored.len() as u64).to_le_bytes());
        bytes.extend_from_slice(stored);
    }
    bytes
}

fn decode_chunks(bytes: &[u8]) -> Option<(usize, Vec<StoredChunk>)> {
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let (output, mut rest) = bytes.split_first_chunk::<8>()?;
    let mut chunks = Vec::new();
    while let Some((number, after)) = rest.split_first_chunk::<8>() {
        let (length, after) = after.split_first_chunk::<8>()?;
        let (stored, after) = after.split_at_checked(usize::try_from(word(length)).ok()?)?;
        chunks.push((word(number), stored.to_vec()));
        rest = after;
    }
    Some((usize::try_from(word(output)).ok()?, chunks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_survive_the_wire_and_cut_messages_are_refused() {
        let chunks = vec![(3, vec![1, 2, 3]), (9, vec![])];
        let bytes = encode_chunks(2, &chunks);
        assert_eq!(decode_chunks(&bytes), Some((2, chunks)));
        assert_eq!(decode_chunks(&bytes[..7]), None);
        assert_eq!(decode_chunks(&bytes[..26]), None);
    }
}
