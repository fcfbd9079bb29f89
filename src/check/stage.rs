//! The check of one stage: samples, calls and comparisons.

use std::time::{Duration, Instant};

use crate::check::caller::{BoxInputs, CallFailure, Caller, FILLS, Merging, Way};
use crate::check::context::CheckContext;
use crate::check::cut::{SampleCut, cuts, samples};
use crate::check::error::{CheckError, chain};
use crate::check::finding::{CallSite, element, position_in, value, view};
use crate::check::locate::locate;
use crate::check::report::StageCheck;
use crate::check::report::{Finding, FindingKind};
use crate::check::tensors::Tensors;
use crate::engine::{Code, Tier, TilePlacement};
use crate::job::Combine;
use crate::plan::{StagePlan, Tile};
use crate::tensor::{Dtype, copy_region};

/// The minimum time for a stage.
const LEAST: Duration = Duration::from_millis(500);
/// The number of calls on whole samples that the time of a stage allows.
const CALLS: u32 = 60;

/// Why the check of a stage ends early.
enum StageStop {
    Finding(Box<Finding>),
    /// The check cannot continue.
    Error(CheckError),
}

impl From<CheckError> for StageStop {
    fn from(error: CheckError) -> StageStop {
        StageStop::Error(error)
    }
}

/// The results of a kernel, by output.
type CallResults = Vec<Vec<u8>>;

/// Checks all stages and updates the report.
pub(super) fn check_all(bench: &CheckContext) {
    let (begun, count) = (Instant::now(), bench.plan.stages.len());
    let mut tensors = Tensors::new(bench);
    bench.watch.write(|report| {
        let stages = bench.plan.stages.iter().zip(&bench.kernels);
        report.stages = stages
            .map(|(plan, compiled)| StageCheck {
                stage: plan.name.clone(),
                kernel: compiled.kernel.name().to_owned(),
                export: compiled.kernel.export().to_owned(),
                module_hash: compiled.kernel.hash().to_owned(),
                tiers: compiled.codes().iter().map(|code| code.tier().name()).collect(),
                notes: compiled
                    .optimized
                    .as_ref()
                    .err()
                    .map(|why| format!("checked on baseline code only: {why}"))
                    .into_iter()
                    .collect(),
                ..StageCheck::default()
            })
            .collect();
    });
    for index in 0..count {
        let left = bench.options.time.saturating_sub(begun.elapsed()) / (count - index) as u32;
        let share = left.max(LEAST);
        let mut check = StageChecker { bench, index, share, deadline: Instant::now() + share };
        tensors.begin_stage(check.deadline);
        let outcome = check.run(&mut tensors);
        bench.watch.write(|report| {
            let stage = &mut report.stages[index];
            stage.notes.append(&mut tensors.stand_ins);
            match outcome {
                Ok(()) => stage.passed = stage.samples > 0 && bench.kernels[index].optimized.is_ok(),
                Err(StageStop::Finding(finding)) => report.findings.push(*finding),
                Err(StageStop::Error(error)) => stage.notes.push(format!("not checked: {}", chain(&error))),
            }
        });
    }
}

/// The check of one stage.
struct StageChecker<'a> {
    bench: &'a CheckContext,
    index: usize,
    share: Duration,
    deadline: Instant,
}

/// The callers of one tier: tiles end, or begin, at an inaccessible page.
struct Pair<'a> {
    tier: Tier,
    code: &'a Code,
    ends: [Caller<'a>; 2],
}

