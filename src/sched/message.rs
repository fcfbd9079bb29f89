//! What the schedulers of one stage say to each other, and its bytes: little-endian, a tag first, nothing aligned.

use crate::sched::span::Span;

/// A message between the schedulers of two ranks. Delivery may repeat and reorder messages, so whatever asks for
/// something carries an attempt: a number that its sender never uses twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Give me work. Answered by a grant or a refusal.
    Steal(Question),
    /// Compute these spans of the sender's blocks. The driver attaches inputs that the receiver cannot read itself.
    Grant {
        attempt: u64,
        /// How long the owner takes for one of these slices on one worker.
        ns_per_slice: u64,
        /// How long the work that the owner keeps will last.
        busy_ns: u64,
        /// As in a refusal.
        hint: Option<(u32, u64)>,
        pieces: Vec<Span>,
    },
    /// There is nothing that would be done earlier by the thief.
    Refuse {
        attempt: u64,
        /// How long the sender's own work will last.
        busy_ns: u64,
        /// The busiest other rank that the sender knows of, and how long its work will last.
        hint: Option<(u32, u64)>,
    },
    /// The granted piece is computed. The driver attaches its outputs.
    Returned {
        attempt: u64,
        piece: Span,
        /// How long the thief took for a slice of it, all its workers together.
        ns_per_slice: u64,
    },
    /// The grant of this attempt was not asked for (any more): the owner keeps its pieces.
    Decline { attempt: u64 },
    /// The sender and all ranks below it in the tree have written their blocks.
    Done,
    /// All ranks have written their blocks.
    Over,
}

/// What a thief says of itself when it asks for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    pub attempt: u64,
    /// How long it takes for a slice, all its workers together; 0: not yet known.
    pub ns_per_slice: u64,
    /// How long the work that it still has will last.
    pub busy_ns: u64,
    /// How long it has waited for answers lately; 0: not yet known.
    pub wait_ns: u64,
    /// Blocks that it has memory for.
    pub free_blocks: u32,
}

const STEAL: u8 = 1;
const GRANT: u8 = 2;
const REFUSE: u8 = 3;
const RETURNED: u8 = 4;
const DECLINE: u8 = 5;
const DONE: u8 = 6;
const OVER: u8 = 7;

impl Message {
    /// At most 45 bytes, and 24 for each piece. The owner of a piece is not among them: it is who sends a grant, and
    /// who receives what is returned.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Message::Steal(question) => {
                bytes.push(STEAL);
                let Question { attempt, ns_per_slice, busy_ns, wait_ns, free_blocks } = question;
                put(&mut bytes, &[*attempt, *ns_per_slice, *busy_ns, *wait_ns]);
                bytes.extend(free_blocks.to_le_bytes());
            }
            Message::Grant { attempt, ns_per_slice, busy_ns, hint, pieces } => {
                bytes.push(GRANT);
                put(&mut bytes, &[*attempt, *ns_per_slice, *busy_ns]);
                put_hint(&mut bytes, *hint);
                put(&mut bytes, &[pieces.len() as u64]);
                pieces.iter().for_each(|piece| put_piece(&mut bytes, piece));
            }
            Message::Refuse { attempt, busy_ns, hint } => {
                bytes.push(REFUSE);
                put(&mut bytes, &[*attempt, *busy_ns]);
                put_hint(&mut bytes, *hint);
            }
            Message::Returned { attempt, piece, ns_per_slice } => {
                bytes.push(RETURNED);
                put(&mut bytes, &[*attempt, *ns_per_slice]);
                put_piece(&mut bytes, piece);
            }
            Message::Decline { attempt } => {
                bytes.push(DECLINE);
                put(&mut bytes, &[*attempt]);
            }
            Message::Done => bytes.push(DONE),
            Message::Over => bytes.push(OVER),
        }
        bytes
    }

    /// Decodes what `from` sent to `to`; also returns the bytes after it, which the drivers attached. `None` for bytes
    /// that no scheduler has encoded.
    pub fn decode(bytes: &[u8], from: u32, to: u32) -> Option<(Message, &[u8])> {
        let (tag, mut rest) = bytes.split_first()?;
        let message = match *tag {
            STEAL => Message::Steal(Question {
                attempt: take(&mut rest)?,
                ns_per_slice: take(&mut rest)?,
                busy_ns: take(&mut rest)?,
                wait_ns: take(&mut rest)?,
                free_blocks: take_u32(&mut rest)?,
            }),
            GRANT => {
                let (attempt, ns_per_slice) = (take(&mut rest)?, take(&mut rest)?);
                let (busy_ns, hint, count) = (take(&mut rest)?, take_hint(&mut rest)?, take(&mut rest)?);
                // Checked before anything is allocated for them.
                if count > rest.len() as u64 / 24 {
                    return None;
                }
                let pieces = (0..count).map(|_| take_piece(&mut rest, from)).collect::<Option<_>>()?;
                Message::Grant { attempt, ns_per_slice, busy_ns, hint, pieces }
            }
            REFUSE => {
                Message::Refuse { attempt: take(&mut rest)?, busy_ns: take(&mut rest)?, hint: take_hint(&mut rest)? }
            }
            RETURNED => {
                let (attempt, ns_per_slice) = (take(&mut rest)?, take(&mut rest)?);
                Message::Returned { attempt, piece: take_piece(&mut rest, to)?, ns_per_slice }
            }
            DECLINE => Message::Decline { attempt: take(&mut rest)? },
            DONE => Message::Done,
            OVER => Message::Over,
            _ => return None,
        };
        Some((message, rest))
    }
}

