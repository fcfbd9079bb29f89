//! A queue of future events, in the order of their times.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

/// A bucket covers this power of two of nanoseconds: less than a message takes, so that a bucket is nearly complete
/// when it is opened.
const BUCKET_BITS: u32 = 10;

#[derive(Debug)]
struct QueueEntry<T> {
    at_ns: u64,
    number: u64,
    thing: T,
}

impl<T> Ord for QueueEntry<T> {
    /// The earliest is the greatest, for a heap that gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.number).cmp(&(self.at_ns, self.number))
    }
}

impl<T> PartialOrd for QueueEntry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for QueueEntry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for QueueEntry<T> {}

/// Returns the earliest event first, and of equal times the one that was pushed first. Only the next events are in a
/// heap, the others in buckets: a heap of all events of 100,000 ranks is far larger than a processor's cache, and took
/// a third of the time.
#[derive(Debug)]
pub(super) struct EventQueue<T> {
    near: BinaryHeap<QueueEntry<T>>,
    near_bucket: u64,
    far: BTreeMap<u64, Vec<QueueEntry<T>>>,
    put: u64,
}

impl<T> EventQueue<T> {
    pub fn new() -> Self {
        EventQueue { near: BinaryHeap::new(), near_bucket: 0, far: BTreeMap::new(), put: 0 }
    }

    pub fn push(&mut self, at_ns: u64, thing: T) {
        self.put += 1;
        let (bucket, entry) = (at_ns >> BUCKET_BITS, QueueEntry { at_ns, number: self.put, thing });
        if bucket <= self.near_bucket {
            self.near.push(entry);
        } else {
            self.far.entry(bucket).or_default().push(entry);
        }
    }

    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.open();
        self.near.pop().map(|entry| (entry.at_ns, entry.thing))
    }

    /// Moves the next bucket into the heap; returns false if the heap has events already.
    pub fn open(&mut self) -> bool {
        if !self.near.is_empty() {
            return false;
        }
        let Some((bucket, entries)) = self.far.pop_first() else { return false };
        (self.near_bucket, self.near) = (bucket, entries.into());
        true
    }

    /// The events in the heap, in no order.
    pub fn near(&self) -> impl Iterator<Item = &T> {
        self.near.iter().map(|entry| &entry.thing)
    }
}

/// Contents of events, so that the events themselves stay small.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub fn new() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }

    pub fn put(&mut self, thing: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(thing);
            return slot;
        }
        self.slots.push(Some(thing));
        self.slots.len() as u32 - 1
    }

    pub fn take(&mut self, slot: u32) -> Option<T> {
        self.free.push(slot);
        self.slots[slot as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_time_and_then_by_putting() {
        let mut queue = EventQueue::new();
        let times = [5, 1 << 40, 5, 70_000, 65_536, 0, 70_000, 1 << 20];
        times.iter().zip(0..).for_each(|(at_ns, thing)| queue.push(*at_ns, thing));
        assert_eq!(queue.pop(), Some((0, 5)));
        // Its time lies before that of the open bucket.
        queue.push(3, 8);
        let rest: Vec<i32> = std::iter::from_fn(|| queue.pop()).map(|(_, thing)| thing).collect();
        assert_eq!(rest, [8, 0, 2, 4, 3, 6, 7, 1]);
    }

    #[test]
    fn slots_are_used_again() {
        let mut slots = Slots::new();
        assert_eq!((slots.put('a'), slots.put('b')), (0, 1));
        assert_eq!((slots.take(0), slots.put('c')), (Some('a'), 0));
        assert_eq!((slots.take(1), slots.take(0)), (Some('b'), Some('c')));
    }
}
