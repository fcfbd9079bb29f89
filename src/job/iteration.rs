//! The iterated stages of a job and the condition that ends them.

use std::ops::Range;

/// Stages that run again and again.
#[derive(Clone, Debug)]
pub struct Iterate {
    /// Positions of the stages.
    pub stages: Range<usize>,
    /// At most so many iterations; at least 1.
    pub count: u64,
    /// After an iteration in which this holds there is no other.
    pub until: Option<Condition>,
    /// Pairs of tensors that change places between two iterations: what one iteration wrote as the second, the next
    /// reads as the first.
    pub exchange: Vec<Exchange>,
}

/// A pair of tensors that change places.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub read: String,
    pub written: String,
    pub(crate) span: Range<usize>,
}

/// `tensor < bound`, of a scalar tensor.
#[derive(Clone, Debug)]
pub struct Condition {
    pub tensor: String,
    pub relation: Relation,
    pub bound: f64,
    pub(crate) span: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Condition {
    /// Whether it holds for this value of the tensor; never for a NaN.
    pub fn holds(&self, value: f64) -> bool {
        match self.relation {
            Relation::Less => value < self.bound,
            Relation::LessOrEqual => value <= self.bound,
            Relation::Greater => value > self.bound,
            Relation::GreaterOrEqual => value >= self.bound,
        }
    }
}
