//! The check of one stage: samples, calls and comparisons.

use std::time::{Duration, Instant};

use super::caller::{BoxInputs, Caller, FILLS, Failure, Merging, Way};
use super::cut::{Cut, cuts, samples};
use super::finding::{Call, Finding, Kind, element, position_in, value, view};
use super::locate::locate;
use super::tensors::Tensors;
use super::{Bench, CheckError, StageReport};
use crate::engine::{Code, Tier, TilePlacement};
use crate::job::Combine;
use crate::plan::{StagePlan, Tile};
use crate::tensor::{Dtype, copy_region};

/// A stage has at least so much, whatever those before it took.
const LEAST: Duration = Duration::from_millis(500);
/// One call on a whole sample takes no more of the time of its stage than one part in so many.
const CALLS: u32 = 60;

/// Why the check of a stage ends early.
enum Stop {
    Finding(Box<Finding>),
    /// It cannot go on.
    Error(CheckError),
}

impl From<CheckError> for Stop {
    fn from(error: CheckError) -> Stop {
        Stop::Error(error)
    }
}

/// What a kernel computes, by output.
type Results = Vec<Vec<u8>>;

/// Checks all stages, and writes what comes of it into the report as it comes.
pub(super) fn check_all(bench: &Bench) {
    let (begun, count) = (Instant::now(), bench.plan.stages.len());
    let mut tensors = Tensors::new(bench);
    bench.watch.write(|report| {
        let stages = bench.plan.stages.iter().zip(&bench.kernels);
        report.stages = stages
            .map(|(plan, compiled)| StageReport {
                stage: plan.name.clone(),
                kernel: compiled.kernel.name().to_owned(),
                export: compiled.kernel.export().to_owned(),
                module_hash: compiled.kernel.hash().to_owned(),
                tiers: compiled.codes().iter().map(|code| code.tier().name()).collect(),
                notes: compiled
                    .optimized
                    .as_ref()
                    .err()
                    .map(|why| format!("on baseline code only: {why}"))
                    .into_iter()
                    .collect(),
                ..StageReport::default()
            })
            .collect();
    });
    for index in 0..count {
        let left = bench.options.time.saturating_sub(begun.elapsed()) / (count - index) as u32;
        let share = left.max(LEAST);
        let mut check = Check { bench, index, share, deadline: Instant::now() + share };
        tensors.begin_stage(check.deadline);
        let outcome = check.run(&mut tensors);
        bench.watch.write(|report| {
            let stage = &mut report.stages[index];
            stage.notes.append(&mut tensors.stand_ins);
            match outcome {
                Ok(()) => stage.passed = stage.samples > 0 && bench.kernels[index].optimized.is_ok(),
                Err(Stop::Finding(finding)) => report.findings.push(*finding),
                Err(Stop::Error(error)) => stage.notes.push(format!("not checked: {}", super::chain(&error))),
            }
        });
    }
}

/// The check of one stage.
struct Check<'a> {
    bench: &'a Bench,
    index: usize,
    share: Duration,
    deadline: Instant,
}

/// Callers of one tier, by which end of its pages a tile borders on.
struct Pair<'a> {
    tier: Tier,
    code: &'a Code,
    ends: [Caller<'a>; 2],
}