fn put(bytes: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
}

fn put_piece(bytes: &mut Vec<u8>, piece: &Span) {
    put(bytes, &[piece.block, piece.start, piece.len]);
}

/// No rank has the number that stands for none.
fn put_hint(bytes: &mut Vec<u8>, hint: Option<(u32, u64)>) {
    let (rank, busy_ns) = hint.unwrap_or((u32::MAX, 0));
    bytes.extend(rank.to_le_bytes());
    put(bytes, &[busy_ns]);
}

fn take_hint(rest: &mut &[u8]) -> Option<Option<(u32, u64)>> {
    let (rank, busy_ns) = (take_u32(rest)?, take(rest)?);
    Some((rank != u32::MAX).then_some((rank, busy_ns)))
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

/// A piece must end somewhere: one that overflows is hostile.
fn take_piece(rest: &mut &[u8], owner: u32) -> Option<Span> {
    let (block, start, len) = (take(rest)?, take(rest)?, take(rest)?);
    start.checked_add(len)?;
    Some(Span { owner, block, start, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Message> {
        let span = |owner| {
            (any::<u64>(), 0u64..1 << 60, 0u64..1 << 60).prop_map(move |(block, start, len)| Span {
                owner,
                block,
                start,
                len,
            })
        };
        let hint = || proptest::option::of((0..u32::MAX, any::<u64>()));
        let pieces = proptest::collection::vec(span(3), 0..9);
        prop_oneof![
            any::<(u64, u64, u64, u64, u32)>().prop_map(|(attempt, ns_per_slice, busy_ns, wait_ns, free_blocks)| {
                Message::Steal(Question { attempt, ns_per_slice, busy_ns, wait_ns, free_blocks })
            }),
            (any::<(u64, u64, u64)>(), hint(), pieces).prop_map(|((attempt, ns_per_slice, busy_ns), hint, pieces)| {
                Message::Grant { attempt, ns_per_slice, busy_ns, hint, pieces }
            }),
            (any::<(u64, u64)>(), hint()).prop_map(|((attempt, busy_ns), hint)| Message::Refuse {
                attempt,
                busy_ns,
                hint
            }),
            (any::<(u64, u64)>(), span(8)).prop_map(|((attempt, ns_per_slice), piece)| Message::Returned {
                attempt,
                piece,
                ns_per_slice
            }),
            any::<u64>().prop_map(|attempt| Message::Decline { attempt }),
            Just(Message::Done),
            Just(Message::Over),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_their_bytes(
            message in message(),
            attached in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut bytes = message.encode();
            let pieces = if let Message::Grant { pieces, .. } = &message { pieces.len() } else { 1 };
            prop_assert!(bytes.len() <= 45 + 24 * pieces);
            for cut in 0..bytes.len() {
                prop_assert_eq!(Message::decode(&bytes[..cut], 3, 8), None);
            }
            bytes.extend(&attached);
            prop_assert_eq!(Message::decode(&bytes, 3, 8), Some((message, &attached[..])));
        }

        #[test]
        fn hostile_bytes_are_no_message_or_some_message(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            tag in 0u8..9,
        ) {
            let _ = Message::decode(&bytes, 0, 1);
            let _ = Message::decode(&[&[tag], &bytes[..]].concat(), 0, 1);
        }
    }
}
