use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::tensor::Region;

const JOB: &str = r#"
[tensors.x]
file = "x.h5"
dataset = "x"
[tensors.w]
file = "x.h5"
dataset = "w"
[tensors.y]
create = "y.h5"
dataset = "y"
dtype = "f32"
[[stages]]
name = "mul"
kernel = "k.wasm"
compute = "x[a,b,d], w[d,c] -> y[a,b,c]"
"#;

fn machine(ranks: u32) -> Machine {
    Machine { ranks, ranks_per_node: ranks, threads: 2, memory_bytes: 256 << 20 }
}

fn layout(shape: &[u64], chunk: Option<&[u64]>) -> Layout {
    Layout { dtype: Dtype::F32, shape: Shape::new(shape).unwrap(), chunk: chunk.map(<[u64]>::to_vec) }
}

fn layouts(x: Layout, w: Layout) -> BTreeMap<String, Layout> {
    [("x".to_owned(), x), ("w".to_owned(), w)].into()
}

fn planned(text: &str, x: Layout, w: Layout, machine: &Machine) -> Result<Plan, PlanError> {
    let job = Job::parse(text, Path::new("j.toml")).unwrap();
    plan(&job, &layouts(x, w), machine)
}

fn cells(region: &Region) -> Vec<Vec<u64>> {
    (0..region.rank()).fold(vec![vec![]], |all, d| {
        let extended = all.iter().flat_map(|p| (region.offset[d]..region.end(d)).map(move |i| [&p[..], &[i]].concat()));
        extended.collect()
    })
}

proptest! {
    #[test]
    fn shards_cover_everything_once_in_whole_chunks(
        (a, b) in (0u64..40, 1u64..12),
        chunk in proptest::option::of((1u64..9, 1u64..5)),
        ranks in 1u32..9,
    ) {
        let x = layout(&[a, b, 3], chunk.map(|(ca, cb)| vec![ca, cb, 3]).as_deref());
        let plan = planned(JOB, x, layout(&[3, 2], None), &machine(ranks)).unwrap();
        let stage = &plan.stages[0];
        let mut seen = std::collections::BTreeSet::new();
        let sizes: Vec<u64> = (0..ranks).map(|r| { let u = stage.shard_units(r, ranks); u.end - u.start }).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        for rank in 0..ranks {
            for block in stage.blocks(rank, ranks) {
                let read = stage.region(0, &block);
                if let Some((ca, cb)) = chunk.filter(|_| stage.split != [3]) {
                    for (d, (c, extent)) in [(ca, a), (cb, b)].into_iter().enumerate() {
                        prop_assert!(read.offset[d] % c.min(extent.max(1)) == 0, "{read} in chunks of {ca} x {cb}");
                        prop_assert!(read.end(d) % c.min(extent.max(1)) == 0 || read.end(d) == extent);
                    }
                }
                let slices = stage.slices(&block);
                let middle = slices / 2;
                for (start, len) in [(0, middle), (middle, slices - middle)] {
                    for cell in cells(&stage.region(2, &stage.task(&block, start, len))) {
                        prop_assert!(seen.insert(cell.clone()), "{cell:?} twice");
                    }
                }
            }
        }
        prop_assert_eq!(seen.len() as u64, a * b * 2);
    }
}

#[test]
fn a_plan_reads_well_at_any_number_of_ranks() {
    let text = |ranks| {
        let x = layout(&[100, 8, 3], Some(&[16, 8, 3]));
        render(&planned(JOB, x, layout(&[3, 2], None), &machine(ranks)).unwrap())
    };
    insta::assert_snapshot!(text(2), @r"
    job j on 2 rank(s), 2 per node, 2 thread(s) each, 256.0 MiB per rank
    stage mul
      indices   a=100 split, b=8 split, d=3, c=2
      reads     x f32 [100, 8, 3], chunks [16, 8, 3]: 9.4 KiB, split
      reads     w f32 [3, 2]: 24 B, whole on every rank
      writes    y f32 [100, 8, 2]: 6.2 KiB, split
      units     7 of [16, 8] in a grid of [7, 1]
      shards    3 to 4 units per rank, in blocks of up to 1
      bytes     9.4 KiB read, 24 B moved, 6.2 KiB written; at most 527.1 KiB per rank
    ");
    for ranks in [1, 3, 7] {
        assert!(text(ranks).contains(&format!("on {ranks} rank(s)")));
    }
    assert!(text(9).contains("7 of 9 ranks have work"), "{}", text(9));
}

#[test]
fn the_hash_follows_every_input() {
    let hash = |text: &str, x: &[u64], ranks| {
        planned(text, layout(x, None), layout(&[3, 2], None), &machine(ranks)).unwrap().hash()
    };
    let base = hash(JOB, &[9, 4, 3], 2);
    assert_eq!(base, hash(JOB, &[9, 4, 3], 2));
    assert_ne!(base, hash(JOB, &[8, 4, 3], 2));
    assert_ne!(base, hash(JOB, &[9, 4, 3], 3));
    assert_ne!(base, hash(&JOB.replace("k.wasm", "l.wasm"), &[9, 4, 3], 2));
}

#[test]
fn huge_plans_are_small() {
    let x = layout(&[1_000_000_000, 8, 3], Some(&[1, 8, 3]));
    let plan = planned(JOB, x, layout(&[3, 2], None), &machine(100_000)).unwrap();
    let stage = &plan.stages[0];
    assert_eq!(stage.units(), 1_000_000_000);
    let last = stage.blocks(99_999, 100_000).last().unwrap();
    assert_eq!(last.0.end(0), 1_000_000_000);
}

#[test]
fn what_disagrees_is_named_on_both_sides() {
    let error = |text: &str, x: &[u64], w: &[u64]| {
        planned(text, layout(x, None), layout(w, None), &machine(2)).unwrap_err().to_string()
    };
    assert_eq!(error(JOB, &[9, 4, 3], &[5, 2]), "stage 'mul': index 'd' is 5 in w[d,c], but 3 in x[a,b,d]");
    assert!(error(JOB, &[9, 4], &[3, 2]).contains("x[a,b,d] has 3 indices, but tensor 'x' has 2 dimensions [9, 4]"));
    assert!(error(&JOB.replace("y[a,b,c]", "y[a,b,z]"), &[9, 4, 3], &[3, 2]).contains("sizes = { z = ... }"));
    let over = error(JOB, &[9, 4, 1 << 20], &[1 << 20, 100]);
    assert!(over.contains("'x' is the largest part with 150994944 bytes"), "{over}");
}
