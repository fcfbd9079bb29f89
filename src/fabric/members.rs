use super::limits::{COLLECTIVE_TAGS, TAG_LIMIT};
use super::message::Message;
use crate::topology::Rank;

/// Messages with this tag are delivered even if sender and receiver disagree on the set of members.
pub const LASTING_TAG: u32 = 0;
/// A wire tag has the tag in its low bits and, above this bit, the number of ranks that had failed when it was sent.
const EPOCH_SHIFT: u32 = 16;

const _: () = assert!(TAG_LIMIT + COLLECTIVE_TAGS <= 1 << EPOCH_SHIFT);

/// The ranks that have not failed. All ranks agree on this set, and it only shrinks, so the number of failed ranks
/// identifies it. Each tag carries that number, so a message that was sent within another set is recognized.
#[derive(Debug)]
pub(super) struct Members {
    rank: Rank,
    /// For each present rank its rank at the start, ascending.
    origins: Vec<Rank>,
    failed: u32,
}

/// How to treat a message that has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Accept,
    /// The sender knows of failures that are not known here yet.
    Defer,
    Discard,
}

impl Members {
    pub fn new(rank: Rank, size: u32) -> Members {
        Members { rank, origins: (0..size).collect(), failed: 0 }
    }

    pub fn rank(&self) -> Rank {
        self.rank
    }

    pub fn size(&self) -> u32 {
        self.origins.len() as u32
    }

    /// The number of a rank at the start.
    pub fn origin(&self, rank: Rank) -> Rank {
        self.origins[rank as usize]
    }

    /// The tag as it is sent.
    pub fn wire_tag(&self, tag: u32) -> u32 {
        if tag == LASTING_TAG { tag } else { self.failed << EPOCH_SHIFT | tag }
    }

    /// The tag of a wire tag.
    pub fn tag_of(wire_tag: u32) -> u32 {
        wire_tag & ((1 << EPOCH_SHIFT) - 1)
    }

    /// Whether tags up to this one can encode the failure of all ranks but one.
    pub fn fit(&self, highest_tag: u32) -> bool {
        u64::from(self.size()) << EPOCH_SHIFT <= u64::from(highest_tag) + 1
    }

    pub fn delivery(&self, origin: Rank, wire_tag: u32) -> Delivery {
        let failed = if wire_tag == LASTING_TAG { self.failed } else { wire_tag >> EPOCH_SHIFT };
        match failed.cmp(&self.failed) {
            std::cmp::Ordering::Less => Delivery::Discard,
            std::cmp::Ordering::Greater => Delivery::Defer,
            std::cmp::Ordering::Equal if self.origins.binary_search(&origin).is_err() => Delivery::Discard,
            std::cmp::Ordering::Equal => Delivery::Accept,
        }
    }

    /// The message of an accepted delivery.
    pub fn admit(&self, origin: Rank, wire_tag: u32, bytes: Vec<u8>) -> Message {
        let source = self.origins.partition_point(|rank| *rank < origin) as Rank;
        Message { source, tag: Members::tag_of(wire_tag), bytes }
    }

    /// Reduces the members to `survivors`, in ascending order, and numbers them from 0.
    pub fn shrink(&mut self, survivors: &[Rank]) {
        let rank = survivors.iter().position(|rank| *rank == self.rank).expect("this rank is a survivor");
        self.failed += self.size() - survivors.len() as u32;
        self.origins = survivors.iter().map(|rank| self.origin(*rank)).collect();
        self.rank = rank as Rank;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_between_current_members_are_accepted() {
        let mut members = Members::new(3, 5);
        let before = members.wire_tag(7);
        assert_eq!((members.delivery(1, before), Members::tag_of(before)), (Delivery::Accept, 7));
        members.shrink(&[0, 2, 3, 4]);
        assert_eq!((members.rank(), members.size(), members.origin(1)), (2, 4, 2));
        let between = members.wire_tag(7);
        assert_eq!(members.delivery(2, before), Delivery::Discard);
        assert_eq!(members.admit(4, between, vec![]).source, 3);
        let mut others = Members::new(0, 5);
        assert_eq!(others.delivery(2, between), Delivery::Defer);
        others.shrink(&[0, 2, 3, 4]);
        assert_eq!(others.delivery(2, between), Delivery::Accept);
        members.shrink(&[1, 2]);
        assert_eq!((members.rank(), members.origin(0), members.origin(1)), (1, 2, 3));
        assert_eq!(members.delivery(2, between), Delivery::Discard);
        assert_eq!(
            (members.delivery(2, LASTING_TAG), members.delivery(0, LASTING_TAG)),
            (Delivery::Accept, Delivery::Discard)
        );
    }

    #[test]
    fn tags_must_have_room_for_every_failure() {
        let members = Members::new(0, 8);
        assert!(members.fit(i32::MAX as u32) && members.fit((8 << EPOCH_SHIFT) - 1));
        assert!(!members.fit(TAG_LIMIT) && !members.fit((8 << EPOCH_SHIFT) - 2));
    }
}
