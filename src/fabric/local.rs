use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::abort::end_all_ranks;
use super::counters::Counters;
use super::interface::Fabric;
use super::limits::TAG_LIMIT;
use super::members::{Delivery, Members};
use super::message::{Message, check_send};
use crate::fabric::backoff::Backoff;
use crate::fabric::error::FabricError;
use crate::fabric::payload::Payload;
use crate::topology::Rank;

/// One rank alone, without MPI.
pub fn solo() -> Box<dyn Fabric> {
    let hub = Hub::new(1);
    Box::new(Local::new(hub, 0, true))
}

/// `size` ranks for as many threads of this process, in rank order. For tests, which run the same code as on MPI. A
/// rank that panics or aborts makes the calls of the others fail.
pub fn local(size: u32) -> Vec<Box<dyn Fabric + Send>> {
    let hub = Hub::new(size);
    let rank = |rank| Box::new(Local::new(Arc::clone(&hub), rank, false)) as Box<dyn Fabric + Send>;
    (0..size).map(rank).collect()
}

/// The state that the ranks share.
#[derive(Debug)]
struct Hub {
    inboxes: Vec<Mutex<VecDeque<Envelope>>>,
    /// The first rank that gave up, and its code.
    aborted: OnceLock<(Rank, i32)>,
    leaving: Mutex<u32>,
}

#[derive(Debug)]
struct Envelope {
    /// The sender's rank at the start.
    origin: Rank,
    wire_tag: u32,
    bytes: Payload,
}

impl Hub {
    fn new(size: u32) -> Arc<Hub> {
        Arc::new(Hub {
            inboxes: (0..size).map(|_| Mutex::default()).collect(),
            aborted: OnceLock::new(),
            leaving: Mutex::new(0),
        })
    }
}

/// Ignores poisoning: `Hub::aborted` reports a panic, and the queues are never left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Local {
    hub: Arc<Hub>,
    members: Members,
    counters: Counters,
    /// Whether an abort ends the process instead of the thread.
    owns_process: bool,
}

impl Local {
    const LEAVE_DEADLINE: Duration = Duration::from_secs(60);

    fn new(hub: Arc<Hub>, rank: Rank, owns_process: bool) -> Local {
        let members = Members::new(rank, hub.inboxes.len() as u32);
        Local { hub, members, counters: Counters::default(), owns_process }
    }

    fn check_alive(&self) -> Result<(), FabricError> {
        match self.hub.aborted.get() {
            Some(&(rank, code)) => Err(FabricError::Aborted { rank, code }),
            None => Ok(()),
        }
    }

    fn take(&mut self, wanted: impl Fn(&Envelope) -> bool) -> Result<Option<Message>, FabricError> {
        self.check_alive()?;
        let mut inbox = lock(&self.hub.inboxes[self.origin() as usize]);
        let judge = |envelope: &Envelope| self.members.delivery(envelope.origin, envelope.wire_tag);
        inbox.retain(|envelope| judge(envelope) != Delivery::Discard);
        let wanted = |envelope: &Envelope| judge(envelope) == Delivery::Accept && wanted(envelope);
        let envelope = inbox.iter().position(wanted).and_then(|i| inbox.remove(i));
        drop(inbox);
        Ok(envelope.map(|envelope| {
            self.counters.received(envelope.bytes.len());
            self.members.admit(envelope.origin, envelope.wire_tag, envelope.bytes.into_vec())
        }))
    }

    /// This rank's number at the start.
    fn origin(&self) -> Rank {
        self.members.origin(self.members.rank())
    }
}

impl Fabric for Local {
    fn rank(&self) -> Rank {
        self.members.rank()
    }

    fn size(&self) -> u32 {
        self.members.size()
    }

    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        check_send(self.size(), to, tag, bytes.len())?;
        self.check_alive()?;
        self.counters.sent(bytes.len());
        let envelope = Envelope { origin: self.origin(), wire_tag: self.members.wire_tag(tag), bytes };
        lock(&self.hub.inboxes[self.members.origin(to) as usize]).push_back(envelope);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Message>, FabricError> {
        self.take(|envelope| Members::tag_of(envelope.wire_tag) < TAG_LIMIT)
    }

    fn poll_from(&mut self, source: Rank, tag: u32) -> Result<Option<Message>, FabricError> {
        let (origin, wire_tag) = (self.members.origin(source), self.members.wire_tag(tag));
        self.take(|envelope| envelope.origin == origin && envelope.wire_tag == wire_tag)
    }

    fn progress(&mut self) -> Result<(), FabricError> {
        self.check_alive()
    }

