use std::fmt::Write;

use bytesize::ByteSize;

use super::{Distribution, Plan, Role, StagePlan};

/// The plan for a person, stage by stage.
pub fn render(plan: &Plan) -> String {
    let mut text = String::new();
    let machine = &plan.machine;
    let _ = writeln!(
        text,
        "job {} on {} rank(s), {} per node, {} thread(s) each, {} per rank",
        plan.job_name,
        machine.ranks,
        machine.ranks_per_node,
        machine.threads,
        ByteSize(machine.memory_bytes),
    );
    for stage in &plan.stages {
        render_stage(&mut text, stage, machine.ranks);
    }
    text
}

fn render_stage(text: &mut String, stage: &StagePlan, ranks: u32) {
    let _ = writeln!(text, "stage {}", stage.name);
    let indices =
        stage.indices.iter().map(|i| format!("{}={}{}", i.name, i.extent, if i.split { " split" } else { "" }));
    let _ = writeln!(text, "  indices   {}", indices.collect::<Vec<_>>().join(", "));
    for operand in &stage.operands {
        let role = if operand.role == Role::Input { "reads" } else { "writes" };
        let how = match operand.distribution {
            Distribution::Broadcast => "whole on every rank",
            Distribution::Split => "split",
        };
        let chunk = operand.chunk.as_ref().map(|chunk| format!(", chunks {chunk:?}")).unwrap_or_default();
        let (tensor, dtype, shape, bytes) = (&operand.tensor, operand.dtype, &operand.shape, ByteSize(operand.bytes()));
        let _ = writeln!(text, "  {role:<9} {tensor} {dtype} {shape}{chunk}: {bytes}, {how}");
    }
    let (units, first, last) = (stage.units(), stage.shard_units(0, ranks), stage.shard_units(ranks - 1, ranks));
    let _ = writeln!(text, "  units     {units} of {:?} in a grid of {:?}", stage.unit, stage.grid);
    let _ = writeln!(
        text,
        "  shards    {} to {} units per rank, in blocks of up to {}",
        (first.end - first.start).min(last.end - last.start),
        units.div_ceil(u64::from(ranks)),
        stage.block_units
    );
    let bytes = &stage.bytes;
    let _ = writeln!(
        text,
        "  bytes     {} read, {} moved, {} written; at most {} per rank",
        ByteSize(bytes.read),
        ByteSize(bytes.moved),
        ByteSize(bytes.written),
        ByteSize(stage.peak_bytes_per_rank)
    );
    for note in &stage.notes {
        let _ = writeln!(text, "  note      {note}");
    }
}
