//! The report of a check.

use serde::Serialize;

use crate::engine::Tier;

/// The result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    pub schema: u32,
    pub job: String,
    pub stages: Vec<StageCheck>,
    pub findings: Vec<Finding>,
}

/// The check of one stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageCheck {
    pub stage: String,
    pub kernel: String,
    pub export: String,
    /// The hash of the module.
    pub module_hash: String,
    /// The numbers of samples, of cuts of the samples and of kernel calls.
    pub samples: u64,
    pub cuts: u64,
    pub tasks: u64,
    pub tiers: Vec<&'static str>,
    /// Parts that could not be checked.
    pub notes: Vec<String>,
    /// Whether the stage was checked wholly and without findings.
    pub passed: bool,
}

/// An error of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub stage: String,
    pub kernel: String,
    pub export: String,
    /// The task of the call: `step@y=0..4,x=0..7`.
    pub task: String,
    pub tier: Tier,
    pub kind: FindingKind,
    /// The tensor concerned.
    pub operand: Option<String>,
    /// The first element concerned, as a position in the whole tensor, possibly outside it.
    pub position: Option<Vec<i64>>,
    pub message: String,
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A write outside an operand's tile.
    WritesOutside,
    ReadsOutside,
    WritesInput,
    /// An access to memory that is far from any operand.
    TouchesElsewhere,
    Unwritten,
    /// A result that depends on the previous contents of the output or of memory outside the tiles.
    ReadsWhatWasThere,
    /// A result that depends on earlier calls.
    Stateful,
    DependsOnCut,
    DependsOnTier,
    /// The kernel returns an error status.
    Status,
    Trap,
    TimeLimit,
    MemoryLimit,
}
