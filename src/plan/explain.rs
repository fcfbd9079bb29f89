//! Explains a plan in sentences: the reason for the cut of each stage, the bytes that move, and the distance from the
//! minimum.

use super::error::iec;
use crate::job::Cut;
use crate::plan::model::{Distribution, OperandPlan, Origin, Plan, Role, StageKind, StagePlan};
use crate::tensor::Boundary;

/// The properties of an operand that [`explain`] uses: its bytes, whether each axis cuts it, and its halo along each
/// axis.
struct Traffic {
    bytes: f64,
    cut: Vec<bool>,
    /// The width of the halo divided by the extent, per axis.
    halo: Vec<f64>,
    output: bool,
    /// Whether there is a border between the last part and the first.
    periodic: bool,
}

/// Returns an explanation for the user, with one paragraph per stage.
pub fn explain(plan: &Plan) -> String {
    let paragraphs = plan.stages.iter().map(|stage| paragraph(stage, plan.machine.ranks));
    paragraphs.collect::<Vec<_>>().join("\n")
}

fn paragraph(stage: &StagePlan, ranks: u32) -> String {
    let mut sentences = vec![cut(stage, ranks)];
    sentences.extend(indices(stage));
    let resident: Vec<&str> = tensors(stage, |o| o.role == Role::Input && o.resident);
    if !resident.is_empty() {
        sentences.push(format!("{} come from the memory of the ranks that made them.", resident.join(", ")));
    }
    let broadcast = tensors(stage, |o| o.distribution == Distribution::Broadcast && o.is_stored());
    if !broadcast.is_empty() && ranks > 1 {
        let on_node = tensors(stage, OperandPlan::is_on_node);
        let shared = match on_node.is_empty() {
            true => String::new(),
            false => format!("; the ranks of a node share one copy of {}", on_node.join(", ")),
        };
        sentences.push(format!("Every rank gets all of {}, which no split index cuts{shared}.", broadcast.join(", ")));
    }
    sentences.extend(moved(stage));
    if let Some((parts, bytes)) = stage.process_grid.as_ref().and_then(|grid| grid.next.as_ref()) {
        let chosen = stage.process_grid.as_ref().map_or(1, |grid| grid.bytes).max(1);
        let times = *bytes as f64 / chosen as f64;
        sentences.push(format!(
            "The next best grid, {}, costs its worst rank {times:.2} times as much.",
            grid(stage, parts)
        ));
    }
    sentences.push(format!(
        "It is worked on in {} blocks of at most {}; they are cut into tasks while running, by measured time.",
        stage.block_count,
        stage.extents_text(&stage.block)
    ));
    sentences.extend(stage.notes.iter().map(|note| format!("Note: {note}.")));
    format!("{}\n  {}\n", stage.name, sentences.join("\n  "))
}

/// Describes the part of each index that a task gets, and the reason.
fn indices(stage: &StagePlan) -> Option<String> {
    let cut = |cut| match cut {
        Cut::Split => "split",
        Cut::Reduced => "reduced",
        Cut::Whole => "whole",
    };
    let each = stage.indices.iter().map(|index| format!("{} is {} ({})", index.name, cut(index.cut), index.why));
    let list = each.collect::<Vec<_>>().join("; ");
    (!list.is_empty()).then(|| format!("Indices: {list}."))
}

