//! Slices in memory that nobody has started.

use std::collections::VecDeque;

use crate::sched::span::Span;

/// Unstarted slices of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub span: Span,
    /// How long another rank took for one of these slices on one worker; 0: not known.
    pub ns_per_slice: u64,
}

/// Runs of the own blocks, and stolen ones. Stolen ones go first: their owners wait for them, and nobody can steal them
/// again.
#[derive(Debug, Default)]
pub(super) struct Ready {
    own: VecDeque<Run>,
    stolen: VecDeque<Run>,
    own_slices: u64,
    stolen_slices: u64,
}

impl Ready {
    pub fn push_own(&mut self, span: Span) {
        self.own_slices += span.len;
        self.own.push_back(Run { span, ns_per_slice: 0 });
    }

    pub fn push_stolen(&mut self, span: Span, ns_per_slice: u64) {
        self.stolen_slices += span.len;
        self.stolen.push_back(Run { span, ns_per_slice });
    }

    pub fn own_slices(&self) -> u64 {
        self.own_slices
    }

    pub fn slices(&self) -> u64 {
        self.own_slices + self.stolen_slices
    }

    /// What comes next.
    pub fn first(&self) -> Option<&Run> {
        self.stolen.front().or_else(|| self.own.front())
    }

    /// Takes up to `slices` from what comes next.
    pub fn start(&mut self, slices: u64) -> Option<Span> {
        let (queue, left) = match self.stolen.is_empty() {
            true => (&mut self.own, &mut self.own_slices),
            false => (&mut self.stolen, &mut self.stolen_slices),
        };
        let run = &mut queue.front_mut()?.span;
        let span = Span { len: slices.min(run.len), ..*run };
        (run.start, run.len) = (run.start + span.len, run.len - span.len);
        if run.len == 0 {
            queue.pop_front();
        }
        *left -= span.len;
        Some(span)
    }

    /// Takes up to `slices` of an own block from what would come last.
    pub fn lend(&mut self, slices: u64) -> Option<Span> {
        let run = &mut self.own.back_mut()?.span;
        let len = slices.min(run.len);
        run.len -= len;
        let span = Span { start: run.start + run.len, len, ..*run };
        if run.len == 0 {
            self.own.pop_back();
        }
        self.own_slices -= len;
        Some(span)
    }
}
