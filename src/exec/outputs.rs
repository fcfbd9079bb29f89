//! Where a stage's outputs go: every rank writes its bytes into the staging file itself, but compressed chunks, whose
//! places depend on one another, go through rank 0.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::RunError;
use super::inputs::Places;
use super::link::{Link, tag};
use crate::fabric::{Message, Payload};
use crate::job::{Job, Source};
use crate::plan::{Plan, Role, StagePlan};
use crate::report::OutputReport;
use crate::store::{OutputLayout, OutputSpec, Staging, Storage, Writer, compress_chunks};
use crate::tensor::Region;

/// Files under way, by final name; rank 0's.
pub(super) type Stagings = BTreeMap<PathBuf, Staging>;

/// Number and stored bytes of a chunk.
type StoredChunk = (u64, Vec<u8>);

/// The outputs of a stage, as this rank writes them, in the order of the stage's operands.
pub(super) struct Outputs {
    layouts: Vec<OutputLayout>,
    /// None for compressed datasets.
    writers: Vec<Option<Writer>>,
    /// Messages with compressed chunks, from this rank to rank 0.
    sent: u64,
    /// The same on rank 0, from all others, and how many they said they had sent.
    received: u64,
    expected: u64,
}

impl Outputs {
    /// Rank 0 creates the stage's datasets, everyone learns where they lie. Collective.
    pub fn create(
        link: &mut Link,
        job: &Job,
        plan: &StagePlan,
        places: &mut Places,
        stagings: &mut Stagings,
    ) -> Result<Outputs, RunError> {
        let mut encoded = None;
        if link.rank() == 0 {
            let mut layouts = Vec::new();
            for operand in plan.operands.iter().filter(|operand| operand.role == Role::Output) {
                let (file, dataset) = destination(job, &operand.tensor);
                if !stagings.contains_key(&file) {
                    stagings.insert(file.clone(), Staging::begin(&file)?);
                }
                let spec = OutputSpec {
                    dataset,
                    dtype: operand.dtype,
                    shape: operand.shape.clone(),
                    chunk: operand.chunk.clone(),
                    deflate: operand.deflate,
                };
                if let Some(staging) = stagings.get_mut(&file) {
                    layouts.extend(staging.create(&[spec])?);
                }
            }
            encoded = Some(Payload::from(serde_json::to_vec(&layouts).unwrap_or_default()));
        }
        let encoded = link.broadcast(encoded)?;
        let layouts: Vec<OutputLayout> = serde_json::from_slice(&encoded)
            .map_err(|_| RunError::Protocol { rank: 0, what: "the places of the outputs" })?;
        let outputs = plan.operands.iter().filter(|operand| operand.role == Role::Output);
        let mut writers = Vec::new();
        for (operand, layout) in outputs.zip(&layouts) {
            places.insert(operand.tensor.clone(), (layout.temporary.clone(), layout.dataset.clone()));
            let compressed = matches!(layout.storage, Storage::Compressed { .. });
            writers.push(if compressed { None } else { Some(Writer::open(layout)?) });
        }
        Ok(Outputs { layouts, writers, sent: 0, received: 0, expected: 0 })
    }

    /// Writes a region of the output of this number. Returns how many bytes that took in the file.
    pub fn write(
        &mut self,
        link: &mut Link,
        output: usize,
        region: &Region,
        bytes: &[u8],
        stagings: &mut Stagings,
    ) -> Result<u64, RunError> {
        if let Some(writer) = &mut self.writers[output] {
            return Ok(writer.write(region, bytes)?);
        }
        let chunks = compress_chunks(&self.layouts[output], region, bytes)?;
        if link.rank() == 0 {
            self.write_chunks(output, &chunks, stagings)?;
        } else {
            link.send(0, tag::CHUNKS, encode_chunks(output, &chunks).into())?;
            self.sent += 1;
        }
        Ok(chunks.iter().map(|(_, stored)| stored.len() as u64).sum())
    }

    /// Compressed chunks from another rank.
    pub fn receive(&mut self, message: &Message, stagings: &mut Stagings) -> Result<(), RunError> {
        let decoded = decode_chunks(&message.bytes).filter(|(output, _)| *output < self.layouts.len());
        let wrong = || RunError::Protocol { rank: message.source, what: "compressed chunks" };
        let (output, chunks) = decoded.ok_or_else(wrong)?;
        self.received += 1;
        self.write_chunks(output, &chunks, stagings)
    }

    fn write_chunks(&self, output: usize, chunks: &[StoredChunk], stagings: &mut Stagings) -> Result<(), RunError> {
        let layout = &self.layouts[output];
        if let Some(staging) = stagings.values_mut().find(|staging| staging.temporary() == layout.temporary) {
            staging.write_chunks(layout, chunks)?;
        }
        Ok(())
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

/// The file and dataset that a tensor is written to. Scratch tensors lie in a file of their own beside the first output,
/// which is never published.
pub(super) fn destination(job: &Job, tensor: &str) -> (PathBuf, String) {
    match job.tensors.get(tensor).map(|decl| &decl.source) {
        Some(Source::Create { file, dataset, .. }) => (file.clone(), dataset.clone()),
        _ => {
            let created = job.tensors.values().find_map(|decl| match &decl.source {
                Source::Create { file, .. } => file.parent(),
                _ => None,
            });
            (created.unwrap_or_else(|| ".".as_ref()).join(format!("{}-scratch.h5", job.name)), tensor.to_owned())
        }
    }
}

/// Gives every output its name and says where it is.
pub(super) fn publish(job: &Job, plan: &Plan, stagings: &mut Stagings) -> Result<Vec<OutputReport>, RunError> {
    let created = |tensor: &str| matches!(job.tensors.get(tensor).map(|d| &d.source), Some(Source::Create { .. }));
    let mut outputs = Vec::new();
    for operand in plan.stages.iter().flat_map(|stage| &stage.operands) {
        if operand.role == Role::Output && created(&operand.tensor) {
            let (file, dataset) = destination(job, &operand.tensor);
            if let Some(staging) = stagings.remove(&file) {
                staging.publish()?;
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
    stagings.clear();
    Ok(outputs)
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