/// Describes the division of the stage among the ranks, and the reason.
fn cut(stage: &StagePlan, ranks: u32) -> String {
    let of = match stage.split.is_empty() {
        true => return "It is one task, on rank 0: no index is split or reduced.".to_owned(),
        false => stage.axis_names().join(", "),
    };
    let Some(chosen) = &stage.process_grid else {
        return format!("{ranks} ranks share {of} evenly, in consecutive units: nothing ties one task to another.");
    };
    let why = match stage.kind {
        StageKind::Halo => {
            let haloed = tensors(stage, |o| o.halo.iter().any(|width| *width > 0));
            format!("since {} must be read with its neighbours, and boxes have the least surface", haloed.join(", "))
        }
        StageKind::Reduce => {
            let combine = stage.reduce.map(|reduce| format!("{:?}", reduce.combine).to_lowercase()).unwrap_or_default();
            let names = stage.indices.iter().filter(|index| index.cut == Cut::Reduced).map(|index| index.name.as_str());
            let names: Vec<&str> = names.collect();
            format!("reducing {} ({combine}); parts of it pass their partial results on", names.join(", "))
        }
        StageKind::Map => "as the stage before left its inputs".to_owned(),
    };
    format!("Ranks divide it into boxes, {}, {why}.", grid(stage, &chosen.parts))
}

fn grid(stage: &StagePlan, parts: &[u64]) -> String {
    let names = stage.axis_names();
    let order = stage.process_grid.iter().flat_map(|grid| &grid.order);
    order.map(|axis| format!("{} along {}", parts[*axis], names[*axis])).collect::<Vec<_>>().join(" x ")
}

fn tensors(stage: &StagePlan, which: impl Fn(&OperandPlan) -> bool) -> Vec<&str> {
    stage.operands.iter().filter(|operand| which(operand)).map(|operand| operand.tensor.as_str()).collect()
}

/// Compares the bytes that move with the bytes that must move.
fn moved(stage: &StagePlan) -> Option<String> {
    if stage.ranks == 1 {
        return None;
    }
    let what = format!("{} move between ranks", iec(stage.bytes.moved));
    let least = stage.least_moved_bytes(1);
    Some(match (stage.bytes.moved, least) {
        (0, _) => "Nothing moves between ranks.".to_owned(),
        (moved, least) if least >= 1.0 => {
            format!("{what}, {:.2} times the least that any grid of as many boxes could.", moved as f64 / least)
        }
        _ => format!("{what}; with its inputs elsewhere, nothing would have to."),
    })
}

impl StagePlan {
    /// Returns the least bytes that could move between ranks if the stage runs `runs` times. If it has a process grid,
    /// the minimum is over all grids with the same number of boxes. It assumes that every extent is divisible and that
    /// every input is where it is needed, or is read once. Operands that an axis does not cut go to all parts along it
    /// (outputs come back from them). Halos cross every border.
    pub fn least_moved_bytes(&self, runs: u64) -> f64 {
        let broadcast = |o: &&OperandPlan| o.distribution == Distribution::Broadcast && o.is_stored();
        let copies = |o: &OperandPlan| u64::from(if o.is_on_node() { self.nodes() } else { self.ranks } - 1);
        let everywhere = self.operands.iter().filter(broadcast);
        let everywhere = everywhere.map(|o| o.bytes().saturating_mul(copies(o)).saturating_mul(o.transfers(runs)));
        let fixed = everywhere.fold(0u64, u64::saturating_add) as f64;
        let Some(grid) = &self.process_grid else { return fixed };
        let traffic = self.traffic(runs);
        let mut least = f64::INFINITY;
        factorizations(grid.parts.iter().product(), &mut vec![1; grid.parts.len()], 0, &mut |parts| {
            least = least.min(traffic.iter().map(|one| one.bytes(parts)).sum());
        });
        fixed + least
    }

    fn traffic(&self, runs: u64) -> Vec<Traffic> {
        let reduced = self.reduce.as_ref().map_or(0, |reduce| reduce.axes);
        let moves = |operand: &&OperandPlan| match operand.role {
            Role::Input => operand.distribution == Distribution::Split && operand.is_stored(),
            Role::Output => reduced > 0,
        };
        let one = |operand: &OperandPlan| {
            let dim = |axis: usize| operand.dims.iter().position(|index| *index == self.split[axis]);
            let halo = |axis: usize| dim(axis).map_or(0.0, |d| operand.halo[d] as f64 / operand.shape[d].max(1) as f64);
            let axes = 0..self.split.len();
            Traffic {
                bytes: operand.bytes().saturating_mul(operand.transfers(runs)) as f64,
                cut: axes.clone().map(|axis| dim(axis).is_some()).collect(),
                halo: axes.map(halo).collect(),
                output: operand.role == Role::Output,
                periodic: self.boundary == Some(Boundary::Periodic),
            }
        };
        self.operands.iter().filter(moves).map(one).collect()
    }
}

