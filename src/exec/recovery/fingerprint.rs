//! Everything that the outputs of a stage depend on: completed work counts only as long as none of it has changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::Kernel;
use crate::job::{Job, Source};
use crate::plan::{Plan, Role};

/// The identity of a stage's computation, on any number of ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct Identity {
    pub stage: String,
    /// Hash of the module.
    pub kernel: String,
    /// Hash of everything in the job about the stage, with its constants.
    pub definition: String,
    /// The tensors that it reads, and those that it writes.
    pub reads: Vec<String>,
    pub writes: Vec<String>,
}

/// Returns the identity of each stage of a job.
pub(in crate::exec) fn identities(job: &Job, plan: &Plan, kernels: &[&Kernel]) -> Vec<Identity> {
    let stages = job.stages.iter().zip(&plan.stages).zip(kernels).enumerate();
    stages
        .map(|(position, ((stage, planned), kernel))| {
            let mut hasher = blake3::Hasher::new_derive_key("exuvia stage 1");
            let mut note = |what: String| {
                hasher.update(&(what.len() as u64).to_le_bytes());
                hasher.update(what.as_bytes());
            };
            note(format!("{:?}", (kernel.export(), stage.combine, &stage.merge, stage.boundary)));
            for index in &planned.indices {
                note(format!("{:?}", (&index.name, index.extent, index.cut)));
            }
            for operand in &planned.operands {
                let layout = (operand.dtype, &*operand.shape, &operand.chunk, operand.deflate);
                note(format!(
                    "{:?}",
                    (&operand.tensor, operand.role, &operand.dims, &operand.scale, &operand.halo, layout)
                ));
                match job.tensors.get(&operand.tensor).map(|decl| &decl.source) {
                    Some(Source::Inline { bytes, .. }) => note(blake3::hash(bytes).to_hex().to_string()),
                    Some(Source::Create { file, dataset, .. } | Source::File { file, dataset }) => {
                        note(format!("{file:?} {dataset}"));
                    }
                    _ => {}
                }
            }
            if let Some(iterate) = job.iterate.as_ref().filter(|iterate| iterate.stages.contains(&position)) {
                let until = iterate.until.as_ref().map(|until| (&until.tensor, until.relation, until.bound.to_bits()));
                let pairs: Vec<_> = iterate.exchange.iter().map(|pair| (&pair.read, &pair.written)).collect();
                note(format!("{:?}", (&iterate.stages, iterate.count, until, pairs)));
            }
            let tensors = |role| {
                let operands = planned.operands.iter().filter(move |operand| operand.role == role);
                operands.map(|operand| operand.tensor.clone()).collect()
            };
            Identity {
                stage: stage.name.clone(),
                kernel: kernel.hash().to_owned(),
                definition: hasher.finalize().to_hex().to_string(),
                reads: tensors(Role::Input),
                writes: tensors(Role::Output),
            }
        })
        .collect()
}

