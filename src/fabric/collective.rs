//! Collective operations, made of sends and polls. Every rank must call the same collectives in the same order.
//!
//! While they wait, collectives call `idle`, in which the caller detects failed ranks and interrupts and may poll for
//! other messages. An error from it ends the wait and is returned. After an error, the fabric can run no more
//! collectives.

use std::collections::VecDeque;
use std::ops::Range;

use super::interface::Fabric;
use super::limits::{COLLECTIVE_TAGS, TAG_LIMIT};
use super::message::Message;
use crate::encode::encode;
use crate::fabric::backoff::Backoff;
use crate::fabric::error::FabricError;
use crate::fabric::payload::Payload;
use crate::topology::{Host, Rank, Topology};

const BROADCAST: u32 = TAG_LIMIT;
const GATHER: u32 = TAG_LIMIT + 1;
const BARRIER: u32 = TAG_LIMIT + 2;
const REDUCE: u32 = TAG_LIMIT + 3;
const _: () = assert!(REDUCE < TAG_LIMIT + COLLECTIVE_TAGS);

/// A broadcast goes down its tree in fragments of this size: a rank forwards one while the next arrives.
const FRAGMENT_BYTES: usize = 4 << 20;
/// Fragments that a rank may have received and not yet forwarded: this bounds the memory cost of a slow child.
const MAX_HELD_FRAGMENTS: usize = 4;

/// Called while a collective waits; an error ends the wait.
pub type Idle<'a> = &'a mut dyn FnMut(&mut dyn Fabric) -> Result<(), FabricError>;

/// Returns once every rank has called it. (Dissemination barrier of Hensgen, Finkel and Manber, 1988: log2 rounds.)
pub fn barrier(fabric: &mut dyn Fabric, idle: Idle<'_>) -> Result<(), FabricError> {
    let (rank, size) = (fabric.rank(), fabric.size());
    let mut distance = 1;
    while distance < size {
        fabric.send((rank + distance) % size, BARRIER, Vec::new().into())?;
        receive(fabric, (rank + size - distance) % size, BARRIER, idle)?;
        distance *= 2;
    }
    Ok(())
}

/// Every rank gets `bytes` of `root`, which alone passes `Some`. The bytes may have any length.
///
/// The tree gives every rank a contiguous range of ranks and at most two children, each with half of the rest. A long
/// broadcast takes twice the time of one copy for any number of ranks. Launchers number ranks node by node, so few
/// edges cross between nodes.
pub fn broadcast(
    fabric: &mut dyn Fabric,
    root: Rank,
    bytes: Option<Payload>,
    idle: Idle<'_>,
) -> Result<Payload, FabricError> {
    let size = fabric.size();
    let members: Vec<Rank> = (0..size).map(|member| (member + root) % size).collect();
    broadcast_among(fabric, &members, bytes, idle)
}

/// Like [`broadcast`], from the first of `members` to the others. Only members call it.
pub fn broadcast_among(
    fabric: &mut dyn Fabric,
    members: &[Rank],
    bytes: Option<Payload>,
    idle: Idle<'_>,
) -> Result<Payload, FabricError> {
    let position = members.iter().position(|member| *member == fabric.rank()).expect("only members broadcast");
    assert!((position == 0) == bytes.is_some(), "exactly the first member passes bytes");
    let (parent, children) = tree_edges(position as u32, members.len() as u32);
    let children: Vec<Rank> = children.into_iter().map(|child| members[child as usize]).collect();
    match bytes {
        Some(bytes) => {
            broadcast_down(fabric, &children, &bytes)?;
            Ok(bytes)
        }
        None => broadcast_through(fabric, members[parent as usize], &children, idle),
    }
}

/// The rank from which `rank` receives a broadcast of the first of `members`; itself if it is the first.
pub fn broadcast_source(rank: Rank, members: &[Rank]) -> Option<Rank> {
    let position = members.iter().position(|member| *member == rank)?;
    Some(members[tree_edges(position as u32, members.len() as u32).0 as usize])
}

