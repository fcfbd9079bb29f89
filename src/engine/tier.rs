//! The two tiers of compiled code.

/// Which of the two kinds of code runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Compiled in milliseconds, for the start of a run.
    Baseline,
    /// Compiled by LLVM in the background.
    Optimized,
}

impl Tier {
    /// `baseline` or `optimized`.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Baseline => "baseline",
            Tier::Optimized => "optimized",
        }
    }
}
