//! What a rank's main thread does beside talking: it brings blocks in and out, one after the other.

use crate::sched::{Event, Span};
use crate::simulate::network::time;
use crate::simulate::simulator::{SimEvent, Simulator};

/// What a rank's main thread does, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) enum MainThreadJob {
    /// All that comes with a run of a stage, whatever its size.
    Begin,
    Fetch {
        block: u64,
    },
    Take {
        piece: Span,
    },
    Write {
        block: u64,
    },
    /// Leaves a barrier.
    Leave,
}

impl Simulator<'_> {
    pub fn add_chore(&mut self, rank: u32, chore: MainThreadJob) {
        let chores = &mut self.ranks[rank as usize].chores;
        chores.push_back(chore);
        if chores.len() == 1 {
            self.begin_chore(rank);
        }
    }

    /// Begins the first of the chores that wait: first what it reads or writes, then what it computes.
    pub fn begin_chore(&mut self, rank: u32) {
        let Some(chore) = self.ranks[rank as usize].chores.front().copied() else { return };
        let (machine, (stage, parity)) = (self.machine, self.place(rank));
        let work = &self.stages[stage].work[parity];
        let bytes = match chore {
            MainThreadJob::Begin => {
                let first = self.runs[self.ranks[rank as usize].run].first;
                self.stages[stage].preludes[usize::from(!first)][parity].read_bytes[rank as usize]
            }
            MainThreadJob::Fetch { block } => work.of(rank, block).file_bytes,
            // What was in its owner's memory came with the grant.
            MainThreadJob::Take { piece } => work.of(piece.owner, piece.block).file_bytes,
            MainThreadJob::Write { block } => work.of(rank, block).output_bytes,
            MainThreadJob::Leave => 0,
        };
        let is_write = matches!(chore, MainThreadJob::Write { .. });
        let ns_per_byte = if is_write { machine.write_ns_per_byte } else { machine.read_ns_per_byte };
        let wait_ns = if matches!(chore, MainThreadJob::Begin) { work.wait_ns } else { 0 };
        let at_ns = wait_ns + self.links.file(self.now_ns, machine, rank, bytes, ns_per_byte);
        if self.cores.is_some() && self.chore_ns(rank) > 0 {
            self.at(at_ns, rank, SimEvent::Moved);
        } else {
            let ns = self.chore_ns(rank);
            self.at(at_ns + ns, rank, SimEvent::ChoreDone);
        }
    }

    /// Time of the main thread for the first chore, beside reading and writing.
    pub fn chore_ns(&self, rank: u32) -> u64 {
        let Some(chore) = self.ranks[rank as usize].chores.front() else { return 0 };
        let (machine, (stage, parity)) = (self.machine, self.place(rank));
        let world = &self.stages[stage];
        let work = &world.work[parity];
        match chore {
            MainThreadJob::Begin => {
                let prelude = self.prelude(rank);
                let sent = prelude.sends[rank as usize].len() as u64;
                let messages = sent + u64::from(prelude.awaits[rank as usize]) + prelude.broadcasts.len() as u64;
                work.main_ns(rank, machine.stage_ns + messages * machine.message_ns)
            }
            MainThreadJob::Fetch { block } => {
                let form = work.of(rank, *block);
                work.main_ns(rank, form.copy_ns) + time(form.memory_bytes, machine.memory_ns_per_byte)
            }
            MainThreadJob::Take { .. } | MainThreadJob::Write { .. } => 0,
            MainThreadJob::Leave => {
                let rounds = u64::from(u32::BITS - (self.plan.machine.ranks - 1).leading_zeros());
                work.main_ns(rank, 2 * rounds * machine.message_ns)
            }
        }
    }

    pub fn chore_done(&mut self, rank: u32) {
        let done = self.ranks[rank as usize].chores.pop_front();
        self.begin_chore(rank);
        match done {
            Some(MainThreadJob::Begin) => self.begun(rank),
            Some(MainThreadJob::Fetch { block }) => {
                let slices = self.work(rank).of(rank, block).slices;
                self.tell(rank, Event::Fetched { block, slices });
            }
            Some(MainThreadJob::Take { piece }) => self.taken(rank, piece),
            Some(MainThreadJob::Write { block }) => self.tell(rank, Event::Written { block }),
            Some(MainThreadJob::Leave) => self.leave(rank),
            None => {}
        }
    }
}