    fn sends_pending(&self) -> usize {
        0
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn outlives_ranks(&self) -> bool {
        true
    }

    fn shrink(&mut self, survivors: &[Rank]) {
        self.members.shrink(survivors);
    }

    fn abort(&mut self, code: i32) -> ! {
        if self.owns_process {
            end_all_ranks(code);
        }
        self.hub.aborted.get_or_init(|| (self.origin(), code));
        // Unlike a panic, this does not run the panic hook: the thread ends without a message.
        resume_unwind(Box::new(FabricError::Aborted { rank: self.origin(), code }))
    }

    fn finalize(self: Box<Self>, _code: i32) -> Result<(), FabricError> {
        *lock(&self.hub.leaving) += 1;
        let started = Instant::now();
        let mut backoff = Backoff::default();
        while *lock(&self.hub.leaving) < self.size() {
            self.check_alive()?;
            if started.elapsed() > Local::LEAVE_DEADLINE {
                return Err(FabricError::Timeout {
                    what: "waiting for the other ranks to leave".to_owned(),
                    after: Local::LEAVE_DEADLINE,
                });
            }
            backoff.wait();
        }
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // No rank must wait for a failed one.
        if std::thread::panicking() {
            self.hub.aborted.get_or_init(|| (self.origin(), 101));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn receive(fabric: &mut dyn Fabric) -> Message {
        loop {
            if let Some(message) = fabric.poll().unwrap() {
                return message;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn order_holds_per_source_and_tag() {
        const COUNT: u32 = 2000;
        let mut fabrics = local(3).into_iter();
        let mut sink = fabrics.next().unwrap();
        thread::scope(|scope| {
            for mut fabric in fabrics {
                scope.spawn(move || {
                    for i in 0..COUNT {
                        let bytes = i.to_le_bytes().to_vec();
                        fabric.send(0, i % 2, bytes.into()).unwrap();
                    }
                });
            }
            let mut last = [[None; 2]; 3];
            for _ in 0..2 * COUNT {
                let message = receive(&mut *sink);
                let value = u32::from_le_bytes(message.bytes.try_into().unwrap());
                let last = &mut last[message.source as usize][message.tag as usize];
                assert!(last.is_none_or(|before| before + 2 == value), "{last:?} then {value}");
                *last = Some(value);
            }
            assert_eq!(last[1], [Some(COUNT - 2), Some(COUNT - 1)]);
        });
        assert_eq!(sink.counters().messages_received, u64::from(2 * COUNT));
        assert!(sink.poll().unwrap().is_none());
    }

    #[test]
    fn poll_from_leaves_the_rest_in_order() {
        let mut alone = solo();
        for (tag, byte) in [(1, 10), (2, 20), (1, 11)] {
            alone.send(0, tag, vec![byte].into()).unwrap();
        }
        assert_eq!(alone.poll_from(0, 2).unwrap().unwrap().bytes, [20]);
        assert!(alone.poll_from(0, 2).unwrap().is_none());
        assert_eq!(alone.poll().unwrap().unwrap().bytes, [10]);
        assert_eq!(alone.poll().unwrap().unwrap().bytes, [11]);
        assert!(alone.poll().unwrap().is_none());
        alone.finalize(0).unwrap();
    }

    #[test]
    fn survivors_continue_and_receive_no_messages_from_before_the_failure() {
        let mut fabrics = local(4);
        drop(fabrics.remove(1));
        let [zero, two, three] = &mut fabrics[..] else { panic!("three are left") };
        two.send(3, 5, vec![1].into()).unwrap();
        two.shrink(&[0, 2, 3]);
        assert_eq!((two.rank(), two.size()), (1, 3));
        two.send(2, 5, vec![2].into()).unwrap();
        two.send(0, crate::fabric::members::LASTING_TAG, vec![3].into()).unwrap();
        assert_eq!(zero.poll().unwrap().map(|message| (message.source, message.bytes)), Some((2, vec![3])));
        // From before the death, and not from after it.
        assert_eq!(receive(&mut **three).bytes, [1]);
        two.send(2, 6, vec![4].into()).unwrap();
        assert!(three.poll().unwrap().is_none());
        three.shrink(&[0, 2, 3]);
        zero.send(3, 5, vec![9].into()).unwrap();
        zero.shrink(&[0, 2, 3]);
        zero.send(2, 6, vec![5].into()).unwrap();
        let heard: Vec<_> = (0..3).map(|_| receive(&mut **three)).map(|m| (m.source, m.tag, m.bytes[0])).collect();
        assert_eq!(heard, [(1, 5, 2), (1, 6, 4), (0, 6, 5)]);
        assert!(three.poll().unwrap().is_none());
    }

    #[test]
    fn abort_ends_its_thread_and_poisons_the_others() {
        let mut fabrics = local(3);
        let mut aborter = fabrics.pop().unwrap();
        let ended = thread::spawn(move || aborter.abort(7)).join().unwrap_err();
        assert!(matches!(ended.downcast_ref(), Some(FabricError::Aborted { rank: 2, code: 7 })));
        for mut fabric in fabrics {
            assert!(matches!(fabric.poll(), Err(FabricError::Aborted { rank: 2, code: 7 })));
            assert!(fabric.send(0, 0, Vec::new().into()).is_err());
            assert!(fabric.finalize(0).is_err());
        }
    }

    #[test]
    fn a_panicking_rank_poisons_the_others() {
        let mut fabrics = local(2);
        let dying = fabrics.pop().unwrap();
        let thread = thread::spawn(move || {
            let _held = dying;
            resume_unwind(Box::new("as a panic would"));
        });
        assert!(thread.join().is_err());
        assert!(matches!(fabrics[0].poll(), Err(FabricError::Aborted { rank: 1, code: 101 })));
    }
}