/// Returns the stages that have changed since an earlier run, with the reason. If one iterated stage has changed, all
/// have.
pub(in crate::exec) fn changes(
    job: &Job,
    before: &[Identity],
    now: &[Identity],
    changed_inputs: &[String],
) -> BTreeMap<String, String> {
    let mut changed: BTreeMap<String, String> = BTreeMap::new();
    let written_by = |tensor: &String| now.iter().find(|stage| stage.writes.contains(tensor)).map(|stage| &stage.stage);
    // Twice, since an iterated stage may read the output of a later one.
    for _ in 0..2 {
        for (position, stage) in now.iter().enumerate() {
            let why = match before.iter().find(|earlier| earlier.stage == stage.stage) {
                _ if changed.contains_key(&stage.stage) => continue,
                None => Some("it is new".to_owned()),
                Some(earlier) if earlier.kernel != stage.kernel => Some("its kernel has changed".to_owned()),
                Some(earlier) if earlier.definition != stage.definition => Some("the job has changed".to_owned()),
                Some(_) => {
                    let input = stage.reads.iter().find(|tensor| changed_inputs.contains(tensor));
                    let earlier = stage.reads.iter().filter_map(written_by).find(|by| changed.contains_key(*by));
                    let iterated = job.iterate.as_ref().filter(|iterate| iterate.stages.contains(&position));
                    let other = iterated.and_then(|iterate| {
                        now[iterate.stages.clone()].iter().find(|other| changed.contains_key(&other.stage))
                    });
                    let stage = earlier.or(other.map(|other| &other.stage));
                    input
                        .map(|tensor| format!("its input '{tensor}' has changed"))
                        .or(stage.map(|stage| format!("it depends on stage '{stage}'")))
                }
            };
            changed.extend(why.map(|why| (stage.stage.clone(), why)));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Layout, Machine, plan};
    use crate::tensor::{Dtype, Shape};

    fn identity(stage: &str, kernel: &str, reads: &[&str], writes: &[&str]) -> Identity {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Identity {
            stage: stage.to_owned(),
            kernel: kernel.to_owned(),
            definition: "d".to_owned(),
            reads: names(reads),
            writes: names(writes),
        }
    }

    #[test]
    fn a_change_affects_only_the_stages_that_depend_on_it() {
        let text = "[tensors]\nx = { file = \"i\", dataset = \"x\" }\nw = { file = \"i\", dataset = \"w\" }\n\
                    a = { dtype = \"f64\" }\nb = { create = \"o\", dataset = \"b\", dtype = \"f64\" }\n\
                    c = { create = \"o\", dataset = \"c\", dtype = \"f64\" }\n\
                    [[stages]]\nname = \"one\"\nkernel = \"k\"\ncompute = \"x[n] -> a[n]\"\n\
                    [[stages]]\nname = \"two\"\nkernel = \"k\"\ncompute = \"a[n] -> b[n]\"\n\
                    [[stages]]\nname = \"three\"\nkernel = \"k\"\ncompute = \"w[n] -> c[n]\"\n";
        let job = Job::parse(text, "job.toml".as_ref()).unwrap();
        let stages = |kernels: [&str; 3]| {
            vec![
                identity("one", kernels[0], &["x"], &["a"]),
                identity("two", kernels[1], &["a"], &["b"]),
                identity("three", kernels[2], &["w"], &["c"]),
            ]
        };
        let before = stages(["k", "k", "k"]);
        let why = |now: [&str; 3], inputs: &[&str]| {
            let inputs: Vec<String> = inputs.iter().map(|name| (*name).to_owned()).collect();
            changes(&job, &before, &stages(now), &inputs).into_iter().collect::<Vec<_>>()
        };
        let pair = |stage: &str, why: &str| (stage.to_owned(), why.to_owned());
        assert_eq!(why(["k", "k", "k"], &[]), []);
        assert_eq!(why(["k", "j", "k"], &[]), [pair("two", "its kernel has changed")]);
        let first = [pair("one", "its kernel has changed"), pair("two", "it depends on stage 'one'")];
        assert_eq!(why(["j", "k", "k"], &[]), first);
        assert_eq!(why(["k", "k", "k"], &["w"]), [pair("three", "its input 'w' has changed")]);
    }

    #[test]
    fn iterated_stages_change_together() {
        let text = "[tensors]\nx = { file = \"i\", dataset = \"x\" }\ny = { dtype = \"f64\" }\n\
                    z = { create = \"o\", dataset = \"z\", dtype = \"f64\" }\n\
                    w = { create = \"o\", dataset = \"w\", dtype = \"f64\" }\n\
                    [[stages]]\nname = \"one\"\nkernel = \"k\"\ncompute = \"x[n] -> y[n]\"\n\
                    [[stages]]\nname = \"two\"\nkernel = \"k\"\ncompute = \"y[n] -> z[n]\"\n\
                    [[stages]]\nname = \"three\"\nkernel = \"k\"\ncompute = \"z[n] -> w[n]\"\n\
                    [iterate]\nstages = [\"one\", \"two\"]\ncount = 3\nexchange = [[\"x\", \"z\"]]\n";
        let job = Job::parse(text, "job.toml".as_ref()).unwrap();
        let stages = |kernels: [&str; 3]| {
            vec![
                identity("one", kernels[0], &["x"], &["y"]),
                identity("two", kernels[1], &["y"], &["z"]),
                identity("three", kernels[2], &["z"], &["w"]),
            ]
        };
        let changed = |kernels| -> Vec<String> {
            changes(&job, &stages(["k", "k", "k"]), &stages(kernels), &[]).into_keys().collect()
        };
        assert_eq!(changed(["k", "j", "k"]), ["one", "three", "two"]);
        assert_eq!(changed(["k", "k", "j"]), ["three"]);
    }

    /// A definition has everything in the job about a stage, and nothing of the machine.
    #[test]
    fn a_definition_changes_with_the_job_and_not_with_the_machine() {
        let text = "[tensors]\nx = { file = \"i\", dataset = \"x\" }\nc = { value = 7, dtype = \"f64\" }\n\
                    y = { create = \"o\", dataset = \"y\", dtype = \"f64\" }\n\
                    z = { create = \"o\", dataset = \"z\", dtype = \"f64\" }\n\
                    [[stages]]\nname = \"one\"\nkernel = \"k\"\ncompute = \"x[n~1,d], c[] -> y[n,d]\"\n\
                    boundary = \"clamp\"\n\
                    [[stages]]\nname = \"two\"\nkernel = \"k\"\ncompute = \"y[n,d] -> z[d]\"\ncombine = \"sum\"\n\
                    [iterate]\nstages = [\"one\"]\ncount = 3\nexchange = [[\"x\", \"y\"]]\n";
        let wat = "(module (memory 1) (func (export \"k\") (param i32 i32) (result i32) (i32.const 0)) \
                   (func (export \"j\") (param i32 i32) (result i32) (i32.const 0)))";
        let module = wat::parse_str(wat).unwrap();
        let definitions = |text: &str, export: &str, ranks: u32| -> Vec<String> {
            let job = Job::parse(text, "job.toml".as_ref()).unwrap();
            let layout = Layout { dtype: Dtype::F64, shape: Shape::new([600, 500]).unwrap(), chunk: None };
            let machine = Machine { ranks, ranks_per_node: ranks, threads: ranks, memory_bytes: 1 << 30 };
            let plan = plan(&job, &[("x".to_owned(), layout)].into(), &machine).unwrap();
            let kernel = Kernel::from_bytes("k", &module, Some(export)).unwrap();
            identities(&job, &plan, &[&kernel, &kernel]).into_iter().map(|identity| identity.definition).collect()
        };
        let before = definitions(text, "k", 1);
        assert_eq!(definitions(text, "k", 6), before);
        assert!(definitions(text, "j", 1).iter().zip(&before).all(|(now, before)| now != before), "another export");
        for (from, to, expected) in [
            ("value = 7", "value = 8", [true, false]),
            ("\"clamp\"", "\"periodic\"", [true, false]),
            ("n~1", "n~2", [true, false]),
            ("count = 3", "count = 4", [true, false]),
            ("\"sum\"", "\"max\"", [false, true]),
            ("dataset = \"x\"", "dataset = \"xx\"", [true, false]),
            ("dataset = \"z\", dtype = \"f64\"", "dataset = \"z\", dtype = \"f32\"", [false, true]),
            ("dataset = \"z\",", "dataset = \"z\", chunk = [10],", [false, true]),
        ] {
            let now = definitions(&text.replacen(from, to, 1), "k", 1);
            assert_eq!([now[0] != before[0], now[1] != before[1]], expected, "{to}");
        }
    }
}