/// The ranks to which `rank` forwards a broadcast of the first of `members`.
pub fn broadcast_targets(rank: Rank, members: &[Rank]) -> Vec<Rank> {
    let position = members.iter().position(|member| *member == rank);
    let targets = position.map(|position| tree_edges(position as u32, members.len() as u32).1).unwrap_or_default();
    targets.into_iter().map(|target| members[target as usize]).collect()
}

fn broadcast_down(fabric: &mut dyn Fabric, children: &[Rank], bytes: &Payload) -> Result<(), FabricError> {
    let header = Payload::from((bytes.len() as u64).to_le_bytes().to_vec());
    for fragment in std::iter::once(header).chain(fragments(bytes.len()).map(|range| bytes.slice(range))) {
        for &child in children {
            fabric.send(child, BROADCAST, fragment.clone())?;
        }
    }
    Ok(())
}

fn broadcast_through(
    fabric: &mut dyn Fabric,
    parent: Rank,
    children: &[Rank],
    idle: Idle<'_>,
) -> Result<Payload, FabricError> {
    let malformed = |expected| FabricError::Malformed { sender: parent, expected };
    let header = receive(fabric, parent, BROADCAST, idle)?.bytes;
    let length = header.as_slice().try_into().map(u64::from_le_bytes);
    let length = length.map_err(|_| malformed("the length of a broadcast"))?;
    for &child in children {
        fabric.send(child, BROADCAST, header.clone().into())?;
    }
    let no_memory = || FabricError::Memory { sender: parent, bytes: length };
    let length = usize::try_from(length).map_err(|_| no_memory())?;
    let mut whole = Vec::new();
    whole.try_reserve_exact(length).map_err(|_| no_memory())?;
    let mut held: VecDeque<Payload> = VecDeque::new();
    for range in fragments(length) {
        let fragment = receive(fabric, parent, BROADCAST, idle)?.bytes;
        if fragment.len() != range.len() {
            return Err(malformed("the next fragment of a broadcast"));
        }
        whole.extend_from_slice(&fragment);
        let fragment = Payload::from(fragment);
        for &child in children {
            fabric.send(child, BROADCAST, fragment.clone())?;
        }
        held.push_back(fragment);
        await_sends(fabric, &mut held, idle)?;
    }
    Ok(whole.into())
}

/// Waits until pending sends need at most [`MAX_HELD_FRAGMENTS`] fragments.
fn await_sends(fabric: &mut dyn Fabric, held: &mut VecDeque<Payload>, idle: Idle<'_>) -> Result<(), FabricError> {
    let mut backoff = Backoff::default();
    loop {
        while held.front().is_some_and(|fragment| !fragment.is_shared()) {
            held.pop_front();
        }
        if held.len() <= MAX_HELD_FRAGMENTS {
            return Ok(());
        }
        fabric.progress()?;
        idle(fabric)?;
        backoff.wait();
    }
}

fn fragments(length: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..length).step_by(FRAGMENT_BYTES);
    starts.map(move |start| start..length.min(start + FRAGMENT_BYTES))
}

/// Parent and children of a rank in the preorder binary tree over `0..size`: the owner of a range `first..end` is
/// `first`; its children own the two halves of the rest. The root is its own parent.
fn tree_edges(rank: u32, size: u32) -> (u32, Vec<u32>) {
    let (mut parent, mut first, mut end) = (0, 0, size);
    while first != rank {
        parent = first;
        let middle = first + 1 + (end - first - 1).div_ceil(2);
        (first, end) = if rank < middle { (first + 1, middle) } else { (middle, end) };
    }
    let middle = first + 1 + (end - first - 1).div_ceil(2);
    let halves = [first + 1..middle, middle..end];
    let children = halves.into_iter().filter(|half| !half.is_empty());
    (parent, children.map(|half| half.start).collect())
}