impl OperandPlan {
    /// Returns the number of times that the operand moves if the stage runs `runs` times. A tensor that no stage makes
    /// need not move twice. A resident input that comes from a file the first time moves only after that.
    fn transfers(&self, runs: u64) -> u64 {
        match (self.resident, self.role, self.origin) {
            (true, Role::Input, Origin::File | Origin::Inline) => runs.saturating_sub(1).max(1),
            (true, ..) | (_, Role::Output, _) => runs,
            _ => 1,
        }
    }
}

impl Traffic {
    /// Returns the bytes that move when each axis is cut into `parts`.
    fn bytes(&self, parts: &[u64]) -> f64 {
        let axes = || 0..parts.len();
        let copies: f64 = axes().filter(|axis| !self.cut[*axis]).map(|axis| parts[axis] as f64).product();
        // Corners are included, since the notation asks for all neighbours. A ring has one border more than a row.
        // Around an axis that is not cut, a rank finds its neighbours in its own memory.
        let borders = |axis: usize| if self.periodic { parts[axis] } else { parts[axis] - 1 };
        let padded = |axis: usize| 1.0 + 2.0 * self.halo[axis] * borders(axis) as f64;
        let own: f64 = axes().filter(|axis| parts[*axis] == 1).map(padded).product();
        let halos = if self.output { 0.0 } else { axes().map(padded).product::<f64>() - own };
        self.bytes * (copies - 1.0 + copies * halos)
    }
}