impl<'a> Check<'a> {
    fn plan(&self) -> &'a StagePlan {
        &self.bench.plan.stages[self.index]
    }

    fn call<'b>(&self, tile: &'b Tile, tier: Tier, merges: bool) -> Call<'b>
    where
        'a: 'b,
    {
        Call { bench: self.bench, stage: self.index, tile, tier, merges }
    }

    fn run(&mut self, tensors: &mut Tensors<'a>) -> Result<(), Stop> {
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

    /// How large samples can be, for calls on them to be short.
    fn grow(&self, tensors: &mut Tensors<'a>, extents: &[u64]) -> Result<Vec<u64>, Stop> {
        let code = &self.bench.kernels[self.index].baseline;
        let mut size = vec![1; extents.len()];
        loop {
            let sample = samples(extents, &size).swap_remove(0);
            let inputs = tensors.inputs(self.index, &sample)?;
            let begun = Instant::now();
            let mut caller = Caller::new(self.bench, self.index, code, Way::bordering(false), &sample);
            self.results(&mut caller, code.tier(), &inputs, &sample)?;
            // The axis of which there is the least.
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

    /// A call, and what is wrong if it fails.
    fn results(&self, caller: &mut Caller<'_>, tier: Tier, inputs: &BoxInputs, tile: &Tile) -> Result<Results, Stop> {
        caller.call(inputs, tile).map_err(|failure| match failure {
            Failure::Fault(fault) => Stop::Finding(Box::new(locate(self.call(tile, tier, false), inputs, &fault))),
            Failure::Engine(source) => self.engine_error(source),
        })
    }

    fn engine_error(&self, source: crate::engine::EngineError) -> Stop {
        let kernel = self.bench.kernels[self.index].kernel.name().to_owned();
        Stop::Error(CheckError::Engine { kernel, stage: self.plan().name.clone(), source: Box::new(source) })
    }

    /// All that is tried on one sample.
    fn probe(&self, inputs: &BoxInputs) -> Result<(), Stop> {
        let whole = &inputs.cover;
        let codes = self.bench.kernels[self.index].codes();
        let pair = |code: &&'a Code| Pair {
            tier: code.tier(),
            code,
            ends: [false, true].map(|front| Caller::new(self.bench, self.index, code, Way::bordering(front), whole)),
        };
        let mut pairs: Vec<Pair<'a>> = codes.iter().map(pair).collect();
        let mut reference: Option<(Tier, Results)> = None;
        for Pair { tier, ends: [back, front], .. } in &mut pairs {
            let first = self.results(back, *tier, inputs, whole)?;
            let again = self.results(back, *tier, inputs, whole)?;
            let call = self.call(whole, *tier, false);
            if let Some((operand, index, [one, other])) = self.difference(whole, &first, &again) {
                let place = self.place(operand, whole, index);
                let named = self.named(operand, &place);
                let message = format!(
                    "{named} is {one} in one call and {other} in the next, on the same tile: it depends on earlier calls"
                );
                return Err(found(call.finding(Kind::Stateful, Some(operand), Some(place), message)));
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
                        return Err(found(call.finding(Kind::DependsOnTier, Some(operand), Some(place), message)));
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

    /// Results of one tile whose outputs held one pattern before and the other.
    fn compare_fills(&self, call: Call<'_>, first: &Results, otherwise: &Results) -> Result<(), Stop> {
        let left = |(one, other): (&u8, &u8)| [*one, *other] == FILLS;
        for (operand, (one, other)) in self.plan().outputs().zip(first.iter().zip(otherwise)) {
            if let Some(byte) = one.iter().zip(other).position(left) {
                let index = byte / self.plan().operands[operand].dtype.size_bytes();
                let place = self.place(operand, call.tile, index);
                let message = format!("{} is not written", self.named(operand, &place));
                return Err(found(call.finding(Kind::Unwritten, Some(operand), Some(place), message)));
            }
        }
        let Some((operand, index, [one, other])) = self.difference(call.tile, first, otherwise) else { return Ok(()) };
        let place = self.place(operand, call.tile, index);
        let message = format!(
            "{} is {one} or {other}, as the output holds one thing or another before the call, or the tiles lie here or there",
            self.named(operand, &place)
        );
        Err(found(call.finding(Kind::ReadsWhatWasThere, Some(operand), Some(place), message)))
    }

    /// Computes a sample piece by piece and compares that with what was computed at once.
    fn try_cut(
        &self,
        inputs: &BoxInputs,
        cut: &Cut,
        Pair { tier, code, ends }: &mut Pair<'_>,
        reference: &Results,
    ) -> Result<(), Stop> {
        let (plan, whole) = (self.plan(), &inputs.cover);
        let first_reduced = plan.split.len() - plan.reduce.map_or(0, |reduce| reduce.axes);
        if cut.axes.iter().any(|axis| *axis >= first_reduced) {
            return self.try_partial(inputs, cut, (*tier, code), ends, reference);
        }
        for (number, tile) in cut.tiles.iter().enumerate() {
            let results = self.results(&mut ends[number % 2], *tier, inputs, tile)?;
            let expected = self.part(whole, reference, tile);
            if let Some((operand, index, [one, other])) = self.difference(tile, &expected, &results) {
                // It may be that it is not written.
                let otherwise = self.results(&mut ends[(number + 1) % 2], *tier, inputs, tile)?;
                let call = self.call(tile, *tier, false);
                let (back, front) = if number % 2 == 0 { (&results, &otherwise) } else { (&otherwise, &results) };
                self.compare_fills(call, back, front)?;
                let place = self.place(operand, tile, index);
                let message = format!(
                    "{} is {one} in the task {} and {other} in {}: it depends on how the tile is cut",
                    self.named(operand, &place),
                    plan.tile_name(whole),
                    plan.tile_name(tile)
                );
                return Err(found(call.finding(Kind::DependsOnCut, Some(operand), Some(place), message)));
            }
            if Instant::now() > self.deadline {
                break;
            }
        }
        Ok(())
    }

    /// The same where the pieces have partial results, which are merged.
    fn try_partial(
        &self,
        inputs: &BoxInputs,
        cut: &Cut,
        (tier, code): (Tier, &Code),
        ends: &mut [Caller<'_>; 2],
        reference: &Results,
    ) -> Result<(), Stop> {
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
            // Each merging kernel has its tiles at one end, those of the next cell at the other.
            for place in [TilePlacement::Back(0), TilePlacement::Front(0)] {
                let Some(mut merging) = Merging::new(self.bench, self.index, code, place) else { return Ok(()) };
                let (mut sum, mut magnitude) = (None::<Results>, Vec::new());
                for (number, tile) in pieces.clone().enumerate() {
                    let results = self.results(&mut ends[number % 2], tier, inputs, tile)?;
                    self.add_magnitude(&mut magnitude, &results);
                    match &mut sum {
                        None => sum = Some(results),
                        Some(sum) => merging.merge(sum, results, tile).map_err(|failure| match failure {
                            Failure::Fault(fault) => found(self.call(tile, tier, true).fault(&fault)),
                            Failure::Engine(source) => self.engine_error(source),
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
                        "{} is {one} of all of {} at once, and {other} of the partial results of its pieces, merged",
                        self.named(operand, &place),
                        plan.tile_name(whole)
                    );
                    let call = self.call(first, tier, self.bench.kernels[self.index].merge.is_some());
                    return Err(found(call.finding(Kind::DependsOnCut, Some(operand), Some(place), message)));
                }
                if self.bench.kernels[self.index].merge.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Adds up the absolute values of partial results, element by element.
    fn add_magnitude(&self, magnitude: &mut Vec<Vec<f64>>, results: &Results) {
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

    /// The first element of two results that is not the same, but for rounding.
    fn far_apart(&self, one: &Results, other: &Results, magnitude: &[Vec<f64>]) -> Option<(usize, usize, [String; 2])> {
        let combine = self.plan().reduce.map(|reduce| reduce.combine);
        for (at, operand) in self.plan().outputs().enumerate() {
            let dtype = self.plan().operands[operand].dtype;
            let tolerance = match (dtype, combine) {
                (Dtype::F32, _) => 1e-3,
                (Dtype::F64, _) => 1e-8,
                _ => 0.0,
            };
            // A kernel that merges may make a small number from large ones, but none of its outputs is larger than all.
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

    /// What `results` of `whole` are for `tile` in it.
    fn part(&self, whole: &Tile, results: &Results, tile: &Tile) -> Results {
        let part = |(operand, bytes): (usize, &Vec<u8>)| {
            let (from, to) = (self.plan().region(operand, whole), self.plan().region(operand, tile));
            let size = self.plan().operands[operand].dtype.size_bytes();
            let mut target = vec![0; to.elements() as usize * size];
            copy_region(bytes, &from, &mut target, &to, &to, size);
            target
        };
        self.plan().outputs().zip(results).map(part).collect()
    }

    /// The first element in which two results for `tile` differ in any bit: its operand, its number there, both values.
    fn difference(&self, tile: &Tile, one: &Results, other: &Results) -> Option<(usize, usize, [String; 2])> {
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

fn found(finding: Finding) -> Stop {
    Stop::Finding(Box::new(finding))
}
