use super::error::iec;
use crate::job::{Cut, Why};
use crate::plan::model::{Distribution, OperandPlan, Origin, Plan, Role, StageKind, StagePlan};

/// Renders the plan for the user: the indices, tiles, tensors, bytes and memory of each stage. No line is wider than
/// necessary.
pub fn render(plan: &Plan) -> String {
    let machine = &plan.machine;
    let mut lines = vec![format!(
        "plan of {}: {} ({} per node) of {}, {} per rank",
        plan.job_name,
        count(u64::from(machine.ranks), "rank"),
        machine.ranks_per_node,
        count(u64::from(machine.threads), "thread"),
        iec(plan.budget_bytes),
    )];
    for stage in &plan.stages {
        lines.push(String::new());
        stage_lines(stage, &mut lines);
    }
    let totals = plan.totals();
    lines.push(String::new());
    lines.push(format!(
        "total: read {}, moved {}, written {}; peak {} per rank",
        iec(totals.bytes.read),
        iec(totals.bytes.moved),
        iec(totals.bytes.written),
        iec(totals.peak_bytes_per_rank),
    ));
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn stage_lines(stage: &StagePlan, lines: &mut Vec<String>) {
    let kind = match stage.kind {
        StageKind::Map => "map".to_owned(),
        StageKind::Halo => "halo".to_owned(),
        StageKind::Reduce => "reduce".to_owned(),
    };
    lines.push(format!("stage {}: {kind}", stage.name));
    let mut field = |name: &str, text: String| lines.push(format!("  {name:<8} {text}"));

    let indices = stage.indices.iter().map(|index| {
        let cut = match (index.cut, index.why) {
            (Cut::Split, _) => " (split)",
            (Cut::Reduced, _) => " (reduced)",
            (Cut::Whole, Why::NamedWhole) => " (whole)",
            (Cut::Whole, _) => "",
        };
        format!("{}={}{cut}", index.name, index.extent)
    });
    field("indices", indices.collect::<Vec<_>>().join(", "));
    let rows: Vec<[String; 6]> = stage.operands.iter().map(|operand| operand_row(stage, operand)).collect();
    for (position, row) in table(&rows).into_iter().enumerate() {
        let first_output = stage.operands.iter().position(|operand| operand.role == Role::Output);
        let name = match position {
            _ if Some(position) == first_output => "outputs",
            0 => "inputs",
            _ => "",
        };
        field(name, row);
    }
    let shards = [0, stage.ranks - 1].map(|rank| stage.shard_units(rank));
    field("units", format!("{} of {}; {} per rank", stage.units(), stage.extents_text(&stage.unit), range(shards)));
    if let Some(grid) = &stage.process_grid {
        let names = stage.axis_names();
        let axes = grid.order.iter().map(|axis| format!("{} along {}", grid.parts[*axis], names[*axis]));
        field("ranks", axes.collect::<Vec<_>>().join(", "));
    }
    if let Some(rim) = stage.process_grid.as_ref().map(|grid| &grid.rim).filter(|rim| rim.iter().any(|rim| *rim > 0)) {
        let elements: Vec<u64> = rim.iter().zip(&stage.unit).map(|(rim, unit)| rim * unit).collect();
        field("borders", format!("with other ranks computed last, {} deep", stage.extents_text(&elements)));
    }
    let size = iec(stage.split_operand_bytes_max());
    field("blocks", format!("{} of at most {} ({size})", stage.block_count, stage.extents_text(&stage.block)));
    let tasks = match stage.split.is_empty() {
        true => "1, the whole stage".to_owned(),
        false => format!("{} or more: blocks are cut while running, by measured time", stage.block_count),
    };
    field("tasks", tasks);
    let bytes = stage.bytes;
    field("bytes", format!("read {}, moved {}, written {}", iec(bytes.read), iec(bytes.moved), iec(bytes.written)));
    field(
        "memory",
        format!(
            "peak {} per rank: {} broadcast, {} arena per thread",
            iec(stage.peak_bytes_per_rank),
            iec(stage.broadcast_bytes),
            iec(stage.arena_bytes),
        ),
    );
    for note in &stage.notes {
        field("note", note.clone());
    }
}

fn operand_row(stage: &StagePlan, operand: &OperandPlan) -> [String; 6] {
    let index = |(index, scale): (&usize, &u64)| match (&stage.indices[*index].name, scale) {
        (name, 1) => name.clone(),
        (name, scale) => format!("{scale}*{name}"),
    };
    let indices: Vec<String> = operand.dims.iter().zip(&operand.scale).map(index).collect();
    let origin = match operand.origin {
        Origin::File => "file",
        Origin::Created => "created",
        Origin::Scratch => "scratch",
        Origin::Inline => "inline",
    };
    let distribution = match operand.distribution {
        Distribution::Broadcast => "broadcast".to_owned(),
        Distribution::Split => "split".to_owned(),
    };
    let origin = if operand.resident { format!("{origin}, in memory") } else { origin.to_owned() };
    let mut storage = match &operand.chunk {
        Some(chunk) => format!("{origin}, chunk {chunk:?}"),
        None => origin,
    };
    if let Some(level) = operand.deflate {
        storage.push_str(&format!(", deflate {level}"));
    }
    [
        format!("{}[{}]", operand.tensor, indices.join(",")),
        operand.dtype.to_string(),
        operand.shape.to_string(),
        iec(operand.bytes()),
        distribution,
        storage,
    ]
}

/// Formats rows with their columns padded to equal width.
fn table(rows: &[[String; 6]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Formats a range as `5` or `4 to 5`, from the most and the least.
fn range([most, least]: [u64; 2]) -> String {
    if most == least { most.to_string() } else { format!("{least} to {most}") }
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