impl<'a> StageChecker<'a> {
    fn plan(&self) -> &'a StagePlan {
        &self.bench.plan.stages[self.index]
    }

    fn call<'b>(&self, tile: &'b Tile, tier: Tier, merges: bool) -> CallSite<'b>
    where
        'a: 'b,
    {
        CallSite { bench: self.bench, stage: self.index, tile, tier, merges }
    }

    fn run(&mut self, tensors: &mut Tensors<'a>) -> Result<(), StageStop> {
        let plan = self.plan();
        let extents: Vec<u64> = (0..plan.split.len()).map(|axis| plan.extent(axis)).collect();
        if extents.contains(&0) {
            self.bench.watch.write(|report| report.stages[self.index].notes.push("it has no elements".to_owned()));
            return Ok(());
        }
        let size = self.grow(tensors, &extents)?;
        for sample in samples(&extents, &size) {
            let inputs = tensors.inputs(self.index, &sample)?;
            self.probe(&inputs)?;
            self.bench.watch.write(|report| report.stages[self.index].samples += 1);
            if Instant::now() > self.deadline {
                break;
            }
        }
        Ok(())
    }

    /// Chooses the largest sample on which calls are short.
    fn grow(&self, tensors: &mut Tensors<'a>, extents: &[u64]) -> Result<Vec<u64>, StageStop> {
        let code = &self.bench.kernels[self.index].baseline;
        let mut size = vec![1; extents.len()];
        loop {
            let sample = samples(extents, &size).swap_remove(0);
            let inputs = tensors.inputs(self.index, &sample)?;
            let begun = Instant::now();
            let mut caller = Caller::new(self.bench, self.index, code, Way::bordering(false), &sample);
            self.results(&mut caller, code.tier(), &inputs, &sample)?;
            // Grow along the axis with the smallest part.
            let part = |axis: &usize| size[*axis] as f64 / extents[*axis] as f64;
            let least = (0..size.len()).filter(|axis| size[*axis] < extents[*axis]);
            let Some(axis) = least.min_by(|a, b| part(a).total_cmp(&part(b))) else { break };
            let mut larger = size.clone();
            larger[axis] = (size[axis] * 2).min(extents[axis]);
            let bytes = self.plan().split_operand_bytes(&samples(extents, &larger).swap_remove(0));
            if bytes > self.bench.options.sample_bytes || begun.elapsed() * 2 > self.share / CALLS {
                break;
            }
            size = larger;
        }
        Ok(size)
    }

    /// Calls the kernel; a failure becomes a finding.
    fn results(
        &self,
        caller: &mut Caller<'_>,
        tier: Tier,
        inputs: &BoxInputs,
        tile: &Tile,
    ) -> Result<CallResults, StageStop> {
        caller.call(inputs, tile).map_err(|failure| match failure {
            CallFailure::Fault(fault) => {
                StageStop::Finding(Box::new(locate(self.call(tile, tier, false), inputs, &fault)))
            }
            CallFailure::Engine(source) => self.engine_error(source),
        })
    }

    fn engine_error(&self, source: crate::engine::EngineError) -> StageStop {
        let kernel = self.bench.kernels[self.index].kernel.name().to_owned();
        StageStop::Error(CheckError::Engine { kernel, stage: self.plan().name.clone(), source: Box::new(source) })
    }

    /// Checks one sample in all ways.
    fn probe(&self, inputs: &BoxInputs) -> Result<(), StageStop> {
        let whole = &inputs.cover;
        let codes = self.bench.kernels[self.index].codes();
        let pair = |code: &&'a Code| Pair {
            tier: code.tier(),
            code,
            ends: [false, true].map(|front| Caller::new(self.bench, self.index, code, Way::bordering(front), whole)),
        };
        let mut pairs: Vec<Pair<'a>> = codes.iter().map(pair).collect();
        let mut reference: Option<(Tier, CallResults)> = None;
        for Pair { tier, ends: [back, front], .. } in &mut pairs {
            let first = self.results(back, *tier, inputs, whole)?;
            let again = self.results(back, *tier, inputs, whole)?;
            let call = self.call(whole, *tier, false);
            if let Some((operand, index, [one, other])) = self.difference(whole, &first, &again) {
                let place = self.place(operand, whole, index);
                let named = self.named(operand, &place);
                let message = format!(
                    "{named} is {one} in one call and {other} in the next, on the same tile: the result depends on earlier calls"
                );
                return Err(found(call.finding(FindingKind::Stateful, Some(operand), Some(place), message)));
            }
            let otherwise = self.results(front, *tier, inputs, whole)?;
            self.compare_fills(call, &first, &otherwise)?;
            match &reference {
                None => reference = Some((*tier, first)),
                Some((other_tier, other)) => {
                    if let Some((operand, index, [one, two])) = self.difference(whole, other, &first) {
                        let place = self.place(operand, whole, index);
                        let named = self.named(operand, &place);
                        let (this, that) = (tier.name(), other_tier.name());
                        let message = format!("{named} is {one} on {that} and {two} on {this} code");
                        return Err(found(call.finding(
                            FindingKind::DependsOnTier,
                            Some(operand),
                            Some(place),
                            message,
                        )));
                    }
                }
            }
        }
        let Some((_, reference)) = reference else { return Ok(()) };
        for cut in cuts(whole) {
            for pair in &mut pairs {
                self.try_cut(inputs, &cut, pair, &reference)?;
                if Instant::now() > self.deadline {
                    return Ok(());
                }
            }
            self.bench.watch.write(|report| report.stages[self.index].cuts += 1);
        }
        Ok(())
    }

    /// Compares the results of one tile with different patterns in its outputs before the call.
    fn compare_fills(&self, call: CallSite<'_>, first: &CallResults, otherwise: &CallResults) -> Result<(), StageStop> {
        let left = |(one, other): (&u8, &u8)| [*one, *other] == FILLS;
        for (operand, (one, other)) in self.plan().outputs().zip(first.iter().zip(otherwise)) {
            if let Some(byte) = one.iter().zip(other).position(left) {
                let index = byte / self.plan().operands[operand].dtype.size_bytes();
                let place = self.place(operand, call.tile, index);
                let message = format!("the kernel does not write {}", self.named(operand, &place));
                return Err(found(call.finding(FindingKind::Unwritten, Some(operand), Some(place), message)));
            }
        }
        let Some((operand, index, [one, other])) = self.difference(call.tile, first, otherwise) else { return Ok(()) };
        let place = self.place(operand, call.tile, index);
        let message = format!(
            "{} is {one} or {other}, depending on what the output holds before the call, or on the placement of the tiles in memory",
            self.named(operand, &place)
        );
        Err(found(call.finding(FindingKind::ReadsWhatWasThere, Some(operand), Some(place), message)))
    }

    /// Computes a sample tile by tile and compares the result with that of one call.
    fn try_cut(
        &self,
        inputs: &BoxInputs,
        cut: &SampleCut,
        Pair { tier, code, ends }: &mut Pair<'_>,
        reference: &CallResults,
    ) -> Result<(), StageStop> {
        let (plan, whole) = (self.plan(), &inputs.cover);
        let first_reduced = plan.split.len() - plan.reduce.map_or(0, |reduce| reduce.axes);
        if cut.axes.iter().any(|axis| *axis >= first_reduced) {
            return self.try_partial(inputs, cut, (*tier, code), ends, reference);
        }
        for (number, tile) in cut.tiles.iter().enumerate() {
            let results = self.results(&mut ends[number % 2], *tier, inputs, tile)?;
            let expected = self.part(whole, reference, tile);
            if let Some((operand, index, [one, other])) = self.difference(tile, &expected, &results) {
                // The kernel may not write the element at all.
                let otherwise = self.results(&mut ends[(number + 1) % 2], *tier, inputs, tile)?;
                let call = self.call(tile, *tier, false);
                let (back, front) = if number % 2 == 0 { (&results, &otherwise) } else { (&otherwise, &results) };
                self.compare_fills(call, back, front)?;
                let place = self.place(operand, tile, index);
                let message = format!(
                    "{} is {one} in the task {} and {other} in {}: the result depends on how the tile is cut",
                    self.named(operand, &place),
                    plan.tile_name(whole),
                    plan.tile_name(tile)
                );
                return Err(found(call.finding(FindingKind::DependsOnCut, Some(operand), Some(place), message)));
            }
            if Instant::now() > self.deadline {
                break;
            }
        }
        Ok(())
    }

    /// Like `try_cut`, for partial results that are merged.
    fn try_partial(
        &self,
        inputs: &BoxInputs,
        cut: &SampleCut,
        (tier, code): (Tier, &Code),
        ends: &mut [Caller<'_>; 2],
        reference: &CallResults,
    ) -> Result<(), StageStop> {
        let (plan, whole) = (self.plan(), &inputs.cover);
        let first_reduced = plan.split.len() - plan.reduce.map_or(0, |reduce| reduce.axes);
        let cell = |tile: &Tile| (tile.0.offset[..first_reduced].to_vec(), tile.0.extent[..first_reduced].to_vec());
        let mut cells: Vec<&Tile> = Vec::new();
        for tile in &cut.tiles {
            if !cells.iter().any(|known| cell(known) == cell(tile)) {
                cells.push(tile);
            }
        }
        for first in cells {
            let pieces = cut.tiles.iter().filter(|tile| cell(tile) == cell(first));
            // The placement of tiles alternates between cells.
            for place in [TilePlacement::Back(0), TilePlacement::Front(0)] {
                let Some(mut merging) = Merging::new(self.bench, self.index, code, place) else { return Ok(()) };
                let (mut sum, mut magnitude) = (None::<CallResults>, Vec::new());
                for (number, tile) in pieces.clone().enumerate() {
                    let results = self.results(&mut ends[number % 2], tier, inputs, tile)?;
                    self.add_magnitude(&mut magnitude, &results);
                    match &mut sum {
                        None => sum = Some(results),
                        Some(sum) => merging.merge(sum, results, tile).map_err(|failure| match failure {
                            CallFailure::Fault(fault) => found(self.call(tile, tier, true).fault(&fault)),
                            CallFailure::Engine(source) => self.engine_error(source),
                        })?,
                    }
                    if Instant::now() > self.deadline {
                        return Ok(());
                    }
                }
                let (Some(sum), expected) = (sum, self.part(whole, reference, first)) else { continue };
                if let Some((operand, index, [one, other])) = self.far_apart(&expected, &sum, &magnitude) {
                    let place = self.place(operand, first, index);
                    let message = format!(
                        "{} is {one} for {} in one call, and {other} if the partial results of its parts are merged",
                        self.named(operand, &place),
                        plan.tile_name(whole)
                    );
                    let call = self.call(first, tier, self.bench.kernels[self.index].merge.is_some());
                    return Err(found(call.finding(FindingKind::DependsOnCut, Some(operand), Some(place), message)));
                }
                if self.bench.kernels[self.index].merge.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Adds up the absolute values of partial results, element by element.
    fn add_magnitude(&self, magnitude: &mut Vec<Vec<f64>>, results: &CallResults) {
        for (at, (operand, bytes)) in self.plan().outputs().zip(results).enumerate() {
            let dtype = self.plan().operands[operand].dtype;
            let values =
                bytes.chunks_exact(dtype.size_bytes()).map(|element| dtype.to_f64(element).unwrap_or(0.0).abs());
            match magnitude.get_mut(at) {
                None => magnitude.push(values.collect()),
                Some(sums) => sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            }
        }
    }

    /// Returns the first element that differs by more than rounding.
    fn far_apart(
        &self,
        one: &CallResults,
        other: &CallResults,
        magnitude: &[Vec<f64>],
    ) -> Option<(usize, usize, [String; 2])> {
        let combine = self.plan().reduce.map(|reduce| reduce.combine);
        for (at, operand) in self.plan().outputs().enumerate() {
            let dtype = self.plan().operands[operand].dtype;
            let tolerance = match (dtype, combine) {
                (Dtype::F32, _) => 1e-3,
                (Dtype::F64, _) => 1e-8,
                _ => 0.0,
            };
            // A merge may cancel large numbers, so the tolerance is relative to the sum of magnitudes.
            let most = magnitude.get(at).map_or(0.0, |values| values.iter().copied().fold(0.0, f64::max));
            let near = |index: usize, a: &[u8], b: &[u8]| {
                let (Some(a), Some(b), false) = (dtype.to_f64(a), dtype.to_f64(b), dtype.is_integer()) else {
                    return a == b;
                };
                let own = magnitude.get(at).and_then(|values| values.get(index)).copied().unwrap_or(0.0);
                let scale = if combine == Some(Combine::Kernel) { most } else { own.max(a.abs()) };
                a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * scale
            };
            let size = dtype.size_bytes();
            let mut pairs = one[at].chunks_exact(size).zip(other[at].chunks_exact(size)).enumerate();
            if let Some((index, (a, b))) = pairs.find(|(index, (a, b))| !near(*index, a, b)) {
                return Some((operand, index, [value(dtype, a), value(dtype, b)]));
            }
        }
        None
    }

    /// Extracts the results for `tile` from those of `whole`.
    fn part(&self, whole: &Tile, results: &CallResults, tile: &Tile) -> CallResults {
        let part = |(operand, bytes): (usize, &Vec<u8>)| {
            let (from, to) = (self.plan().region(operand, whole), self.plan().region(operand, tile));
            let size = self.plan().operands[operand].dtype.size_bytes();
            let mut target = vec![0; to.elements() as usize * size];
            copy_region(bytes, &from, &mut target, &to, &to, size);
            target
        };
        self.plan().outputs().zip(results).map(part).collect()
    }

    /// Returns the first element that differs in any bit: its operand, its index and both values.
    fn difference(&self, tile: &Tile, one: &CallResults, other: &CallResults) -> Option<(usize, usize, [String; 2])> {
        self.plan().outputs().zip(one.iter().zip(other)).find_map(|(operand, (one, other))| {
            let dtype = view(self.plan(), operand, tile).dtype;
            let size = dtype.size_bytes();
            let mut pairs = one.chunks_exact(size).zip(other.chunks_exact(size));
            let index = pairs.position(|(one, other)| one != other)?;
            let shown = |bytes: &[u8]| value(dtype, &bytes[index * size..(index + 1) * size]);
            Some((operand, index, [shown(one), shown(other)]))
        })
    }

    fn place(&self, operand: usize, tile: &Tile, index: usize) -> Vec<i64> {
        position_in(&self.plan().region(operand, tile), index as u64)
    }

    fn named(&self, operand: usize, place: &[i64]) -> String {
        element(&self.plan().operands[operand].tensor, place)
    }
}

fn found(finding: Finding) -> StageStop {
    StageStop::Finding(Box::new(finding))
}
