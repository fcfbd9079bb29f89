//! Cores that the ranks of a node share: each thread gets an equal part of them, and at most one core.
//!
//! Each node has a clock that counts the core time that each of its threads has received. The clock slows down when
//! there are more threads than cores, so the end of a thread is known on it when the thread begins, whatever threads
//! come and go.

use std::collections::BTreeMap;

/// A running thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Thread {
    /// Its end on the clock of its node.
    end: u64,
    /// Makes it unique.
    number: u64,
}

#[derive(Debug)]
struct CoreClock<T> {
    /// Core time that each thread has received, in units of 1/[`GRAIN`] ns.
    given: u64,
    since_ns: u64,
    threads: BTreeMap<Thread, T>,
    /// Number of the last answer of [`NodeCores::next`]; earlier answers no longer hold.
    epoch: u32,
}

/// Parts of a nanosecond, so that rounding does not add up.
const GRAIN: u64 = 1 << 10;

#[derive(Debug)]
pub(super) struct NodeCores<T> {
    nodes: Vec<CoreClock<T>>,
    cores: u64,
    begun: u64,
}

impl<T> NodeCores<T> {
    pub fn new(nodes: usize, cores: u64) -> NodeCores<T> {
        let node = |_| CoreClock { given: 0, since_ns: 0, threads: BTreeMap::new(), epoch: 0 };
        NodeCores { nodes: (0..nodes).map(node).collect(), cores: cores.max(1), begun: 0 }
    }

    /// Brings the node's clock up to now.
    fn advance(&mut self, node: usize, now_ns: u64) {
        let cores = self.cores;
        let node = &mut self.nodes[node];
        let passed = u128::from(now_ns - node.since_ns) * u128::from(GRAIN);
        let busy = (node.threads.len() as u64).max(cores);
        node.given += (passed * u128::from(cores) / u128::from(busy)) as u64;
        node.since_ns = now_ns;
    }

    /// Starts a thread whose work takes `work_ns` on a core of its own.
    pub fn begin(&mut self, node: usize, now_ns: u64, work_ns: u64, thing: T) -> Thread {
        self.advance(node, now_ns);
        self.begun += 1;
        let thread = Thread { end: self.nodes[node].given + work_ns * GRAIN, number: self.begun };
        self.nodes[node].threads.insert(thread, thing);
        thread
    }

    /// Stops a thread, unless it is done already.
    pub fn cancel(&mut self, node: usize, now_ns: u64, thread: Thread) {
        self.advance(node, now_ns);
        self.nodes[node].threads.remove(&thread);
    }

    /// When the first thread of the node will be done if nothing changes, and the epoch to ask for it with.
    pub fn next(&mut self, node: usize) -> Option<(u64, u32)> {
        let cores = self.cores;
        let node = &mut self.nodes[node];
        node.epoch = node.epoch.wrapping_add(1);
        let (thread, _) = node.threads.first_key_value()?;
        let busy = (node.threads.len() as u64).max(cores);
        let left = u128::from(thread.end.saturating_sub(node.given)) * u128::from(busy);
        let left_ns = left.div_ceil(u128::from(GRAIN) * u128::from(cores)) as u64;
        Some((node.since_ns + left_ns, node.epoch))
    }

    /// Removes a thread of the node that is done now. Returns `None` if the epoch has passed, or no thread is done.
    pub fn done(&mut self, node: usize, now_ns: u64, epoch: u32) -> Option<T> {
        if self.nodes[node].epoch != epoch {
            return None;
        }
        self.advance(node, now_ns);
        let node = &mut self.nodes[node];
        let entry = node.threads.first_entry()?;
        (entry.key().end <= node.given).then(|| entry.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of threads and when they are done.
    fn run(cores: &mut NodeCores<char>) -> Vec<(char, u64)> {
        let mut ends = Vec::new();
        while let Some((at_ns, epoch)) = cores.next(0) {
            if let Some(thing) = cores.done(0, at_ns, epoch) {
                ends.push((thing, at_ns));
            }
        }
        ends
    }

    #[test]
    fn threads_share_cores_evenly_and_get_one_at_most() {
        let mut cores = NodeCores::new(1, 2);
        cores.begin(0, 0, 100, 'a');
        assert_eq!(run(&mut cores), [('a', 100)]);
        for name in ['a', 'b', 'c', 'd'] {
            cores.begin(0, 100, 100, name);
        }
        assert_eq!(run(&mut cores), [('a', 300), ('b', 300), ('c', 300), ('d', 300)]);
    }

    #[test]
    fn a_thread_that_stops_leaves_its_core_to_the_others() {
        let mut cores = NodeCores::new(1, 1);
        cores.begin(0, 0, 100, 'a');
        let gone = cores.begin(0, 0, 100, 'b');
        cores.cancel(0, 100, gone);
        // Half of the first 100 ns, and all of the next 50.
        assert_eq!(run(&mut cores), [('a', 150)]);
        assert!(cores.done(0, 150, 0).is_none());
    }
}
