//! The events to come, in the order of their times.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

/// Events within this power of two of nanoseconds are sorted together: less than messages take, so that what is there when a
/// bucket is opened is nearly all that it will have.
const BUCKET_BITS: u32 = 10;

#[derive(Debug)]
struct Entry<T> {
    at_ns: u64,
    number: u64,
    thing: T,
}

impl<T> Ord for Entry<T> {
    /// The earliest is the greatest, for a heap that gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.number).cmp(&(self.at_ns, self.number))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

/// Gives the earliest first, and of equals the one that was put first. Only what comes next is in a heap, the rest in
/// buckets: a heap of all events of 100,000 ranks is far larger than a processor's cache, and took a third of the time.
#[derive(Debug)]
pub(super) struct Queue<T> {
    near: BinaryHeap<Entry<T>>,
    near_bucket: u64,
    far: BTreeMap<u64, Vec<Entry<T>>>,
    put: u64,
}

impl<T> Queue<T> {
    pub fn new() -> Self {
        Queue { near: BinaryHeap::new(), near_bucket: 0, far: BTreeMap::new(), put: 0 }
    }

    pub fn push(&mut self, at_ns: u64, thing: T) {
        self.put += 1;
        let (bucket, entry) = (at_ns >> BUCKET_BITS, Entry { at_ns, number: self.put, thing });
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

    /// Takes out of its bucket what comes next; false if that has been done.
    pub fn open(&mut self) -> bool {
        if !self.near.is_empty() {
            return false;
        }
        let Some((bucket, entries)) = self.far.pop_first() else { return false };
        (self.near_bucket, self.near) = (bucket, entries.into());
        true
    }

    /// What has come out of its bucket, in no order.
    pub fn near(&self) -> impl Iterator<Item = &T> {
        self.near.iter().map(|entry| &entry.thing)
    }
}

/// Things on their way, so that events stay small.
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
        let mut queue = Queue::new();
        let times = [5, 1 << 40, 5, 70_000, 65_536, 0, 70_000, 1 << 20];
        times.iter().zip(0..).for_each(|(at_ns, thing)| queue.push(*at_ns, thing));
        assert_eq!(queue.pop(), Some((0, 5)));
        // Behind what is being given.
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