/// Visits all ways to write `number` as a product over the axes from `axis` on.
fn factorizations(number: u64, parts: &mut Vec<u64>, axis: usize, see: &mut impl FnMut(&[u64])) {
    if axis + 1 >= parts.len() {
        parts[axis] = number;
        return see(parts);
    }
    for factor in (1..=number).filter(|factor| number.is_multiple_of(*factor)) {
        parts[axis] = factor;
        factorizations(number / factor, parts, axis + 1, see);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::super::tests::{job, layout, layouts};
    use super::*;
    use crate::plan::model::Machine;
    use crate::tensor::Dtype;

    fn planned(compute: &str, more: &str, shapes: &[(&'static str, &[u64])], ranks: u32) -> Plan {
        let tensors = shapes.iter().map(|(name, _)| format!("{name} = {{ file = \"i.h5\", dataset = \"{name}\" }}\n"));
        let text = format!(
            "[tensors]\n{}o = {{ create = \"o.h5\", dataset = \"o\", dtype = \"f64\" }}\n[[stages]]\nname = \"s\"\n\
             kernel = \"k\"\ncompute = \"{compute}\"\n{more}\n",
            tensors.collect::<String>()
        );
        let given = shapes.iter().map(|(name, shape)| (*name, layout(Dtype::F64, shape, None)));
        let machine = Machine { ranks, ranks_per_node: ranks, threads: 1, memory_bytes: 1 << 40 };
        plan(&job(&text), &layouts(given), &machine).unwrap()
    }

    #[test]
    fn products_move_little_more_than_the_least() {
        let (n, elements) = (4096u64, (4096u64 * 4096) as f64);
        let shapes: [(&str, &[u64]); 2] = [("a", &[n, n]), ("b", &[n, n])];
        for ranks in [2, 3, 4, 8, 16, 64, 256, 1024, 4096] {
            let plan = planned("a[m,k], b[k,n] -> o[m,n]", "combine = \"sum\"", &shapes, ranks);
            let (moved, least) = (plan.stages[0].bytes.moved as f64, plan.stages[0].least_moved_bytes(1));
            assert!(moved <= 1.10 * least && moved >= 0.95 * least, "{ranks} ranks: {moved} over {least}");
            // Irony, Toledo and Tiskin (2004): no rank computes its part of n^3 products with fewer operands and
            // results.
            let touched = 3.0 * (elements * n as f64 / f64::from(ranks)).powf(2.0 / 3.0) * 8.0 * f64::from(ranks);
            let own = 3.0 * elements * 8.0;
            // The ratio is 1.156 on 3 ranks, which allow no better grid than 3 x 1 x 1.
            assert!(moved + own <= 1.16 * touched, "{ranks} ranks: {} over {touched}", moved + own);
        }
    }

    #[test]
    fn halos_move_little_more_than_the_least() {
        for ranks in [2, 3, 4, 8, 16, 64, 512, 4096] {
            for (compute, shape) in
                [("a[y~1,x~1] -> o[y,x]", &[3000, 3000][..]), ("a[z~1,y~1,x~1] -> o[z,y,x]", &[240, 240, 240])]
            {
                let plan = planned(compute, "boundary = \"clamp\"", &[("a", shape)], ranks);
                let stage = &plan.stages[0];
                let own: u64 = stage.operands[0].bytes();
                let moved = stage.bytes.read as f64 - own as f64;
                let least = stage.least_moved_bytes(1);
                assert!(moved <= 1.10 * least && moved >= 0.9 * least, "{ranks} ranks: {moved} over {least}");
            }
        }
    }

    #[test]
    fn only_what_a_stage_makes_moves_again() {
        let shapes: [(&str, &[u64]); 2] = [("a", &[1000, 1000]), ("b", &[1000, 1000])];
        let sum = "combine = \"sum\"";
        let product = planned("a[m,k], b[k,n] -> o[m,n]", sum, &shapes, 4);
        // Inputs are read from files and stay. Partial results move in every run.
        assert!(product.stages[0].least_moved_bytes(10) < 2.0 * product.stages[0].least_moved_bytes(1));
        let both = "combine = \"sum\"\nreduce = [\"m\", \"k\"]";
        let total = planned("a[m,k] -> o[]", both, &shapes[..1], 4);
        assert_eq!([1, 10].map(|runs| total.stages[0].least_moved_bytes(runs)), [3.0 * 8.0, 30.0 * 8.0]);
        let more = "boundary = \"clamp\"\n[iterate]\ncount = 10\nexchange = [[\"a\", \"o\"]]";
        let halo = planned("a[y~1,x~1] -> o[y,x]", more, &shapes[..1], 4);
        let stage = &halo.stages[0];
        assert!(stage.operands[0].resident);
        // The first run reads its neighbours' data from the file.
        assert_eq!(stage.least_moved_bytes(10), 9.0 * stage.least_moved_bytes(1));
    }

    #[test]
    fn sentences_say_what_and_why() {
        let shapes: [(&str, &[u64]); 1] = [("a", &[1000, 1000])];
        let plan = planned("a[y~1,x~1] -> o[y,x]", "boundary = \"clamp\"", &shapes, 4);
        let text = explain(&plan);
        for words in ["2 along y x 2 along x", "neighbours", "next best grid", "blocks of at most"] {
            assert!(text.contains(words), "no '{words}' in {text}");
        }
        let rows = explain(&planned("a[y,x] -> o[y,x]", "whole = [\"x\"]", &shapes, 4));
        assert!(rows.contains("Indices: y is split (every output has it); x is whole ('whole' names it)."), "{rows}");
        let map = explain(&planned("a[y,x] -> o[y,x]", "", &shapes, 4));
        assert!(map.contains("4 ranks share y, x evenly") && map.contains("Nothing moves"), "{map}");
    }
}
