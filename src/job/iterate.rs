//! The table `[iterate]`: which stages are repeated, how often, and what is fed back.

use super::table::Value;
use crate::job::definition::{Job, Source, Stage};
use crate::job::error::JobError;
use crate::job::iteration::{Condition, Exchange, Iterate, Relation};
use std::ops::Range;

pub(super) fn read(value: &Value<'_>, stages: &[Stage]) -> Result<Iterate, JobError> {
    let table = value.table("[iterate]".to_owned())?;
    table.only(&["stages", "count", "until", "exchange"])?;
    let count = table.require("count", "100")?;
    let number = count.count()?;
    if number == 0 {
        return Err(count.bad("at least 1 iteration", None));
    }
    let mut iterate = Iterate { stages: 0..stages.len(), count: number, until: None, exchange: Vec::new() };
    if let Some(names) = table.get("stages") {
        iterate.stages = range(&names, stages)?;
    }
    if let Some(until) = table.get("until") {
        iterate.until = Some(condition(&until)?);
    }
    if let Some(pairs) = table.get("exchange") {
        for pair in pairs.items("an array of pairs, such as [[\"u\", \"v\"]]")? {
            let names = pair.items("a pair of tensors, such as [\"u\", \"v\"]")?;
            let [read, written] = names.as_slice() else {
                return Err(pair.bad("two tensors change places", Some("[\"read\", \"written\"]".to_owned())));
            };
            let (read, written) = (read.string()?.to_owned(), written.string()?.to_owned());
            iterate.exchange.push(Exchange { read, written, span: pair.span.clone() });
        }
    }
    Ok(iterate)
}

/// Positions of the stages of these names, which follow each other.
fn range(names: &Value<'_>, stages: &[Stage]) -> Result<Range<usize>, JobError> {
    let mut range: Option<Range<usize>> = None;
    for name in names.items("an array of names of stages")? {
        let text = name.string()?;
        let Some(position) = stages.iter().position(|stage| stage.name == text) else {
            let known = stages.iter().map(|stage| stage.name.as_str());
            return Err(name.bad(format!("there is no stage '{text}'"), crate::text::suggest(text, known, "stages")));
        };
        range = match range {
            None => Some(position..position + 1),
            Some(range) if range.end == position => Some(range.start..position + 1),
            Some(range) => {
                let help = stages
                    .get(range.end)
                    .map(|next| format!("after '{}' comes '{}'", stages[range.end - 1].name, next.name));
                return Err(name.bad("the stages of an iteration follow each other in the job".to_owned(), help));
            }
        };
    }
    range.ok_or_else(|| names.bad("must name at least one stage", None))
}

fn condition(value: &Value<'_>) -> Result<Condition, JobError> {
    let text = value.string()?;
    let help = || Some("a scalar tensor and a number, as in \"residual < 1e-6\"".to_owned());
    let relations = [
        ("<=", Relation::LessOrEqual),
        (">=", Relation::GreaterOrEqual),
        ("<", Relation::Less),
        (">", Relation::Greater),
    ];
    let split = relations.iter().find_map(|(sign, relation)| text.split_once(sign).map(|(a, b)| (a, *relation, b)));
    let Some((tensor, relation, bound)) = split else {
        return Err(value.bad(format!("'{text}' is no condition"), help()));
    };
    let Some(bound) = bound.trim().parse::<f64>().ok().filter(|bound| !bound.is_nan()) else {
        return Err(value.bad(format!("'{}' is no number", bound.trim()), help()));
    };
    Ok(Condition { tensor: tensor.trim().to_owned(), relation, bound, span: value.span.clone() })
}

/// What must hold between the table and the stages.
pub(super) fn check(job: &Job) -> Result<(), JobError> {
    let Some(iterate) = &job.iterate else { return Ok(()) };
    let stages = &job.stages[iterate.stages.clone()];
    let writes =
        |tensor: &str| stages.iter().flat_map(|stage| &stage.compute.outputs).find(|output| output.tensor == tensor);
    let wrong = |span: &Range<usize>, reason: String, help: Option<String>| JobError::BadIteration {
        at: job.excerpt(span.clone(), help),
        reason,
    };
    if let Some(until) = &iterate.until {
        match writes(&until.tensor) {
            None => {
                let reason = format!("no iterated stage writes tensor '{}', so it never changes", until.tensor);
                return Err(wrong(&until.span, reason, None));
            }
            Some(output) if !output.indices.is_empty() => {
                let help = format!("reduce it to a scalar: ... -> {}[]", until.tensor);
                return Err(wrong(&until.span, format!("{output} is no scalar"), Some(help)));
            }
            Some(_) => {}
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for Exchange { read, written, span } in &iterate.exchange {
        if seen.contains(&read.as_str()) || seen.contains(&written.as_str()) || read == written {
            return Err(wrong(span, "a tensor changes places with one other only".to_owned(), None));
        }
        seen.extend([read.as_str(), written.as_str()]);
        if writes(written).is_none() {
            let help =
                writes(read).map(|_| format!("the tensor that is read comes first: [\"{written}\", \"{read}\"]"));
            return Err(wrong(span, format!("no iterated stage writes tensor '{written}'"), help));
        }
        if writes(read).is_some() {
            let reason = format!("tensor '{read}' is written in each iteration: what it gets back would be lost");
            return Err(wrong(span, reason, None));
        }
        if !job.tensors.contains_key(read) {
            return Err(wrong(span, format!("tensor '{read}' is not declared"), None));
        }
        if matches!(job.tensors.get(read).map(|decl| &decl.source), Some(Source::Create { .. })) {
            let reason = format!("'{read}' is to be created, and would be what the last iteration but one wrote");
            return Err(wrong(span, reason, Some("make it scratch, or an existing dataset".to_owned())));
        }
    }
    Ok(())
}