/// `root` gets the bytes of every rank, in rank order; the others get nothing. The bytes go straight to the root, which
/// would have to receive as many through any tree.
pub fn gather(
    fabric: &mut dyn Fabric,
    root: Rank,
    bytes: Vec<u8>,
    idle: Idle<'_>,
) -> Result<Option<Vec<Vec<u8>>>, FabricError> {
    let (rank, size) = (fabric.rank(), fabric.size());
    if rank != root {
        fabric.send(root, GATHER, bytes.into())?;
        return Ok(None);
    }
    let mut own = Some(bytes);
    let all = (0..size).map(|source| match own.take_if(|_| source == rank) {
        Some(own) => Ok(own),
        None => Ok(receive(fabric, source, GATHER, idle)?.bytes),
    });
    all.collect::<Result<_, _>>().map(Some)
}

/// Every rank gets the bytes of every rank, in rank order; lengths may differ. For descriptions, not for tensor data.
pub fn allgather(fabric: &mut dyn Fabric, bytes: Vec<u8>, idle: Idle<'_>) -> Result<Vec<Vec<u8>>, FabricError> {
    let gathered = gather(fabric, 0, bytes, idle)?;
    let framed = gathered.map(|all| frame(&all).into());
    let framed = broadcast(fabric, 0, framed, idle)?;
    unframe(&framed, fabric.size() as usize)
        .ok_or(FabricError::Malformed { sender: 0, expected: "the bytes of every rank" })
}

/// Every rank gets the numbers of all ranks, combined by `combine`, which folds another rank's numbers into its first
/// argument. All ranks pass equally many. The numbers go up the tree of [`broadcast`] and down again, so no rank
/// receives from more than two.
pub fn allreduce(
    fabric: &mut dyn Fabric,
    mut numbers: Vec<u64>,
    combine: impl Fn(&mut [u64], &[u64]),
    idle: Idle<'_>,
) -> Result<Vec<u64>, FabricError> {
    let (rank, count) = (fabric.rank(), numbers.len());
    let (parent, children) = tree_edges(rank, fabric.size());
    for child in children {
        let theirs = receive(fabric, child, REDUCE, idle)?.bytes;
        let malformed = FabricError::Malformed { sender: child, expected: "the numbers of its branch" };
        combine(&mut numbers, &decode(&theirs, count).ok_or(malformed)?);
    }
    let encoded = Payload::from(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>());
    let whole = if rank == 0 {
        Some(encoded)
    } else {
        fabric.send(parent, REDUCE, encoded)?;
        None
    };
    let whole = broadcast(fabric, 0, whole, idle)?;
    decode(&whole, count).ok_or(FabricError::Malformed { sender: 0, expected: "the numbers of all ranks" })
}

fn decode(bytes: &[u8], count: usize) -> Option<Vec<u64>> {
    let (words, rest) = bytes.as_chunks::<8>();
    let numbers: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    (rest.is_empty() && numbers.len() == count).then_some(numbers)
}

/// Encodes byte strings: all lengths, then all bytes.
fn frame(all: &[Vec<u8>]) -> Vec<u8> {
    let lengths = all.iter().flat_map(|bytes| (bytes.len() as u64).to_le_bytes());
    let mut framed: Vec<u8> = lengths.collect();
    framed.extend(all.iter().flatten());
    framed
}

