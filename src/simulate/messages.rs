//! Messages between ranks: those of schedulers with the data attached to them, and parts of tensors.

use crate::sched::{Message, Span};
use crate::simulate::event::{SimEvent, TensorMessage};
use crate::simulate::random::{Draw, bits};
use crate::simulate::simulator::Simulator;

impl Simulator<'_> {
    pub fn send_message(&mut self, from: u32, to: u32, message: Message) {
        let (stage, _) = self.place(from);
        if !self.stages[stage].steals {
            // Without stealing, no rank needs to know when the others are done.
            return;
        }
        let bytes = self.attached_bytes(from, &message);
        let mut at_ns = self.network.send(self.now_ns, self.machine, from, to, bytes);
        self.count_moved(from, to, bytes);
        if self.machine.answer_ns > 0 && !self.ranks[to as usize].complete {
            self.sent += 1;
            at_ns += bits(self.setup.seed, Draw::Answer, self.sent, u64::from(to)) % self.machine.answer_ns;
        }
        let slot = self.messages.put((self.ranks[from as usize].run, from, message));
        self.at(at_ns, to, SimEvent::SchedulerMessage { slot });
    }

    pub fn send_tensor(&mut self, from: u32, to: u32, bytes: u64, message: TensorMessage) {
        let at_ns = self.network.send(self.now_ns, self.machine, from, to, bytes) + self.machine.message_ns;
        self.count_moved(from, to, bytes);
        let slot = self.tensor_messages.put((self.ranks[from as usize].run, message));
        self.at(at_ns, to, SimEvent::TensorMessage { slot });
    }

    fn count_moved(&mut self, from: u32, to: u32, bytes: u64) {
        let (stage, near) = (self.place(from).0, self.network.node(from) == self.network.node(to));
        let bytes = bytes * self.runs[self.ranks[from as usize].run].times;
        let times = &mut self.times[stage];
        if near {
            times.moved_on_node_bytes += bytes;
        } else {
            times.moved_between_nodes_bytes += bytes;
        }
    }

    /// The bytes that a real run attaches to a message.
    fn attached_bytes(&self, from: u32, message: &Message) -> u64 {
        let work = self.work(from);
        match message {
            Message::Grant { pieces, .. } => pieces
                .iter()
                .map(|piece| {
                    let form = work.of(piece.owner, piece.block);
                    match piece.len {
                        0 => form.memory_bytes,
                        _ => work.part(*piece, form.file_bytes + form.memory_bytes),
                    }
                })
                .sum(),
            Message::Returned { piece, .. } => work.part(*piece, work.of(piece.owner, piece.block).returned_bytes),
            _ => 0,
        }
    }

    pub fn count_stolen(&mut self, thief: u32, piece: Span) {
        let work = self.work(thief);
        let bytes = work.part(piece, work.of(piece.owner, piece.block).bytes);
        let near = self.network.node(thief) == self.network.node(piece.owner);
        let (stage, _) = self.place(thief);
        if near {
            self.times[stage].stolen_on_node_bytes += bytes;
        } else {
            self.times[stage].stolen_between_nodes_bytes += bytes;
        }
    }
}
