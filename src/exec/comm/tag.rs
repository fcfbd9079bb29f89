//! Kinds of messages between ranks, and the numbers that stand for them.

use crate::fabric::{LASTING_TAG, Rank};

/// The number of message kinds that a tag has room for.
const KINDS: u32 = 16;

/// Runs of stages after which their tags repeat. A barrier keeps ranks closer together than half of this.
pub(in crate::exec) const RUNS: u64 = 1024;

/// The kind of a message between ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::exec) enum Tag {
    /// News about the run itself, which the [`Monitor`](crate::exec::comm::monitor::Monitor) takes.
    Control(Control),
    /// Optimized code of a kernel, or the news that there is none.
    Artifact,
    /// A rank's progress report.
    Progress,
    /// Part of an exchange of memory between ranks of a node.
    NodeMemory,
    /// A message that belongs to a run of a stage. A rank may send it before others have started that run.
    Stage { kind: StageMessage, run: RunTag },
}

/// A message about the run itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::exec) enum Control {
    /// The set of ranks that its sender knows to have failed.
    FailedRanks,
    /// The error that ended its sender, for rank 0 to print.
    Fail,
    /// The end of the run after a failure, from rank 0.
    Stop,
    /// The signal that ends the run.
    Drain,
    /// The end of the run after success.
    Over,
}

/// A message that belongs to a run of a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::exec) enum StageMessage {
    /// Compressed chunks of an output.
    Chunks,
    /// The end of the sender's part in the stage.
    Done,
    /// Part of an input.
    Shard,
    /// Partial results of a reduction.
    Partial,
    /// A message of the sender's scheduler, and the bytes of stolen work.
    Scheduler,
}

/// The number of a run of a stage, as far as tags tell runs apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::exec) struct RunTag(u16);

/// A message from another rank.
#[derive(Clone, Debug)]
pub(in crate::exec) struct TaggedMessage {
    pub source: Rank,
    pub tag: Tag,
    pub bytes: Vec<u8>,
}

impl From<u64> for RunTag {
    fn from(run: u64) -> RunTag {
        RunTag((run % RUNS) as u16)
    }
}

impl Tag {
    /// The tag of a message of this kind in run `run` of a stage.
    pub fn stage(kind: StageMessage, run: u64) -> Tag {
        Tag::Stage { kind, run: run.into() }
    }

    /// The number that the fabric sends for this tag.
    pub fn encode(self) -> u32 {
        match self {
            Tag::Control(Control::FailedRanks) => LASTING_TAG,
            Tag::Control(Control::Fail) => 1,
            Tag::Control(Control::Stop) => 2,
            Tag::Artifact => 3,
            Tag::Progress => 4,
            Tag::NodeMemory => 10,
            Tag::Control(Control::Drain) => 11,
            Tag::Control(Control::Over) => 15,
            Tag::Stage { kind, run: RunTag(run) } => kind.encode() + KINDS * u32::from(run),
        }
    }

    /// The tag that `number` stands for, if it stands for any.
    pub fn decode(number: u32) -> Option<Tag> {
        let run = RunTag(u16::try_from(number / KINDS).ok()?);
        if let Some(kind) = StageMessage::decode(number % KINDS) {
            return Some(Tag::Stage { kind, run });
        }
        Some(match number {
            LASTING_TAG => Tag::Control(Control::FailedRanks),
            1 => Tag::Control(Control::Fail),
            2 => Tag::Control(Control::Stop),
            3 => Tag::Artifact,
            4 => Tag::Progress,
            10 => Tag::NodeMemory,
            11 => Tag::Control(Control::Drain),
            15 => Tag::Control(Control::Over),
            _ => return None,
        })
    }

    /// Whether this is a scheduler's message in a run before `run`.
    pub fn is_late(self, run: u64) -> bool {
        let Tag::Stage { kind: StageMessage::Scheduler, run: RunTag(sent_in) } = self else { return false };
        let behind = (run % RUNS + RUNS - u64::from(sent_in)) % RUNS;
        (1..=RUNS / 2).contains(&behind)
    }
}

impl StageMessage {
    const ALL: [StageMessage; 5] =
        [StageMessage::Chunks, StageMessage::Done, StageMessage::Shard, StageMessage::Partial, StageMessage::Scheduler];

    const fn encode(self) -> u32 {
        match self {
            StageMessage::Chunks => 5,
            StageMessage::Done => 6,
            StageMessage::Shard => 7,
            StageMessage::Partial => 8,
            StageMessage::Scheduler => 9,
        }
    }

    fn decode(number: u32) -> Option<StageMessage> {
        StageMessage::ALL.into_iter().find(|kind| kind.encode() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_decode_to_what_was_encoded() {
        let controls = [Control::FailedRanks, Control::Fail, Control::Stop, Control::Drain, Control::Over];
        let of_run = |run: u64| StageMessage::ALL.map(|kind| Tag::stage(kind, run));
        let tags = [Tag::Artifact, Tag::Progress, Tag::NodeMemory].into_iter();
        for tag in tags.chain(controls.map(Tag::Control)).chain([0, 1, RUNS - 1].into_iter().flat_map(of_run)) {
            assert_eq!(Tag::decode(tag.encode()), Some(tag));
        }
        assert_eq!(Tag::decode(13), None);
    }
}
