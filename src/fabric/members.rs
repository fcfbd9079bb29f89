use super::{Message, Rank, TAG_LIMIT, collective};

/// Messages with this tag reach a rank whatever ranks still count for it and for the sender.
pub const LASTING_TAG: u32 = 0;
/// Below it a stamped tag has the tag, above it how many ranks were gone when it was sent.
const STAMP_SHIFT: u32 = 16;

const _: () = assert!(TAG_LIMIT + collective::TAG_COUNT <= 1 << STAMP_SHIFT);

/// The ranks that still count. They only ever get fewer, and all agree on who they are, so how many are gone tells one set of
/// them from another: that number goes with each tag, and a message that was meant for other ranks than these is known.
#[derive(Debug)]
pub(super) struct Members {
    rank: Rank,
    /// By rank now: what it was at the start, ascending.
    origins: Vec<Rank>,
    gone: u32,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Take,
    /// Whoever sent it knows of deaths that are not known here yet.
    Later,
    Drop,
}

impl Members {
    pub fn new(rank: Rank, size: u32) -> Members {
        Members { rank, origins: (0..size).collect(), gone: 0 }
    }

    pub fn rank(&self) -> Rank {
        self.rank
    }

    pub fn size(&self) -> u32 {
        self.origins.len() as u32
    }

    /// What a rank was at the start.
    pub fn origin(&self, rank: Rank) -> Rank {
        self.origins[rank as usize]
    }

    /// The tag as it travels.
    pub fn stamp(&self, tag: u32) -> u32 {
        if tag == LASTING_TAG { tag } else { self.gone << STAMP_SHIFT | tag }
    }

    /// Of a tag as it travels: the tag.
    pub fn tag(stamped: u32) -> u32 {
        stamped & ((1 << STAMP_SHIFT) - 1)
    }

    /// Whether tags up to this one have room for the deaths of all ranks but one.
    pub fn fit(&self, highest_tag: u32) -> bool {
        u64::from(self.size()) << STAMP_SHIFT <= u64::from(highest_tag) + 1
    }

    pub fn judge(&self, origin: Rank, stamped: u32) -> Judgement {
        let gone = if stamped == LASTING_TAG { self.gone } else { stamped >> STAMP_SHIFT };
        match gone.cmp(&self.gone) {
            std::cmp::Ordering::Less => Judgement::Drop,
            std::cmp::Ordering::Greater => Judgement::Later,
            std::cmp::Ordering::Equal if self.origins.binary_search(&origin).is_err() => Judgement::Drop,
            std::cmp::Ordering::Equal => Judgement::Take,
        }
    }

    /// A message that is judged one to take, from as far as this rank knows the sender.
    pub fn admit(&self, origin: Rank, stamped: u32, bytes: Vec<u8>) -> Message {
        let source = self.origins.partition_point(|rank| *rank < origin) as Rank;
        Message { source, tag: Members::tag(stamped), bytes }
    }

    /// From now on only `survivors` count, numbered from 0 in this order, which ascends.
    pub fn keep(&mut self, survivors: &[Rank]) {
        let rank = survivors.iter().position(|rank| *rank == self.rank).expect("who goes on is a survivor");
        self.gone += self.size() - survivors.len() as u32;
        self.origins = survivors.iter().map(|rank| self.origin(*rank)).collect();
        self.rank = rank as Rank;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_among_those_who_count_are_taken() {
        let mut members = Members::new(3, 5);
        let before = members.stamp(7);
        assert_eq!((members.judge(1, before), Members::tag(before)), (Judgement::Take, 7));
        members.keep(&[0, 2, 3, 4]);
        assert_eq!((members.rank(), members.size(), members.origin(1)), (2, 4, 2));
        let between = members.stamp(7);
        assert_eq!(members.judge(2, before), Judgement::Drop);
        assert_eq!(members.admit(4, between, vec![]).source, 3);
        let mut others = Members::new(0, 5);
        assert_eq!(others.judge(2, between), Judgement::Later);
        others.keep(&[0, 2, 3, 4]);
        assert_eq!(others.judge(2, between), Judgement::Take);
        members.keep(&[1, 2]);
        assert_eq!((members.rank(), members.origin(0), members.origin(1)), (1, 2, 3));
        assert_eq!(members.judge(2, between), Judgement::Drop);
        assert_eq!((members.judge(2, LASTING_TAG), members.judge(0, LASTING_TAG)), (Judgement::Take, Judgement::Drop));
    }

    #[test]
    fn tags_must_have_room_for_every_death() {
        let members = Members::new(0, 8);
        assert!(members.fit(i32::MAX as u32) && members.fit((8 << STAMP_SHIFT) - 1));
        assert!(!members.fit(TAG_LIMIT) && !members.fit((8 << STAMP_SHIFT) - 2));
    }
}
