//! The jobs of a rank's main thread: it fetches and writes blocks, one after the other.

use crate::sched::Event;
use crate::simulate::event::SimEvent;
use crate::simulate::network::time;
use crate::simulate::rank_state::MainThreadJob;
use crate::simulate::simulator::Simulator;

impl Simulator<'_> {
    /// Appends a job, and begins it if no other waits.
    pub fn add_main_thread_job(&mut self, rank: u32, job: MainThreadJob) {
        let main_thread_jobs = &mut self.ranks[rank as usize].main_thread_jobs;
        main_thread_jobs.push_back(job);
        if main_thread_jobs.len() == 1 {
            self.begin_main_thread_job(rank);
        }
    }

    /// Begins the first waiting job: it reads or writes first, and computes then.
    pub fn begin_main_thread_job(&mut self, rank: u32) {
        let Some(job) = self.ranks[rank as usize].main_thread_jobs.front().copied() else { return };
        let (machine, (stage, parity)) = (self.machine, self.place(rank));
        let work = &self.stages[stage].work[parity];
        let bytes = match job {
            MainThreadJob::BeginRun => {
                let first = self.runs[self.ranks[rank as usize].run].first;
                self.stages[stage].preludes[usize::from(!first)][parity].read_bytes[rank as usize]
            }
            MainThreadJob::Fetch { block } => work.of(rank, block).file_bytes,
            // The part in the owner's memory came with the grant.
            MainThreadJob::Take { span } => work.of(span.owner, span.block).file_bytes,
            MainThreadJob::Write { block } => work.of(rank, block).output_bytes,
            MainThreadJob::LeaveBarrier => 0,
        };
        let is_write = matches!(job, MainThreadJob::Write { .. });
        let ns_per_byte = if is_write { machine.write_ns_per_byte } else { machine.read_ns_per_byte };
        let wait_ns = if matches!(job, MainThreadJob::BeginRun) { work.wait_ns } else { 0 };
        let at_ns = wait_ns + self.network.file(self.now_ns, machine, rank, bytes, ns_per_byte);
        if self.cores.is_some() && self.main_thread_job_ns(rank) > 0 {
            self.at(at_ns, rank, SimEvent::BytesMoved);
        } else {
            let ns = self.main_thread_job_ns(rank);
            self.at(at_ns + ns, rank, SimEvent::MainThreadJobDone);
        }
    }

    /// Time that the first job computes.
    pub fn main_thread_job_ns(&self, rank: u32) -> u64 {
        let Some(job) = self.ranks[rank as usize].main_thread_jobs.front() else { return 0 };
        let (machine, (stage, parity)) = (self.machine, self.place(rank));
        let model = &self.stages[stage];
        let work = &model.work[parity];
        match job {
            MainThreadJob::BeginRun => {
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
            MainThreadJob::LeaveBarrier => {
                let rounds = u64::from(u32::BITS - (self.plan.machine.ranks - 1).leading_zeros());
                work.main_ns(rank, 2 * rounds * machine.message_ns)
            }
        }
    }

    /// The first job is done.
    pub fn on_main_thread_job_done(&mut self, rank: u32) {
        let done = self.ranks[rank as usize].main_thread_jobs.pop_front();
        self.begin_main_thread_job(rank);
        match done {
            Some(MainThreadJob::BeginRun) => self.on_run_started(rank),
            Some(MainThreadJob::Fetch { block }) => {
                let slices = self.work(rank).of(rank, block).slices;
                self.notify_scheduler(rank, Event::Fetched { block, slices });
            }
            Some(MainThreadJob::Take { span }) => self.on_span_taken(rank, span),
            Some(MainThreadJob::Write { block }) => self.notify_scheduler(rank, Event::Written { block }),
            Some(MainThreadJob::LeaveBarrier) => self.leave_run(rank),
            None => {}
        }
    }
}