fn unframe(framed: &[u8], count: usize) -> Option<Vec<Vec<u8>>> {
    let (lengths, mut rest) = framed.split_at_checked(count * 8)?;
    let mut all = Vec::with_capacity(count);
    for length in lengths.chunks_exact(8) {
        let length = u64::from_le_bytes(length.try_into().ok()?);
        let (bytes, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        all.push(bytes.to_vec());
        rest = after;
    }
    rest.is_empty().then_some(all)
}

/// Gathers every rank's [`Host`].
pub fn topology(fabric: &mut dyn Fabric, here: &Host, idle: Idle<'_>) -> Result<Topology, FabricError> {
    let mine = encode(here)?;
    let all = allgather(fabric, mine, idle)?;
    let hosts = (0..).zip(all).map(|(sender, text)| {
        serde_json::from_slice::<Host>(&text).map_err(|_| FabricError::Malformed {
            sender,
            expected: "the description of its host (are all ranks the same version of exuvia?)",
        })
    });
    Ok(Topology::new(hosts.collect::<Result<_, _>>()?))
}

/// Waits for one message.
fn receive(fabric: &mut dyn Fabric, source: Rank, tag: u32, idle: Idle<'_>) -> Result<Message, FabricError> {
    let mut backoff = Backoff::default();
    loop {
        if let Some(message) = fabric.poll_from(source, tag)? {
            return Ok(message);
        }
        idle(fabric)?;
        backoff.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::fabric::local::local;

    const SIZES: [u32; 5] = [1, 2, 3, 4, 7];

    /// Runs `body` as every rank of `size`, each on its thread.
    fn on_ranks<T: Send>(size: u32, body: impl Fn(&mut dyn Fabric) -> T + Sync) -> Vec<T> {
        let body = &body;
        thread::scope(|scope| {
            let run = |mut fabric: Box<dyn Fabric + Send>| scope.spawn(move || body(&mut *fabric));
            let threads: Vec<_> = local(size).into_iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn never() -> impl FnMut(&mut dyn Fabric) -> Result<(), FabricError> {
        |_: &mut dyn Fabric| Ok(())
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 4096) as u8).collect()
    }

    #[test]
    fn broadcast_reaches_all_from_any_root() {
        for size in SIZES {
            for root in 0..size {
                for length in [0, 1, FRAGMENT_BYTES, FRAGMENT_BYTES + 1] {
                    let expected = pattern(length);
                    let got = on_ranks(size, |fabric| {
                        let bytes = (fabric.rank() == root).then(|| expected.clone().into());
                        broadcast(fabric, root, bytes, &mut never()).unwrap().into_vec()
                    });
                    assert!(got.iter().all(|got| *got == expected), "{length} B from {root} of {size}");
                }
            }
        }
    }

    #[test]
    fn broadcast_of_many_fragments() {
        let expected = pattern(40 << 20);
        for (size, root) in [(1, 0), (2, 1), (3, 2), (4, 0), (7, 5)] {
            let got = on_ranks(size, |fabric| {
                let bytes = (fabric.rank() == root).then(|| expected.clone().into());
                let got = broadcast(fabric, root, bytes, &mut never()).unwrap();
                (*got == *expected, fabric.counters().bytes_received)
            });
            assert!(got.iter().all(|&(equal, _)| equal), "from {root} of {size}");
            let moved: u64 = got.iter().map(|&(_, received)| received).sum();
            assert_eq!(moved, u64::from(size - 1) * (expected.len() as u64 + 8));
        }
    }

    #[test]
    fn tree_edges_agree_on_both_ends_and_depth_is_logarithmic() {
        for size in 1..200 {
            let mut depths = vec![0; size as usize];
            for rank in 0..size {
                let (parent, children) = tree_edges(rank, size);
                for &child in &children {
                    assert_eq!(tree_edges(child, size).0, rank);
                    assert!(child > rank);
                    depths[child as usize] = depths[rank as usize] + 1;
                }
                if rank > 0 {
                    assert!(tree_edges(parent, size).1.contains(&rank), "{rank} of {size}");
                }
            }
            assert!(depths.iter().all(|&depth| depth <= size.ilog2()), "{size}: {depths:?}");
        }
    }

    #[test]
    fn allgather_of_different_lengths() {
        for size in SIZES {
            let expected: Vec<Vec<u8>> = (0..size).map(|rank| pattern(rank as usize * 100)).collect();
            let got = on_ranks(size, |fabric| {
                let mine = pattern(fabric.rank() as usize * 100);
                allgather(fabric, mine, &mut never()).unwrap()
            });
            assert!(got.iter().all(|got| *got == expected), "{size}");
        }
    }

    #[test]
    fn allreduce_combines_every_rank_once() {
        for size in SIZES {
            let add = |sum: &mut [u64], more: &[u64]| {
                sum[0] += more[0];
                sum[1] = sum[1].max(more[1]);
            };
            let got = on_ranks(size, |fabric| {
                let mine = vec![1 << (8 * fabric.rank()), u64::from(fabric.rank() * 3 % 7)];
                allreduce(fabric, mine, add, &mut never()).unwrap()
            });
            let sum = (0..size).map(|rank| 1 << (8 * rank)).sum();
            let largest = (0..size).map(|rank| u64::from(rank * 3 % 7)).max().unwrap();
            assert!(got.iter().all(|got| *got == [sum, largest]), "{size}: {got:?}");
        }
    }

    #[test]
    fn gather_gives_to_the_root_alone() {
        let got = on_ranks(3, |fabric| {
            let mine = vec![fabric.rank() as u8];
            gather(fabric, 1, mine, &mut never()).unwrap()
        });
        assert_eq!(got, [None, Some(vec![vec![0], vec![1], vec![2]]), None]);
    }

    #[test]
    fn no_rank_leaves_a_barrier_before_the_last_has_entered() {
        use std::sync::atomic::{AtomicU32, Ordering};
        for size in SIZES {
            let entered = AtomicU32::new(0);
            on_ranks(size, |fabric| {
                for round in 1..=20 {
                    entered.fetch_add(1, Ordering::SeqCst);
                    barrier(fabric, &mut never()).unwrap();
                    assert!(entered.load(Ordering::SeqCst) >= round * size);
                }
            });
        }
    }

    #[test]
    fn messages_and_collectives_never_meet() {
        for size in SIZES {
            on_ranks(size, |fabric| {
                let (rank, size) = (fabric.rank(), fabric.size());
                for i in 0..3u8 {
                    fabric.send((rank + 1) % size, 9, vec![i].into()).unwrap();
                    let all = allgather(fabric, vec![i], &mut never()).unwrap();
                    assert_eq!(all, vec![vec![i]; size as usize]);
                }
                barrier(fabric, &mut never()).unwrap();
                // A neighbour may be in this gather already: its message is not for `poll`.
                fabric.send(0, GATHER, vec![77].into()).unwrap();
                let mut kept = Vec::new();
                while kept.len() < 3 {
                    kept.extend(fabric.poll().unwrap().map(|message| message.bytes));
                }
                assert_eq!(kept, [[0], [1], [2]]);
                assert_eq!(fabric.poll().unwrap(), None);
            });
        }
    }

    #[test]
    fn idle_ends_a_wait() {
        let mut fabrics = local(2);
        let mut turns = 0;
        let mut idle = |_: &mut dyn Fabric| {
            turns += 1;
            if turns < 2000 { Ok(()) } else { Err(FabricError::Interrupted) }
        };
        let result = barrier(&mut *fabrics[0], &mut idle);
        assert!(matches!(result, Err(FabricError::Interrupted)));
    }

    #[test]
    fn a_wrong_message_is_an_error_and_not_a_panic() {
        let mut fabrics = local(2);
        fabrics[0].send(1, BROADCAST, vec![1, 2, 3].into()).unwrap();
        let result = broadcast(&mut *fabrics[1], 0, None, &mut never());
        assert!(matches!(result, Err(FabricError::Malformed { sender: 0, .. })));
        fabrics[0].send(1, BROADCAST, u64::MAX.to_le_bytes().to_vec().into()).unwrap();
        let result = broadcast(&mut *fabrics[1], 0, None, &mut never());
        assert!(matches!(result, Err(FabricError::Memory { sender: 0, .. })));
        assert!(unframe(&[0; 15], 2).is_none());
        assert!(unframe(&[255; 16], 2).is_none());
    }

    #[test]
    fn topology_is_the_same_on_every_rank() {
        let got = on_ranks(3, |fabric| topology(fabric, &crate::topology::host(), &mut never()).unwrap());
        assert!(got.iter().all(|topology| *topology == got[0]));
        assert_eq!((got[0].size(), got[0].node_count()), (3, 1));
    }
}
