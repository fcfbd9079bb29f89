//! The keys `reduce` and `whole` of a stage, and which of its indices tasks get ranges of.
//!
//! That follows from the job file alone: neither extents nor ranks decide whether an index may be cut.

use super::table::{Table, Value};
use crate::job::definition::Stage;
use crate::job::error::JobError;
use crate::job::notation::{Notation, Operand};
use crate::text::suggest;
use serde::{Serialize, Serializer};
use std::fmt;

/// What tasks get of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// Ranges of it; outputs have it.
    Split,
    /// Ranges of it, for which they compute partial results.
    Reduced,
    /// Its full extent.
    Whole,
}

/// Why. Displays as half a sentence about the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    InEveryOutput,
    InSomeOutputs,
    NamedWhole,
    NoCombine,
    NamedReduced,
    NotNamedReduced,
    /// What `combine` must mean, since there is no other.
    OnlyCandidate,
    /// There are several candidates and no `reduce`.
    Undecided,
    /// It may be reduced, but it is cheaper to cut others.
    OthersAreCut,
    /// It may be reduced, but there is nothing to cut.
    OneElement,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::InEveryOutput => "every output has it",
            Why::InSomeOutputs => "some outputs have it and others do not",
            Why::NamedWhole => "'whole' names it",
            Why::NoCombine => "no output has it, and there is no 'combine'",
            Why::NamedReduced => "'reduce' names it",
            Why::NotNamedReduced => "no output has it, and 'reduce' does not name it",
            Why::OnlyCandidate => "'combine' can mean no other index",
            Why::Undecided => "no output has it, nor others, and there is no 'reduce' to say which may be cut",
            Why::OthersAreCut => "'reduce' names it, but it is cheaper to cut others",
            Why::OneElement => "its extent is at most 1",
        })
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Stage {
    /// What may be done with `index`, and why.
    pub fn cut(&self, index: &str) -> (Cut, Why) {
        let outputs = &self.compute.outputs;
        let having = outputs.iter().filter(|output| output.dim_of(index).is_some()).count();
        let is_in = |names: &[String]| names.iter().any(|name| name == index);
        match &self.reduce {
            _ if is_in(&self.whole) => (Cut::Whole, Why::NamedWhole),
            _ if having == outputs.len() => (Cut::Split, Why::InEveryOutput),
            _ if having > 0 => (Cut::Whole, Why::InSomeOutputs),
            _ if self.combine.is_none() => (Cut::Whole, Why::NoCombine),
            Some(names) if is_in(names) => (Cut::Reduced, Why::NamedReduced),
            Some(_) => (Cut::Whole, Why::NotNamedReduced),
            None if candidates(&self.compute, &self.whole).len() == 1 => (Cut::Reduced, Why::OnlyCandidate),
            // A table beside the data, or rows that the kernel needs as wholes: nobody but the author knows.
            None => (Cut::Whole, Why::Undecided),
        }
    }
}

/// The indices that a reduction could cut: those that inputs have and no output, less the whole ones.
fn candidates<'a>(compute: &'a Notation, whole: &[String]) -> Vec<&'a str> {
    let has = |operands: &[Operand], name: &str| operands.iter().any(|operand| operand.dim_of(name).is_some());
    let mut names: Vec<&str> = Vec::new();
    for name in compute.inputs.iter().flat_map(|input| &input.indices).map(|index| index.name.as_str()) {
        if !names.contains(&name) && !has(&compute.outputs, name) && !whole.iter().any(|one| one == name) {
            names.push(name);
        }
    }
    names
}

/// `reduce` and `whole`, checked against the stage's notation and each other.
pub(super) fn read(
    table: &Table<'_>,
    stage: &str,
    compute: &Notation,
) -> Result<(Option<Vec<String>>, Vec<String>), JobError> {
    let mut whole = Vec::new();
    if let Some(value) = table.get("whole") {
        let operands = compute.inputs.iter().chain(&compute.outputs);
        let known: Vec<&str> = operands.flat_map(|operand| &operand.indices).map(|i| i.name.as_str()).collect();
        for item in names(&value)? {
            let name = item.string()?;
            if !known.contains(&name) {
                return Err(unknown(table, stage, &item, name, known));
            }
            whole.push(name.to_owned());
        }
    }
    let candidates = candidates(compute, &whole);
    if let Some(combine) = table.get("combine").filter(|_| candidates.is_empty()) {
        let conflict = match whole.is_empty() {
            true => "'combine' needs an index that no output has: there is nothing to combine",
            false => {
                "'combine' needs an index that no output has and 'whole' does not name: there is nothing to combine"
            }
        };
        return Err(JobError::Conflict {
            at: table.document.at(combine.key_span),
            table: table.name.clone(),
            conflict: conflict.to_owned(),
        });
    }
    let Some(value) = table.get("reduce") else { return Ok((None, whole)) };
    if table.get("combine").is_none() {
        return Err(JobError::Conflict {
            at: table.document.at_with(value.key_span.clone(), Some("such as: combine = \"sum\"".to_owned())),
            table: table.name.clone(),
            conflict: "'reduce' needs 'combine', which says how partial results become one".to_owned(),
        });
    }
    let mut reduce = Vec::new();
    for item in names(&value)? {
        let name = item.string()?;
        if let Some(output) = compute.outputs.iter().find(|output| output.dim_of(name).is_some()) {
            let help = suggest(name, candidates.iter().copied(), "indices that no output has");
            return Err(item.bad(format!("output {output} has '{name}', so that nothing is reduced over it"), help));
        }
        if whole.iter().any(|one| one == name) {
            return Err(item.bad(format!("'whole' names '{name}' too"), Some("remove it from one of them".to_owned())));
        }
        if !candidates.contains(&name) {
            return Err(unknown(table, stage, &item, name, candidates));
        }
        reduce.push(name.to_owned());
    }
    Ok((Some(reduce), whole))
}

/// The items of an array of indices: at least one, none twice.
fn names<'a>(value: &Value<'a>) -> Result<Vec<Value<'a>>, JobError> {
    let items = value.items("an array of indices, such as [\"k\"]")?;
    if items.is_empty() {
        return Err(value.bad("must name at least one index", Some("leave the key out for none".to_owned())));
    }
    let mut seen: Vec<&str> = Vec::new();
    for item in &items {
        let name = item.string()?;
        if seen.contains(&name) {
            return Err(item.bad(format!("'{name}' is there twice"), None));
        }
        seen.push(name);
    }
    Ok(items)
}

fn unknown(table: &Table<'_>, stage: &str, item: &Value<'_>, name: &str, mut known: Vec<&str>) -> JobError {
    known.sort_unstable();
    known.dedup();
    let label = if item.key == "reduce" { "indices that no output has" } else { "its indices" };
    JobError::UnknownIndex {
        at: table.document.at_with(item.span.clone(), suggest(name, known, label)),
        stage: stage.to_owned(),
        index: name.to_owned(),
    }
}
