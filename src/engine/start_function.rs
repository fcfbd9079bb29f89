//! The functions of a module that run once, when an instance is made.

use super::module_rewrite::START;

/// A function of a module that runs once, when an instance is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartFunction {
    /// The function of the start section.
    Start,
    /// The export `_initialize`, by which libraries set themselves up.
    Initialize,
}

impl StartFunction {
    pub(super) fn export(self) -> &'static str {
        match self {
            StartFunction::Start => START,
            StartFunction::Initialize => "_initialize",
        }
    }
}

impl std::fmt::Display for StartFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StartFunction::Start => "start function",
            StartFunction::Initialize => "function '_initialize'",
        })
    }
}
